"""Images from files: CIFAR10's official ones, and folders with one folder per class."""

import json
import math
import os
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from relusym import cifar10
from relusym.data import CIFAR10, ENDINGS
from relusym.data.image_set import SPLITS, ImageSet, header, hexdigest, save, split_digest
from relusym.errors import UserError
from relusym.randomness import generator
from relusym.whole_files import open_file, write_whole


def prepare(to: Path, *, root: str, train: str, test: str, workers: int, key: str) -> list[str]:
    """Write the images of a folder; see `read`. Returns a line on each thing skipped or converted."""
    *splits, notes = read(root, train, test, key)
    save(to, *splits)
    return notes


def prepare_torchvision(to: Path, *, root: str, download: bool, workers: int, key: str) -> None:
    """Write CIFAR10 as torchvision downloads it to `root` on first use: the Python version, each file's MD5 checked.

    UserError if it is missing or damaged and can't be downloaded.
    """
    from torchvision.datasets import CIFAR10 as Official  # here, since it doubles the start-up of every job

    try:
        Official(root, train=False, download=download)
    except (RuntimeError, OSError, EOFError) as error:
        raise UserError(
            f"CIFAR10 isn't available in {root} ({error}): set {key}.root to a folder that has it; or set "
            f"{key}.source to binary or python, and {key}.root to the official archive; or {key}.source "
            f"to folder, and {key}.root to a tree of images"
        ) from error
    _save_official(to, Path(root).expanduser() / Official.base_folder, "python")


def prepare_official(source: str, to: Path, *, root: str, workers: int, key: str) -> None:
    """Write CIFAR10 from its official binary or Python version, as `cifar10.find` and `cifar10.read` do."""
    _save_official(to, cifar10.find(root, source, key), source)


prepare_binary, prepare_python = (partial(prepare_official, source) for source in ("binary", "python"))


def _save_official(to: Path, at: Path, source: str) -> None:
    splits = cifar10.read(at, source).values()
    save(to, *(ImageSet(*map(torch.from_numpy, split), cifar10.CLASSES, str(at)) for split in splits))


def read(
    root: str | Path, train: str = "train", test: str = "test", key: str = "data"
) -> tuple[ImageSet, ImageSet, list[str]]:
    """Images in ImageFolder layout, <root>/<split>/<class>/<image>; classes and images in the order of their names.

    CIFAR10's images are brought to the official order, if the numbers in their names are that order. `key`: the place
    of root, train and test in the config. The list has a line on files that aren't images, on images that weren't RGB,
    and on sizes other than CIFAR10's. UserError, with its name, if a folder is missing or empty, the splits' classes
    differ, or an image is unreadable, has more than 8 bits per channel or another size than the first.
    """
    notes: list[str] = []
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
    splits = [_read(root / split, classes[split], notes) for split in (train, test)]
    height, width = splits[0].images.shape[1:3]
    if splits[1].images.shape[1:3] != (height, width):
        raise UserError(f"data folder {root}: images of {train} and {test} differ in size")
    if (height, width) != CIFAR10.sides:
        notes.append(
            f"{root}: images of {width}×{height} pixels are kept as they are; image_size scales them"
        )
    return splits[0], splits[1], notes


def _classes(split: Path, key: str) -> list[str]:
    if not split.is_dir():
        raise UserError(
            f"data folder {split} is missing: set {key}.train and {key}.test to the splits' folders"
        )
    names = sorted(folder.name for folder in split.iterdir() if folder.is_dir())
    if not names:
        raise UserError(f"data folder {split} is empty: it should hold one folder per class")
    return names


def _read(split: Path, classes: Iterable[str], notes: list[str]) -> ImageSet:
    files, labels = [], []
    others = [path for path in split.iterdir() if not path.is_dir()]
    for label, name in enumerate(classes):
        within = sorted((split / name).iterdir())
        images = [path for path in within if path.suffix.lower() in ENDINGS]
        if not images:
            raise UserError(f"data folder {split / name} holds no images")
        others += [path for path in within if path.suffix.lower() not in ENDINGS]
        files += images
        labels += [label] * len(images)
    if others:
        notes.append(f"skipped, since they aren't images: {', '.join(map(str, sorted(others)))}")
    # in one thread: with images this small, several only wait for the interpreter's lock
    modes: Counter[str] = Counter()
    arrays = [np.asarray(open_image(path, modes)) for path in files]
    for path, array in zip(files, arrays, strict=True):
        if array.shape != arrays[0].shape:
            sizes = ["×".join(map(str, a.shape[1::-1])) for a in (array, arrays[0])]
            raise UserError(f"image {path} is {sizes[0]} pixels, not {sizes[1]} as {files[0]}")
    notes += [f"{split}: {n} images of mode {mode} were converted to RGB" for mode, n in modes.items()]
    images = ImageSet(torch.from_numpy(np.stack(arrays)), torch.tensor(labels), tuple(classes), str(split))
    return _in_official_order(images, files)


def _in_official_order(images: ImageSet, files: list[Path]) -> ImageSet:
    """CIFAR10's images by the first number in their names, if that is the official order; others unchanged."""
    numbers = [re.search(r"\d+", path.stem) for path in files]
    if images.classes != cifar10.CLASSES or None in numbers:
        return images
    order = np.argsort([int(number[0]) for number in numbers], kind="stable")
    ordered = replace(images, images=images.images[order], labels=images.labels[order])
    return ordered if split_digest(ordered) in cifar10.SPLIT_DIGESTS.values() else images


def open_image(path: str | Path, modes: Counter[str] | None = None) -> Image.Image:
    """An image file as RGB; `modes` counts the modes converted. UserError if unreadable, or of more than 8 bits."""
    try:
        open_file(path).close()  # a pipe would keep Pillow waiting
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip them, to white
                raise UserError(
                    f"image {path} has more than 8 bits per channel (mode {image.mode}): convert it to 8 bits"
                )
            if modes is not None and image.mode != "RGB":
                modes[image.mode] += 1
            return image.convert("RGB")
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"image {path} can't be read ({error}): replace or remove it") from error


def image_folder(root: Path, transform: Callable, key: str = "imagenet"):
    """torchvision's ImageFolder, which decodes images on access; UserError if it can't be used, or has none."""
    from torchvision.datasets import ImageFolder  # here, since it doubles the start-up of every job

    try:
        return ImageFolder(str(root), transform, loader=open_image)
    except OSError as error:
        raise UserError(
            f"ImageNet's folder {root} can't be used ({error}): set {key}.root to the folder that holds "
            "train/<class>/ and val/<class>/"
        ) from error


def loaded(loader: DataLoader) -> Iterator[Any]:
    """Its batches; a worker's UserError is the one line that it is without workers, where torch adds a traceback."""
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).strip().rpartition("UserError: ")[2]) from error


BATCH = 64  # images that a worker decodes at once


def prepare_imagenet(
    to: Path,
    *,
    root: str,
    train: str,
    val: str,
    resize: int,
    size: int,
    train_images: int,
    seed: int,
    workers: int,
    key: str,
) -> None:
    """Write a file as `image_set.save` does: a seeded choice of the training images, and all validation images.

    Each is resized to `resize` on its shorter side and cropped to `size` × `size` at its centre, as torchvision's
    presets for evaluation do. The file is filled piece by piece, and later mapped into memory rather than read.
    UserError if a folder is missing, the splits' classes differ, or there are fewer training images.
    """
    from torchvision.transforms import v2  # here, since it doubles the start-up of every job

    transform = v2.Compose([v2.Resize(resize), v2.CenterCrop(size), v2.PILToTensor()])
    folders = {split: Path(root) / folder for split, folder in zip(SPLITS, (train, val), strict=True)}
    splits = {split: image_folder(folder, transform, key) for split, folder in folders.items()}
    classes = splits["train"].classes
    if differing := sorted(set(classes) ^ set(splits["test"].classes)):
        raise UserError(
            f"ImageNet: {folders['train']} and {folders['test']} differ in {len(differing)} classes, such as "
            f"{differing[0]}"
        )
    have = len(splits["train"])
    if train_images > have:
        raise UserError(
            f"{train_images:,} images are asked for, but {folders['train']} has only {have:,}: ask for fewer"
        )
    order = torch.randperm(have, generator=generator(seed, "ImageNet", "chosen images"))[:train_images]
    chosen = {"train": Subset(splits["train"], order.tolist()), "test": splits["test"]}
    layout = {f"{split}_labels": ("int64", (len(some),)) for split, some in chosen.items()}
    layout |= {f"{split}_images": ("uint8", (len(some), size, size, 3)) for split, some in chosen.items()}
    about = header(classes, dict.fromkeys(SPLITS, "0" * 64))  # the digests are known at the end
    with _in_pieces(to, layout, about) as arrays:
        for split, some in chosen.items():
            done, pixels, classified = 0, arrays[f"{split}_images"], arrays[f"{split}_labels"]
            for images, labels in loaded(DataLoader(some, BATCH, num_workers=workers)):
                part = slice(done, done + len(labels))
                pixels[part], classified[part] = images.permute(0, 2, 3, 1), labels
                done += len(labels)
            about["splits"][split] = hexdigest(pixels, classified, classes)
        about |= header(classes, about["splits"])


@contextmanager
def _in_pieces(
    path: str | Path, layout: dict[str, tuple[str, tuple[int, ...]]], about: dict[str, Any]
) -> Iterator[dict[str, np.ndarray]]:
    """Arrays to fill, on disk rather than in memory, that become a file like `checkpoint.save`'s at the end.

    `layout`: name → type ("uint8" or "int64") and shape; int64 ones first, so that all are aligned. `about`: as in
    `checkpoint.save`; may change until the end, but not in length.
    """
    types = {"uint8": "U8", "int64": "I64"}  # in safetensors' headers
    entries: dict[str, Any] = {}
    offset = 0
    for name, (dtype, shape) in layout.items():
        end = offset + math.prod(shape) * np.dtype(dtype).itemsize
        entries[name] = {"dtype": types[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end

    def head() -> bytes:
        text = json.dumps({"__metadata__": {"relusym": json.dumps(about)}, **entries}).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    start = len(head())
    with write_whole(path) as part:
        with part.open("wb") as file:
            if hasattr(os, "posix_fallocate"):  # a full disk shows here, not as a crash later
                os.posix_fallocate(file.fileno(), 0, start + offset)
            file.truncate(start + offset)
        arrays = {
            name: np.memmap(part, dtype, "r+", start + entries[name]["data_offsets"][0], shape)
            for name, (dtype, shape) in layout.items()
        }
        yield arrays
        for array in arrays.values():
            array.flush()
        with part.open("r+b") as file:
            file.write(head())
