"""Errors that a user can cause, one line each, and signals that end a job."""

import signal
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

# SIGTERM: scancel, preemption, time limit; SIGUSR1: `sbatch --signal=USR1@120`, two minutes before the time limit;
# SIGINT: Ctrl-C; SIGHUP: the terminal was closed, sent to every process of the terminal
WARNINGS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


def hears(number: int) -> bool:
    """Whether this process heeds a warning signal: all but SIGHUP under `nohup`."""
    return number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN


class UserError(Exception):
    """Something in the user's input is wrong: the message states in one line what, where, and what to do."""


def listed(names: Sequence[str], most: int | None = None) -> str:
    """Names on one line, at most `most` of them (None: all): "a, b and 3 more"."""
    left = len(names) - len(names[:most])
    return ", ".join(names[:most]) + (f" and {left} more" if left else "")


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def theirs(error: BaseException) -> str:
    """An exception in the user's code on one line: its type, its message and the innermost line of that code."""
    message = " ".join(str(error).split()) or "no message"
    where = users_line(error)
    return f"{type(error).__name__}: {message}" + (f" ({where})" if where else "")


def users_line(error: BaseException) -> str | None:
    """`file.py, line 12`: the innermost line of the traceback that is neither in this package nor in a library."""
    libraries = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).is_file() and not frame.filename.startswith(
            (*libraries, str(Path(__file__).parent))
        ):
            return f"{Path(frame.filename).name}, line {frame.lineno}"
    return None


class Interrupted(UserError):
    """A signal ended a job before it was done; the message names where it will resume."""


class Interruption:
    """Within the context, a warning signal doesn't end the process; calling the object returns whether one arrived.

    Main thread only. On exit, the previous signal handlers are restored.
    """

    def __init__(self) -> None:
        self._arrived = False

    def __enter__(self) -> "Interruption":
        heard = filter(hears, WARNINGS)
        self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self._arrived

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._arrived = True
