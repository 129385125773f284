"""Data sets of labelled images, prepared once: one file of uint8 arrays, never decoded again."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from relusym import checkpoint
from relusym.errors import UserError


@dataclass(frozen=True)
class ImageSet:
    """One split of a data set.

    Attributes:
        images: uint8 (N, H, W, 3).
        labels: int64 (N,), indices into `classes`.
        classes: names.
        source: what records and tables call the data.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: str


def save(path: str | Path, train: ImageSet, test: ImageSet) -> None:
    """Write both splits to one file, whole or not at all."""
    splits = {"train": train, "test": test}
    tensors = {f"{name}_images": split.images for name, split in splits.items()}
    tensors |= {f"{name}_labels": split.labels for name, split in splits.items()}
    checkpoint.save(path, tensors, {"classes": train.classes, "source": train.source})


def load(path: str | Path, split: str, device: str | torch.device = "cpu") -> ImageSet:
    """Read one split, "train" or "test", of what `save` wrote.

    Raises:
        UserError: the file is missing, truncated or foreign.
    """
    names = f"{split}_images", f"{split}_labels"
    tensors, about = checkpoint.load(path, device, names)
    return ImageSet(*(tensors[name] for name in names), tuple(about["classes"]), about["source"])


def subset(images: ImageSet, count: int | None, seed: int) -> ImageSet:
    """A seeded choice of `count` images without replacement; None: all of them, in their order.

    Raises:
        UserError: more images are asked for than there are.
    """
    if count is None:
        return images
    have = len(images.labels)
    if count > have:
        raise UserError(
            f"{count:,} images are asked for, but {images.source} has only {have:,} here: ask for fewer"
        )
    chosen = torch.randperm(have, generator=torch.Generator().manual_seed(seed))[:count].to(
        images.labels.device
    )
    return replace(images, images=images.images[chosen], labels=images.labels[chosen])


def resized(images: ImageSet, size: int) -> ImageSet:
    """Its images scaled to (N, size, size, 3), bilinearly; the scaled mirror image is the mirrored scaled one."""
    if images.images.shape[1:3] == (size, size):
        return images
    scaled = [
        torch.nn.functional.interpolate(some.permute(0, 3, 1, 2).float(), (size, size), mode="bilinear")
        for some in images.images.split(1000)
    ]
    pixels = torch.cat([some.round().to(torch.uint8) for some in scaled])
    return replace(images, images=pixels.permute(0, 2, 3, 1).contiguous())


def from_torchvision_cifar10(root: str | Path, download: bool = True) -> tuple[ImageSet, ImageSet]:
    """CIFAR10 as torchvision has it; downloaded to `root` on first use.

    Raises:
        UserError: it isn't there and can't be downloaded, or the download is damaged.
    """
    from torchvision.datasets import CIFAR10  # here, since it doubles the start-up of every job

    try:
        splits = [CIFAR10(str(root), train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"CIFAR10 can't be had from {root} ({error}): download it there, or set cifar10.source: folder"
        ) from error
    train, test = (
        ImageSet(torch.from_numpy(s.data), torch.tensor(s.targets), tuple(s.classes), "CIFAR10")
        for s in splits
    )
    return train, test


def from_folder(root: str | Path, train: str = "train", test: str = "test") -> tuple[ImageSet, ImageSet]:
    """Images in ImageFolder layout, <root>/<split>/<class>/<image>; classes and images in the order of their names.

    Raises:
        UserError: a folder is missing or empty, the splits have other classes, an image is unreadable or of another
            size than the first; each named.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(
            f"data folder {root} is missing: set cifar10.root to the folder that holds {train}/ and {test}/"
        )
    classes = {split: _classes(root / split) for split in (train, test)}
    if classes[train] != classes[test]:
        differing = sorted(set(classes[train]) ^ set(classes[test]))
        raise UserError(
            f"data folder {root}: {train} and {test} differ in the classes {', '.join(differing)}"
        )
    splits = [_read(root / split, classes[split], str(root)) for split in (train, test)]
    if splits[0].images.shape[1:] != splits[1].images.shape[1:]:
        raise UserError(f"data folder {root}: images of {train} and {test} differ in size")
    return splits[0], splits[1]


def _classes(split: Path) -> list[str]:
    if not split.is_dir():
        raise UserError(
            f"data folder {split} is missing: set cifar10.train and cifar10.test to the splits' folders"
        )
    names = sorted(folder.name for folder in split.iterdir() if folder.is_dir())
    if not names:
        raise UserError(f"data folder {split} is empty: it should hold one folder a class")
    return names


def _read(split: Path, classes: Iterable[str], source: str) -> ImageSet:
    from torchvision.datasets.folder import IMG_EXTENSIONS  # here, since it doubles the start-up of every job

    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(path for path in (split / name).iterdir() if path.suffix.lower() in IMG_EXTENSIONS)
        if not found:
            raise UserError(f"data folder {split / name} holds no images")
        paths += found
        labels += [label] * len(found)
    # in one thread: with images this small, several only wait for the interpreter's lock
    arrays = [_decode(path) for path in paths]
    for path, array in zip(paths, arrays, strict=True):
        if array.shape != arrays[0].shape:
            sizes = ["×".join(map(str, a.shape[1::-1])) for a in (array, arrays[0])]
            raise UserError(f"image {path} is {sizes[0]} pixels, not {sizes[1]} as {paths[0]}")
    return ImageSet(torch.from_numpy(np.stack(arrays)), torch.tensor(labels), tuple(classes), source)


def _decode(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"image {path} can't be read ({error}): replace or remove it") from error
