"""Records: one small JSON file per job, written whole or not at all; settings are stored once per folder."""

import errno
import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from relusym.errors import UserError
from relusym.records.fields import problem
from relusym.records.fingerprint import non_default
from relusym.whole_files import open_file, write_text

Record = dict[str, Any]
NUMBERS = re.compile(r"\[\n[-+.,\deE\s]*\]")  # no JSON string contains a raw line break
LARGEST = 1 << 28  # bytes, a hundred times the permutations of a large net
SETTINGS = "settings.json"  # in each folder of records, the settings that they share
DELETE = "delete it, and it is made again"
RESTORE = "give its folder the file back, or delete the folder"


def load_record_or_none(path: str | Path) -> Record | None:
    """Load a record with its settings and check every field; None if there is none.

    UserError if it can't be read, isn't JSON, repeats a key, lacks a field, or has an invalid one (named).
    """
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
    """Like `load_record_or_none`, but a missing record is a UserError too."""
    record = load_record_or_none(path)
    if record is None:
        raise UserError(f"record {path} is missing: let snakemake make it")
    return record


def write_record(path: str | Path, record: Record) -> None:
    """Write `record` as JSON, and its `settings` to `SETTINGS` in its folder, unless that file exists.

    ValueError if a field is missing or invalid (`fields`), NaN or infinite; UserError if the disk is full, or if
    the folder can't be written or has records with other settings.
    """
    if wrong := problem(record):
        raise ValueError(f"record {path} {wrong}")
    body = {key: value for key, value in record.items() if key != "settings"}
    text = json.dumps(body, indent=1, allow_nan=False)
    # each permutation on one line
    text = NUMBERS.sub(lambda numbers: f"[{' '.join(numbers[0][1:-1].split())}]", text)
    settings = Path(path).with_name(SETTINGS)
    if not settings.exists():
        write_text(settings, json.dumps(record["settings"], indent=1) + "\n")
    elif non_default(_load(settings, RESTORE)) != non_default(record["settings"]):
        raise UserError(f"record {path} was made with other settings than those in {settings}: {RESTORE}")
    write_text(path, text + "\n")


def write_trained(path: str | Path, record: Record) -> None:
    """Write the record of a net like `write_record`, but keep an existing record, to the byte, of the same outcome.

    A broken record is overwritten. Records of earlier attempts whose weights weren't available are deleted.
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
    """A net's record without the fields on how long its training took, and on which machine."""
    without = "cost", "code", "data_wait_share", "settings"
    history = [(epoch["loss"], epoch["accuracy"]) for epoch in record.get("history", [])]
    return {key: value for key, value in record.items() if key not in without} | {"history": history}


@lru_cache(64)
def _settings(path: Path, time: int) -> Any:
    settings = _load(path, RESTORE)
    if not isinstance(settings, dict):
        raise UserError(f"{path} can't be right (it holds {settings!r:.60}): {RESTORE}")
    return settings


def _load(path: str | Path, what_to_do: str = DELETE) -> Any:
    try:
        with open_file(path) as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return json.loads(text.decode(), object_pairs_hook=_once)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(
            f"record {path} can't be read ({error.strerror}): make it readable, or delete it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"record {path} is not valid JSON ({error}): {what_to_do}") from error


def _once(pairs: list[tuple[str, Any]]) -> Record:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        key = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {key!r} occurs twice in one object")
    return fields


def snapshot_path(checkpoint: Path, epoch: int) -> Path:
    """The path of the snapshot of a checkpoint's net after `epoch` epochs."""
    return checkpoint.parent / f"during_training/{checkpoint.stem}-{epoch}{checkpoint.suffix}"
