"""From images to a net and its record: trained, or read from weights that others trained."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from relusym import checkpoint, nets
from relusym.data.batches import Batches, ImageFiles, ImagesOnDevice
from relusym.data.image_set import ImageSet
from relusym.evaluation.barrier import accuracy
from relusym.evaluation.images import Images
from relusym.measuring.costs import Costs
from relusym.measuring.loading import (
    check_images,
    least_accuracy,
    named_checkpoint,
    normalise_of,
    test_images,
    training_images,
)
from relusym.randomness import stream
from relusym.records.files import snapshot_path
from relusym.symmetry import SYMMETRIES
from relusym.training.distributed import local_device, rank, world_size
from relusym.training.loop import precision_name, train
from relusym.training.progress import Progress
from relusym.training.recipe import Recipe
from relusym.whole_files import sha256

Record = dict[str, Any]

TEST_BATCH = 500


def train_record(
    unit: str,
    seed: int,
    settings: Record,
    data: Path,
    label: str,
    to: Path,
    *,
    device: torch.device,
    save_every: int = 1,
    workers: int = 0,
    folder: Path | None = None,
    start: Path | None = None,
    started: Path | None = None,
    in_use: tuple[str, str] | None = None,
    state: Path | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    report: Callable[[Progress], None] = lambda progress: None,
    snapshots: Sequence[int] = (),
) -> Record:
    """Train one net, in this process or in all that were started together, write its checkpoint and measure it.

    Args:
        unit: the model, or an earlier stage of its training.
        settings: as `Settings.train` gives them.
        data, label: the prepared images, and what the record calls them.
        to: the checkpoint.
        save_every, workers: see `Recipe` and `ImageFiles`.
        folder: of image files to train on (ImageNet's); None: the prepared images.
        start, started: the net of the stage before, and its train record.
        in_use: see `check_images`.
        state, interrupted, report: see `loop.train`; the state is removed once the checkpoint is written.
        snapshots: epochs after which the net is kept as well, see `snapshot_path`; 0 is before the first.

    Returns:
        the record. Its status is "diverged" if the loss became non-finite, "degenerate" if the test accuracy is no
        better than chance (the paper's footnote 3), else "ok".

    Raises:
        UserError: the images are damaged or others, or fewer than a batch; `start` isn't the net that `started` names,
            or was made with other settings.
        Interrupted: `interrupted` said yes, and the state is saved.
    """
    costs, device = Costs(device), local_device(device)
    inputs: Record = {"data": check_images(data, in_use), "source": label}
    recipe = Recipe(**settings["training"], save_every=save_every)
    symmetry = SYMMETRIES[settings["symmetry"]]
    how = {
        "batch_size": recipe.batch_size,
        "seed": seed,
        "name": unit,
        "views": recipe.views,
        "symmetry": symmetry if recipe.augmentation else None,
        "normalise": normalise_of(settings["data"]),
        "rank": rank(),
        "processes": world_size(),
    }
    if folder:
        batches: Batches = ImageFiles(folder, settings["data"]["size"], device, workers=workers, **how)
    else:
        images = training_images(data, settings["data"], label, device)
        classes = len(images.classes)
        batches = ImagesOnDevice(
            images.images, images.labels, classes, crop_padding=recipe.crop_padding, **how
        )
    torch.manual_seed(stream(seed, unit, "weights"))
    net = nets.build(settings["network"], batches.classes, symmetry)
    if start:
        tensors, _, before = named_checkpoint(start, started, settings["start"], torch.device("cpu"))
        inputs["start"] = before["outputs"]["checkpoint"]
        nets.load_backbone(net, tensors)

    def keep(epoch: int, trained: nn.Module) -> None:
        if epoch in snapshots:
            about = {
                "model": unit,
                "seed": seed,
                "settings": settings,
                "classes": batches.classes,
                "epoch": epoch,
            }
            checkpoint.save(snapshot_path(to, epoch), trained.state_dict(), about)

    training = train(
        net,
        batches,
        recipe,
        device=device,
        symmetry=symmetry,
        state=state,
        interrupted=interrupted,
        report=report,
        snapshot=keep,
    )
    precision = precision_name(recipe.precision, device)
    made = {"precision": precision, "history": training.history, "data_wait_share": training.data_wait_share}
    if rank():
        return {}
    if training.diverged or not recipe.classifies:
        score, status = None, "diverged" if training.diverged else "ok"
    else:
        score, status = _score(training.net, test_images(data, settings["data"], label, device), settings)
    record = _saved(training.net, unit, seed, settings, batches.classes, status, to)
    kept = {str(epoch): snapshot_path(to, epoch) for epoch in snapshots}
    if hashes := {epoch: sha256(path) for epoch, path in kept.items() if path.exists()}:
        record["outputs"]["snapshots"] = hashes
    if state:
        state.unlink(missing_ok=True)
    return record | {"reason": None, "inputs": inputs, "accuracy": score, **made, **costs.fields()}


def weights_record(
    model: str,
    seed: int,
    settings: Record,
    data: Path,
    label: str,
    to: Path,
    weights: Path,
    *,
    device: torch.device,
    in_use: tuple[str, str] | None = None,
) -> Record:
    """The record of a net that others trained; the rest as in `train_record`.

    Args:
        weights: what `nets.weights.gather` found, or why it found nothing: then the status is "absent".
    """
    costs = Costs(device)
    tensors, about = checkpoint.load(weights, device)
    inputs = {"data": check_images(data, in_use), "source": label}
    if about["status"] == "absent":
        record = _saved(None, model, seed, settings, 0, "absent", to)
        return record | {
            "reason": about["reason"], "inputs": inputs, "accuracy": None, "history": [], **costs.fields()
        }  # fmt: skip
    net = nets.build(settings["network"], about["classes"], SYMMETRIES[settings["symmetry"]])
    net.load_state_dict(tensors)
    net.to(device, memory_format=torch.channels_last)
    score, status = _score(net, test_images(data, settings["data"], label, device), settings)
    record = _saved(net, model, seed, settings, about["classes"], status, to)
    inputs |= {"files": about["files"], "dropped": about["dropped"]}
    return record | {"reason": None, "inputs": inputs, "accuracy": score, "history": [], **costs.fields()}


def _score(net: nn.Module, test: ImageSet, settings: Record) -> tuple[float, str]:
    """A net's accuracy, and whether it has learnt anything: more than to answer the most frequent class."""
    net.eval()
    score = accuracy(net, Images(test.images, TEST_BATCH, normalise_of(settings["data"])), test.labels)
    return score, "degenerate" if score <= least_accuracy(test.labels) else "ok"


def _saved(
    net: nn.Module | None, unit: str, seed: int, settings: Record, classes: int, status: str, to: Path
) -> Record:
    """Write the checkpoint; the part of the record that names it."""
    about = {"model": unit, "seed": seed, "settings": settings, "status": status, "classes": classes}
    checkpoint.save(to, net.state_dict() if net else {}, about)
    return {
        "kind": "train",
        "status": status,
        "model": unit,
        "seed": seed,
        "settings": settings,
        "outputs": {"checkpoint": sha256(to)},
        "parameters": sum(parameter.numel() for parameter in net.parameters()) if net else None,
    }
