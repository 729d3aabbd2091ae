"""Loops that no library has, compiled to machine code by numba."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar, cast

from numba import njit

P = ParamSpec("P")
R = TypeVar("R")


COMPILED_IN: Final = (
    "billing/brief.py",
    "billing/journal_events.py",
    "billing/scan.py",
    "billing/terms.py",
    "billing/texts.py",
    "billing/xxh3.py",
    "contract/events.py",
    "contract/vocabulary.py",
    "pacing/inflight_rows.py",
)
"""Files whose functions or constants are part of the compiled code of other files."""
_OPTIONS: Final[dict[str, Any]] = {"_nrt": False}
"""No references are counted in compiled code: an atomic addition for each view of an array that a
loop makes or gives on, a seventh of what an event cost. So it may make no arrays either."""


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function, compiled at its first call for the types of its arguments.

    The machine code is kept on disk: beside the source, or in the user's cache directory, or in
    `NUMBA_CACHE_DIR`. An installation where none of them can be written compiles in every process.
    Nothing checks bounds in compiled code: the function itself must. It makes no arrays, but is
    given those that it needs.
    """
    return _compiled(function, _OPTIONS)


def compiled_beside(function: Callable[P, R]) -> Callable[P, R]:
    """As `compiled`, for threads beside the turns': Python goes on meanwhile, without waiting for
    one that has a lower priority."""
    return _compiled(function, _OPTIONS | {"nogil": True})


def _compiled(function: Callable[P, R], options: dict[str, Any]) -> Callable[P, R]:
    try:
        kept: Any = njit(cache=True, **options)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        return cast("Callable[P, R]", njit(**options)(function))
    # numba asks only whether the function's own file has changed. What it calls, and constants, are
    # in its code too.
    index = kept._cache._cache_file
    index._source_stamp = (index._source_stamp, _stamps_of_others())
    return cast("Callable[P, R]", kept)


@cache
def _stamps_of_others() -> tuple[tuple[float, int], ...]:
    stats = [(Path(__file__).parent / name).stat() for name in ("native.py", *COMPILED_IN)]
    return tuple((one.st_mtime, one.st_size) for one in stats)
