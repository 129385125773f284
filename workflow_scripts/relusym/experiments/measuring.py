"""From prepared images to a net's records: train it, measure it, merge it."""

import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import relusym
from relusym import checkpoint
from relusym.data import image_set
from relusym.errors import UserError
from relusym.merging.barrier import accuracy
from relusym.merging.images import Images
from relusym.merging.invariance import invariance_error
from relusym.merging.merge import Merge, flip_merge, merge
from relusym.nets.group_conv import RegularConv2d
from relusym.nets.vgg import VGG11
from relusym.randomness import stream
from relusym.records import sha256
from relusym.training.loop import Progress, TrainingSettings, autocast_to, train

Record = dict[str, Any]

CHANCE_MARGIN = 1.1  # a net within a tenth of chance accuracy has learnt nothing


def device_of(name: str) -> torch.device:
    """The device a config's `device` means; auto is a GPU where there is one.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"device: {name} is asked for, but torch {torch.__version__} sees no GPU; set device: cpu"
        )
    return torch.device(name)


class Costs:
    """What a job takes from here on, and what it ran with."""

    def __init__(self, device: torch.device):
        self.device, self.started = device, time.perf_counter()

    def fields(self) -> Record:
        """The `code` and `cost` of a record: versions and device; seconds and peak memory in MB."""
        if self.device.type == "cuda":
            name, peak = (
                torch.cuda.get_device_name(self.device),
                torch.cuda.max_memory_allocated(self.device) / 2**20,
            )
        else:
            name, peak = platform.machine(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        return {
            "code": {
                "relusym": relusym.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "device": f"{self.device.type} {name}",
            },
            "cost": {
                "seconds": round(time.perf_counter() - self.started, 2),
                "peak_memory_mb": round(peak, 1),
            },
        }


def training_images(data: Path, settings: Record, device: torch.device) -> image_set.ImageSet:
    """The images that a scale trains on: all, or its seeded choice."""
    images = image_set.load(data, "train", device)
    return image_set.subset(images, settings["data"]["train_images"], settings["data"]["seed"])


def train_net(
    model: str,
    seed: int,
    settings: Record,
    data: Path,
    to: Path,
    *,
    device: torch.device,
    state: Path | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Record:
    """Train one net of Table 1, write its checkpoint to `to`, and measure it (Table 2, first two columns).

    Args:
        settings: as `Settings.train` gives them.
        data: the prepared images.
        state: where the training state is kept, see `training.train`; removed once the checkpoint is written.
        interrupted: see `training.train`.

    Returns:
        the train record. Its status is "diverged" if the loss became non-finite, "degenerate" if the test accuracy is
        no better than chance, else "ok".
    """
    costs = Costs(device)
    images = training_images(data, settings, device)
    test = image_set.load(data, "test", device)
    network = settings["network"]
    torch.manual_seed(stream(seed, model, "weights"))
    net = VGG11(
        network["width"],
        network["group_convs"],
        len(images.classes),
        initialization=network["initialization"],
    ).to(device, memory_format=torch.channels_last)
    how = TrainingSettings(**settings["training"])
    if how.batch_size > len(images.labels):
        raise UserError(
            f"batch_size: {how.batch_size} is more than the {len(images.labels)} training images; make it smaller"
        )
    training = train(
        net,
        images.images,
        images.labels,
        how,
        seed,
        model,
        state=state,
        interrupted=interrupted,
        report=report,
    )
    scores: Record = {"accuracy": None, "invariance_error": None}
    status = "diverged"
    if not training.diverged:
        scores["accuracy"] = accuracy(net, Images(test.images), test.labels)
        some = image_set.subset(images, settings["invariance_images"], stream(seed, model, "invariance"))
        scores["invariance_error"] = invariance_error(net, Images(some.images))
        status = "degenerate" if is_at_chance(scores["accuracy"], test) else "ok"
    about = {"kind": "vgg11", "model": model, "seed": seed, "settings": settings, "status": status}
    checkpoint.save(to, net.state_dict(), about)
    if state:
        state.unlink(missing_ok=True)
    return {
        "kind": "train",
        "status": status,
        "model": model,
        "seed": seed,
        "settings": settings,
        "inputs": {"data": sha256(data), "source": images.source},
        "outputs": {"checkpoint": sha256(to)},
        "precision": str(autocast_to(how.precision, device)).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        **scores,
        "history": training.history,
        **costs.fields(),
    }


def is_at_chance(score: float, test: image_set.ImageSet) -> bool:
    """Whether a test accuracy is that of always answering the most frequent class (the paper's footnote 3)."""
    return score <= CHANCE_MARGIN * float(test.labels.bincount().max()) / len(test.labels)


def load_net(path: Path, device: torch.device) -> tuple[VGG11, Record]:
    """A trained net of Table 1 and what its checkpoint says about it.

    Raises:
        UserError: the checkpoint is truncated, foreign, or doesn't fit the net it says it is.
    """
    tensors, about = checkpoint.load(path, device)
    try:
        network = about["settings"]["network"]
        classes = len(tensors["classifier.bias"])
        net = VGG11(network["width"], network["group_convs"], classes)
        net.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {path} doesn't hold a VGG11 of this project: delete it, and it is made again"
        ) from error
    return net.to(device, memory_format=torch.channels_last), about


def left_out_reason(nets: list[Record]) -> str | None:
    """Why nothing is merged from these nets, or None if all are well."""
    return next((f"{a['model']}-{a['seed']} is {a['status']}" for a in nets if a["status"] != "ok"), None)


def measure_merge(
    nets: list[Path],
    settings: Record,
    data: Path,
    *,
    device: torch.device,
) -> Record:
    """Merge one net with its flipped self, or two nets with each other, and measure the barrier.

    Args:
        nets: one checkpoint for a flip merge (Table 2, last column), two for a pair merge (Table 4).
        settings: as `Settings.merge` gives them.
        data: the prepared images.

    Returns:
        the record without its `kind` and the nets' names: those are the caller's.

    Raises:
        UserError: a checkpoint is damaged, or was trained with other settings than the record would say.
    """
    costs = Costs(device)
    loaded = [load_net(path, device) for path in nets]
    for path, (_, about), trained in zip(nets, loaded, settings["trained"], strict=True):
        if about["settings"] != trained:
            raise UserError(
                f"checkpoint {path} was trained with other settings: delete it, and it is made again"
            )
    record: Record = {
        "status": "ok",
        "reason": left_out_reason([about for _, about in loaded]),
        "settings": settings,
        "inputs": {"data": sha256(data), "checkpoints": [sha256(path) for path in nets]},
    }
    if record["reason"] is not None:
        return {**record, "status": "left_out", **costs.fields()}
    images = training_images(data, settings["trained"][0], device)
    record["inputs"]["source"] = images.source
    some = image_set.subset(images, settings["merging"]["images"], settings["trained"][0]["data"]["seed"])
    test = image_set.load(data, "test", device)
    plain = [net.to_plain().to(memory_format=torch.channels_last) for net, _ in loaded]
    size = settings["merging"]["batch_size"]
    operands = Images(some.images, size), Images(test.images, size), test.labels
    merged: Merge = flip_merge(plain[0], *operands) if len(plain) == 1 else merge(*plain, *operands)
    merged.checks["kernel_constraint"] = max((kernel_constraint(net) for net, _ in loaded), default=0.0)
    return {**record, **merged.body(), **costs.fields()}


def kernel_constraint(net: nn.Module) -> float:
    """Largest violation of equation (3) by any group conv of `net`; 0 if it has none."""
    convs = [module for module in net.modules() if isinstance(module, RegularConv2d)]
    return max((conv.check_kernel_constraint() for conv in convs), default=0.0)
