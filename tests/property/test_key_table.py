"""The table of keys against a plain dict: the same numbers, whatever the keys look like."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing import key_table
from pipeline.billing.id_runs import Keys
from pipeline.billing.key_table import KeyTable

HALF = 2**64
UNMIXED = pow(int(key_table._ODD), -1, HALF)
LAST_TAG = 2**32 - 1


def tagged(tag: int, rest: int, high: int) -> tuple[int, int]:
    """A key that wants the place of this tag; `rest` and `high` tell it from others that do."""
    mixed = (tag << 32 | rest) * UNMIXED % HALF
    return mixed ^ (high << 32 | high >> 32) % HALF, high


def keys_of(halves: list[tuple[int, int]]) -> Keys:
    return np.array(halves, dtype=np.uint64).reshape(-1, 2)


few = st.integers(0, 3)
half = st.one_of(few, st.integers(0, HALF - 1))
crowded = st.builds(tagged, few.map(lambda number: LAST_TAG - number), few, few)
batches = st.lists(st.lists(st.tuples(half, half) | crowded, max_size=60), max_size=8)


def test_a_tag_is_what_a_key_was_made_for() -> None:
    """Or the crowds below would be none."""
    for tag in (0, 5, LAST_TAG):
        low, high = tagged(tag, 7, 1 << 63 | 9)
        assert key_table._tag(np.uint64(low), np.uint64(high)) == tag


@given(batches=batches, room=st.sampled_from((0, 1, 3_000)))
def test_keys_are_numbered_as_they_come(batches: list[list[tuple[int, int]]], room: int) -> None:
    table, known = KeyTable(room), dict[tuple[int, int], int]()
    for halves in batches:
        keys = keys_of(halves)
        assert table.find(keys).tolist() == [known.get(key, -1) for key in halves]
        for key in halves:
            known.setdefault(key, len(known))
        assert table.add(keys).tolist() == [known[key] for key in halves]
        assert len(table) == len(known)
    assert list(map(tuple, table.keys().tolist())) == list(known)


@pytest.mark.parametrize("expected", [0, 1, 5_000])
@pytest.mark.parametrize("tags", [1, 300, LAST_TAG])
def test_a_table_that_grows_keeps_all(tags: int, expected: int) -> None:
    """Where all want one place among the last, so that they fill the first ones too; or few do."""
    random = np.random.default_rng(tags)
    wanted = (LAST_TAG - random.integers(0, tags, 4_000)).tolist()
    keys = keys_of([tagged(tag, number, number % 7) for number, tag in enumerate(wanted)])
    table = KeyTable()
    added = 0
    for part in np.array_split(keys, 9):
        table.add(part, expected)
        added += len(part)
        assert len(table) == added
        assert (table.find(keys) >= 0).sum() == added
    assert (table.keys() == keys).all()
    assert (table.find(keys[::-1]) == np.arange(len(keys))[::-1]).all()


def test_a_table_is_filled_to_its_room_before_it_grows() -> None:
    table = KeyTable(5_000)
    slots = len(table._slots)
    keys = np.random.default_rng(1).integers(0, HALF, (5_000, 2), dtype=np.uint64)
    table.add(keys)
    assert len(table._slots) == slots
    assert (table.find(keys) == np.arange(5_000)).all()
    table.add(keys[:1])  # as many as there is no room for, were it new
    assert len(table._slots) > slots
    assert (table.keys() == keys).all()


def test_keys_that_cannot_be_written_to_are_looked_up_and_added() -> None:
    keys = np.frombuffer(bytes(range(64)), dtype=np.uint64).reshape(-1, 2)
    table = KeyTable()
    assert table.add(keys).tolist() == [0, 1, 2, 3]
    assert table.find(keys[::-1]).tolist() == [3, 2, 1, 0]
