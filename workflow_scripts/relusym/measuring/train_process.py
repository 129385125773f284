"""One of several processes that train a net together: `training.distributed.launch` starts this module."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from relusym.measuring.costs import device_of
from relusym.measuring.train import train_record
from relusym.training.distributed import work
from relusym.training.progress import Reporter

PATHS = "data", "to", "folder", "start", "started", "state"


def as_job(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `train_record` as JSON."""
    return {key: str(value) if key in PATHS and value else value for key, value in given.items()} | {
        "device": str(given["device"])
    }


def run(job: dict[str, Any], interrupted: Callable[[], bool]) -> dict[str, Any]:
    """`train_record` of such arguments."""
    given = {key: Path(value) if key in PATHS and value else value for key, value in job.items()}
    report = Reporter(f"{job['unit']}-{job['seed']}", sys.stdout)
    return train_record(
        **{**given, "device": device_of(job["device"])}, interrupted=interrupted, report=report
    )


if __name__ == "__main__":
    work(run)
