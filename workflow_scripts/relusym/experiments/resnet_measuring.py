"""From images to a ResNet's records: train it, measure it and its merge with its flipped self (Tables 3 and 5)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relusym import checkpoint
from relusym.data import image_set
from relusym.data.augmentation import normalise, normalise_imagenet
from relusym.data.batches import Batches, ImageFiles, ImagesOnDevice
from relusym.errors import UserError
from relusym.experiments.measuring import Costs, is_at_chance
from relusym.merging.barrier import accuracy
from relusym.merging.channel_groups import Place, channel_groups
from relusym.merging.images import Images
from relusym.merging.invariance import invariance_error
from relusym.merging.merge import flip_merge
from relusym.nets.resnet import SimSiam, build, linear_probe
from relusym.randomness import stream
from relusym.records import sha256
from relusym.symmetry import HORIZONTAL_FLIP
from relusym.training.distributed import local_device, rank
from relusym.training.loop import Progress, autocast_to
from relusym.training.resnet_training import Recipe, SelfSupervised, Supervised, Task, train

Record = dict[str, Any]

ENCODER = "encoder."  # of SimSiam's tensors


def train_row(
    row: str,
    stage: str,
    settings: Record,
    images: Path,
    to: Path,
    *,
    device: torch.device,
    pretrained: Path | None = None,
    workers: int = 0,
    state: Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Record:
    """One training of a row's net, in this process or in all that were started together; writes its checkpoint.

    Args:
        stage: "supervised", "pretraining" (SimSiam) or "linear" (on the pretrained net).
        settings: as `ResNetSettings.train` gives them.
        images: the prepared images, or ImageNet's folder of training images.
        to: the checkpoint, written by the first process.
        pretrained: the checkpoint of the pretraining, for "linear".
        workers: processes that read image files, of each training process.
        state: see `resnet_training.train`; removed once the checkpoint is written.

    Returns:
        the train record. Its status is "diverged" if the loss became non-finite, else "ok".
    """
    costs = Costs(device)
    device = local_device(device)
    recipe = Recipe(**settings["recipe"])
    two_views, name = stage == "pretraining", f"{row} {stage}"
    if images.is_dir():
        batches: Batches = ImageFiles(
            images,
            settings["images"]["size"],
            two_views,
            recipe.batch_size,
            workers,
            settings["seed"],
            name,
            device,
        )
        classes, inputs = len(batches.classes), {"source": settings["images"]["dataset"]}
    else:
        some = training_images(images, settings["images"], device)
        batches = ImagesOnDevice(
            some.images,
            some.labels,
            two_views,
            recipe.batch_size,
            settings["crop_padding"],
            settings["seed"],
            name,
        )
        classes, inputs = len(some.classes), {"data": sha256(images), "source": some.source}
    torch.manual_seed(stream(settings["seed"], name, "weights"))
    task = _task(stage, settings, classes, pretrained)
    task.net.to(device, memory_format=torch.channels_last)
    if pretrained is not None:
        inputs["pretrained"] = sha256(pretrained)
    training = train(task, batches, recipe, device, state=state, report=report)
    status = "diverged" if training.diverged else "ok"
    if rank() == 0:
        about = {"row": row, "stage": stage, "settings": settings, "status": status, "classes": classes}
        checkpoint.save(to, task.net.state_dict(), about)
        if state:
            state.unlink(missing_ok=True)
    waits = [epoch["data_wait_share"] for epoch in training.history]
    return {
        "kind": "resnet_train",
        "status": status,
        "row": row,
        "stage": stage,
        "settings": settings,
        "inputs": inputs,
        "outputs": {"checkpoint": sha256(to)} if rank() == 0 else {},
        "precision": str(autocast_to(recipe.precision, device)).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in task.net.parameters()),
        "history": training.history,
        "data_wait_share": round(sum(waits) / len(waits), 4) if waits else None,
        **costs.fields(),
    }


def _task(stage: str, settings: Record, classes: int, pretrained: Path | None) -> Task:
    net = build(settings["network"], classes)
    if stage == "supervised":
        return Supervised(net, settings["invariance_weight"])
    if stage == "pretraining":
        return SelfSupervised(SimSiam(net, **settings["heads"]))
    tensors, about = checkpoint.load(pretrained)
    if about.get("settings") != settings["pretrained"]:
        raise UserError(
            f"checkpoint {pretrained} was trained with other settings: delete it, and it is made again"
        )
    backbone = {name.removeprefix(ENCODER): t for name, t in tensors.items() if name.startswith(ENCODER)}
    backbone = {name: tensor for name, tensor in backbone.items() if not name.startswith("fc.")}
    net.load_state_dict(net.state_dict() | backbone)
    return Supervised(linear_probe(net), frozen=True)


def training_images(data: Path, settings: Record, device: torch.device) -> image_set.ImageSet:
    """A scale's small training images (all, or its seeded choice) at a row's size."""
    images = image_set.load(data, "train", device)
    return image_set.resized(
        image_set.subset(images, settings["train_images"], settings["seed"]), settings["size"]
    )


def load_net(path: Path, device: torch.device) -> tuple[nn.Module, Record]:
    """A row's net in evaluation mode, and what its checkpoint says about it.

    Raises:
        UserError: the checkpoint is truncated, foreign, or doesn't fit the net it says it is.
    """
    tensors, about = checkpoint.load(path, device)
    try:
        net = build(about["settings"]["network"], about["classes"])
        net.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"checkpoint {path} doesn't hold a ResNet of this project: delete it") from error
    return net.eval().to(device, memory_format=torch.channels_last), about


def measure_row(
    row: str, settings: Record, net_file: Path, data: Path, *, device: torch.device
) -> tuple[Record, dict[str, Tensor]]:
    """All of a row's columns, and the first layer's filters for Figure 9.

    Args:
        settings: as `ResNetSettings.merge` gives them.
        net_file: the checkpoint of the row's net.
        data: the prepared images.

    Returns:
        the record, and the small arrays to keep beside it: `conv1`, float16 (2, C, 3, k, k), the first layer's filters
        and, at the same places, those of the flipped and permuted net; none if the net was left out.
    """
    costs = Costs(device)
    about = checkpoint.load(net_file, names=())[1]
    if about.get("status") == "absent":
        return absent_record(row, settings, about["reason"]), {}
    net, about = load_net(net_file, device)
    if about["settings"] != settings["weights"]:
        raise UserError(
            f"checkpoint {net_file} was made with other settings: delete it, and it is made again"
        )
    how, on_imagenet = settings["evaluation"], data.name.startswith("imagenet-")
    if on_imagenet:
        images, test = image_set.load(data, "train"), image_set.load(data, "test")
        preprocess = normalise_imagenet
    else:
        images = training_images(data, settings["images"], device)
        test = image_set.resized(image_set.load(data, "test", device), settings["images"]["size"])
        preprocess = normalise
    record: Record = {
        "kind": "resnet_merge",
        "status": "ok",
        "reason": None,
        "row": row,
        "settings": settings,
        "inputs": {"data": sha256(data), "checkpoints": [sha256(net_file)], "source": images.source},
    }
    tests = Images(test.images, how["batch_size"], preprocess)
    if "files" in about:
        record["inputs"] |= {"files": about["files"], "dropped": about["dropped"]}
    if about["status"] != "ok":
        record["reason"] = f"its training {about['status']}"
    elif is_at_chance(accuracy(net, tests, test.labels), test):
        record["reason"] = "it is no better than chance"
    if record["reason"] is not None:
        return {**record, "status": "left_out", **costs.fields()}, {}
    some = image_set.subset(images, how["images"], settings["seed"])
    few = image_set.subset(images, how["invariance_images"], settings["seed"])
    error = invariance_error(net, Images(few.images, how["batch_size"], preprocess))
    merged = flip_merge(net, Images(some.images, how["batch_size"], preprocess), tests, test.labels)
    filters = net.conv1.weight.detach()
    groups = channel_groups(net, (3, *images.images.shape[1:3]))
    stem = next(group.name for group in groups if Place("conv1.weight", 0) in group.places)
    order = torch.tensor(merged.permutations[stem], device=device)
    arrays = {"conv1": torch.stack([filters, HORIZONTAL_FLIP.act(filters)[order]]).half()}  # to be looked at
    return {**record, "invariance_error": error, **merged.body(), **costs.fields()}, arrays


def absent_record(row: str, settings: Record, reason: str) -> Record:
    """The record of a row whose net or images aren't at hand."""
    costs = Costs(torch.device("cpu"))
    about = {"kind": "resnet_merge", "status": "absent", "reason": reason, "row": row, "settings": settings}
    return {**about, "inputs": {}, **costs.fields()}
