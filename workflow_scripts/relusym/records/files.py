"""Records: one small JSON a job, written whole or not at all; their settings stand once in their folder."""

import errno
import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from relusym.errors import UserError
from relusym.records.fingerprint import non_default
from relusym.whole_files import open_file, write_whole

Record = dict[str, Any]
NUMBERS = re.compile(r"\[\n[-+.,\deE\s]*\]")  # a raw line break is in no string
KEY = re.compile(rb'"\s*:')  # as many as there are keys, or more: text may hold it
LARGEST = 1 << 28  # bytes, a hundred times the permutations of a large net
SETTINGS = "settings.json"  # in each folder of records, those that all of them were made with
DELETE = "delete it, and it is made again"
RESTORE = "give its folder the file back, or delete the folder"


def load_record_or_none(path: str | Path) -> Record | None:
    """A record with its settings, every field of it checked; None if there is none.

    UserError if it can't be read, isn't JSON, has a key twice, lacks a field, or has one that can't be right (named).
    """
    from relusym.records.fields import problem  # here, since merging in a library needs no records

    try:
        record = _load(path)
    except FileNotFoundError:
        return None
    if isinstance(record, dict):
        settings = Path(path).with_name(SETTINGS)
        try:
            record["settings"] = _settings(settings, settings.stat().st_mtime_ns)
        except FileNotFoundError as error:
            raise UserError(f"record {path} has no {SETTINGS} beside it: {RESTORE}") from error
        except OSError as error:
            raise UserError(f"{settings} can't be read ({error.strerror}): {RESTORE}") from error
    if wrong := problem(record):
        raise UserError(f"record {path} {wrong}: {DELETE}")
    return record


def load_record(path: str | Path) -> Record:
    """As `load_record_or_none`. Raises UserError: as there, or it is missing."""
    record = load_record_or_none(path)
    if record is None:
        raise UserError(f"record {path} is missing: let snakemake make it")
    return record


def write_record(path: str | Path, record: Record) -> None:
    """Write `record` as JSON, its `settings` into the file of that name in its folder, if it isn't there.

    ValueError if a field is missing or can't be right (`fields`), is not-a-number or infinite; UserError if the disk
    is full, the folder can't be written, or it is of records with other settings.
    """
    from relusym.records.fields import problem

    if wrong := problem(record):
        raise ValueError(f"record {path} {wrong}")
    body = {key: value for key, value in record.items() if key != "settings"}
    text = json.dumps(body, indent=1, allow_nan=False)
    # a permutation is one line
    text = NUMBERS.sub(lambda numbers: f"[{' '.join(numbers[0][1:-1].split())}]", text)
    settings = Path(path).with_name(SETTINGS)
    if not settings.exists():
        with write_whole(settings) as part:
            part.write_text(json.dumps(record["settings"], indent=1) + "\n", encoding="utf-8")
    elif non_default(_load(settings, RESTORE)) != non_default(record["settings"]):
        raise UserError(f"record {path} was made with other settings than those in {settings}: {RESTORE}")
    with write_whole(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def write_trained(path: str | Path, record: Record) -> None:
    """Write the record of a net, as `write_record`; one that has come out the same keeps its record, to the byte.

    A broken one is written anew. Records of earlier tries at the same net, which couldn't be had, go.
    """
    path = Path(path)
    if _outcome(_unbroken(path)) != _outcome(record):
        write_record(path, record)
    for name in (f"{record['seed']}.json", f"{record['seed']}.*.json"):
        for other in {*path.parent.glob(name)} - {path}:
            if _unbroken(other).get("status") == "absent":
                other.unlink()


def _unbroken(path: Path) -> Record:
    try:
        return load_record_or_none(path) or {}
    except UserError:
        return {}


def _outcome(record: Record) -> Record:
    """A net's record without how long its training took, and on what."""
    without = "cost", "code", "data_wait_share", "settings"
    history = [(epoch["loss"], epoch["accuracy"]) for epoch in record.get("history", [])]
    return {key: value for key, value in record.items() if key not in without} | {"history": history}


@lru_cache(64)
def _settings(path: Path, time: int) -> Any:
    settings = _load(path, RESTORE)
    if not isinstance(settings, dict):
        raise UserError(f"{path} can't be right ({settings!r:.60} stands in it): {RESTORE}")
    return settings


def _load(path: str | Path, what_to_do: str = DELETE) -> Any:
    try:
        with open_file(path) as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        # a fourth of the time of json.loads, but of a key that stands twice, it keeps the last
        value = from_json(text)
        return value if _keys(value) == len(KEY.findall(text)) else json.loads(text, object_pairs_hook=_once)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(
            f"record {path} can't be read ({error.strerror}): make it readable, or delete it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"record {path} is not valid JSON ({error}): {what_to_do}") from error


def _keys(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_keys, value.values()))
    if isinstance(value, list) and not (value and isinstance(value[0], int | float)):
        return sum(map(_keys, value))
    return 0


def _once(pairs: list[tuple[str, Any]]) -> Record:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        key = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {key!r} stands twice in one object")
    return fields


def snapshot_path(checkpoint: Path, epoch: int) -> Path:
    """Where the net of a checkpoint is kept as it was after so many epochs."""
    return checkpoint.parent / f"during_training/{checkpoint.stem}-{epoch}{checkpoint.suffix}"
