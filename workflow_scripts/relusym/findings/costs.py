"""The table of costs: what each kind of job took, from Snakemake's benchmark files.

about: benchmarks (the folder `…/benchmarks`).
"""

import csv
import math
from collections.abc import Iterable
from csv import DictReader
from itertools import chain
from pathlib import Path

import pandas as pd

from relusym.errors import UserError
from relusym.findings import About, Inputs, kinds_of
from relusym.findings.layout import Layout
from relusym.records.fields import nets_of

NOT_MEASURED = "NA", "-", ""
LAYOUT = Layout(
    "Costs: what each kind of job took",
    {
        "kind": "Kind of job",
        "jobs": "Jobs",
        "hours": "Hours in all",
        "median_s": "Median (s)",
        "max_s": "Longest (s)",
        "max_memory_mb": "Most memory (MB)",
    },
    {"hours": "{:.3f}", "median_s": "{:.1f}", "max_s": "{:.1f}", "max_memory_mb": "{:.0f}"},
)


def costs(benchmark_files: Iterable[str | Path]) -> pd.DataFrame:
    """What each kind of job cost: kind, jobs, hours (wall clock, in all), median_s, max_s, max_memory_mb.

    Args:
        benchmark_files: snakemake's `…/benchmarks/{kind}/*.tsv`; the folder's name is the kind. Missing and
            empty files are passed over, as are values that snakemake couldn't measure ("NA", "-").

    Raises:
        UserError: a file isn't as Snakemake writes them (named).

    The memory is the largest resident set of one job, in MB as snakemake counts them (2²⁰ bytes).
    """
    rows = [
        (path.parent.name, row.get("s"), row.get("max_rss"))
        for path in map(Path, benchmark_files)
        if path.is_file()
        for row in _rows(path)
    ]
    runs = pd.DataFrame(rows, columns=["kind", "s", "max_rss"])
    runs[["s", "max_rss"]] = runs[["s", "max_rss"]].apply(pd.to_numeric, errors="coerce")
    table = (
        runs.dropna(subset=["s"])
        .groupby("kind", sort=False)
        .agg(
            jobs=("s", "size"),
            hours=("s", "sum"),
            median_s=("s", "median"),
            max_s=("s", "max"),
            max_memory_mb=("max_rss", "max"),
        )
    )
    table["hours"] /= 3600
    return table.reset_index()


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        rows = list(DictReader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t"))
        measured = [row[column] for row in rows for column in ("s", "max_rss")]
        if any(value not in NOT_MEASURED and not 0 <= float(value) < math.inf for value in measured):
            raise ValueError("numbers below 0")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"benchmark file {path} is none of Snakemake's ({error}): delete it") from error
    return rows


def frame(inputs: Inputs, about: About) -> pd.DataFrame:
    """As `costs`, of the benchmark files that are there."""
    found = []
    for record in chain(*(inputs[kind] for kind in kinds_of("costs"))):
        name = "--".join(f"{model}-{seed}" for model, seed in nets_of(record))
        found.append(f"{about['benchmarks']}/{record['kind']}/{name}.tsv")
    return costs(found)


def beside(records: Iterable[str]) -> list[str]:
    """The benchmark files that are there, by the paths of the records."""
    files = (path.replace("/records/", "/benchmarks/").removesuffix("json") + "tsv" for path in records)
    return [file for file in files if Path(file).is_file()]


def notes(inputs: Inputs, about: About) -> list[str]:
    return []
