"""Files that are whole or absent, and the hash of their contents."""

import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import BinaryIO

from relusym.errors import UserError


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder that replaces `path` at the end, so that `path` is whole or absent.

    The temporary file has the suffix of `path` (matplotlib and torchvision choose a format by it). If the body
    raises, it is removed and an existing `path` stays as it was. UserError if the disk is full or the folder can't be
    written.
    """
    path, part = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a new file with an unpredictable name, at which nobody can have planted a link
        file, name = tempfile.mkstemp(f".part{path.suffix}", f".{path.stem[:40]}.", path.parent)
        os.close(file)
        part = Path(name)
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())  # a full disk may show only here
        mask = os.umask(0)  # it can't be read without being set
        os.umask(mask)
        part.chmod(0o666 & ~mask)  # mkstemp gave its owner alone access
        part.replace(path)
    except (ConnectionError, TimeoutError):  # from a download, not from the disk
        raise
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error.strerror}): free space or change the folder"
        ) from error
    finally:
        if part:
            with suppress(OSError):  # the folder itself may be at fault
                part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, UTF-8, as `write_whole` does; a file name in it that isn't valid text is escaped."""
    with write_whole(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def check_writable(path: str | Path) -> None:
    """Raise UserError if `path`, or files in it if it is a folder, can't be written; leaves nothing behind.

    If `path` doesn't exist yet, the nearest existing folder above it is tried.
    """
    whole, where = Path(path).absolute(), ""
    try:
        for place in (whole, *whole.parents):
            with suppress(FileNotFoundError):
                place.lstat()  # raises too if a name is too long, or a folder above is a file
                if place != whole or place.is_dir():
                    break
        where = f"{place} takes no files: "
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({where}{error.strerror}): free space or change the folder"
        ) from error


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file for reading; anything else, such as a pipe, which would block its reader, is an OSError."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "Not a file", str(path))
    return file


def distinct_names(files: Iterable[str | Path]) -> list[str]:
    """Short distinct names of files or URLs: their last parts, with as many folders as distinguish them all."""
    parts = [Path(file).parts for file in files]
    kept = next(n for n in count(1) if len({each[-n:] for each in parts}) == len({*parts}))
    return ["/".join(each[-kept:]) for each in parts]


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal; UserError if it can't be read."""
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): make it readable, or delete it") from error
