"""The argument of Figure 3, measured: a net trained from flipped filters on flipped batches is the flipped net.

Three trainings run side by side on the same images in the same order: a net Φ; its twin Φ̂, which starts from Φ's
flipped filters, on the flipped batches; and, as the counterfactual, a second such twin on the unflipped batches.
"""

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from relusym.data import image_set
from relusym.data.augmentation import Augmented, Normalise, shuffled
from relusym.errors import UserError
from relusym.measuring.loading import JobMeter, digest_in_use, normalise_of, training_images
from relusym.merging.identities import largest_difference
from relusym.nets.vgg import VGG11
from relusym.precision import full_float32
from relusym.randomness import generator, stream
from relusym.symmetry import HORIZONTAL_FLIP
from relusym.training.loop import Sgd

Record = dict[str, Any]

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
PATH = "features.conv1.weight"  # the filters whose path is recorded: few enough to store at every step


def batches(images: image_set.ImageSet, how: Record, normalise: Normalise) -> Iterator[tuple[Tensor, Tensor]]:
    """Labels and normalised float32 batches (B, 3, H, W), randomly cropped and flipped, endlessly."""
    augmented = Augmented(images.images, how["crop_padding"], HORIZONTAL_FLIP, normalise)
    number, device = len(images.labels), images.labels.device
    for epoch in count():
        random = generator(how["seed"], "Figure 3", epoch)
        for index in shuffled(number, how["batch_size"], random, device):
            yield images.labels[index], augmented.batch(index, random)


@full_float32()
def train_side_by_side(images: image_set.ImageSet, settings: Record, dtype: torch.dtype) -> Record:
    """Train Φ, Φ̂ and the counterfactual twin by SGD with cross-entropy; UserError if the training diverges.

    Returns loss, of Φ at each step; flipped_batches and same_batches, the largest difference between a twin's weights
    and Φ's flipped weights, relative to the largest weight, before training and after each step; paths, [net, twin],
    conv 1's filters at each of these points, (steps + 1, c, 3, 3, 3).
    """
    how, network = settings["training"], settings["network"]
    torch.manual_seed(stream(how["seed"], "Figure 3", "weights"))
    drawn = {key: network[key] for key in ("initialization", "activation", "pooling") if key in network}
    net = VGG11(network["width"], 0, len(images.classes), **drawn)
    net = net.to(images.images.device, dtype)
    nets = [net, HORIZONTAL_FLIP.transform(net), HORIZONTAL_FLIP.transform(net)]
    sgd = [how[key] for key in ("learning_rate", "momentum", "weight_decay")]
    optimizers = [Sgd([{"params": [*each.parameters()]}], *sgd) for each in nets]
    result: Record = {"loss": [], "flipped_batches": [], "same_batches": [], "paths": [[], []]}

    @torch.no_grad()
    def compare() -> None:
        flipped, *others = (parameters_to_vector(each.parameters())
                            for each in (HORIZONTAL_FLIP.transform(net), *nets[1:]))  # fmt: skip
        for key, weights in zip(("flipped_batches", "same_batches"), others, strict=True):
            result[key].append(largest_difference(flipped, weights))
        for path, each in zip(result["paths"], nets, strict=False):
            path.append(each.get_parameter(PATH).detach().double().cpu().numpy().copy())

    compare()
    for labels, x in islice(batches(images, how, normalise_of(settings["data"])), how["steps"]):
        x = x.to(dtype)
        losses = []
        for each, optimizer, batch in zip(nets, optimizers, (x, HORIZONTAL_FLIP.act(x), x), strict=True):
            optimizer.zero_grad()
            losses.append(nn.functional.cross_entropy(each(batch), labels))
            losses[-1].backward()
            optimizer.step()
        result["loss"].append(losses[0].item())
        if not np.isfinite(result["loss"][-1]):
            raise UserError(
                "flipped_training: the training diverged; make flipped_training.learning_rate smaller"
            )
        compare()
    return result


def in_a_plane(paths: list[list[np.ndarray]]) -> list[np.ndarray]:
    """The paths of filters (steps, c, 3, k, k), projected to a plane in which a flip is a reflection: each (steps, 2).

    The first axis is the antisymmetric part ½(ψ − τψ) of Φ's filters at the end of training; a flip changes the sign of
    this coordinate. The second is the change of the symmetric part ½(ψ + τψ), a coordinate that a flip preserves.
    """
    net = np.stack(paths[0])
    antisymmetric = (net[-1] - net[-1][..., ::-1]) / 2
    change = net[-1] - net[0]
    symmetric = (change + change[..., ::-1]) / 2
    axes = [axis / max(np.linalg.norm(axis), np.finfo(float).tiny) for axis in (antisymmetric, symmetric)]
    origin = (net[0] + net[0][..., ::-1]) / 2  # on the mirror line, at the height where training starts
    return [
        np.stack([((np.stack(path) - origin) * axis).sum((1, 2, 3, 4)) for axis in axes], 1) for path in paths
    ]


def flipped_training_record(settings: Record, data: Path, label: str, *, device: torch.device) -> Record:
    """The record of Figure 3, with the settings of `Settings.flipped_training` on the prepared images `data`.

    In float64, the two nets agree up to rounding. In float32, a convolution and its flipped version round differently,
    and training amplifies the difference; hence both precisions are measured.
    """
    meter = JobMeter(device)
    images = training_images(data, {"size": None, **settings["data"]}, label, device)
    if settings["training"]["batch_size"] > len(images.labels):
        raise UserError(
            f"flipped_training.batch_size: {settings['training']['batch_size']} is more than the "
            f"{len(images.labels)} training images; make it smaller"
        )
    runs = {name: train_side_by_side(images, settings, dtype) for name, dtype in PRECISIONS.items()}
    paths = in_a_plane(runs["float64"].pop("paths"))
    runs["float32"].pop("paths")
    return {
        "kind": "flipped_training",
        "settings": settings,
        "inputs": {"data": digest_in_use(data, None), "source": label},
        "largest_difference": {name: max(run["flipped_batches"]) for name, run in runs.items()},
        "largest_difference_on_same_batches": {name: max(run["same_batches"]) for name, run in runs.items()},
        "runs": runs,
        "paths": {name: path.tolist() for name, path in zip(("net", "flipped"), paths, strict=True)},
        **meter.fields(),
    }
