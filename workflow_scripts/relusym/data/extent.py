"""How many images a data set has, and how large they are, without PyTorch and before they are prepared."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from relusym import checkpoint, cifar10

# of torchvision.datasets.folder
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class Extent(NamedTuple):
    """The number of training images, and the sides of all images in pixels (height, width)."""

    train: int
    sides: tuple[int, int]


CIFAR10 = Extent(50_000, (32, 32))


def known_extent(spec: dict[str, Any]) -> Extent | None:
    """The extent of a data set that is the same wherever it comes from; None if that depends on its files."""
    if spec["kind"] == "generated":
        return Extent(spec["train_images"], (32, 32))
    return CIFAR10 if spec["kind"] in cifar10.SOURCES else None


def extent_of(spec: dict[str, Any], prepared: Path) -> Extent | None:
    """The extent of a data set, if it is known: from the prepared file's header, or from its folder.

    None for ImageNet, whose prepared file has a choice of the training images alone. UserError if it is truncated or
    foreign.

    Args:
        spec: as in `data.prepare`.
        prepared: the file, which needn't be there.
    """
    if known := known_extent(spec):
        return known
    if spec["kind"] == "imagenet":
        return None
    if prepared.exists():
        shape = checkpoint.shapes(prepared).get("train_images", (0, 0, 0))
        return Extent(shape[0], shape[1:3])
    return _of_folder(Path(spec["root"]) / spec.get("train", "train")) if spec["kind"] == "folder" else None


def _of_folder(split: Path) -> Extent | None:
    from PIL import Image

    files = list(image_files(split))
    try:
        with Image.open(min(files)) as image:
            return Extent(len(files), image.size[::-1])
    except (ValueError, OSError):  # none, or none that can be read: preparing them names which
        return None


def image_files(split: Path) -> Iterator[str]:
    """The images of one split, `<class>/<image>`, by their endings."""
    for folder in os.scandir(split) if split.is_dir() else ():
        if folder.is_dir():
            yield from (file.path for file in os.scandir(folder) if file.name.lower().endswith(ENDINGS))
