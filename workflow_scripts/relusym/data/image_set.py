"""Data sets of labelled images, prepared once: one file of uint8 arrays, never decoded again."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relusym import checkpoint
from relusym.errors import UserError

SPLITS = ("train", "test")


@dataclass(frozen=True)
class ImageSet:
    """One split: images uint8 (N, H, W, 3), labels int64 (N,), the classes' names, the data's name in records."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: str = ""


def hexdigest(images: np.ndarray, labels: np.ndarray, classes: Iterable[str]) -> str:
    """SHA-256 of images uint8 (N, H, W, 3), labels int64 (N,) and the classes' names."""
    parts = np.ascontiguousarray(labels, "<i8"), np.ascontiguousarray(images).reshape(-1)
    about = [*classes], [*images.shape], *(hashlib.sha256(part).hexdigest() for part in parts)
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def header(classes: Iterable[str], splits: dict[str, str]) -> dict[str, Any]:
    """A prepared file's header: the classes, the splits' digests, and the digest of the whole."""
    whole = hashlib.sha256("".join(splits[split] for split in SPLITS).encode()).hexdigest()
    return {"classes": [*classes], "splits": splits, "digest": whole}


def save(path: str | Path, train: ImageSet, test: ImageSet) -> None:
    """Write both splits to one file, whole or not at all; UserError if a label has no class, or the disk is full."""
    tensors, digests = {}, {}
    for name, split in zip(SPLITS, (train, test), strict=True):
        if wrong := _of_no_class(split):
            raise UserError(f"the {name} images of {split.source or path} have {wrong}: correct them")
        tensors |= {f"{name}_images": split.images, f"{name}_labels": split.labels}
        digests[name] = split_digest(split)
    checkpoint.save(path, tensors, header(train.classes, digests))


def load(
    path: str | Path, split: str, device: str | torch.device = "cpu", source: str | None = None
) -> ImageSet:
    """Read one split, "train" or "test", of what `save` wrote, and check that nothing of it has changed.

    `source`: the data's name in records and tables; None: the file's. UserError if the file is missing, truncated,
    foreign or changed, or has a label without a class.
    """
    names = f"{split}_images", f"{split}_labels"
    tensors, about = checkpoint.load(path, "cpu", names)
    changed = UserError(
        f"{path} isn't what was prepared (changed or damaged): delete it, and it is prepared again"
    )
    try:
        images = ImageSet(*(tensors[name] for name in names), tuple(about["classes"]))
        if about != header(images.classes, about["splits"]) or about["splits"][split] != split_digest(images):
            raise changed
    except (KeyError, TypeError) as error:
        raise changed from error
    if wrong := _of_no_class(images):
        raise UserError(f"{path} has {wrong}: correct the images that it was prepared from, then delete it")
    return replace(
        images,
        images=images.images.to(device),
        labels=images.labels.to(device),
        source=Path(path).stem if source is None else source,
    )


def split_digest(split: ImageSet) -> str:
    """SHA-256 of a split's classes, labels and images."""
    return hexdigest(split.images.cpu().numpy(), split.labels.cpu().numpy(), split.classes)


def _of_no_class(split: ImageSet) -> str | None:
    wrong = split.labels[(split.labels < 0) | (split.labels >= len(split.classes))]
    return f"the label {wrong[0].item()} and {len(split.classes)} classes, from 0 on" if len(wrong) else None


def subset(images: ImageSet, count: int | None, seed: int) -> ImageSet:
    """A seeded choice of `count` images without replacement; None: all, in their order. UserError if there are
    fewer."""
    if count is None:
        return images
    have = len(images.labels)
    if count > have:
        raise UserError(
            f"{count:,} images are asked for, but {images.source} has only {have:,} here: ask for fewer"
        )
    order = torch.randperm(have, generator=torch.Generator().manual_seed(seed))
    chosen = order[:count].to(images.labels.device)
    return replace(images, images=images.images[chosen], labels=images.labels[chosen])


def resized(images: ImageSet, size: int | None) -> ImageSet:
    """Its images scaled bilinearly to (N, size, size, 3), which commutes with mirroring; None: as they are."""
    if size is None or images.images.shape[1:3] == (size, size):
        return images
    scaled = [
        torch.nn.functional.interpolate(some.permute(0, 3, 1, 2).float(), (size, size), mode="bilinear")
        for some in images.images.split(1000)
    ]
    pixels = torch.cat([some.round().to(torch.uint8) for some in scaled])
    return replace(images, images=pixels.permute(0, 2, 3, 1).contiguous())
