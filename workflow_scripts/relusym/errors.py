"""Errors that a user can cause, told in one line, and signals that end a job."""

import signal
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path

# SIGTERM: scancel, preemption, time limit; SIGUSR1: `sbatch --signal=USR1@120`, two minutes before the time limit;
# SIGINT: Ctrl-C, SIGHUP: a terminal that is closed, which every process of the terminal gets
WARNINGS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


def hears(number: int) -> bool:
    """Whether a warning is for this process: not SIGHUP below `nohup`."""
    return number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN


class UserError(Exception):
    """Something the user gave is wrong: the message says what, where, and what to do, in one line."""


def listed(names: Sequence[str], most: int | None = None) -> str:
    """Names in a line, `most` of them: "a, b and 3 more"; None: all."""
    left = len(names) - len(names[:most])
    return ", ".join(names[:most]) + (f" and {left} more" if left else "")


def theirs(error: BaseException) -> str:
    """A user's own exception in a line: its kind, what it says, and the last line of the user's code that it passed."""
    says = " ".join(str(error).split()) or "without a word"
    where = users_line(error)
    return f"{type(error).__name__}: {says}" + (f" ({where})" if where else "")


def users_line(error: BaseException) -> str | None:
    """`file.py, line 12`: the last line that an exception passed that is neither this package's nor a library's."""
    libraries = tuple(sysconfig.get_paths()[of] for of in ("stdlib", "platstdlib", "purelib", "platlib"))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).is_file() and not frame.filename.startswith(
            (*libraries, str(Path(__file__).parent))
        ):
            return f"{Path(frame.filename).name}, line {frame.lineno}"
    return None


class Interrupted(UserError):
    """A signal ended a job before it was done; the message says where it goes on from."""
