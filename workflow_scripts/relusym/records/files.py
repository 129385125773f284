"""Records: one small JSON a job, written whole or not at all; their settings stand once in their folder."""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from relusym.errors import UserError
from relusym.records.fingerprint import non_default
from relusym.whole_files import open_file, write_whole

NUMBERS = re.compile(r"\[\n[-+.,\deE\s]*\]")  # a raw line break is in no string
SETTINGS = "settings.json"  # in each folder of records, those that all of them were made with


def write_record(path: str | Path, record: dict[str, Any]) -> None:
    """Write `record` as JSON, its `settings` into the file of that name in its folder, if it isn't there.

    Raises:
        ValueError: a field is missing or can't be right, see `fields`; JSON has no not-a-number and no infinity; the
            folder is of records with other settings.
        UserError: the disk is full or the folder can't be written.
    """
    if wrong := _problem(record):
        raise ValueError(f"record {path} {wrong}")
    body = {key: value for key, value in record.items() if key != "settings"}
    text = json.dumps(body, indent=1, allow_nan=False)
    text = NUMBERS.sub(
        lambda found: f"[{' '.join(found[0][1:-1].split())}]", text
    )  # a permutation is one line
    settings = Path(path).with_name(SETTINGS)
    if not settings.exists():
        with write_whole(settings) as part:
            part.write_text(json.dumps(record["settings"], indent=1) + "\n", encoding="utf-8")
    elif non_default(_read(settings)) != non_default(record["settings"]):
        raise ValueError(f"record {path} was made with other settings than those in {settings}")
    with write_whole(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def write_trained(path: str | Path, record: dict[str, Any]) -> None:
    """Write the record of a net; one that has come out as its record says keeps that record, to the byte.

    A broken one is written anew. Records of earlier tries at the same net, which couldn't be had, go.

    Raises:
        ValueError, UserError: as of `write_record`.
    """
    path = Path(path)
    before = _unbroken(path)
    if _of_a_net(before) != _of_a_net(record):
        write_record(path, record)
    for name in (f"{record['seed']}.json", f"{record['seed']}.*.json"):
        for other in {*path.parent.glob(name)} - {path}:
            if _unbroken(other).get("status") == "absent":
                other.unlink()


def _unbroken(path: Path) -> dict[str, Any]:
    try:
        return find_record(path) or {}
    except UserError:
        return {}


def _of_a_net(record: dict[str, Any]) -> dict[str, Any]:
    """What doesn't say how long it took, and on what."""
    what = {
        key: value
        for key, value in record.items()
        if key not in ("cost", "code", "data_wait_share", "settings")
    }
    return what | {"history": [(epoch["loss"], epoch["accuracy"]) for epoch in record.get("history", [])]}


def find_record(path: str | Path) -> dict[str, Any] | None:
    """A record with its settings, every field of it checked; None if there is none.

    Raises:
        UserError: it can't be read, isn't JSON, has a key twice, lacks a field, or has one that can't be right (named).
    """
    try:
        record = _read(Path(path))
    except FileNotFoundError:
        return None
    if isinstance(record, dict):
        settings = Path(path).with_name(SETTINGS)
        try:
            time = settings.stat().st_mtime_ns
        except FileNotFoundError as error:
            raise UserError(
                f"record {path} has no {SETTINGS} beside it: give its folder the file back, or delete the folder"
            ) from error
        record |= {"settings": _settings(settings, time)}
    if wrong := _problem(record):
        raise UserError(f"record {path} {wrong}: delete it, and it is made again")
    return record


@lru_cache(64)
def _settings(path: Path, time: int) -> Any:
    return _read(path, "give its folder the file back, or delete the folder")


def _read(path: Path, what_to_do: str = "delete it, and it is made again") -> Any:
    try:
        with open_file(path) as file:
            return json.load(file, object_pairs_hook=_each_key_once)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(
            f"record {path} can't be read ({error.strerror}): make it readable, or delete it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"record {path} is not valid JSON ({error}): {what_to_do}") from error


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        key = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {key!r} stands twice in one object")
    return fields


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
