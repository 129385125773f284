"""Images from elsewhere: torchvision's CIFAR10, and folders with one folder a class."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from relusym.data.image_set import ImageSet, save
from relusym.errors import UserError


def prepare(to: Path, *, root: str, train: str, test: str, workers: int, key: str) -> None:
    """Write the images of a folder; see `read`."""
    save(to, *read(root, train, test, key))


def prepare_cifar10(to: Path, *, root: str, download: bool, workers: int, key: str) -> None:
    """Write CIFAR10 as torchvision has it; downloaded to `root` on first use.

    Raises:
        UserError: it isn't there and can't be downloaded, or the download is damaged.
    """
    from torchvision.datasets import CIFAR10  # here, since it doubles the start-up of every job

    try:
        splits = [CIFAR10(root, train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"CIFAR10 can't be had from {root} ({error}): download it there and set {key}.root, or set {key} to a "
            "folder of images"
        ) from error
    save(to, *(ImageSet(torch.from_numpy(s.data), torch.tensor(s.targets), tuple(s.classes)) for s in splits))


def read(
    root: str | Path, train: str = "train", test: str = "test", key: str = "data"
) -> tuple[ImageSet, ImageSet]:
    """Images in ImageFolder layout, <root>/<split>/<class>/<image>; classes and images in the order of their names.

    Args:
        key: where root, train and test stand in the config.

    Raises:
        UserError: a folder is missing or empty, the splits have other classes, an image is unreadable or of another
            size than the first; each named.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(
            f"data folder {root} is missing: set {key}.root to the folder that holds {train}/ and {test}/"
        )
    classes = {split: _classes(root / split, key) for split in (train, test)}
    if classes[train] != classes[test]:
        differing = sorted(set(classes[train]) ^ set(classes[test]))
        raise UserError(
            f"data folder {root}: {train} and {test} differ in the classes {', '.join(differing)}"
        )
    splits = [_read(root / split, classes[split]) for split in (train, test)]
    if splits[0].images.shape[1:] != splits[1].images.shape[1:]:
        raise UserError(f"data folder {root}: images of {train} and {test} differ in size")
    return splits[0], splits[1]


def _classes(split: Path, key: str) -> list[str]:
    if not split.is_dir():
        raise UserError(
            f"data folder {split} is missing: set {key}.train and {key}.test to the splits' folders"
        )
    names = sorted(folder.name for folder in split.iterdir() if folder.is_dir())
    if not names:
        raise UserError(f"data folder {split} is empty: it should hold one folder a class")
    return names


def _read(split: Path, classes: Iterable[str]) -> ImageSet:
    from torchvision.datasets.folder import IMG_EXTENSIONS  # here, since it doubles the start-up of every job

    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(path for path in (split / name).iterdir() if path.suffix.lower() in IMG_EXTENSIONS)
        if not found:
            raise UserError(f"data folder {split / name} holds no images")
        paths += found
        labels += [label] * len(found)
    # in one thread: with images this small, several only wait for the interpreter's lock
    arrays = [np.asarray(open_image(path)) for path in paths]
    for path, array in zip(paths, arrays, strict=True):
        if array.shape != arrays[0].shape:
            sizes = ["×".join(map(str, a.shape[1::-1])) for a in (array, arrays[0])]
            raise UserError(f"image {path} is {sizes[0]} pixels, not {sizes[1]} as {paths[0]}")
    return ImageSet(torch.from_numpy(np.stack(arrays)), torch.tensor(labels), tuple(classes))


def open_image(path: str | Path) -> Image.Image:
    """An image file as RGB.

    Raises:
        UserError: it can't be read.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"image {path} can't be read ({error}): replace or remove it") from error


def image_folder(root: Path, transform: Callable, key: str = "imagenet"):
    """torchvision's ImageFolder, which decodes an image when it is asked for.

    Raises:
        UserError: the folder is missing or has no images; later, an image can't be read.
    """
    from torchvision.datasets import ImageFolder  # here, since it doubles the start-up of every job

    try:
        return ImageFolder(str(root), transform, loader=open_image)
    except OSError as error:
        raise UserError(
            f"ImageNet's folder {root} can't be used ({error}): set {key}.root to the folder that holds "
            "train/<class>/ and val/<class>/"
        ) from error
