"""Whether a table or figure is up to date: the name of the note beside it has the fingerprint of what it is made from.

The fingerprint is of the selected part of the config, the code of this package and the bytes of every file that is
read. The note has the hash of every file that was written, in the format of `sha256sum -c`, and, as comments, the files
that were read: one line per folder, as bash expands it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from relusym.errors import UserError
from relusym.whole_files import open_file, sha256, write_text

LENGTH = 16  # hexadecimal digits


@cache
def _code() -> str:
    """The hashes of all code that may shape a table: findings, what they compute with, and the paper's tables."""
    library = Path(__file__).parents[1]
    patterns = ["*.py", "findings/**/*.py", "paper_values/*", "records/fields.py", "records/fingerprint.py"]
    patterns += ["beyond/identifiability.py", "theory/cooccurrence.py"]
    files = {file for pattern in patterns for file in library.glob(pattern) if file.is_file()}
    return "".join(sha256(file) for file in sorted(files))


@cache
def _line(path: str) -> str:
    file = Path(path)
    return f"{file.parent.name}/{file.name} {sha256(file)}"


def fingerprint(name: str, selection: Mapping[str, Any], inputs: Mapping[str, Sequence[str]]) -> str:
    """The fingerprint of what a table or figure is made from; `inputs` are the files that it reads, by kind. UserError
    if one is missing."""
    lines = [_line(path) for several in inputs.values() for path in several]
    parts = [name, json.dumps(selection), _code(), *lines]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:LENGTH]


def write_note(
    note: str | Path,
    name: str,
    made_from: str,
    inputs: Mapping[str, Sequence[str]],
    outputs: Sequence[str],
) -> None:
    """Write the note of `outputs`, which exist, and delete older notes.

    `note`: its path in the workflow, which may have been named before all `inputs` existed; `made_from`: their
    fingerprint.
    """
    named = Path(outputs[0]).absolute().parents[1] / "notes" / f"{name}-{made_from}.sha256"
    lines = [f"{sha256(output)}  {output}" for output in outputs] + [
        f"# {line}" for line in by_folder(inputs)
    ]
    written = {named, Path(note).absolute()}
    for path in written:
        write_text(path, "\n".join(lines) + "\n")
        for older in {*path.parent.glob(f"{name}-*.sha256")} - written:
            older.unlink()


def by_folder(inputs: Mapping[str, Sequence[str]]) -> list[str]:
    """The files, one line per folder: `records/pair_merge/cnn--gcnn-1f2e3d4c/{0--0,1--1}.json`."""
    folders: dict[tuple[str, str], list[str]] = {}
    for path in map(Path, dict.fromkeys(chain(*inputs.values()))):
        folders.setdefault((str(path.parent), path.suffix), []).append(path.stem)
    return [
        f"{folder}/{{{','.join(stems)}}}{suffix}" if len(stems) > 1 else f"{folder}/{stems[0]}{suffix}"
        for (folder, suffix), stems in folders.items()
    ]


def is_whole(note: str | Path) -> bool:
    """Whether a note names at least one file, and all those that it names are unchanged."""
    try:
        with open_file(note) as file:
            lines = file.read().decode("utf-8").splitlines()
        written = dict(reversed(line.split("  ", 1)) for line in lines if not line.startswith("#"))
        return bool(written) and all(sha256(file) == known for file, known in written.items())
    except (OSError, ValueError, UserError):
        return False
