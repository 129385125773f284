"""What has to be in order before a grid is submitted to a cluster; each problem is one line that says what to set."""

import re
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from relusym import cifar10
from relusym.errors import UserError

PROFILE = "profiles/slurm/config.yaml"
ANSWER_WITHIN = 30  # seconds
DOWNLOADED_FROM = ("www.cs.toronto.edu", 443)  # torchvision's CIFAR10


class Submission(NamedTuple):
    """What jobs of a rule are submitted with: a partition or "", the most minutes of any attempt, sbatch's options."""

    rule: str
    partition: str
    minutes: int
    options: str


def slurm_problems(submissions: Iterable[Submission], status_command: str | None) -> list[str]:
    """What is wrong between this machine, Slurm and the jobs to submit; empty if nothing is.

    Args:
        status_command: the profile's `slurm-status-command`.
    """
    absent = [name for name in ("sbatch", "srun", "squeue", "sinfo") if shutil.which(name) is None]
    if absent:
        return [
            f"{', '.join(absent)}: not found; run snakemake on a node that may submit jobs, or load the site's module "
            "for Slurm"
        ]
    answers, shown = _asked("scontrol show config")
    if not answers:
        return [
            "Slurm's controller doesn't answer (`scontrol ping`); wait until it does, or run snakemake on a node that "
            "may submit jobs"
        ]
    settings = dict(re.findall(r"^(\w+)\s*= *(.*)$", shown, re.MULTILINE))
    return [*_status_problems(settings, status_command), *_submission_problems(submissions)]


def _status_problems(settings: dict[str, str], command: str | None) -> list[str]:
    age = int(re.match(r"\d*", settings.get("MinJobAge", ""))[0] or 0)
    accounting = "none" not in settings.get("AccountingStorageType", "none")
    if command == "squeue":
        if age >= 180:
            return []
        advice = "set slurm-status-command: sacct" if accounting else "ask the site's administrators for more"
        return [f"{PROFILE}: slurm-status-command: squeue, but Slurm forgets jobs after {age} s; {advice}"]
    if accounting:
        return []
    return [f"{PROFILE}: slurm-status-command: {command}, but this Slurm keeps no accounts; set it to squeue"]


def _submission_problems(submissions: Iterable[Submission]) -> list[str]:
    _, shown = _asked("scontrol --oneliner show partition")
    partitions = re.findall(
        r"^PartitionName=(\S+).* Default=(\w+).* MaxTime=(?:(\d+)-)?(\S+)", shown, re.MULTILINE
    )
    limits = {
        name: (int(days or 0) * 24 + int(clock[:2])) * 60 + int(clock[3:5])
        for name, _, days, clock in partitions
        if clock[:2].isdigit()  # not UNLIMITED
    }
    default = next((name for name, is_default, *_ in partitions if is_default == "YES"), None)
    problems = []
    for rule, partition, minutes, options in submissions:
        accepted, answer = _asked(f"sbatch --test-only {options} --wrap=true")
        limit = limits.get(partition or default)
        if not accepted:
            why = " ".join(answer.split()).rpartition("failure: ")[2]
            problems.append(
                f"{PROFILE}: Slurm refuses {rule}: {why} (`sbatch --test-only {options}`); set slurm_partition to one "
                f"of {', '.join(name for name, *_ in partitions)} that has what it asks for and nodes that are up, or "
                "set-resources, or --config device=cpu where no GPU is"
            )
        elif limit is not None and minutes > limit:  # most sites let such a job wait in the queue for ever
            problems.append(
                f"{PROFILE}: {rule} asks for up to {minutes} minutes and partition {partition or default} allows "
                f"{limit}; set `set-resources: {{{rule}: {{runtime: {limit}}}}}` (less if jobs are packed) "
                "or slurm_partition"
            )
    return problems


def command_problems(command: str) -> list[str]:
    """Which commands a line of shell needs that this machine lacks."""
    wanted = [part.split()[0] for part in re.split(r"&&|\|\||;|\|", command) if part.strip()]
    return [
        f"{name}: not found; run snakemake on a node that may submit jobs, or load the site's module for the scheduler"
        for name in wanted
        if shutil.which(name) is None
    ]


def in_the_way(folders: Iterable[str | Path]) -> str | None:
    """One line on the first file that stands where a folder belongs; None if there is none."""
    for folder in folders:
        for path in [*reversed(Path(folder).parents), Path(folder)]:
            if (path.exists() or path.is_symlink()) and not path.is_dir():
                return f"{path} isn't a folder, and one belongs there: move it away"
    return None


def folder_problems(folder: Path) -> list[str]:
    """Why `folder` can't be written; empty if it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return [f"{folder} can't be written ({error.strerror}): free space, or run in a folder that can"]
    return []


def data_problems(prepared: Path, spec: dict[str, Any], key: str) -> list[str]:
    """Why images can't be prepared on this machine; empty if they are there or can be.

    Args:
        prepared: the file of prepared images.
        spec, key: as `Settings.preparation` gives them.
    """
    if prepared.exists() or spec["kind"] == "generated":
        return []
    root = Path(spec["root"])
    if spec["kind"] in cifar10.VERSIONS:
        try:
            cifar10.find(root, spec["kind"], key)
        except UserError as error:
            return [str(error)]
        return []
    if spec["kind"] != "torchvision":
        splits = [root / spec[split] for split in ("train", "test", "val") if split in spec]
        return [
            f"{key}.root: the folder {folder} is missing; set {key}.root to the tree of images"
            for folder in splits
            if not folder.is_dir()
        ]
    if (root / "cifar-10-batches-py").is_dir():
        return []
    try:
        socket.create_connection(DOWNLOADED_FROM, timeout=10).close()
    except OSError:
        return [
            f"{key}.root: {root} holds no CIFAR10 and {DOWNLOADED_FROM[0]} can't be reached from here; unpack "
            f"cifar-10-python.tar.gz there, or set {key}.source: binary, python or folder, and {key}.root"
        ]
    return []


def _asked(command: str) -> tuple[bool, str]:
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
