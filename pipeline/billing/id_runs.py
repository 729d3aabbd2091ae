"""Sorted runs of 128-bit keys: what an `IdSet` keeps of the keys that are no longer new.

A run never changes. It holds its keys sorted by their high halves, and before them a filter that
answers nearly every look-up of a key that is not in the run with one read of one word. What passes
the filter is looked up by all of its 128 bits, so the filter costs time where it errs, never truth.
The keys are hashes: their halves are taken to be spread evenly, which only the speed hangs on.

The arrays of a run may lie in memory or be mapped from a file; here that makes no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
"""Shape (n, 2): the low and the high half of n 128-bit keys."""

Words = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

FENCE_EVERY = 512
"""High halves between two fences: 4 KiB, so that a look-up past the filter reads one page."""
KEYS_A_WORD = 2
"""Of the filter: 32 bits a key."""
_BITS_A_KEY = 6
_BITS_OF_WORD = 6
"""A bit's place in a word of 64 takes so many bits of the key."""
_SLICE_KEYS = 1 << 19
"""What a merge has in memory at once."""

MAX_HOT_IDS = 1 << 18
"""A table of new keys is sorted into a run when it is so large: some 20 ms of a core."""
_MERGE_RUNS = 4
_LARGEST_CLASS = 12
"""Runs of 4^12 (17 million) keys and more are not merged any further."""


class RunError(Exception):
    """A run that is missing or is not what it was."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Sorted keys that do not change."""

    high: Words
    """Sorted."""
    low: Words
    filter: Words
    name: str = ""
    """By which its shelf finds it again; empty: it is in memory only."""
    fences: Words = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fences", np.array(self.high[::FENCE_EVERY]))

    def __len__(self) -> int:
        return len(self.high)

    def size_class(self) -> int:
        """Runs of one class are merged together: its size to the base of 4."""
        return (len(self).bit_length() - 1) // 2

    def keys(self) -> Keys:
        return np.column_stack((self.low, self.high))


class Probe:
    """Keys that are looked up, in many runs."""

    def __init__(self, keys: Keys) -> None:
        self._low = np.ascontiguousarray(keys[:, 0])
        self._high = np.ascontiguousarray(keys[:, 1])
        self._top = self._high >> np.uint64(32)
        self._bits = _filter_bits(self._low)

    def mark(self, run: Run, found: Mask) -> None:
        """Set `found` where a key is in the run."""
        words = run.filter[_words_of(self._top, len(run.filter))]
        maybe = np.flatnonzero((words & self._bits) == self._bits)
        if len(maybe):
            found[maybe[_contains(run, self._high[maybe], self._low[maybe])]] = True


def _filter_bits(low: Words) -> Words:
    """The bits that a key sets in its word of the filter."""
    bits = np.zeros(len(low), dtype=np.uint64)
    for number in range(_BITS_A_KEY):
        place = (low >> np.uint64(number * _BITS_OF_WORD)) & np.uint64(63)
        bits |= np.uint64(1) << place
    return bits


def _words_of(top: Words, words: int) -> npt.NDArray[np.int64]:
    """Which word of the filter is a key's: it grows with the key's high half."""
    return ((top * np.uint64(words)) >> np.uint64(32)).astype(np.int64)


def _contains(run: Run, high: Words, low: Words) -> Mask:
    """Which keys are in a run, by all their bits."""
    at = _first_at_least(run, high)
    found = np.zeros(len(high), dtype=np.bool_)
    waiting = np.arange(len(high))
    while len(waiting):
        # Equal high halves lie together, in no order of the low ones.
        waiting = waiting[at[waiting] < len(run)]
        waiting = waiting[run.high[at[waiting]] == high[waiting]]
        same = run.low[at[waiting]] == low[waiting]
        found[waiting[same]] = True
        waiting = waiting[~same]
        at[waiting] += 1
    return found


def _first_at_least(run: Run, high: Words) -> npt.NDArray[np.int64]:
    """Where the first high half is that is not below each of these."""
    fence = np.searchsorted(run.fences, high)
    least = np.maximum(fence - 1, 0) * FENCE_EVERY
    most = np.minimum(fence * FENCE_EVERY, len(run))
    while (open_ := least < most).any():
        middle = (least + most) // 2
        below = open_ & (run.high[np.minimum(middle, len(run) - 1)] < high)
        least = np.where(below, middle + 1, least)
        most = np.where(open_ & ~below, middle, most)
    return least


# -- making runs ----------------------------------------------------------------------------------


class FilterMaker:
    """The filter of a run, made as its keys come, sorted by their high halves."""

    def __init__(self, keys: int) -> None:
        self.words = np.zeros(max(1, -(-keys // KEYS_A_WORD)), dtype=np.uint64)

    def add(self, high: Words, low: Words) -> None:
        if len(high) == 0:
            return
        words = _words_of(high >> np.uint64(32), len(self.words))
        starts = np.flatnonzero(np.concatenate((np.array([True]), words[1:] != words[:-1])))
        self.words[words[starts]] |= np.bitwise_or.reduceat(_filter_bits(low), starts)


def sorted_halves(keys: Keys) -> tuple[Words, Words]:
    """High and low halves in the order of a run."""
    order = np.argsort(keys[:, 1])
    return keys[:, 1][order], keys[:, 0][order]


def merged_slices(runs: Sequence[Run]) -> Iterator[tuple[Words, Words]]:
    """High and low halves of all these runs in the order of a run, some at a time."""
    slices = -(-sum(len(run) for run in runs) // _SLICE_KEYS)
    edges = np.array([part * 2**64 // slices for part in range(1, slices)], dtype=np.uint64)
    bounds = [[0, *np.searchsorted(run.high, edges).tolist(), len(run)] for run in runs]
    for number in range(slices):
        parts = [slice(bound[number], bound[number + 1]) for bound in bounds]
        high = np.concatenate([run.high[part] for run, part in zip(runs, parts, strict=True)])
        low = np.concatenate([run.low[part] for run, part in zip(runs, parts, strict=True)])
        order = np.argsort(high, kind="stable")  # which makes use of the parts being sorted
        yield high[order], low[order]


def run_in_memory(slices: Iterator[tuple[Words, Words]], keys: int) -> Run:
    """A run of so many keys, which come sorted."""
    high, low = np.empty(keys, dtype=np.uint64), np.empty(keys, dtype=np.uint64)
    maker = FilterMaker(keys)
    at = 0
    for part_high, part_low in slices:
        maker.add(part_high, part_low)
        part = slice(at, at + len(part_high))
        high[part], low[part] = part_high, part_low
        at += len(part_high)
    return Run(high, low, maker.words)


def to_merge(runs: Sequence[Run]) -> list[Run]:
    """Runs that are worth merging: some of about one size, the smallest such; or none."""
    classes: dict[int, list[Run]] = {}
    for run in runs:
        classes.setdefault(run.size_class(), []).append(run)
    for size_class in sorted(classes):
        if size_class < _LARGEST_CLASS and len(classes[size_class]) >= _MERGE_RUNS:
            return classes[size_class]
    return []


# -- where runs lie -------------------------------------------------------------------------------


class Shelf(Protocol):
    """Makes and keeps the runs of a shard. What it is asked to make, it may make later."""

    def hot_ids(self) -> int:
        """How many new keys a set keeps in its table before it asks for a run of them."""

    def seal(self, keys: Keys) -> Future[Run]:
        """A run of these keys."""

    def merge(self, runs: Sequence[Run]) -> Future[Run | None]:
        """One run in place of these; None where that could not be made now."""

    def open(self, name: str) -> Run:
        """A run that was named before. Raises `RunError`."""

    def retire(self, run: Run) -> None:
        """The run is not used any more."""


class Shelves(Protocol):
    """Gives each shard its shelf."""

    def open(self, shard: int) -> Shelf:
        """The shard's shelf, from now on."""

    def close(self, shard: int) -> None:
        """The shard is not this worker's any more."""


_Made = TypeVar("_Made")


def done(make: Callable[[], _Made]) -> Future[_Made]:
    """What was made at once."""
    future: Future[_Made] = Future()
    future.set_result(make())
    return future


class MemoryShelf:
    """Runs in memory only."""

    def __init__(self, hot_ids: int = MAX_HOT_IDS) -> None:
        self._hot_ids = hot_ids

    def hot_ids(self) -> int:
        return self._hot_ids

    def seal(self, keys: Keys) -> Future[Run]:
        return done(lambda: run_in_memory(iter([sorted_halves(keys)]), len(keys)))

    def merge(self, runs: Sequence[Run]) -> Future[Run | None]:
        return done(lambda: run_in_memory(merged_slices(runs), sum(len(run) for run in runs)))

    def open(self, name: str) -> Run:
        raise RunError(f"run {name} is not in memory")

    def retire(self, run: Run) -> None:
        """Nothing is left of it."""


class MemoryShelves:
    """Shelves in memory only."""

    def open(self, shard: int) -> Shelf:
        return MemoryShelf()

    def close(self, shard: int) -> None:
        """Nothing is left of it."""
