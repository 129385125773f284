"""Errors that a user can cause, told in one line."""

from collections.abc import Sequence


class UserError(Exception):
    """Something the user gave is wrong: the message says what, where, and what to do, in one line."""


def listed(names: Sequence[str], most: int | None = None) -> str:
    """Names in a line, `most` of them: "a, b and 3 more"; None: all."""
    left = len(names) - len(names[:most])
    return ", ".join(names[:most]) + (f" and {left} more" if left else "")


class Interrupted(UserError):
    """A signal ended a job before it was done; the message says where it goes on from."""
