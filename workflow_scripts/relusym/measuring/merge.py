"""From nets to the record of their merge."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relusym import checkpoint, nets
from relusym.data import image_set
from relusym.evaluation.images import Images
from relusym.evaluation.invariance import invariance_error
from relusym.measuring.costs import Costs
from relusym.measuring.filters import filter_arrays
from relusym.measuring.loading import (
    check_images,
    normalise_of,
    test_images,
    trained_net,
    training_images,
)
from relusym.merging.identities import hold
from relusym.merging.merge import Merge, flip_merge, merge
from relusym.nets.group_conv import RegularConv2d
from relusym.randomness import stream
from relusym.symmetry import SYMMETRIES
from relusym.whole_files import sha256

Record = dict[str, Any]


def merge_record(
    names: list[tuple[str, int]],
    settings: Record,
    checkpoints: list[Path],
    trained: list[Path],
    data: Path,
    label: str,
    *,
    batch_size: int,
    device: torch.device,
    in_use: tuple[str, str] | None = None,
    filters: Path | None = None,
) -> Record:
    """Merge one net with its flipped self, or two nets with each other, and measure the barrier.

    Args:
        names: model and seed: of one net for a flip merge (Tables 2, 3 and 5), of two for a pair merge (Table 4).
        settings: as `Settings.flip_merge` or `Settings.pair_merge` gives them.
        checkpoints, trained: the nets, and their train records.
        data, label: the prepared images, and what the record calls them.
        batch_size: images that a net reads at once.
        in_use: see `check_images`.
        filters: of a flip merge, where the arrays of the net's filters are written.

    Returns:
        the record. Of a flip merge it also has the net's relative invariance error.

    Raises:
        UserError: a checkpoint is damaged, isn't the one that its train record names, or was made with other settings;
            the images are damaged or others; an identity that holds whatever the weights are doesn't.
    """
    costs, flip = Costs(device), len(names) == 1
    loaded = load_merged(checkpoints, trained, settings, device)
    record = header("flip_merge" if flip else "pair_merge", names, settings, loaded, data, label, in_use)
    arrays: dict[str, np.ndarray] = {}
    about = {"kind": "filters", **{key: record[key] for key in ("status", "reason")}, **_named(names)}
    if record["status"] == "ok":
        images, matched, test, labels = operands(settings, data, label, batch_size, device)
        plain = [nets.plain(net).to(memory_format=torch.channels_last) for net, _ in loaded]
        # of a matching that draws
        drawn = stream(names[0][1], "--".join(f"{model}-{seed}" for model, seed in names), "matching")
        how = matched_by(settings) | {"seed": drawn}
        if flip:
            (model, seed), symmetry = names[0], SYMMETRIES[settings["symmetry"]]
            some = image_set.subset(images, settings["invariance_images"], stream(seed, model, "invariance"))
            record["invariance_error"] = invariance_error(
                loaded[0][0], replace(matched, pixels=some.images), symmetry
            )
            merged: Merge = flip_merge(*plain, matched, test, labels, symmetry=symmetry, **how)
            arrays, about["kernel_constraint"] = filter_arrays(
                plain[0], symmetry, merged.permutations, matched.shape, settings["projection_seed"]
            )
        else:
            merged = merge(*plain, matched, test, labels, **how)
        constraint = {"kernel_constraint": max(kernel_constraint(net) for net, _ in loaded)}
        hold(constraint)
        merged.checks |= constraint
        record |= merged.body()
    if filters:
        checkpoint.save_arrays(filters, arrays, about)
        record["outputs"]["filters"] = sha256(filters)
    return record | costs.fields()


def matched_by(settings: Record) -> dict[str, Any]:
    """By which matching channels are matched, as arguments of `merge` and `align`."""
    return {key: settings["merging"][key] for key in ("matching", "starts") if key in settings["merging"]}


def operands(
    settings: Record, data: Path, label: str, batch_size: int, device: torch.device
) -> tuple[image_set.ImageSet, Images, Images, Tensor]:
    """The training images, those of them to merge on, the test images and their labels; errors as of `merge_record`."""
    of_images = settings["trained"][0]["data"]
    images, normalise = training_images(data, of_images, label, device), normalise_of(of_images)
    test = test_images(data, of_images, label, device)
    some = image_set.subset(images, settings["merging"]["images"], of_images["seed"])
    matched, tested = (Images(of.images, batch_size, normalise) for of in (some, test))
    return images, matched, tested, test.labels


def load_merged(
    checkpoints: list[Path], trained: list[Path], settings: Record, device: torch.device
) -> list[tuple[nn.Module | None, Record]]:
    """The nets of a merge or a measurement, each with its train record; errors as of `merge_record`."""
    return [
        trained_net(*paths, wanted, device)
        for *paths, wanted in zip(checkpoints, trained, settings["trained"], strict=True)
    ]


def header(
    kind: str,
    names: list[tuple[str, int]],
    settings: Record,
    loaded: list[tuple[nn.Module | None, Record]],
    data: Path,
    label: str,
    in_use: tuple[str, str] | None,
) -> Record:
    """What a record of one net or two begins with; its status is "left_out" if one of them is."""
    left_out = [
        f"{model}-{seed} is {train['status']}"
        for (model, seed), (_, train) in zip(names, loaded, strict=True)
        if train["status"] != "ok"
    ]
    return {
        "kind": kind,
        "status": "left_out" if left_out else "ok",
        "reason": left_out[0] if left_out else None,
        **_named(names),
        "settings": settings,
        "inputs": {
            "data": check_images(data, in_use),
            "source": label,
            "checkpoints": [train["outputs"]["checkpoint"] for _, train in loaded],
        },
        "outputs": {},
    }


def _named(names: list[tuple[str, int]]) -> Record:
    if len(names) == 1:
        return dict(zip(("model", "seed"), names[0], strict=True))
    keys = ("model_1", "seed_1"), ("model_2", "seed_2")
    return {
        key: part
        for pair, name in zip(keys, names, strict=True)
        for key, part in zip(pair, name, strict=True)
    }


def kernel_constraint(net: nn.Module) -> float:
    """Largest violation of equation (3) by any group conv of `net`; 0 if it has none."""
    convs = [module for module in net.modules() if isinstance(module, RegularConv2d)]
    return max((conv.check_kernel_constraint() for conv in convs), default=0.0)
