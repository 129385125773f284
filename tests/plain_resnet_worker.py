"""A small training job, and a worker whose net has no batch statistics: then two processes equal one exactly.

Batch norm sees each process's own images (SyncBatchNorm, which would not, needs GPUs).
"""

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from torchvision.ops.misc import FrozenBatchNorm2d

from relusym.data import batches as training_batches
from relusym.experiments import resnet_measuring
from relusym.training.distributed import rank

RECIPE = {
    "epochs": 2,
    "batch_size": 40,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "warmup_epochs": 0,
    "optimizer": "sgd",
    "sync_batch_norm": False,
    "save_every": 1,
    "precision": "float32",
}


def small_job(images, folder, *, to="net", stage="supervised", epochs=2):
    """What the rule resnet_train gives a worker."""
    return {
        "row": "old",
        "stage": stage,
        "settings": {
            "seed": 0,
            "images": {"dataset": "generated", "train_images": None, "seed": 0, "size": 33},
            "network": {"block": "basic", "layers": [1, 1, 1, 1], "width": 0.125},
            "processes": 1,
            "crop_padding": 2,
            "recipe": RECIPE | {"epochs": epochs},
            "heads": {"dimensions": 32, "bottleneck": 8} if stage == "pretraining" else {},
            "invariance_weight": None,
            "pretrained": None,
        },
        "images": str(images),
        "to": str(Path(folder) / f"{to}.safetensors"),
        "pretrained": None,
        "workers": 0,
        "state": None,
        "device": "cpu",
    }


@contextmanager
def without_batch_statistics():
    """Nets are built with batch norms that are fixed rescalings."""
    build = resnet_measuring.build

    def frozen(network, classes):
        net = build(network, classes)
        for parent in list(net.modules()):
            for name, child in parent.named_children():
                if type(child).__name__ == "BatchNorm2d":
                    setattr(parent, name, FrozenBatchNorm2d(child.num_features))
        return net

    with mock.patch.object(resnet_measuring, "build", frozen):
        yield


@contextmanager
def second_process_dies_once(folder):
    """In the last epoch, if the file `kill` is there."""
    epoch = training_batches.ImagesOnDevice.epoch

    def dying(self, number):
        if rank() == 1 and number == 2 and (folder / "kill").exists():
            (folder / "kill").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return epoch(self, number)

    with mock.patch.object(training_batches.ImagesOnDevice, "epoch", dying):
        yield


if __name__ == "__main__":
    import json

    from relusym.training.worker import main

    given = Path(sys.argv[1])
    with (
        without_batch_statistics(),
        second_process_dies_once(Path(json.loads(given.read_text())["to"]).parent),
    ):
        main(str(given))
