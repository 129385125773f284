"""Records: one small JSON a job, written whole or not at all."""

import json
import re
from pathlib import Path
from typing import Any

from relusym.errors import UserError
from relusym.whole_files import open_file, write_whole

NUMBERS = re.compile(r"\[\n[-+.,\deE\s]*\]")  # a raw line break is in no string


def write_record(path: str | Path, record: dict[str, Any]) -> None:
    """Write `record` as JSON.

    Raises:
        ValueError: a field is missing or can't be right, see `records.fields`; JSON has no not-a-number, no infinity.
        UserError: the disk is full or the folder can't be written.
    """
    text = json.dumps(record, indent=1, allow_nan=False)
    if wrong := _problem(record):
        raise ValueError(f"record {path} {wrong}")
    text = NUMBERS.sub(
        lambda found: f"[{' '.join(found[0][1:-1].split())}]", text
    )  # a permutation is one line
    with write_whole(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def find_record(path: str | Path) -> dict[str, Any] | None:
    """A record, every field of it checked; None if there is none.

    Raises:
        UserError: it can't be read, isn't JSON, lacks a field, or has one that can't be right (named).
    """
    again = "delete it, and it is made again"
    try:
        with open_file(path) as file:
            record = json.load(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"record {path} can't be read ({error.strerror}): make it readable, or delete it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"record {path} is not valid JSON ({error}): {again}") from error
    if wrong := _problem(record):
        raise UserError(f"record {path} {wrong}: {again}")
    return record


def read_record(path: str | Path) -> dict[str, Any]:
    """As `find_record`.

    Raises:
        UserError: as there, or it is missing.
    """
    record = find_record(path)
    if record is None:
        raise UserError(f"record {path} is missing: let snakemake make it")
    return record


def _problem(record: Any) -> str | None:
    from relusym.records.fields import problem  # here, since merging in a library needs no records

    return problem(record)


def snapshot_path(to: Path, epoch: int) -> Path:
    """Where the net whose checkpoint is `to` is kept as it was after so many epochs."""
    return to.parent / "during_training" / f"{to.stem}-{epoch}{to.suffix}"
