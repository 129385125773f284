"""Records: one small JSON a job, written whole or not at all."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from relusym.errors import UserError

OF_NETS = "status", "settings", "inputs", "outputs", "cost"
FIELDS = {
    "train": ("status", "model", "seed", "settings", "inputs", "outputs", "accuracy", "history", "cost"),
    "flip_merge": ("status", "model", "seed", "settings", "inputs", "outputs", "cost"),
    "pair_merge": (
        "status",
        "model_1",
        "seed_1",
        "model_2",
        "seed_2",
        "settings",
        "inputs",
        "outputs",
        "cost",
    ),
    **dict.fromkeys(("exact_gcnn", "symmetries", "curves", "during_training", "by_layer"), OF_NETS),
    "flipped_training": ("settings", "inputs", "largest_difference", "runs", "paths", "cost"),
    "theory": (
        *("statement", "claim", "holds", "draws", "tested", "largest_violation", "counterfactual"),
        *("measured", "settings", "cost"),
    ),
}
NUMBERS = re.compile(r"\[\n[-+.,\deE\s]*\]")  # a raw line break is in no string
# of a merge, if it is ok
MEASURED = ("accuracy", "barrier", "absolute_barrier", "permutations", "checks")


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it at the end, so that `path` is whole or absent.

    The temporary file keeps the ending of `path` (matplotlib and torchvision choose a format by it). If the
    body raises, the temporary file is removed and an older `path` stays as it was.

    Raises:
        UserError: the disk is full or the folder can't be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())  # a full disk may show only here
        part.chmod(0o666 & ~_umask())  # some writers make files that only their owner can read
        part.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error.strerror}): free space or change the folder"
        ) from error
    finally:
        with suppress(OSError):  # the folder itself may be what is wrong
            part.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_record(path: str | Path, record: dict[str, Any]) -> None:
    """Write `record` as JSON; not-a-number and infinity are refused, since JSON has neither."""
    text = json.dumps(record, indent=1, allow_nan=False)
    text = NUMBERS.sub(
        lambda found: f"[{' '.join(found[0][1:-1].split())}]", text
    )  # a permutation is one line
    with write_whole(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def read_record(path: str | Path) -> dict[str, Any]:
    """Read a record and check that it has the fields of its kind.

    Raises:
        UserError: the file is missing, isn't JSON, or lacks a field (named).
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"record {path} is missing: let snakemake make it") from error
    except ValueError as error:
        raise UserError(
            f"record {path} is not valid JSON ({error}): delete it, and it is made again"
        ) from error
    kind = record.get("kind") if isinstance(record, dict) else None
    if kind not in FIELDS:
        raise UserError(f"record {path} lacks the field 'kind' (one of {', '.join(FIELDS)}): delete it")
    needed = FIELDS[kind] + (MEASURED if kind.endswith("_merge") and record.get("status") == "ok" else ())
    for field in needed:
        if field not in record:
            raise UserError(f"record {path} lacks the field '{field}': delete it, and it is made again")
    return record


def snapshot_path(to: Path, epoch: int) -> Path:
    """Where the net whose checkpoint is `to` is kept as it was after so many epochs."""
    return to.parent / "during_training" / f"{to.stem}-{epoch}{to.suffix}"
