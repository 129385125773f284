"""Whether a table or figure shows what it would show now: a note beside it has the fingerprint of that in its name.

The fingerprint is of the config's part, the code of this package and the bytes of every file that is read. The note
holds the hash of every file that was written, in the format of `sha256sum -c`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from relusym.errors import UserError
from relusym.whole_files import sha256, write_whole

LENGTH = 16  # hexadecimal digits


@cache
def _code() -> str:
    """Of this room, the fields of records, the paper's tables and the ground: whatever may lay out a table."""
    library = Path(__file__).parents[1]
    files = [*library.glob("*.py"), *library.glob("findings/**/*.py"), *library.glob("paper_values/*")]
    files.append(library / "records/fields.py")
    return "".join(sha256(file) for file in sorted(files) if file.is_file())


@cache
def _line(path: str) -> str:
    file = Path(path)
    return f"{file.parent.name}/{file.name} {sha256(file)}"


def fingerprint(name: str, selection: Mapping[str, Any], inputs: Mapping[str, Sequence[str]]) -> str:
    """Of what a table or figure is made of: `inputs` are the files that it reads, by kind; UserError if one is
    missing."""
    lines = [_line(path) for several in inputs.values() for path in several]
    parts = [name, json.dumps(selection), _code(), *lines]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:LENGTH]


def write_note(note: str | Path, name: str, made_from: str, outputs: Sequence[str]) -> None:
    """Write the note of `outputs`, which are there, whole; older ones go. `note`: where it is waited for, which may
    have been named before all inputs were there; `made_from`: its fingerprint."""
    named = Path(outputs[0]).absolute().parents[1] / "notes" / f"{name}-{made_from}.sha256"
    lines = [f"{sha256(output)}  {output}" for output in outputs]
    written = {named, Path(note).absolute()}
    for path in written:
        with write_whole(path) as part:
            part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        for older in {*path.parent.glob(f"{name}-*.sha256")} - written:
            older.unlink()


def is_whole(note: str | Path) -> bool:
    """Whether the files that a note names are as they were written."""
    try:
        lines = Path(note).read_text(encoding="utf-8").splitlines()
        written = dict(reversed(line.split("  ", 1)) for line in lines)
        return all(sha256(file) == known for file, known in written.items())
    except (OSError, ValueError, UserError):
        return False
