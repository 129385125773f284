"""What became of a run: which jobs failed, why, and the command that runs them again."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# A scheduler's states, in words
EXPLAINED = {
    "TIMEOUT": "out of time, in its last attempt as well; set a longer runtime",
    "OUT_OF_MEMORY": "out of memory, in its last attempt as well; set a larger mem_mb",
    "CANCELLED": "cancelled",
    "NODE_FAIL": "its node died",
}


@dataclass(frozen=True)
class Failure:
    """A job that failed for good: its name, its log, and the id under which Snakemake submitted it."""

    job: str
    log: Path | None
    number: str


def summary(failures: Sequence[Failure], undone: int, command: str, snakemake_log: str = "") -> str:
    """One line a failed job with its reason, what the failures held up, and the one command to go on with.

    Args:
        undone: how many other jobs were left undone.
        command: that was typed.
        snakemake_log: text of Snakemake's own log, where Slurm's word on a job is found.
    """
    failed = f"{len(failures)} job{'s' * (len(failures) != 1)} failed"
    held_up = f", {undone} more left undone" if undone else ""
    lines = [f"  {failure.job}: {reason(failure, snakemake_log)}" for failure in failures]
    return "\n".join(
        [f"{failed}{held_up}:", *lines, "Run these, and nothing that is done, with:", f"  {command}"]
    )


def reason(failure: Failure, snakemake_log: str = "") -> str:
    """Why a job failed: the error in its log, else what Slurm said of its last attempt, else where to look."""
    errors = []
    if failure.log is not None and failure.log.exists():
        lines = failure.log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if re.match(r"error: |[\w.]*(Error|Exception|Interrupt)\b", line)]
    where = f"see {failure.log or 'the log of Snakemake'}"
    submitted = re.findall(
        rf"^Job {re.escape(failure.number)} has been submitted with SLURM jobid (\d+)",
        snakemake_log,
        re.MULTILINE,
    )
    states = dict(re.findall(r"SLURM-job '(\d+)' failed, SLURM status is: '(\w+)'", snakemake_log))
    state = states.get(submitted[-1]) if submitted else None
    if errors and state not in EXPLAINED:
        return errors[-1].removeprefix("error: ")
    if state is not None:
        return f"{EXPLAINED.get(state, f'Slurm says {state}')} (Slurm job {submitted[-1]}); {where}"
    return f"it ended without a word; {where}"
