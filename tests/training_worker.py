"""One of several processes of a training whose net has no batch statistics: then two processes equal one exactly.

Batch norm sees each process's own images (SyncBatchNorm, which would not, needs GPUs).
"""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from small_training import RESNET, RESNET_RECIPE, small_images, small_net, train_on
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from relusym import checkpoint
from relusym.errors import UserError
from relusym.training.distributed import rank, work


def without_batch_statistics(net: nn.Module) -> nn.Module:
    """The net with batch norms that are fixed rescalings."""
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, FrozenBatchNorm2d(child.num_features))
    return net


def run(job, interrupted=lambda: False):
    """Three epochs of six steps; in the third, what the folder's files say happens once to the second process."""
    folder = Path(job["folder"])

    def happens(file: str) -> bool:
        there = (folder / file).exists()
        (folder / file).unlink(missing_ok=True)
        return there

    asked = 0

    def asks() -> bool:
        nonlocal asked
        asked += 1
        if rank() == 1 and asked > 12:
            if happens("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            if happens("exit"):
                os._exit(3)
            if happens("user error"):
                raise UserError("image a.jpg can't be read: replace it")
        if asked == 8 and (folder / "wait").exists():
            (folder / "is waiting").touch()
            while not interrupted():
                time.sleep(0.01)
        return interrupted()

    training = train_on(
        small_images(240, 33),
        without_batch_statistics(small_net(RESNET)),
        replace(RESNET_RECIPE, epochs=3),
        state=Path(job["state"]) if job["state"] else None,
        interrupted=asks,
    )
    if rank() == 0:
        checkpoint.save(job["to"], training.net.state_dict(), {})
    return {"epochs": len(training.history)}


if __name__ == "__main__":
    work(run)
