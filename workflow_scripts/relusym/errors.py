"""Errors that a user can cause, one line each, and signals that end a job."""

import signal
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

# SIGTERM: scancel, preemption, time limit; SIGUSR1: `sbatch --signal=USR1@120`, two minutes before the time limit;
# SIGINT: Ctrl-C, SIGHUP: a terminal that is closed, which every process of the terminal gets
WARNINGS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


def hears(number: int) -> bool:
    """Whether a warning is for this process: not SIGHUP below `nohup`."""
    return number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN


class UserError(Exception):
    """Something in the user's input is wrong: the message is one line on what, where, and what to do."""


def listed(names: Sequence[str], most: int | None = None) -> str:
    """Names in a line, `most` of them: "a, b and 3 more"; None: all."""
    left = len(names) - len(names[:most])
    return ", ".join(names[:most]) + (f" and {left} more" if left else "")


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its kind if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def theirs(error: BaseException) -> str:
    """An exception of the user's code in a line: its kind, its message, and the last line of that code in its trace."""
    message = " ".join(str(error).split()) or "without a word"
    where = users_line(error)
    return f"{type(error).__name__}: {message}" + (f" ({where})" if where else "")


def users_line(error: BaseException) -> str | None:
    """`file.py, line 12`: the last line that an exception passed that is neither this package's nor a library's."""
    libraries = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).is_file() and not frame.filename.startswith(
            (*libraries, str(Path(__file__).parent))
        ):
            return f"{Path(frame.filename).name}, line {frame.lineno}"
    return None


class Interrupted(UserError):
    """A signal ended a job before it was done; the message is on where it goes on from."""


class Interruption:
    """Within the context, a warning no longer ends the process: calling the object returns whether there was any.

    Main thread only. Before and after, signals do what they did.
    """

    def __init__(self) -> None:
        self._came = False

    def __enter__(self) -> "Interruption":
        heard = filter(hears, WARNINGS)
        self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self._came

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True
