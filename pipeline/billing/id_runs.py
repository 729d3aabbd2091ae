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

from pipeline.native import compiled, compiled_beside

Keys = npt.NDArray[np.uint64]
"""Shape (n, 2): the low and the high half of n 128-bit keys."""

Words = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
_U = np.uint64

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
        # All of one kind, as those are that are mapped from a file: loops are compiled for it.
        for name in ("high", "low", "filter"):
            fixed = getattr(self, name).view()
            fixed.flags.writeable = False
            object.__setattr__(self, name, fixed)
        object.__setattr__(self, "fences", np.array(self.high[::FENCE_EVERY]))

    def __len__(self) -> int:
        return len(self.high)

    def size_class(self) -> int:
        """Runs of one class are merged together: its size to the base of 4."""
        return (len(self).bit_length() - 1) // 2

    def keys(self) -> Keys:
        return np.column_stack((self.low, self.high))

    def mark(self, keys: Keys, found: Mask) -> None:
        """Set `found` where a key is in here."""
        _mark(self.filter, self.fences, self.high, self.low, keys, found)


@compiled
def _mark(filter_: Words, fences: Words, high: Words, low: Words, keys: Keys, found: Mask) -> None:
    """As `Run.mark`, of the run with these."""
    for at in range(len(keys)):
        if found[at]:
            continue
        key_low, key_high = keys[at, 0], keys[at, 1]
        bits = _filter_bits(key_low)
        word = filter_[_word_of(key_high, len(filter_))]
        if word & bits == bits and _is_in(fences, high, low, key_high, key_low):
            found[at] = True


@compiled
def _filter_bits(low: np.uint64) -> np.uint64:
    """The bits that a key sets in its word of the filter."""
    bits = _U(0)
    for number in range(_BITS_A_KEY):
        bits |= _U(1) << (low >> _U(number * _BITS_OF_WORD) & _U(63))
    return bits


@compiled
def _word_of(high: np.uint64, words: int) -> np.uint64:
    """Which word of the filter is a key's: it grows with the key's high half."""
    return (high >> _U(32)) * _U(words) >> _U(32)


@compiled
def _is_in(fences: Words, high: Words, low: Words, key_high: np.uint64, key_low: np.uint64) -> bool:
    """Whether a key is in a run, by all its bits."""
    fence = _first_at_least(fences, 0, len(fences), key_high)
    least, most = max(fence - 1, 0) * FENCE_EVERY, min(fence * FENCE_EVERY, len(high))
    at = _first_at_least(high, least, most, key_high)
    # Equal high halves lie together, in no order of the low ones.
    while at < len(high) and high[at] == key_high:
        if low[at] == key_low:
            return True
        at += 1
    return False


@compiled
def _first_at_least(ascending: Words, least: int, most: int, key: np.uint64) -> int:
    """Where the first is that is not below the key, from `least` on; `most` where none is."""
    while least < most:
        middle = (least + most) // 2
        if ascending[middle] < key:
            least = middle + 1
        else:
            most = middle
    return least


# -- making runs ----------------------------------------------------------------------------------


class FilterMaker:
    """The filter of a run, made as its keys come, sorted by their high halves."""

    def __init__(self, keys: int) -> None:
        self.words = np.zeros(max(1, -(-keys // KEYS_A_WORD)), dtype=np.uint64)

    def add(self, high: Words, low: Words) -> None:
        _add_to_filter(self.words, high, low)


@compiled_beside
def _add_to_filter(words: Words, high: Words, low: Words) -> None:
    for at in range(len(high)):
        words[_word_of(high[at], len(words))] |= _filter_bits(low[at])


def sorted_halves(keys: Keys) -> tuple[Words, Words]:
    """High and low halves in the order of a run."""
    low, high = np.ascontiguousarray(keys.T)
    order = np.argsort(high)
    return high[order], low[order]


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


def warm_up() -> None:
    """Compile what judging needs, or load it, before the first event waits for it."""
    keys = np.zeros((1, 2), np.uint64)
    MemoryShelf().seal(keys).result().mark(keys, np.zeros(1, np.bool_))
