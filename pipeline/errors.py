"""Errors that a person at a terminal can do something about."""

from __future__ import annotations

from typing import ClassVar, Final

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
"""What was asked cannot be: of arguments and settings."""


class UserError(Exception):
    """The text says what is wrong and what to do; a command prints it, without a traceback."""

    exit_code: ClassVar[int] = EXIT_FAILED
    """That the command ends with."""
