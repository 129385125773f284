"""What a table or figure was made from: a note beside it, by which a later run sees whether it still shows the same.

The note holds a fingerprint of the config's part, the code of this package and the bytes of every file that was read,
and the hash of every file that was written, in the format of `sha256sum -c`.
"""

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from relusym.errors import UserError
from relusym.findings import module_of
from relusym.whole_files import sha256, write_whole


@cache
def _hash_of(path: str) -> str:
    return sha256(path)


@cache
def _code() -> str:
    """Of this room, the fields of records, the paper's tables and the ground: whatever may lay out a table."""
    library = Path(__file__).parents[1]
    files = [*library.glob("*.py"), *library.glob("findings/*.py"), *library.glob("paper_values/*")]
    files.append(library / "records/fields.py")
    return "".join(sha256(file) for file in sorted(files) if file.is_file())


def fingerprint(name: str, about: dict[str, Any], inputs: Iterable[str]) -> str | None:
    """Of what a table or figure would be made from now; None if a file is missing."""
    inputs = list(inputs)
    if name == "costs":  # which finds the benchmark files by itself
        inputs += module_of(name).beside(inputs)
    if not all(Path(path).is_file() for path in inputs):
        return None
    parts = [json.dumps(about), _code(), *(f"{path} {_hash_of(path)}" for path in inputs)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def write_note(path: str | Path, made_from: str, outputs: Iterable[str]) -> None:
    """Write the note of `outputs`, which are there, whole."""
    lines = [f"# made from {made_from}", *(f"{sha256(output)}  {output}" for output in outputs)]
    with write_whole(path) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


def is_current(path: str | Path, made_from: str | None) -> bool:
    """Whether the note says that its outputs were made from the same, and they are as they were written."""
    try:
        first, *rest = Path(path).read_text(encoding="utf-8").splitlines()
        written = dict(reversed(line.split("  ", 1)) for line in rest)
        return first == f"# made from {made_from}" and all(
            sha256(file) == known for file, known in written.items()
        )
    except (OSError, ValueError, UserError):
        return False
