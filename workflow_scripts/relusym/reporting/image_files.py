"""Images from a folder, CIFAR10's official files, an .npz or a file of tensors.

Those of a folder are decoded once, into a file that is gone with the process.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relusym import cifar10
from relusym.data.folder import open_image
from relusym.data.image_set import SplitHash
from relusym.errors import UserError
from relusym.nets.weights import read_tensors
from relusym.randomness import generator

ENDINGS = {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"}
FOLDER = "folder"
GIVEN = "a folder of images, CIFAR10's official folder or archive, an .npz, or a tensor file (.pt, .pth, .safetensors)"


@dataclass(frozen=True)
class Pictures:
    """Images as they were read.

    Attributes:
        pixels: uint8 (N, H, W, 3) or (N, H, W, 1).
        labels: int64 (N,), or None.
        classes: the class folders' names, or CIFAR10's, or none.
        notes: what a reader has to know of them.
    """

    pixels: Tensor
    labels: Tensor | None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def chosen(self, count: int | None, seed: int) -> "Pictures":
        """A seeded choice of `count` of them in random order; None: all, in random order."""
        order = torch.randperm(len(self.pixels), generator=generator(seed, "images"))[:count]
        labels = None if self.labels is None else self.labels[order]
        return replace(self, pixels=self.pixels[order], labels=labels)


def read(
    path: str,
    labels: str | None = None,
    size: Sequence[int] | None = None,
    limit: int | None = None,
    seed: int = 0,
    split: str | None = None,
) -> Pictures:
    """Images in a random order, and their labels.

    Args:
        path: a folder, with or without class folders in it; CIFAR10's official files, as a folder or an archive; an
            .npz or a tensor file with `images` and `labels`.
        labels: "folder": the class folders in alphabetical order; else a .npy or .txt with one number an image, in
            the order of the images' names; None: CIFAR10's own, those of an .npz or tensor file, or none.
        size: what the shorter side is resized to, and the square that is cut out of the middle, if that is another.
        limit: at most so many images, a seeded choice.
        split: "train" or "test" of CIFAR10's official files; None: "test".

    Raises:
        UserError: there are no images, they can't be read, or are of two sizes; labels are of another length.
    """
    source = Path(path)
    if not source.exists():
        raise UserError(f"images: there is no {path}; allowed is {GIVEN}")
    official = cifar10.recognised(source)
    if split and not official:
        raise UserError(
            f"--split: only for CIFAR10's official files, and {path} is something else; leave it out"
        )
    if source.is_dir() and not official:
        return _of_folder(source, labels, size, limit, seed)
    if size is not None:
        raise UserError("--size resizes images of a folder; those of a file are taken as they are")
    if labels == FOLDER:
        has = "its labels, so leave the option out" if official else "no class folders"
        raise UserError(f"--labels folder takes labels from class folders, but {path} has {has}")
    if official:
        return _of_cifar10(*official, split or "test", labels).chosen(limit, seed)
    contents = _contents(source)
    pixels = contents.get("images", contents.get("x"))
    if pixels is None:
        raise UserError(f"images: {path} has no entry 'images'; it has {', '.join(contents) or 'none'}")
    own = _labels(labels) if labels else contents.get("labels", contents.get("y"))
    pictures = Pictures(torch.as_tensor(pixels), None if own is None else torch.as_tensor(own).long())
    _check_count(pictures)
    return pictures.chosen(limit, seed)


def _of_cifar10(version: str, at: Path, split: str, labels: str | None) -> Pictures:
    pixels, own = cifar10.read(at, version, [split])[split]
    digest = SplitHash().update(pixels, own).hexdigest(cifar10.CLASSES)
    notes = () if digest == cifar10.SPLIT_DIGESTS[split] else (f"{at}: {cifar10.doubt(digest, split)}",)
    given = _labels(labels) if labels else torch.from_numpy(own)
    pictures = Pictures(torch.from_numpy(pixels), given, cifar10.CLASSES, notes)
    _check_count(pictures)
    return pictures


def _contents(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        if path.suffix == ".npy":
            return {"images": np.load(path, allow_pickle=False)}
    except (ValueError, OSError) as error:
        raise UserError(f"images: {path} can't be read ({error}): allowed is {GIVEN}") from error
    if path.suffix not in (".pt", ".pth", ".safetensors"):
        raise UserError(f"images: {path} given; allowed is {GIVEN}")
    contents = read_tensors(path)
    return {"images": contents} if isinstance(contents, Tensor) else dict(contents)


def _labels(path: str) -> Tensor:
    if not Path(path).is_file():
        raise UserError(
            f"labels: {path!r} given; allowed is 'folder', or a .npy or .txt with one number an image"
        )
    try:
        found = (
            np.load(path, allow_pickle=False)
            if path.endswith(".npy")
            else np.loadtxt(path, dtype=np.int64, ndmin=1)
        )
    except (ValueError, OSError) as error:
        raise UserError(
            f"labels: {path} can't be read ({error}): one whole number an image is needed"
        ) from error
    return torch.from_numpy(found.astype(np.int64))


def _check_count(pictures: Pictures) -> None:
    if pictures.labels is not None and len(pictures.labels) != len(pictures.pixels):
        raise UserError(f"labels: {len(pictures.labels)} given for {len(pictures.pixels)} images")


def _of_folder(
    folder: Path, labels: str | None, size: Sequence[int] | None, limit: int | None, seed: int
) -> Pictures:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not paths:
        raise UserError(f"images: {folder} holds no images ({', '.join(sorted(ENDINGS))})")
    classes: tuple[str, ...] = ()
    known = None
    if labels == FOLDER:
        classes = tuple(sorted(one.name for one in folder.iterdir() if one.is_dir()))
        index = {name: i for i, name in enumerate(classes)}
        outside = [path for path in paths if len(path.relative_to(folder).parts) < 2]
        if not classes or outside:
            what = f"{outside[0]} is in none" if classes else "it holds none"
            raise UserError(f"--labels folder: {folder} should hold one folder a class, but {what}")
        known = torch.tensor([index[path.relative_to(folder).parts[0]] for path in paths])
    elif labels:
        known = _labels(labels)
        if len(known) != len(paths):
            raise UserError(f"labels: {len(known)} given for {len(paths)} images")
    order = torch.randperm(len(paths), generator=generator(seed, "images"))[:limit]
    pixels = _decoded([paths[i] for i in order.tolist()], size)
    return Pictures(pixels, None if known is None else known[order], classes)


def _decoded(paths: list[Path], size: Sequence[int] | None) -> Tensor:
    """The images, (N, H, W, 3), in a file without a name that only the pages in use are read of."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as what is mapped)
    pixels, first = None, paths[0]
    for i, path in enumerate(paths):
        array = _sized(path, size)
        if pixels is None:
            pixels = np.memmap(file, np.uint8, "w+", shape=(len(paths), *array.shape))
        if array.shape != pixels.shape[1:]:
            sizes = ["×".join(map(str, shape[1::-1])) for shape in (array.shape, pixels.shape[1:])]
            raise UserError(
                f"image {path} is {sizes[0]} pixels, {first} is {sizes[1]}: give --size to resize them"
            )
        pixels[i] = array
    return torch.from_numpy(pixels)


def _sized(path: Path, size: Sequence[int] | None) -> np.ndarray:
    image = open_image(path)
    if size is None:
        return np.asarray(image)
    resize, crop = size[0], size[-1]
    factor = resize / min(image.size)
    width, height = (max(crop, round(side * factor)) for side in image.size)
    left, top = (width - crop) // 2, (height - crop) // 2
    from PIL.Image import Resampling

    if image.size != (width, height):
        image = image.resize((width, height), Resampling.BILINEAR)
    return np.asarray(image.crop((left, top, left + crop, top + crop)))
