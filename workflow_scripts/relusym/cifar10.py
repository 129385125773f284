"""CIFAR10, recognised by its content, and a reader of its official files, in their order. Needs no PyTorch."""

from __future__ import annotations

import io
import lzma
import pickle
import re
import tarfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from relusym.errors import UserError

if TYPE_CHECKING:
    import numpy as np

NAME = "CIFAR10"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
IN_A_BATCH, SIDE = 10_000, 32
PIXELS = 3 * SIDE * SIDE  # values per image: all reds row by row, then greens, then blues

# SHA-256 of the prepared images (`data.digest`) and of each split, as computed by `data.image_set.header`
DIGEST = "cfd62e0d8f236ac44903c01d0a78beec86d47a007400dde4b9b78e804ba9cf00"
SPLIT_DIGESTS = {
    "train": "964dbad31307ac0a96398fba7b2e254780424040edc4f4bbfa8cc936773995be",
    "test": "415e735c215dabb800cc5d07a47b22092463918fa2ac849f47f0f69f6292ca3c",
}


@dataclass(frozen=True)
class Version:
    """The names of an official version's folder and archive, and of the files in both."""

    folder: str
    archive: str
    ending: str
    class_names: str

    def files(self, splits: Iterable[str] = BATCHES) -> list[str]:
        """The batch files of `splits` in order, then the file of class names."""
        return [*(batch + self.ending for split in splits for batch in BATCHES[split]), self.class_names]


VERSIONS = {
    "binary": Version("cifar-10-batches-bin", "cifar-10-binary.tar.gz", ".bin", "batches.meta.txt"),
    "python": Version("cifar-10-batches-py", "cifar-10-python.tar.gz", "", "batches.meta"),
}
SOURCES = ("torchvision", *VERSIONS)  # sources in the config that yield only CIFAR10
ARCHIVES = (".tar", ".tar.gz", ".tgz")
AGAIN = "restore it, or download CIFAR10's archive again"


# ---- the name of the images


def name_of(label: str, digest: str | None) -> str:
    """The images' name in tables: "CIFAR10" by their content, "CIFAR10?" if only the label claims it, else the label.

    `digest`: that of the prepared images; None if there is none to check the label against.
    """
    if digest == DIGEST:
        return NAME
    claimed = re.sub(r"[\W_]", "", label).upper() == NAME
    return f"{NAME}?" if claimed and digest else label


def doubt(digest: str, split: str | None = None) -> str:
    """The line that explains "CIFAR10?", from the digest of all prepared images, or of those of `split`."""
    official, what = (SPLIT_DIGESTS[split], f"{split} images") if split else (DIGEST, "images")
    return (
        f"{NAME}?: these aren't {NAME}'s {what}, or not in its order (their SHA-256 begins with {digest[:8]}, that of "
        f"{NAME}'s with {official[:8]})"
    )


# ---- the location of the official files


def find(root: str | Path, source: str, key: str) -> Path:
    """The folder or archive of an official version (of `VERSIONS`): `root` itself, or inside it.

    `key`: the config's section that has `root`, named in the UserError if neither exists.
    """
    places = {name: at for name, version in VERSIONS.items() if (at := _located(Path(root), version))}
    if source in places:
        return places[source]
    version = VERSIONS[source]
    others = (f" (there is {VERSIONS[name].folder}: set {key}.source: {name})" for name in places)
    raise UserError(
        f"{key}.root: {root} given; allowed is {version.folder}/, its archive {version.archive}, or the folder that "
        f"holds either{''.join(others)}"
    )


def _located(path: Path, version: Version) -> Path | None:
    with suppress(PermissionError):  # a folder that can't be read holds none, as far as is known
        is_folder = path.name == version.folder and path.is_dir()
        if path.is_file() or is_folder or any((path / batch).is_file() for batch in version.files()[:-1]):
            return path
        return next((at for at in (path / version.folder, path / version.archive) if at.exists()), None)
    return None


def recognised(path: Path) -> tuple[str, Path] | None:
    """The version and location of the official files if `path` is, or contains, their folder or archive; else None.

    UserError if `path` is an archive that is damaged or holds something else.
    """
    if not path.is_file():
        places = ((name, _located(path, version)) for name, version in VERSIONS.items())
        return next(((name, at) for name, at in places if at), None)
    if not path.name.endswith(ARCHIVES):
        return None
    versions = {file: name for name, version in VERSIONS.items() for file in version.files()}
    for file, _ in _members(path, versions):
        return versions[file], path
    archives = " or ".join(version.archive for version in VERSIONS.values())
    raise UserError(f"{path} holds no batches of {NAME}: allowed is {archives}, or a folder")


# ---- the contents of the official files


def read(at: Path, source: str, splits: Iterable[str] = BATCHES) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The images of each split, uint8 (N, 32, 32, 3), and their labels, int64 (N,), in the official order.

    The Python version's files are pickles. They are read by an unpickler that admits only NumPy arrays and plain
    values, so that no code in them is ever run. `at` and `source` are as in `find`. UserError if a batch is missing,
    truncated, of the wrong size or with invalid labels, or if the classes aren't CIFAR10's.
    """
    import numpy as np  # here, since every start of Snakemake imports this module for the names above

    version, splits = VERSIONS[source], list(splits)
    contents = _contents(at, version.files(splits))
    names = _class_names(contents.pop(version.class_names), source, at / version.class_names)
    if names != CLASSES:
        raise UserError(
            f"{at / version.class_names}: the classes are {', '.join(names) or 'none'}, not {NAME}'s "
            f"({CLASSES[0]} to {CLASSES[-1]}); other images are read from a folder with one folder per class"
        )
    read_batch, arrays = {"binary": _binary, "python": _python}[source], {}
    for split in splits:
        files = [name + version.ending for name in BATCHES[split]]
        pixels, labels = zip(*(read_batch(contents.pop(file), at / file) for file in files), strict=True)
        images = np.concatenate(pixels).reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        arrays[split] = np.ascontiguousarray(images), np.concatenate(labels)
    return arrays


def _contents(at: Path, names: list[str]) -> dict[str, bytes]:
    """The contents of the files `names`, in a folder or anywhere in an archive."""
    try:
        if at.is_dir():
            files = {name: (at / name).read_bytes() for name in names if (at / name).is_file()}
        else:
            files = dict(_members(at, names))
    except OSError as error:
        raise UserError(f"{error.filename} can't be read ({error.strerror}): make it readable") from error
    if missing := [name for name in names if name not in files]:
        raise UserError(f"{at} lacks {', '.join(missing)}: {AGAIN}")
    return files


def _members(path: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the files `names` from any folder of an archive, in one pass that stops after the last of them."""
    seen = set()
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePath(member.name).name
                if name in names and (file := archive.extractfile(member)):
                    yield name, file.read()
                    seen.add(name)
                if len(seen) == len(names):
                    return
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")  # without the error of each format that was tried
        raise UserError(f"{path} is truncated or not an archive ({reason}): {AGAIN}") from error


def _class_names(raw: bytes, source: str, path: Path) -> tuple[str, ...]:
    if source == "binary":
        return tuple(raw.decode("latin1").split())
    names = _unpickled(raw, path).get("label_names")
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _binary(raw: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (10000, 3072) and labels (10000,) of a batch of records, each a label and an image's pixels."""
    import numpy as np

    if len(raw) != (size := IN_A_BATCH * (1 + PIXELS)):
        raise UserError(f"{path} has {len(raw):,} bytes, but a batch of {NAME} has {size:,}: {AGAIN}")
    rows = np.frombuffer(raw, np.uint8).reshape(IN_A_BATCH, 1 + PIXELS)
    return rows[:, 1:], _labels(rows[:, 0].tolist(), path)


def _python(raw: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Like `_binary`, for a pickled dict with the entries data and labels."""
    import numpy as np

    batch = _unpickled(raw, path)
    if absent := [name for name in ("data", "labels") if name not in batch]:
        raise UserError(f"{path} has no entry {absent[0]}, so it is no batch of {NAME}: {AGAIN}")
    data, labels = batch["data"], batch["labels"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (IN_A_BATCH, PIXELS):
        what = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise UserError(
            f"{path} has data {what}, but a batch of {NAME} has uint8 {(IN_A_BATCH, PIXELS)}: {AGAIN}"
        )
    if not isinstance(labels, list) or len(labels) != IN_A_BATCH:
        raise UserError(f"{path} has no list of {IN_A_BATCH:,} labels, so it is no batch of {NAME}: {AGAIN}")
    return data, _labels(labels, path)


def _labels(labels: list[Any], path: Path) -> np.ndarray:
    import numpy as np

    allowed = range(len(CLASSES))
    if wrong := [label for label in labels if label not in allowed]:
        raise UserError(f"{path} has the label {wrong[0]!r}, but {NAME} has 0 to {allowed[-1]}: {AGAIN}")
    return np.array(labels, np.int64)


def _unpickled(raw: bytes, path: Path) -> dict[str, Any]:
    """A pickled dict of arrays and plain values. Any other global in the file is refused before it is imported."""
    try:
        entries = _unpickler()(io.BytesIO(raw), encoding="latin1").load()
    except _Refused as error:
        raise UserError(
            f"{path} asks for {error}, which no file of {NAME} does: refused, since it could run code; {AGAIN}"
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{path} is truncated or damaged ({type(error).__name__}): {AGAIN}") from error
    if not isinstance(entries, dict):
        raise UserError(f"{path} holds no dict of arrays, so it is no file of {NAME}: {AGAIN}")
    return entries


class _Refused(pickle.UnpicklingError):
    pass


@cache
def _unpickler() -> type[pickle.Unpickler]:
    import numpy as np

    reconstruct = np.empty(0).__reduce__()[0]  # admitted under its names before and since NumPy 2
    admitted = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
    admitted |= {(f"numpy.{core}.multiarray", "_reconstruct"): reconstruct for core in ("core", "_core")}
    # Python 3 pickles bytes as a call of this in the formats that Python 2 can read
    admitted["_codecs", "encode"] = lambda text, _: text.encode("latin1")

    class ArraysAlone(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in admitted:
                raise _Refused(f"{module}.{name}")
            return admitted[module, name]

    return ArraysAlone
