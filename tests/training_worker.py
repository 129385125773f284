"""One of several processes of a training whose net has no batch norm, so that two processes exactly equal one.

Batch norm uses only the images of its process (SyncBatchNorm would use all, but needs GPUs).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from small_training import VGG_RECIPE, small_images, small_net, train_on

from relusym import checkpoint
from relusym.errors import UserError
from relusym.training.distributed import rank, work, world_size


def run(job, interrupted=lambda: False):
    """Train for three epochs of six steps; in the third, a fault named by a file of the folder hits the last process.

    Each run appends a line to `runs`.
    """
    folder = Path(job["folder"])
    with (folder / "runs").open("a") as runs:
        runs.write(f"{rank()}\n")

    def happens(file: str) -> bool:
        there = (folder / file).exists()
        (folder / file).unlink(missing_ok=True)
        return there

    asked = 0

    def asks() -> bool:
        nonlocal asked
        asked += 1
        if rank() == world_size() - 1 and asked > 12:
            if happens("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            if happens("user error"):
                raise UserError("image a.jpg can't be read: replace it")
        if asked == 8 and (folder / "wait").exists():
            (folder / "is waiting").touch()
            while not interrupted():
                time.sleep(0.01)
        return interrupted()

    training = train_on(
        small_images(120), small_net(), VGG_RECIPE.but(precision="float32"),
        state=Path(job["state"]) if job["state"] else None, interrupted=asks,
    )  # fmt: skip
    if rank() == 0:
        checkpoint.save(job["to"], training.net.state_dict(), {})
    return {"epochs": len(training.history)}


def fail_at_the_end(job, interrupted):
    """Call `run`; the last process fails after the first has written its result."""
    try:
        return run(job, interrupted)
    finally:
        if rank():
            given = json.loads(Path(sys.argv[1]).read_text())
            while not Path(given["result"]).exists():
                time.sleep(0.01)
            os._exit(1)


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())["job"]
    work(fail_at_the_end if given.get("fails at the end") else run)
