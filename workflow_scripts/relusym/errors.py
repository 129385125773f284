"""Errors that a user can cause, told in one line."""


class UserError(Exception):
    """Something the user gave is wrong: the message says what, where, and what to do, in one line."""


class Interrupted(UserError):
    """A signal ended a job before it was done; the message says where it goes on from."""
