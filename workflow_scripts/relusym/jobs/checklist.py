"""Checks before a grid is submitted to a cluster; each problem is reported as one line with the setting to change."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ANSWER_WITHIN = 30  # seconds


class Submission(NamedTuple):
    """How a rule's jobs are submitted: partition or "" for the default, longest attempt's minutes, sbatch's options."""

    rule: str
    partition: str
    minutes: int
    options: str


def slurm_problems(submissions: Iterable[Submission], status_command: str, profile: str) -> list[str]:
    """The problems with Slurm on this machine, and with the jobs to submit to it; `status_command`: the `profile`'s."""
    absent = [name for name in ("sbatch", "srun", "squeue", "sinfo") if shutil.which(name) is None]
    if absent:
        return [
            f"{', '.join(absent)}: not found; run snakemake on a node that may submit jobs, or load the site's module "
            "for Slurm"
        ]
    answered, partitions = _run("sinfo --noheader --format=%P|%l")
    if not answered:
        return [
            "Slurm's controller doesn't answer (`scontrol ping`); wait until it does, or run snakemake on a node that "
            "may submit jobs"
        ]
    problems = []
    if status_command == "sacct" and shutil.which("sacct") and not _run("sacct --noheader")[0]:
        problems.append(
            f"{profile}: slurm-status-command: sacct, but this Slurm keeps no accounts; set it to squeue"
        )
    lines = (line for line in partitions.splitlines() if "|" in line)  # others are warnings
    limits = dict(line.split("|") for line in lines)  # the default partition's name ends in *
    default = next((name.rstrip("*") for name in limits if name.endswith("*")), None)
    limits = {name.rstrip("*"): _minutes(limit) for name, limit in limits.items()}
    for rule, partition, minutes, options in submissions:
        accepted, answer = _run(f"sbatch --test-only {options} --wrap=true")
        limit = limits.get(partition or default)
        if not accepted:
            why = " ".join(answer.split()).rpartition("failure: ")[2]
            problems.append(
                f"{profile}: Slurm refuses {rule}: {why} (`sbatch --test-only {options}`); set slurm_partition to one "
                f"of {', '.join(limits)} that has what it asks for and nodes that are up, or set-resources, or "
                "--config device=cpu where no GPU is"
            )
        elif limit is not None and minutes > limit:  # most sites let such a job wait in the queue for ever
            problems.append(
                f"{profile}: {rule} asks for up to {minutes} minutes and partition {partition or default} allows "
                f"{limit}; set `set-resources: {{{rule}: {{runtime: {limit}}}}}` (less if jobs are packed) "
                "or slurm_partition"
            )
    return problems


def _minutes(limit: str) -> int | None:
    """sinfo's `1-02:30:00` in minutes; None if it is `infinite`."""
    days, _, clock = limit.rpartition("-")
    if not clock.replace(":", "").isdigit():
        return None
    hours, minutes, _ = [0, 0, *map(int, clock.split(":"))][-3:]
    return (int(days or 0) * 24 + hours) * 60 + minutes


def command_problems(command: str) -> list[str]:
    """A line for each command of a shell command line that isn't found."""
    parts = (part.split() for part in re.split(r"&&|\|\||;|\|", command))
    wanted = (next((word for word in words if "=" not in word), None) for words in parts)
    return [
        f"{name}: not found; run snakemake on a node that may submit jobs, or load the site's module for the scheduler"
        for name in filter(None, wanted)
        if not _run(shlex.join(["sh", "-c", 'command -v "$0"', name]))[0]
    ]


def in_the_way(folders: Iterable[str | Path], files: Iterable[str | Path] = ()) -> str | None:
    """A line about the first non-folder where a run needs a folder, or non-file where it needs a file; None if none."""
    for folder in folders:
        for path in [*reversed(Path(folder).parents), Path(folder)]:
            if (path.exists() or path.is_symlink()) and not path.is_dir():
                return f"{path} isn't a folder, and one belongs there: move it away"
    for file in map(Path, files):
        if file.exists() and not file.is_file():
            return f"{file} isn't a file, and one belongs there: move it away"
    return None


def _run(command: str) -> tuple[bool, str]:
    """Whether a command succeeded in time, and what it printed."""
    try:
        answer = subprocess.run(
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=ANSWER_WITHIN,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return False, str(error)
    return answer.returncode == 0, answer.stdout
