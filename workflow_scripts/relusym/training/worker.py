"""One of several processes that train a ResNet together: torchrun starts `python -m relusym.training.worker JOB`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from relusym.experiments.measuring import device_of
from relusym.experiments.resnet_measuring import train_row
from relusym.records import write_record
from relusym.training.distributed import process_group, rank
from relusym.training.loop import Progress
from relusym.training.progress import Reporter

PATHS = ("images", "to", "pretrained", "state")


def run(job: dict[str, Any], report: Callable[[Progress], None]) -> dict[str, Any]:
    """The training that a job, as plain JSON, tells of; `train_row`'s record."""
    given = {key: Path(value) if key in PATHS and value else value for key, value in job.items()}
    return train_row(**{**given, "device": device_of(job["device"])}, report=report)


def main(path: str) -> None:
    """What a process of torchrun's does; the first one writes the record to the job's `result`."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    result = job.pop("result")
    with process_group(device_of(job["device"])):
        record = run(job, Reporter(f"{job['row']} {job['stage']}", sys.stdout))
        if rank() == 0:
            write_record(result, record)


if __name__ == "__main__":
    main(sys.argv[1])
