"""Loops that no library has, compiled to machine code by numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from numba import njit

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function, compiled at its first call for the types of its arguments.

    The machine code is kept on disk: beside the source, or in the user's cache directory, or in
    `NUMBA_CACHE_DIR`. An installation where none of them can be written compiles in every process.
    Nothing checks bounds in compiled code: the function itself must.
    """
    try:
        return cast("Callable[P, R]", njit(cache=True)(function))
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        return cast("Callable[P, R]", njit(function))
