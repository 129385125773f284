"""Errors that a user can cause, told in one line, and signals that end a job."""

import signal
from collections.abc import Sequence

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


class Interrupted(UserError):
    """A signal ended a job before it was done; the message says where it goes on from."""
