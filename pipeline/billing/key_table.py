"""A growing hash table of 128-bit keys, numbered in the order in which they first came.

Open addressing in slots of 8 bytes: half of a key's mixed bits, which also say where its slot is
looked for, beside the key's number. So a key that is not in here is told by one slot or its
neighbours; the keys themselves lie in their order. They are hashes, spread evenly: were they not,
look-ups would be slow, never wrong.

Looking up and adding are two loops that seek alike: a compiled function for both to call would make
a look-up half as dear again.

Everything is uint64, constants too: numba makes a float of a uint64 and an int64.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.billing.id_runs import Keys
from pipeline.native import compiled

Rows = npt.NDArray[np.int64]
Slots = npt.NDArray[np.uint64]

_U = np.uint64
_MIN_ROOM = 1 << 10
_MAX_FILL = 0.7
_GROWTH = 8
_ODD = _U(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: its products' upper bits hang on all bits of the factor."""
_LOW_HALF = _U(0xFFFFFFFF)
_NO_KEYS = np.empty((0, 2), dtype=np.uint64)
_0, _1, _32 = _U(0), _U(1), _U(32)


class KeyTable:
    """Keys -> 0, 1, 2, ... as they first came. Up to 2^32 - 2 keys."""

    def __init__(self, room: int = _MIN_ROOM) -> None:
        """With room for so many keys."""
        self._make_room(max(room, _MIN_ROOM), _NO_KEYS)

    def __len__(self) -> int:
        return self._size

    def find(self, keys: Keys) -> Rows:
        """The number of each key; -1 where it is not in here."""
        found = np.empty(len(keys), dtype=np.int64)
        _find(self._slots, self._keys, _plain(keys), found)
        return found

    def add(self, keys: Keys, expected: int = 0) -> Rows:
        """The number of each key; those that are not in here yet are added.

        A table that is expected to hold so many in the end grows to that in few steps.
        """
        needed = self._size + len(keys)
        if needed > len(self._keys):
            few_steps = min(_GROWTH * needed, expected) if expected else 2 * needed
            self._make_room(max(needed, few_steps), self.keys())
        return self._put(keys)

    def keys(self) -> Keys:
        """All keys in their order; not to be changed."""
        return self._keys[: self._size]

    def _make_room(self, room: int, keys: Keys) -> None:
        """Begin anew with room for so many keys in all, these the first."""
        self._size = 0
        self._keys = np.empty((room, 2), dtype=np.uint64)
        self._slots = np.zeros(int(room / _MAX_FILL) + 1, dtype=np.uint64)
        self._put(keys)

    def _put(self, keys: Keys) -> Rows:
        found = np.empty(len(keys), dtype=np.int64)
        self._size = int(_add(self._slots, self._keys, _U(self._size), _plain(keys), found))
        return found


def _plain(keys: Keys) -> Keys:
    """As the compiled loops take them: others would be compiled for once more."""
    if keys.flags.c_contiguous and keys.flags.writeable:
        return keys
    return np.require(keys, requirements=("C", "W"))


def warm_up() -> None:
    """Compile, or load what was compiled before: at the first event it would take too long."""
    table = KeyTable()
    table.find(table.keys())
    table.add(table.keys())


@compiled
def _tag(low: np.uint64, high: np.uint64) -> np.uint64:
    """32 bits of a key: a share of 2^32, which tells its place among the slots."""
    return ((low ^ (high << _32 | high >> _32)) * _ODD) >> _32


@compiled
def _find(slots: Slots, known: Keys, keys: Keys, found: Rows) -> None:
    count = _U(len(slots))
    for row in range(len(keys)):
        low, high = keys[row, 0], keys[row, 1]
        tag = _tag(low, high)
        at = tag * count >> _32
        number = np.int64(-1)
        while True:
            slot = slots[at]
            if slot == _0:
                break
            if slot >> _32 == tag:
                one = (slot & _LOW_HALF) - _1
                if known[one, 0] == low and known[one, 1] == high:
                    number = np.int64(one)
                    break
            at = at + _1 if at + _1 < count else _0
        found[row] = number


@compiled
def _add(slots: Slots, known: Keys, size: np.uint64, keys: Keys, found: Rows) -> np.uint64:
    """There must be free slots, and room in `known`, for all of them. Returns the new size."""
    count = _U(len(slots))
    for row in range(len(keys)):
        low, high = keys[row, 0], keys[row, 1]
        tag = _tag(low, high)
        at = tag * count >> _32
        while True:
            slot = slots[at]
            if slot == _0:
                slots[at] = tag << _32 | (size + _1)
                known[size, 0], known[size, 1] = low, high
                found[row] = np.int64(size)
                size += _1
                break
            if slot >> _32 == tag:
                one = (slot & _LOW_HALF) - _1
                if known[one, 0] == low and known[one, 1] == high:
                    found[row] = np.int64(one)
                    break
            at = at + _1 if at + _1 < count else _0
    return size
