"""The compiled XXH3-128 gives what the library gives, whatever the bytes."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing import ids
from pipeline.billing.xxh3 import hash_joined, hash_rows, hash_stretches

LONGEST = 2_100
TEXTS = st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]))] * 3), max_size=9)


def library(data: bytes) -> tuple[int, int]:
    whole = xxhash.xxh3_128_intdigest(data)
    return whole % (1 << 64), whole >> 64


def pairs(keys: ids.Keys) -> list[tuple[int, int]]:
    return [(int(low), int(high)) for low, high in keys]


@pytest.mark.parametrize("kind", [np.dtype(np.int32), np.dtype(np.int64)])
def test_every_length_hashes_as_the_library_does(kind: np.dtype[np.signedinteger]) -> None:
    data = np.random.default_rng(7).integers(0, 256, 2 * LONGEST, np.uint8)
    sizes = np.arange(LONGEST + 1).astype(kind)
    starts = (sizes * 37 % LONGEST).astype(kind)
    stretches = zip(starts, sizes, strict=True)
    expected = [library(data[at : at + size].tobytes()) for at, size in stretches]
    assert pairs(hash_stretches(data, starts, sizes)) == expected


@given(st.lists(st.binary(max_size=3_000), max_size=9))
def test_any_bytes_hash_as_the_library_does(values: list[bytes]) -> None:
    sizes = np.array([len(value) for value in values], np.int64)
    buffer = np.frombuffer(b"".join(values), np.uint8)
    keys = hash_stretches(buffer, np.cumsum(sizes) - sizes, sizes)
    assert pairs(keys) == [library(value) for value in values]


@given(TEXTS)
def test_joined_parts_are_one_identity(rows: list[tuple[str, ...]]) -> None:
    parts = [text.encode() for row in rows for text in row]
    sizes = np.array([len(part) for part in parts], np.int64)
    starts = np.cumsum(sizes) - sizes
    buffer = np.frombuffer(b"".join(parts), np.uint8)
    keys = hash_joined(buffer, starts.reshape(-1, 3).T, sizes.reshape(-1, 3).T)
    assert pairs(keys) == [ids.hash_text(*row) for row in rows]


@pytest.mark.parametrize("width", [1, 2, 6, 40])
def test_rows_of_words_hash_as_their_bytes(width: int) -> None:
    words = np.random.default_rng(width).integers(0, 1 << 64, (50, width), np.uint64)
    assert pairs(hash_rows(words)) == [library(row.tobytes()) for row in words]


def test_a_null_part_leaves_no_identity() -> None:
    buffer = np.frombuffer(b"campaign", np.uint8)
    starts, sizes = np.array([[0, 0], [4, 4]]), np.array([[8, 4], [-1, 4]])
    assert pairs(hash_joined(buffer, starts, sizes)) == [(0, 0), ids.hash_text("camp", "aign")]


@pytest.mark.parametrize(("start", "size"), [(0, 9), (8, 1), (-1, 2), (9, 0)])
def test_a_stretch_that_leaves_the_buffer_is_refused(start: int, size: int) -> None:
    with pytest.raises(IndexError):
        hash_stretches(np.zeros(8, np.uint8), np.array([start]), np.array([size]))
