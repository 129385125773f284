"""Rule bench: time this project against the plain procedure; write and print the ratios."""

import sys
from pathlib import Path

import pandas as pd

from benchmark.side_by_side import benchmark
from benchmark.sides import device_name, slug
from job import job
from relusym.measuring.loading import device_named
from relusym.whole_files import write_text


def in_words(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if pd.isna(value) else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":  # the processes of the benchmark import this file too
    terminal = sys.stderr
    with job(snakemake):
        root, device = Path(snakemake.params.root), device_named(snakemake.params.device)
        name = device_name(device, snakemake.threads)
        rows = benchmark(root, device, snakemake.threads)
        rows.insert(0, "machine", name)
        columns = rows[["what", "unit", "here", "plain", "ratio", "goal", "reached", "agrees"]].map(in_words)
        table = f"{name}\n\n{columns.to_markdown(index=False, disable_numparse=True)}\n"
        path = Path("results/bench") / f"{slug(name)}.csv"
        write_text(path, rows.to_csv(index=False, float_format="%.5g", lineterminator="\n"))
        write_text(path.with_suffix(".md"), table)
        for stream in (sys.stdout, terminal):
            print(f"{table}\n{path}", file=stream)
