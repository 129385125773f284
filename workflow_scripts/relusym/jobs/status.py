"""How far a scale is: of each kind of job done, running, failed and to do, what came of it, and what it costs."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from relusym.errors import UserError
from relusym.findings.costs import costs
from relusym.jobs.job_lock import is_held
from relusym.records import read_record

STATES = ("done", "running", "failed", "to do")


@dataclass(frozen=True)
class KindStatus:
    """One kind of job.

    Attributes:
        counts: jobs by state, of `STATES`.
        outcomes: jobs that are done by the `status` in their records.
        devices: jobs that are done by what they ran on ("cpu", "cuda").
        hours_spent: in the jobs benchmarked, of which an interrupted one has only its last run.
        hours_to_go: None if no job of the kind has been benchmarked.
    """

    kind: str
    counts: Counter[str]
    outcomes: Counter[str]
    devices: Counter[str]
    hours_spent: float
    hours_to_go: float | None


def state_of(record: Path, settings: dict[str, Any] | None, log: Path) -> tuple[str, dict[str, Any] | None]:
    """A job's state, of `STATES`, and its record if it is done. "failed" is whatever left a log and no record.

    Args:
        record: the job's record.
        settings: that the record has to be made with; None takes any.
        log: of the job; its lock lies beside it (job.py).
    """
    if is_held(log.with_suffix(".lock")):
        return "running", None
    try:
        found = read_record(record)
    except UserError:
        return ("failed" if log.exists() else "to do"), None
    if settings is not None and found["settings"] != settings:
        return "to do", None
    return "done", found


def kind_status(
    kind: str, wanted: dict[str, dict[str, Any] | None], logs: Path, benchmarks: Path, records: Path
) -> KindStatus:
    """The status of all jobs of one kind.

    Args:
        kind: name of its folder in `logs`, `benchmarks` and `records`.
        wanted: record → settings that it has to be made with.

    The hours to go are the jobs not done times the mean of those benchmarked, each type of net (or pair of types) with
    its own mean if it has one.
    """
    counts, outcomes, devices, open_types = (Counter() for _ in range(4))
    for record in map(Path, wanted):
        name = record.relative_to(records / kind).with_suffix("")
        state, found = state_of(record, wanted[str(record)], logs / kind / f"{name}.log")
        counts[state] += 1
        if found:
            outcomes[found["status"]] += 1
            devices[found.get("code", {}).get("device", "cpu").split()[0]] += 1
        else:
            open_types[type_of(str(name))] += 1
    files = sorted((benchmarks / kind).glob("*.tsv"))
    hours = {
        type_: _hours(f for f in files if type_of(f.stem) == type_)
        for type_ in {type_of(f.stem) for f in files}
    }
    measured = [hour for of_type in hours.values() for hour in of_type]
    to_go = None
    if measured or not open_types:
        to_go = sum(count * mean(hours.get(type_) or measured) for type_, count in open_types.items())
    return KindStatus(kind, counts, outcomes, devices, sum(measured), to_go)


def type_of(name: str) -> str:
    """A job's name without its seeds: cnn of cnn-3, cnn--gcnn of cnn-3--gcnn-3."""
    return "--".join(part.rpartition("-")[0] or part for part in name.split("--"))


def _hours(files: Iterable[Path]) -> list[float]:
    tables = (costs([file]) for file in files)
    return [float(table["hours"].iloc[0]) for table in tables if len(table)]


def screen(title: str, kinds: Sequence[KindStatus]) -> str:
    """The whole as text of some 90 columns; hours are those of GPUs unless all jobs so far ran without."""
    devices = sum((kind.devices for kind in kinds), Counter())
    device = "CPU" if set(devices) == {"cpu"} else "GPU"
    heads = ["kind", "jobs", *STATES, "left out", f"{device}-h spent", f"{device}-h to go"]
    rows, notes = [], []
    for kind in kinds:
        left_out = {outcome: n for outcome, n in sorted(kind.outcomes.items()) if outcome != "ok"}
        notes += [f"{kind.kind}: {n} {outcome.replace('_', ' ')}" for outcome, n in left_out.items()]
        rows.append(
            [
                kind.kind,
                str(kind.counts.total()),
                *(str(kind.counts[state]) for state in STATES),
                str(sum(left_out.values())),
                f"{kind.hours_spent:.2f}",
                "?" if kind.hours_to_go is None else f"{kind.hours_to_go:.2f}",
            ]
        )
    to_go = [kind.hours_to_go for kind in kinds]
    rows.append(
        [
            "all",
            *(str(sum(int(row[column]) for row in rows)) for column in range(1, 7)),
            f"{sum(kind.hours_spent for kind in kinds):.2f}",
            "?" if None in to_go else f"{sum(to_go):.2f}",
        ]
    )
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    lines = [
        "  ".join(
            cell.ljust(w) if not i else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [heads, *rows]
    ]
    return "\n".join([title, *lines, *notes])
