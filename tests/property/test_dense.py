"""Flags tell what sorting would."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dense import distinct, numbered


@given(st.one_of(st.lists(st.integers(0, 40)), st.lists(st.integers(0, 100_000), max_size=9)))
def test_flags_tell_what_sorting_tells(numbers: list[int]) -> None:
    rows = np.array(numbers, dtype=np.int64)
    unique, inverse = np.unique(rows, return_inverse=True)
    assert distinct(rows).tolist() == unique.tolist()
    found, places = numbered(rows)
    assert found.tolist() == unique.tolist()
    assert places.tolist() == inverse.tolist()
