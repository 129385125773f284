"""Rule bench: time this project against the plain procedure, and write and print the ratios."""

import sys
from pathlib import Path

from job import job
from relusym.benchmark.machine import device_name, slug
from relusym.benchmark.side_by_side import benchmark
from relusym.measuring import device_of
from relusym.records import write_whole

if __name__ == "__main__":  # the processes of the benchmark import this file too
    terminal = sys.stderr
    with job(snakemake):
        device = device_of(snakemake.params.device)
        name = device_name(device, snakemake.threads)
        rows = benchmark(
            snakemake.params.settings,
            snakemake.params.paper,
            Path(snakemake.params.root),
            device,
            snakemake.threads,
        )
        rows.insert(0, "machine", name)
        shown = rows[["what", "unit", "here", "plain", "ratio", "goal", "reached", "agrees"]]
        table = f"{name}\n\n{shown.to_markdown(index=False, floatfmt='.3g', missingval='')}\n"
        path = Path("results/bench") / f"{slug(name)}.csv"
        with write_whole(path) as part:
            rows.to_csv(part, index=False, float_format="%.5g", lineterminator="\n")
        with write_whole(path.with_suffix(".md")) as part:
            part.write_text(table, encoding="utf-8")
        for stream in (sys.stdout, terminal):
            print(f"{table}\n{path}", file=stream)
