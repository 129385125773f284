"""Nets and their records, from images: by training, or from published weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from relusym import checkpoint, nets
from relusym.data.batches import ImageFiles, ImagesOnDevice, TrainingBatches
from relusym.evaluation.images import Images
from relusym.evaluation.metrics import accuracy
from relusym.measuring.loading import (
    JobMeter,
    device_named,
    digest_in_use,
    least_accuracy,
    named_checkpoint,
    net_of,
    normalise_of,
    test_images,
    training_images,
)
from relusym.randomness import stream
from relusym.records.files import snapshot_path
from relusym.symmetry import SYMMETRIES
from relusym.training.distributed import local_device, rank, work, world_size
from relusym.training.loop import Progress, Reporter, precision_name, train
from relusym.training.recipe import Recipe
from relusym.whole_files import sha256

Record = dict[str, Any]

TEST_BATCH = 500


@dataclass(frozen=True)
class TrainJob:
    """The inputs of a training."""

    training_id: str  # the model, or an earlier stage of its training
    seed: int
    settings: Record  # as `Settings.train` returns them
    data: Path  # the prepared images
    label: str  # their name in the record
    to: Path  # the checkpoint
    device: torch.device
    in_use: tuple[str, str] | None = None  # see `digest_in_use`
    save_every: int = 1  # see `loop.train`
    workers: int = 0  # see `ImageFiles`
    snapshots: Sequence[int] = ()  # epochs after which a copy of the net is kept; 0: at the start
    folder: Path | None = None  # of image files to train on (ImageNet); None: the prepared images are used
    start: Path | None = None  # the net from the previous stage
    started: Path | None = None  # its train record
    state: Path | None = None  # see `loop.train`; to be removed once the record is written

    @classmethod
    def of(cls, plain: Record) -> Self:
        """The job of plain values, with paths and device as strings, as in JSON."""
        paths = "data", "to", "folder", "start", "started", "state"
        values = {key: Path(value) if key in paths and value else value for key, value in plain.items()}
        return cls(**values | {"device": device_named(plain["device"])})

    @property
    def name(self) -> str:
        return f"{self.training_id}-{self.seed}"

    def inputs(self) -> Record:
        """The record's `inputs`; UserError if the images are damaged, or aren't those in use."""
        return {"data": digest_in_use(self.data, self.in_use), "source": self.label}

    def about(self, **more: Any) -> Record:
        """The fields that the checkpoint's header shares with the record."""
        return {"model": self.training_id, "seed": self.seed, "settings": self.settings, **more}

    def score(self, net: nn.Module) -> tuple[float, str]:
        """A net's accuracy, and its status: "degenerate" if it is hardly better than always the most frequent class."""
        test = test_images(self.data, self.settings["data"], self.label, self.device)
        net.eval()
        images = Images(test.images, TEST_BATCH, normalise_of(self.settings["data"]))
        score = accuracy(net, images, test.labels)
        return score, "degenerate" if score <= least_accuracy(test.labels) else "ok"

    def saved(self, net: nn.Module | None, classes: int, status: str) -> Record:
        """Write the checkpoint, and return the part of the record that names it."""
        about = self.about(status=status, classes=classes)
        checkpoint.save(self.to, net.state_dict() if net else {}, about)
        return {
            "kind": "train",
            "status": status,
            **self.about(),
            "outputs": {"checkpoint": sha256(self.to)},
            "parameters": sum(parameter.numel() for parameter in net.parameters()) if net else None,
        }


def train_record(
    job: TrainJob,
    *,
    interrupted: Callable[[], bool] = lambda: False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Record:
    """Train one net, in this process or together with the other ranks, write its checkpoint and measure its accuracy.

    The record's status is "diverged" if the loss became non-finite, "degenerate" if the test accuracy is no better than
    chance (the paper's footnote 3), else "ok". `interrupted` and `report`: see `loop.train`. UserError if the images
    are damaged, aren't those in use, don't fit the symmetry, or are fewer than a batch; if `start` isn't the net that
    `started` names, or was made with other settings. Interrupted once `interrupted` has returned true and the state is
    saved.
    """
    meter, device, settings = JobMeter(job.device), local_device(job.device), job.settings
    inputs = job.inputs()
    recipe = Recipe(**settings["training"])
    symmetry = SYMMETRIES[settings["symmetry"]]
    batching = {
        "batch_size": recipe.batch_size,
        "seed": job.seed,
        "name": job.training_id,
        "views": recipe.views,
        "symmetry": symmetry if recipe.augmentation else None,
        "normalise": normalise_of(settings["data"]),
        "rank": rank(),
        "processes": world_size(),
    }
    if job.folder:
        size = settings["data"]["size"]
        batches: TrainingBatches = ImageFiles(job.folder, size, device, workers=job.workers, **batching)
    else:
        images = training_images(job.data, settings["data"], job.label, device)
        symmetry.powers(images.images[0, ..., 0])  # refuses images that it doesn't fit, before any work
        split = images.images, images.labels, len(images.classes)
        batches = ImagesOnDevice(*split, crop_padding=recipe.crop_padding, **batching)
    torch.manual_seed(stream(job.seed, job.training_id, "weights"))
    net = nets.build(settings["network"], batches.classes, symmetry)
    if job.start:
        tensors, _, before = named_checkpoint(job.start, job.started, settings["start"], torch.device("cpu"))
        inputs["start"] = before["outputs"]["checkpoint"]
        nets.load_backbone(net, tensors)

    def keep(epoch: int, trained: nn.Module) -> None:
        if epoch in job.snapshots:
            about = job.about(classes=batches.classes, epoch=epoch)
            checkpoint.save(snapshot_path(job.to, epoch), trained.state_dict(), about)

    training = train(
        *(net, batches, recipe),
        device=device,
        symmetry=symmetry,
        state=job.state,
        depends_on={"net": job.name, "images": inputs["data"], "first weights": inputs.get("start")},
        save_every=job.save_every,
        interrupted=interrupted,
        report=report,
        snapshot=keep,
    )
    if rank():
        return {}
    if training.diverged or not recipe.classifies:
        score, status = None, "diverged" if training.diverged else "ok"
    else:
        score, status = job.score(training.net)
    record = job.saved(training.net, batches.classes, status)
    kept = {str(epoch): snapshot_path(job.to, epoch) for epoch in job.snapshots}
    if hashes := {epoch: sha256(path) for epoch, path in kept.items() if path.exists()}:
        record["outputs"]["snapshots"] = hashes
    return record | {
        "reason": None,
        "inputs": inputs,
        "accuracy": score,
        "precision": precision_name(recipe.precision, device),
        "history": training.history,
        "data_wait_share": training.data_wait_share,
        **meter.fields(training.earlier_seconds),
    }


def weights_record(job: TrainJob, weights: Path) -> Record:
    """The record of a net with published weights, the output of the rule weights; "absent" if there were none."""
    meter = JobMeter(job.device)
    tensors, about = checkpoint.load(weights, job.device)
    inputs, score, reason = job.inputs(), None, about.get("reason")
    if about["status"] == "absent":
        record = job.saved(None, 0, "absent")
    else:
        net = net_of(weights, tensors, about | {"settings": job.settings}, job.device)
        score, status = job.score(net)
        record = job.saved(net, about["classes"], status)
        inputs |= {"files": about["files"], "dropped": about["dropped"]}
    return record | {
        "reason": reason, "inputs": inputs, "accuracy": score, "history": [], **meter.fields()
    }  # fmt: skip


def run_process(plain: dict[str, Any], interrupted: Callable[[], bool]) -> dict[str, Any]:
    """`train_record` for a job of plain values."""
    job = TrainJob.of(plain)
    return train_record(job, interrupted=interrupted, report=Reporter(job.name))


if __name__ == "__main__":
    work(run_process)
