"""The data sets by their kind in the config. Another kind is one module here and one line in `DATA_SETS`."""

import os
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from relusym import checkpoint, cifar10
from relusym.errors import UserError
from relusym.schema import Count, Entry, Flag, OrNull, Section, Seed, Text, among, choose
from relusym.symmetry import HORIZONTAL_FLIP, SYMMETRIES
from relusym.whole_files import open_file

SymmetryName = Annotated[str, among(SYMMETRIES)]


class Generated(Section):
    """Generated images."""

    train_images: Count
    test_images: Count
    seed: Seed
    invariant_to: OrNull[SymmetryName] = HORIZONTAL_FLIP.name


class Download(Section):
    """CIFAR10 as torchvision downloads it."""

    root: Text
    download: Flag = True


class Files(Section):
    """CIFAR10's official files."""

    root: Text


class Folder(Section):
    """A tree of images, <root>/<split>/<class>/<image>."""

    root: Text
    train: Text = "train"
    test: Text = "test"


class ImageNet(Section):
    """ImageNet's tree, <root>/<split>/<wnid>/<image>: a choice of training images, and all validation images."""

    root: Text
    train: Text = "train"
    val: Text = "val"
    resize: Count
    size: Count
    train_images: Count
    seed: Seed


# The `source` of a data set in the config is one of these, its other keys the options.
# Each is called with the file to write, its options, and `workers` and `key` as in `prepare`.
DATA_SETS = {
    "generated": Entry("relusym.data.chiral_shapes:prepare", Generated),
    "torchvision": Entry("relusym.data.folder:prepare_torchvision", Download),
    "binary": Entry("relusym.data.folder:prepare_binary", Files),
    "python": Entry("relusym.data.folder:prepare_python", Files),
    "folder": Entry("relusym.data.folder:prepare", Folder),
    "imagenet": Entry("relusym.data.folder:prepare_imagenet", ImageNet),
}


def check(spec: dict[str, Any], key: str = "data") -> None:
    """Check a data set's kind and options, at `key` in the config, without importing torch."""
    choose(DATA_SETS, "kind", spec, key)


def prepare(spec: dict[str, Any], to: Path, workers: int = 0, key: str = "data") -> list[str]:
    """Write a data set's prepared file, for `image_set.load`; returns a line on each thing skipped or converted.

    UserError if the images are missing, or something is wrong with them.

    Args:
        spec: the kind and its options.
        workers: processes that decode images, if there are many.
        key: their place in the config.
    """
    data_set, options = choose(DATA_SETS, "kind", spec, key)
    return data_set.load()(to, workers=workers, key=key, **options.model_dump()) or []


def digest(path: str | Path) -> str:
    """SHA-256 of what a prepared file holds, from its header alone; UserError if it is missing or foreign."""
    about = checkpoint.load_arrays(path, names=())[1]
    if "digest" not in about:
        raise UserError(f"{path} holds no prepared images: delete it, and it is prepared again")
    return about["digest"]


# of torchvision.datasets.folder
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class Extent(NamedTuple):
    """The number of training images, the sides of all images in pixels (height, width), the number of test images."""

    train: int
    sides: tuple[int, int]
    test: int | None = None  # of a folder that isn't prepared yet


CIFAR10 = Extent(50_000, (32, 32), 10_000)


def known_extent(spec: dict[str, Any]) -> Extent | None:
    """The extent of a data set that is the same wherever it comes from; None if that depends on its files."""
    if spec["kind"] == "generated":
        return Extent(spec["train_images"], (32, 32), spec["test_images"])
    return CIFAR10 if spec["kind"] in cifar10.SOURCES else None


def extent_of(spec: dict[str, Any], prepared: Path) -> Extent | None:
    """The extent of a data set, if it is known: from the prepared file's header, or from its folder.

    None for ImageNet, whose prepared file has a choice of the training images alone. UserError if the file is truncated
    or foreign.

    Args:
        spec: as in `data.prepare`.
        prepared: the file, which needn't exist.
    """
    if known := known_extent(spec):
        return known
    if spec["kind"] == "imagenet":
        return None
    if prepared.exists():
        shapes = checkpoint.shapes(prepared)
        shape, test = (shapes.get(f"{split}_images", (0, 0, 0)) for split in ("train", "test"))
        return Extent(shape[0], shape[1:3], test[0])
    return _of_folder(Path(spec["root"]) / spec.get("train", "train")) if spec["kind"] == "folder" else None


def _of_folder(split: Path) -> Extent | None:
    from PIL import Image

    try:
        classes = (folder for folder in os.scandir(split) if folder.is_dir())
        files = [
            file.path
            for folder in classes
            for file in os.scandir(folder)
            if file.name.lower().endswith(ENDINGS)
        ]
        open_file(first := min(files)).close()
        with Image.open(first) as image:
            return Extent(len(files), image.size[::-1])
    # no images, or an unreadable one: preparing them names it
    except (ValueError, OSError, Image.DecompressionBombError):
        return None
