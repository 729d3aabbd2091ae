"""Row numbers of some table, each once: told by a bit each, which is sooner than by sorting."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.native import compiled

Rows = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_SPARSE = 1024
"""Times as many bits as rows cost more than sorting the rows."""
_U = np.uint64
_1 = _U(1)


def distinct(rows: npt.NDArray[np.integer]) -> Rows:
    """Each of these small numbers from 0 on, once and ascending."""
    named = np.zeros(int(rows.max(initial=-1)) + 1, dtype=np.bool_)
    named[rows] = True
    return np.flatnonzero(named)


def few(numbers: Rows) -> list[int]:
    """Each once and ascending, where they are mostly all the same: the days of a turn."""
    if len(numbers) and numbers.min() == numbers.max():
        return [int(numbers[0])]
    found: list[int] = np.unique(numbers).tolist()
    return found


def numbered(rows: Rows) -> tuple[Rows, Rows]:
    """Each of these numbers from 0 on, once and ascending; and where in there each row's is.

    Raises `IndexError` on one under 0.
    """
    if int(rows.min(initial=0)) < 0:
        raise IndexError("a row's number is 0 or more")
    size = int(rows.max(initial=-1)) + 1
    if size > _SPARSE * len(rows):
        unique, inverse = np.unique(rows, return_inverse=True)
        return unique, inverse
    words = size // 64 + 1
    unique, inverse = np.empty_like(rows), np.empty_like(rows)
    found = _number(rows, np.zeros(words, np.uint64), np.empty(words, np.int64), unique, inverse)
    return unique[:found], inverse


@compiled
def _number(rows: Rows, words: Words, before: Rows, unique: Rows, inverse: Rows) -> int:
    """Fill in both; how many different ones there are. `words` are zeros, a bit for each number;
    `before` is for how many are before each word's."""
    for row in rows:
        words[row >> 6] |= _1 << _U(row & 63)
    found = 0
    for at in range(len(words)):
        before[at] = found
        word = words[at]
        while word:
            lowest = word & (~word + _1)
            unique[found] = (at << 6) + _ones(lowest - _1)
            word ^= lowest
            found += 1
    for at in range(len(rows)):
        row = rows[at]
        below = (_1 << _U(row & 63)) - _1
        inverse[at] = before[row >> 6] + _ones(words[row >> 6] & below)
    return found


@compiled
def _ones(word: np.uint64) -> int:
    """How many bits are set; the compiler makes one instruction of it. Source:
    https://graphics.stanford.edu/~seander/bithacks.html#CountBitsSetParallel"""
    pairs = word - (word >> _1 & _U(0x5555555555555555))
    fours = (pairs & _U(0x3333333333333333)) + (pairs >> _U(2) & _U(0x3333333333333333))
    eights = fours + (fours >> _U(4)) & _U(0x0F0F0F0F0F0F0F0F)
    return int(eights * _U(0x0101010101010101) >> _U(56))


def warm_up() -> None:
    """Compile what judging needs, or load it, before the first event waits for it."""
    numbered(np.zeros(1, np.int64))
