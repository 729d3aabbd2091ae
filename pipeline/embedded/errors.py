"""The one error of this package."""

from __future__ import annotations

from pipeline.errors import UserError


class EmbeddedError(UserError):
    """The embedded default cannot start or go on.

    The text is for the person at the terminal: what is wrong, and what to do about it.
    """
