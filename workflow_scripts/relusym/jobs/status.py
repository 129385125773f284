"""The progress of a scale: for each kind of job, how many are done, running, failed and to do, and the hours."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from tabulate import tabulate

from relusym.errors import UserError
from relusym.jobs.job_lock import is_held
from relusym.jobs.job_log import last_words
from relusym.records.files import load_record

STATES = ("done", "running", "failed", "to do")
NAMED = 8  # the number of failed jobs that are listed with their error


@dataclass(frozen=True)
class KindStatus:
    """One kind of job: the number of jobs by state (see `STATES`), of finished jobs by `status` and by device; the logs
    of failed jobs.

    `hours_spent` counts only the last run of an interrupted job; `hours_to_go` is None if no job of the kind is done.
    """

    kind: str
    counts: Counter[str]
    outcomes: Counter[str]
    devices: Counter[str]
    failed: list[Path]
    hours_spent: float
    hours_to_go: float | None


def kind_status(kind: str, jobs: dict[str, bool], folder: Path) -> KindStatus:
    """The status of all jobs of one kind.

    `jobs`: name, `<kind>/<types>-<fingerprint>/<seeds>`, → whether the job is done. The scale's results, `folder`, have
    files of these names in `records` and `logs`. A job has failed if its log shows an error and it has no record; its
    lock is beside its log (job.py). The hours to go are the number of unfinished jobs times the mean of the finished
    ones, by type of net (or pair of types) where any of the type is finished.
    """
    counts, outcomes, devices, open_types, failed = Counter(), Counter(), Counter(), Counter(), []
    hours: dict[str, list[float]] = defaultdict(list)
    for name, is_done in jobs.items():
        log, path = folder / "logs" / f"{name}.log", folder / "records" / f"{name}.json"
        if is_done:
            try:
                record = load_record(path)
            except UserError:  # reported already at the start of the run
                record = {"status": "broken", "cost": {}}
            if seconds := record["cost"].get("job_seconds"):
                hours[type_of(name)].append(seconds / 3600)
        if is_held(log.with_suffix(".lock")):
            state = "running"
        elif is_done:
            state = "done"
            outcomes[record["status"]] += 1
            devices[record.get("code", {}).get("device", "cpu").split()[0]] += 1
        elif not path.exists() and last_words(log):
            state = "failed"
            failed.append(log)
        else:
            state = "to do"
        counts[state] += 1
        if state != "done":
            open_types[type_of(name)] += 1
    every = [each for several in hours.values() for each in several]
    to_go = None
    if every or not open_types:
        means = {type_: mean(several) for type_, several in hours.items()}
        to_go = sum((n * means.get(type_, mean(every)) for type_, n in open_types.items()), 0.0)
    return KindStatus(kind, counts, outcomes, devices, failed, sum(every), to_go)


def type_of(name: str) -> str:
    """The type of a job's nets: cnn for train/cnn-3f9a1c2b/3, cnn--gcnn for pair_merge/cnn--gcnn-3f9a1c2b/3--3."""
    return name.split("/")[1].rpartition("-")[0]


def screen(title: str, kinds: Sequence[KindStatus]) -> str:
    """The status as a text of about 90 columns; hours are GPU hours unless all jobs so far ran on CPUs."""
    device = "CPU" if set().union(*(kind.devices for kind in kinds)) == {"cpu"} else "GPU"
    header = ["kind", "jobs", *STATES, "left out", f"{device}-h spent", f"{device}-h to go"]
    rows = [
        [
            kind.kind,
            kind.counts.total(),
            *(kind.counts[state] for state in STATES),
            kind.outcomes.total() - kind.outcomes["ok"],
            kind.hours_spent,
            kind.hours_to_go,
        ]
        for kind in kinds
    ]
    sums = [None if None in column else sum(column) for column in list(zip(*rows, strict=True))[1:]]
    table = tabulate([*rows, ["all", *sums]], header, tablefmt="plain", floatfmt=".2f", missingval="?")
    notes = [
        f"{kind.kind}: {number} {outcome.replace('_', ' ')}"
        for kind in kinds
        for outcome, number in sorted(kind.outcomes.items())
        if outcome != "ok"
    ]
    failed = [log for kind in kinds for log in kind.failed]
    notes += [f"failed: {log}: {last_words(log)}" for log in failed[:NAMED]]
    notes += [f"failed: {len(failed) - NAMED} more"] * (len(failed) > NAMED)
    return "\n".join([title, table, *notes])
