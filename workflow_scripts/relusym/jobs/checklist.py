"""What has to be in order before a grid is submitted to a cluster; each problem is one line that says what to set."""

import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROFILE = "profiles/slurm/config.yaml"
ANSWER_WITHIN = 30  # seconds
DOWNLOADED_FROM = ("www.cs.toronto.edu", 443)  # torchvision's CIFAR10


@dataclass(frozen=True)
class Request:
    """What the jobs of one rule ask Slurm for: a partition or None, `minutes` at most of all attempts, any `gpu`."""

    rule: str
    partition: str | None
    minutes: int
    gpu: bool


def slurm_problems(requests: Iterable[Request], status_command: str | None) -> list[str]:
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
    answer = _asked("scontrol", "show", "config")
    if answer is None:
        return [
            "Slurm's controller doesn't answer (`scontrol ping`); wait until it does, or run snakemake on a node that "
            "may submit jobs"
        ]
    settings = dict(re.findall(r"^(\w+)\s*= *(.*)$", answer, re.MULTILINE))
    return [*_status_problems(settings, status_command), *_partition_problems(requests)]


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


def _partition_problems(requests: Iterable[Request]) -> list[str]:
    partitions: dict[str, tuple[int | None, bool]] = {}  # a partition may have several lines, of unlike nodes
    default = None
    for line in (_asked("sinfo", "--noheader", "--format=%P|%l|%G") or "").splitlines():
        name, limit, devices = line.strip().split("|")
        default = name[:-1] if name.endswith("*") else default
        name = name.rstrip("*")
        has = bool(re.search(r"\b(gpu|shard|mps)", devices)) or partitions.get(name, (0, False))[1]
        partitions[name] = minutes_of(limit), has
    problems = []
    for request in requests:
        name = request.partition or default
        with_gpus = ", ".join(n for n, (_, has) in partitions.items() if has) or "none of this site has"
        if name is None:
            problems.append(
                f"{PROFILE}: {request.rule} names no partition and Slurm has no default; set slurm_partition to one "
                f"of {', '.join(partitions)}"
            )
        elif name not in partitions:
            problems.append(
                f"{PROFILE}: slurm_partition: {name} doesn't exist; set it to one of {', '.join(partitions)}"
            )
        else:
            limit, has = partitions[name]
            if request.gpu and not has:
                problems.append(
                    f"{PROFILE}: {request.rule} asks for a GPU and partition {name} has none; set slurm_partition "
                    f"to one that has ({with_gpus}), or --config device=cpu"
                )
            if limit is not None and request.minutes > limit:
                problems.append(
                    f"{PROFILE}: {request.rule} asks for up to {request.minutes} minutes and partition {name} allows "
                    f"{limit}; set `set-resources: {{{request.rule}: {{runtime: {limit}}}}}` or slurm_partition"
                )
    return list(dict.fromkeys(problems))


def folder_problems(folder: Path) -> list[str]:
    """Why `folder` can't be written; empty if it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return [f"{folder} can't be written ({error.strerror}): free space, or run in a folder that can"]
    return []


def data_problems(data: Path, dataset: str, cifar10: dict[str, Any]) -> list[str]:
    """Why the prepared images `data`, which aren't there, can't be prepared on this machine; empty if they can.

    Args:
        dataset: "generated" or "cifar10".
        cifar10: the config's section.
    """
    if data.exists() or dataset == "generated":
        return []
    root = Path(cifar10["root"])
    if cifar10["source"] == "folder":
        absent = [
            root / split for split in (cifar10["train"], cifar10["test"]) if not (root / split).is_dir()
        ]
        return [
            f"cifar10.root: the folder {folder} is missing; set cifar10.root to the tree of images"
            for folder in absent
        ]
    if (root / "cifar-10-batches-py").is_dir():
        return []
    try:
        socket.create_connection(DOWNLOADED_FROM, timeout=10).close()
    except OSError:
        return [
            f"cifar10.root: {root} holds no CIFAR10 and {DOWNLOADED_FROM[0]} can't be reached from here; unpack "
            "cifar-10-python.tar.gz there, or set cifar10.source: folder and cifar10.root"
        ]
    return []


def minutes_of(limit: str) -> int | None:
    """Slurm's time limit, such as 1-02:30:00, in minutes; None if there is none."""
    if not re.fullmatch(r"(\d+-)?[\d:]+", limit):
        return None
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes = (parts[0], parts[1]) if len(parts) == 3 else (0, parts[0])
    return (int(days or 0) * 24 + hours) * 60 + minutes


def _asked(*command: str) -> str | None:
    """What a command printed; None if it failed or took too long."""
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=ANSWER_WITHIN,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout
