"""Functions compiled to machine code: for loops over bytes, which no column library has."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function, compiled at its first call and kept beside its source for the next process.

    An installation that cannot be written to compiles in each process anew (about a second).
    Indices are not checked: the function must.
    """
    try:
        return cast("Callable[P, R]", numba.njit(cache=True)(function))
    except RuntimeError:  # nowhere to keep it
        return cast("Callable[P, R]", numba.njit(function))
