"""One of several processes that train a net together: `training.distributed.launch` starts this module."""

import sys
from collections.abc import Callable
from typing import Any

from relusym.measuring.train import TrainJob, train_record
from relusym.training.distributed import work
from relusym.training.progress import Reporter


def run(plain: dict[str, Any], interrupted: Callable[[], bool]) -> dict[str, Any]:
    """`train_record` of a job as plain values."""
    job = TrainJob.of(plain)
    return train_record(job, interrupted=interrupted, report=Reporter(job.name, sys.stdout))


if __name__ == "__main__":
    work(run)
