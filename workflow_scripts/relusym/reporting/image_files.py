"""Images from a folder, CIFAR10's official files, an .npz or a file of tensors.

Those of a folder are decoded once, into a temporary file that disappears with the process.
"""

import os
import re
import struct
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from relusym import cifar10
from relusym.data.folder import open_image
from relusym.data.image_set import hexdigest
from relusym.errors import UserError, listed
from relusym.evaluation.images import as_pixels, whole_numbers
from relusym.nets.weights import read_contents
from relusym.randomness import generator

ENDINGS = {".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".pgm", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
MACOS_FOLDER = "__MACOSX"  # which macOS adds to archives
# Names of entries in files, in lower case; if a file has training images, too, the test images are read.
IMAGES = "images", "image", "x", "data", "arr_0", "x_test", "test_images"
LABELS = "labels", "label", "y", "targets", "target", "arr_1", "y_test", "test_labels"
READ = {*IMAGES, *LABELS}
FOLDER = "folder"
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}  # folder names, in lower case
INPUTS = "a folder of images, CIFAR10's official folder or archive, an .npz, or a tensor file (.pt, .pth, .safetensors)"
SHOWN = 12  # classes in a note


@dataclass(frozen=True)
class Sizing:
    """How images of a folder are brought to one size.

    The shorter side is resized to `resize` (with `squash`, both sides) by Pillow's filter of that name; then the
    central square of side `crop` is cut out.
    """

    resize: int
    crop: int
    filter: str = "bilinear"
    squash: bool = False

    def __call__(self, image: Image.Image) -> Image.Image:
        shorter = min(image.size)
        width, height = sides = [  # rounded as torchvision rounds them
            max(self.crop, self.resize if self.squash else int(side * self.resize / shorter))
            for side in image.size
        ]
        left, top = (round((side - self.crop) / 2) for side in sides)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling[self.filter.upper()])
        return image.crop((left, top, left + self.crop, top + self.crop))


@dataclass(frozen=True)
class Pictures:
    """Images as they were read: uint8 (N, H, W, 3) or (N, H, W, 1); int64 labels (N,), or None.

    `classes`: the class folders' names, or CIFAR10's, or none; `notes`: what a reader should know, a line each.
    """

    pixels: Tensor
    labels: Tensor | None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


# what a reader finds: paths of images, or pixels (N, …); labels, class names and notes as in `Pictures`
Found = tuple[list[Path] | Tensor, Tensor | None, tuple[str, ...], list[str]]


def read(
    path: str,
    labels: str | None = None,
    size: Sizing | None = None,
    limit: int | None = None,
    seed: int = 0,
    split: str | None = None,
    grey: bool = False,
) -> Pictures:
    """Images in a random order, and their labels.

    UserError if there are no images, they can't be read, or they differ in size; if there are more or fewer labels than
    images, or the labels aren't whole numbers from 0.

    Args:
        path: a folder, with or without class folders; CIFAR10's official files; an .npz or a tensor file with `images`.
        labels: "folder": the class folders in alphabetical order; else a .npy or .txt with one number per image, in the
            order of the images' names; None: CIFAR10's, those of an .npz or tensor file (`labels`), or none.
        size: for images of a folder.
        limit: the greatest number of images, a seeded choice.
        grey: whether images of a folder are read as (N, H, W, 1), those in colour converted.
        split: "train" or "test" of CIFAR10's official files; None: "test".
    """
    source = Path(path)
    if not source.exists():
        raise UserError(f"images: there is no {path}; allowed is {INPUTS}")
    official = cifar10.recognised(source)
    if split and not official:
        raise UserError(
            f"--split: only for CIFAR10's official files, and {path} is something else; leave it out"
        )
    in_folder = source.is_dir() and not official
    if size is not None and not in_folder:
        raise UserError("--size resizes images of a folder; those of a file are taken as they are")
    if labels == FOLDER and not in_folder:
        has = "its own labels, so leave the option out" if official else "no class folders"
        raise UserError(f"--labels folder takes labels from class folders, but {path} has {has}")
    in_file = _labels(labels) if labels not in (None, FOLDER) else None
    if official:
        found, known, classes, notes = _from_cifar10(*official, split or "test")
    else:
        read_from = _from_folder if in_folder else _from_file
        found, known, classes, notes = read_from(source, labels)
    known = known if in_file is None else in_file
    if known is not None and len(known) != len(found):
        raise UserError(f"labels: {len(known)} given for {len(found)} images")
    order = torch.randperm(len(found), generator=generator(seed, "images"))[:limit]
    known = None if known is None else known[order]
    pixels = found[order] if isinstance(found, Tensor) else _decoded([found[i] for i in order], size, grey)
    return Pictures(pixels, known, classes, tuple(notes))


def _from_cifar10(version: str, at: Path, split: str) -> Found:
    pixels, labels = cifar10.read(at, version, [split])[split]
    digest = hexdigest(pixels, labels, cifar10.CLASSES)
    notes = [] if digest == cifar10.SPLIT_DIGESTS[split] else [f"{at}: {cifar10.doubt(digest, split)}"]
    return torch.from_numpy(pixels), torch.from_numpy(labels), cifar10.CLASSES, notes


def _from_file(path: Path, labels: str | None) -> Found:
    contents = _contents(path)
    entries = {str(key).lower(): value for key, value in contents.items()}
    pixels, inside = (next((entries[n] for n in names if n in entries), None) for names in (IMAGES, LABELS))
    if pixels is None:
        entries = listed([str(key) for key in contents], SHOWN) or "none"
        raise UserError(f"images: {path} has no entry 'images'; it has {entries}")
    known = _named(whole_numbers, inside, path) if inside is not None and not labels else None
    return _named(as_pixels, pixels, path), known, (), []


def _contents(path: Path) -> dict[Any, Any]:
    kind = path.suffix.lower()
    try:
        if kind == ".npz":
            with np.load(path, allow_pickle=False) as arrays:  # other entries aren't read
                return {key: arrays[key] if key.lower() in READ else None for key in arrays}
        if kind == ".npy":
            return {"images": np.load(path, allow_pickle=False, mmap_mode="r")}
    except MemoryError as error:
        raise UserError(
            f"images: {path} doesn't fit into memory ({error}): give fewer images, or a folder of them"
        ) from error
    except Exception as error:  # of any kind, if the bytes aren't what NumPy wrote
        reason = " ".join(str(error).split())
        what = f"truncated or no {kind[1:]} file ({reason}): replace it"
        if "allow_pickle" in reason:
            what = "an array of Python objects, whose loading could run code: save plain numbers"
        raise UserError(f"images: {path} is {what}") from error
    if kind not in (".pt", ".pth", ".safetensors"):
        raise UserError(f"images: {path} given; allowed is {INPUTS}")
    contents = read_contents(path)
    if isinstance(contents, Tensor):
        return {"images": contents}
    if isinstance(contents, tuple | list) and len(contents) == 2:
        return dict(zip(("images", "labels"), contents, strict=True))
    if not isinstance(contents, dict):
        raise UserError(
            f"images: {path} holds {type(contents).__name__}; allowed is a tensor, or a dict of images and labels"
        )
    return contents


def _named(checked: Callable[[Any], Tensor], values: Any, path: str | Path) -> Tensor:
    """The tensor that a check makes of a file's values; its errors name the file."""
    try:
        return checked(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _labels(path: str) -> Tensor:
    if not Path(path).is_file():
        raise UserError(
            f"labels: {path!r} given; allowed is 'folder', or a .npy or .txt with one number per image"
        )
    try:
        if path.lower().endswith(".npy"):
            numbers = np.load(path, allow_pickle=False)
        else:
            text = Path(path).read_text(encoding="utf-8-sig").split()
            numbers = np.array(text, dtype=float)
    except Exception as error:  # of any kind, if the bytes aren't what NumPy wrote
        reason = " ".join(str(error).split())
        raise UserError(
            f"labels: {path} can't be read ({reason}): one whole number per image is needed"
        ) from error
    return _named(whole_numbers, numbers, path)


def _files(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """All files that aren't hidden, links followed, but not in circles; broken links, too."""
    real = os.path.realpath(folder)
    for path in folder.iterdir() if real not in above else ():
        if path.name.startswith(".") or path.name == MACOS_FOLDER:
            continue
        if path.is_dir():
            yield from _files(path, (*above, real))
        elif path.is_file() or path.is_symlink():
            yield path


def _from_folder(folder: Path, labels: str | None) -> Found:
    try:
        files = sorted(_files(folder))
    except OSError as error:
        raise UserError(f"images: {error.filename} can't be read ({error.strerror})") from error
    kinds = [
        (path.suffix.lower() or "without ending") if path.is_file() else "broken links" for path in files
    ]
    paths = [path for path, kind in zip(files, kinds, strict=True) if kind in ENDINGS]
    others = Counter(kind for kind in kinds if kind not in ENDINGS)
    skipped = ", ".join(f"{count} {ending}" for ending, count in others.most_common())
    if not paths:
        holds = f"no images ({', '.join(sorted(ENDINGS))})" + (f", but {skipped}" if others else "")
        raise UserError(f"images: {folder} holds {holds}")
    notes = [f"images: {others.total()} files that aren't images were skipped: {skipped}"] if others else []
    if labels == FOLDER:
        classes, known = _classes(folder, paths, notes)
        return paths, known, classes, notes
    return paths, None, (), notes + (_order_note(paths) if labels else [])


def _order_note(paths: list[Path]) -> list[str]:
    """A note if images whose names differ only in numbers aren't in the order of these numbers."""

    def numbered(path: Path) -> list[list[tuple[int, str]]]:
        pieces = (re.split(r"(\d+)", part) for part in path.parts)
        return [[(int(piece) if piece.isdecimal() else 0, piece) for piece in name] for name in pieces]

    for path, other in zip(paths, sorted(paths, key=numbered), strict=True):
        if path != other and re.sub(r"\d+", "", str(path)) == re.sub(r"\d+", "", str(other)):
            return [
                f"labels: they are taken to be in the order of the images' names as text, in which {path.name} comes "
                f"before {other.name}; if they are in numerical order, pad the numbers in the names with zeros"
            ]
    return []


def _classes(folder: Path, paths: list[Path], notes: list[str]) -> tuple[tuple[str, ...], Tensor]:
    folders = (entry.name for entry in folder.iterdir() if entry.is_dir())
    classes = tuple(sorted(name for name in folders if not name.startswith(".") and name != MACOS_FOLDER))
    index = {name: i for i, name in enumerate(classes)}
    outside = [path for path in paths if len(path.relative_to(folder).parts) < 2]
    if not classes or outside:
        what = f"{outside[0]} is in none" if classes else "it holds none"
        raise UserError(f"--labels folder: {folder} should hold one folder per class, but {what}")
    if SPLITS.issuperset(name.lower() for name in classes):
        raise UserError(
            f"--labels folder: the folders of {folder} are splits, {' and '.join(classes)}, not classes; "
            f"give one of them, such as {folder / classes[-1]}"
        )
    known = torch.tensor([index[path.relative_to(folder).parts[0]] for path in paths])
    counts = known.bincount(minlength=len(classes)).tolist()
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        notes.append(f"labels: no images in {listed(empty, SHOWN)}, which still count as classes")
    numeric = [name for name in classes if name.isdecimal()]
    if any(int(name) != index[name] for name in numeric):
        notes.append(
            f"labels: class folders are numbered in alphabetical order, so that folder {numeric[0]} is class "
            f"{index[numeric[0]]}, …, {numeric[-1]} is {index[numeric[-1]]}; if that is wrong, give --labels FILE"
        )
    return classes, known


def _decoded(paths: list[Path], size: Sizing | None, grey: bool) -> Tensor:
    """The images, (N, H, W, 3 or 1), mapped from an unnamed file, so that only pages in use take memory."""
    pixels, first = None, paths[0]
    for i, path in enumerate(paths):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged EXIF data
            image = open_image(path)
            with suppress(SyntaxError, struct.error):  # which viewers ignore, too
                image = ImageOps.exif_transpose(image)  # upright, as viewers show it
        image = image if size is None else size(image)
        array = np.asarray(image.convert("L"))[..., None] if grey else np.asarray(image)
        if pixels is None:
            pixels = _allocated((len(paths), *array.shape))
        if array.shape != pixels.shape[1:]:
            sizes = ["×".join(map(str, shape[1::-1])) for shape in (array.shape, pixels.shape[1:])]
            raise UserError(
                f"image {path} is {sizes[0]} pixels, {first} is {sizes[1]}: give --size to resize them"
            )
        pixels[i] = array
    return torch.from_numpy(pixels)


def _allocated(shape: tuple[int, ...]) -> np.ndarray:
    """Space for pixels, allocated at once: a disk that filled up later would kill the process without a message."""
    count = int(np.prod(shape))
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the array)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, count)
        file.truncate(count)
        return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise UserError(
            f"images take {count / 2**20:,.0f} MiB of temporary files, which can't be allocated ({error.strerror}): "
            "set TMPDIR to a folder with more room, or give fewer with --limit"
        ) from error
