"""Flags and bits tell what sorting would."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dense import distinct, numbered

NUMBERS = st.one_of(
    st.lists(st.integers(0, 40)),
    st.lists(st.sampled_from((0, 1, 62, 63, 64, 65, 127, 128, 5_000)), max_size=99),
    st.lists(st.integers(0, 5_000), min_size=5),
    st.lists(st.integers(0, 100_000), max_size=9),
)


@given(NUMBERS)
def test_flags_tell_what_sorting_tells(numbers: list[int]) -> None:
    rows = np.array(numbers, dtype=np.int64)
    unique, inverse = np.unique(rows, return_inverse=True)
    assert distinct(rows).tolist() == unique.tolist()
    found, places = numbered(rows)
    assert found.tolist() == unique.tolist()
    assert places.tolist() == inverse.tolist()


def test_a_number_under_0_is_refused() -> None:
    with pytest.raises(IndexError):
        numbered(np.array([3, -1]))
