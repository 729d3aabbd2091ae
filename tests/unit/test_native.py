"""Compiled functions, also where their machine code can be kept nowhere."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.native import compiled


def test_a_function_of_no_file_is_compiled_though_it_cannot_be_cached() -> None:
    """As in an installation that cannot be written to: numba has no place for the code."""
    defined: dict[str, Callable[[int], int]] = {}
    exec("def twice(number):\n    return 2 * number", defined)
    twice = compiled(defined["twice"])
    assert twice(21) == 42
    assert hasattr(twice, "signatures")
