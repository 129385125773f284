"""Errors that a user can cause, told in one line."""


class UserError(Exception):
    """Something the user gave is wrong: the message says what, where, and what to do, in one line."""
