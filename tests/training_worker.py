"""One of several processes of a training whose net has no batch norm: then two processes equal one exactly.

Batch norm sees each process's own images (SyncBatchNorm, which would not, needs GPUs).
"""

import os
import signal
import time
from pathlib import Path

from small_training import VGG_RECIPE, small_images, small_net, train_on

from relusym import checkpoint
from relusym.errors import UserError
from relusym.training.distributed import rank, work, world_size


def run(job, interrupted=lambda: False):
    """Three epochs of six steps; in the third, what the folder's files say happens once to the last process."""
    folder = Path(job["folder"])

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
        small_images(120),
        small_net(),
        VGG_RECIPE.but(precision="float32"),
        state=Path(job["state"]) if job["state"] else None,
        interrupted=asks,
    )
    if rank() == 0:
        checkpoint.save(job["to"], training.net.state_dict(), {})
    return {"epochs": len(training.history)}


if __name__ == "__main__":
    work(run)
