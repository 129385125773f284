"""A job's log: its output, and why it failed."""

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

ERROR = "error: "  # how the line of a UserError begins
DONE = "done"  # the last line of a job that succeeded
# errors that the user has to fix: full disks, missing permissions, folders where files belong
TO_FIX = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENXIO),
}


@contextmanager
def printed_to(path: Path) -> Iterator[None]:
    """Redirect output to the log at `path`, which is overwritten."""
    log, streams = _opened(path, "w"), (sys.stdout, sys.stderr)
    sys.stdout = sys.stderr = log
    try:
        yield
        print(DONE)
    finally:
        sys.stdout, sys.stderr = streams
        with suppress(OSError):  # on a full disk, closing fails, too, and would hide the first error
            log.close()


def log_error(error: Exception, path: Path) -> str:
    """Log why a job failed, a UserError as a line, any other error as its traceback; return the line to print."""
    if isinstance(error, OSError) and error.errno in TO_FIX:
        error = UserError(
            f"{error.filename or path}: {error.strerror}; free space, change permissions, or move away what is there"
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
    """One line on why a job failed, from its log; None if there is no log, or the job succeeded."""
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
    # without O_NONBLOCK, opening a pipe would wait for its reader
    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK, 0o666)

    return open(path, mode, encoding="utf-8", buffering=1, opener=opener)
