"""The data sets by their kind in the config. Another kind is one module here and one line in `DATA_SETS`."""

from pathlib import Path
from typing import Any

from relusym import checkpoint
from relusym.errors import UserError
from relusym.registry import Entry, choose
from relusym.symmetry import HORIZONTAL_FLIP, SYMMETRIES

COUNT = {"type": "integer", "minimum": 1, "maximum": 10_000_000}
SEED = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
FOLDER = {"type": "string", "minLength": 1}

# The `source` of a data set in the config is one of these, its other keys the options.
# Each is called with the file to write, its options, and `workers` and `key` as in `prepare`.
DATA_SETS = {
    "generated": Entry(
        "relusym.data.chiral_shapes:prepare",
        {
            "train_images": COUNT,
            "test_images": COUNT,
            "seed": SEED,
            "invariant_to": {"enum": [None, *SYMMETRIES], "default": HORIZONTAL_FLIP.name},
        },
    ),
    "torchvision": Entry(
        "relusym.data.folder:prepare_torchvision",
        {"root": FOLDER, "download": {"type": "boolean", "default": True}},
    ),
    "binary": Entry("relusym.data.folder:prepare_binary", {"root": FOLDER}),
    "python": Entry("relusym.data.folder:prepare_python", {"root": FOLDER}),
    "folder": Entry(
        "relusym.data.folder:prepare",
        {"root": FOLDER, "train": {**FOLDER, "default": "train"}, "test": {**FOLDER, "default": "test"}},
    ),
    "imagenet": Entry(
        "relusym.data.imagenet:prepare",
        {
            "root": FOLDER,
            "train": {**FOLDER, "default": "train"},
            "val": {**FOLDER, "default": "val"},
            "resize": COUNT,
            "size": COUNT,
            "train_images": COUNT,
            "seed": SEED,
        },
    ),
}


def check(spec: dict[str, Any], key: str = "data") -> None:
    """Check a data set's kind and options, without importing torch.

    Args:
        key: where they stand in the config.

    Raises:
        UserError: names the key, what was given and what is allowed.
    """
    choose(DATA_SETS, "kind", spec, key)


def prepare(spec: dict[str, Any], to: Path, workers: int = 0, key: str = "data") -> list[str]:
    """Write a data set's prepared file, which `image_set.load` reads.

    Args:
        spec: the kind and its options.
        workers: processes that decode images, where there are many.
        key: as in `check`.

    Returns:
        a line on each thing that was passed over or converted.

    Raises:
        UserError: the images aren't there, or something is wrong with them.
    """
    data_set, options = choose(DATA_SETS, "kind", spec, key)
    return data_set.load()(to, workers=workers, key=key, **options) or []


def digest(path: str | Path) -> str:
    """SHA-256 of what a prepared file holds: classes, labels and images of both splits. Reads the header alone.

    Raises:
        UserError: the file is missing, truncated or foreign.
    """
    about = checkpoint.load_arrays(path, names=())[1]
    if "digest" not in about:
        raise UserError(f"{path} holds no prepared images: delete it, and it is prepared again")
    return about["digest"]
