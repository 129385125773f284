"""The data sets by their kind in the config. Another kind is one module here and one line in `DATA_SETS`."""

from pathlib import Path
from typing import Annotated, Any

from relusym import checkpoint
from relusym.errors import UserError
from relusym.registry import Entry, choose
from relusym.schema import Count, Flag, OrNull, Section, Seed, Text, among
from relusym.symmetry import HORIZONTAL_FLIP, SYMMETRIES

SymmetryName = Annotated[str, among(SYMMETRIES)]


class Generated(Section):
    """Images drawn on the spot."""

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
    """ImageNet's tree, <root>/<split>/<wnid>/<image>: a choice of training images, and all to validate on."""

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
    "imagenet": Entry("relusym.data.imagenet:prepare", ImageNet),
}


def check(spec: dict[str, Any], key: str = "data") -> None:
    """Check a data set's kind and options, which stand at `key` of the config, without importing torch.

    UserError names the key, its value and what is allowed.
    """
    choose(DATA_SETS, "kind", spec, key)


def prepare(spec: dict[str, Any], to: Path, workers: int = 0, key: str = "data") -> list[str]:
    """Write a data set's prepared file, which `image_set.load` reads; a line on each thing passed over or converted.

    UserError if the images aren't there, or something is wrong with them.

    Args:
        spec: the kind and its options.
        workers: processes that decode images, where there are many.
        key: where they stand in the config.
    """
    data_set, options = choose(DATA_SETS, "kind", spec, key)
    return data_set.load()(to, workers=workers, key=key, **options.model_dump()) or []


def digest(path: str | Path) -> str:
    """SHA-256 of what a prepared file holds: classes, labels and images of both splits. Reads the header alone.

    UserError if the file is missing, truncated or foreign.
    """
    about = checkpoint.load_arrays(path, names=())[1]
    if "digest" not in about:
        raise UserError(f"{path} holds no prepared images: delete it, and it is prepared again")
    return about["digest"]
