"""A job's log: what it prints, why it failed, and its last words for those who look at it."""

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from relusym.errors import UserError
from relusym.whole_files import open_file

ERROR = "error: "  # what the line of a user's error begins with
DONE = "done"  # the last line of a job that ended well
# full disks, folders without rights, folders where files belong: what the user has to mend
TO_MEND = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENXIO),
}


@contextmanager
def printed_to(path: Path) -> Iterator[None]:
    """What is printed goes to the log at `path`, which is begun anew."""
    log, streams = _opened(path, "w"), (sys.stdout, sys.stderr)
    sys.stdout = sys.stderr = log
    try:
        yield
        print(DONE)
    finally:
        sys.stdout, sys.stderr = streams
        with suppress(OSError):  # on a full disk, where it would hide what came before
            log.close()


def log_error(error: Exception, path: Path) -> str:
    """Write why a job failed to its log, a user's error as a line, any other as its traceback; what to print beside."""
    if isinstance(error, OSError) and error.errno in TO_MEND:
        error = UserError(
            f"{error.filename or path}: {error.strerror}; free space, change its rights, or move away what is there"
        )
    expected = isinstance(error, UserError)
    whole = f"{ERROR}{error}\n" if expected else traceback.format_exc()
    try:
        with _opened(path, "a") as log:
            log.write(whole)
    except OSError:
        return str(error) if expected else whole.rstrip()
    return str(error) if expected else f"{type(error).__name__}: {error}; see {path}"


def last_words(path: str | Path) -> str | None:
    """In a line, why the job of a log failed; None if there is no log, or it is that of a job that ended well."""
    try:
        with open_file(path) as log:
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    last = next((line for line in reversed(lines) if line.strip()), "")
    if last == DONE:
        return None
    if last.startswith(ERROR):
        return last.removeprefix(ERROR)
    if "Traceback (most recent call last):" in lines:
        return last
    after = f", after: {last}" if last else ""
    return f"it was killed, it seems (kill -9, memory, or its node){after}"


def _opened(path: Path, mode: str) -> TextIO:
    # a pipe would keep whoever writes waiting for a reader
    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK, 0o666)

    return open(path, mode, encoding="utf-8", buffering=1, opener=opener)
