"""Packed columns of texts give back what went in, nulls and empty ones told apart."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing.texts import NO_CODE, Texts, fill_codes, padded

TEXT = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ROWS = st.lists(st.tuples(TEXT, TEXT), max_size=9)
SCHEMA = {"left": pl.String(), "right": pl.String()}


def packed(rows: list[tuple[str | None, str | None]]) -> Texts:
    return Texts.of(pl.DataFrame(rows, schema=SCHEMA, orient="row"))


def check(texts: Texts, rows: list[tuple[str | None, str | None]]) -> None:
    """In any order, and some rows several times."""
    order = np.array([*range(len(rows)), *reversed(range(len(rows)))], np.int64)
    for at, name in enumerate(SCHEMA):
        expected = [rows[row][at] for row in order]
        assert texts.column(name, order) == expected
        edges, gathered = texts.of_rows(order).packed(*SCHEMA)[at]
        pieces = [gathered[a:b].tobytes().decode() for a, b in pairwise(edges)]
        assert pieces == [text or "" for text in expected]


@given(ROWS)
def test_texts_come_back_as_they_went_in(rows: list[tuple[str | None, str | None]]) -> None:
    check(packed(rows), rows)


@given(st.lists(ROWS, min_size=1, max_size=4))
def test_joined_texts_are_those_of_the_parts(
    parts: list[list[tuple[str | None, str | None]]],
) -> None:
    check(Texts.joined([packed(rows) for rows in parts]), [row for part in parts for row in part])


def test_codes_are_positions_among_the_names_and_a_null_counts_as_empty() -> None:
    texts = packed([("click", None), (None, None), ("clic", None), ("save", None), ("", None)])
    codes = np.empty(6, np.uint8)
    codes[5] = 77
    fill_codes(
        texts.buffer, texts.starts[0], texts.ends[0], 0, 5, *padded(("", "click", "save")), codes
    )
    assert codes.tolist() == [1, 0, NO_CODE, 2, 0, 77]
