"""128-bit identities, and exact sets of them that age out.

An event_id is remembered by XXH3-128 of its UTF-8 bytes: two of 100 million ids share one by
chance with a probability under 2e-23 (birthday bound n^2 / 2^129), which this ledger accepts as
exact. The hash is fixed by its specification, so sets written by one version are read by the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import hirola
import numpy as np
import numpy.typing as npt
import xxhash

Keys = npt.NDArray[np.uint64]
"""Shape (n, 2): the two halves of n 128-bit keys."""

Mask = npt.NDArray[np.bool_]

_MIN_CAPACITY = 4_096
_MAX_FILL = 0.7
USER_HASH_BYTES = 16


def hash_texts(texts: Iterable[str]) -> Keys:
    """XXH3-128 of each text's UTF-8 bytes."""
    digest = xxhash.xxh3_128_digest
    return keys_from_bytes(b"".join([digest(text.encode()) for text in texts]))


def hash_bytes(values: Iterable[bytes]) -> bytes:
    """XXH3-128 of each value, 16 bytes each, one after the other."""
    digest = xxhash.xxh3_128_digest
    return b"".join([digest(value) for value in values])


def keys_from_bytes(packed: bytes) -> Keys:
    """Keys from 16 bytes each, one after the other."""
    return np.frombuffer(packed, dtype=np.uint64).reshape(-1, 2)


def hash_users(user_ids: Sequence[str], key: bytes) -> list[bytes]:
    """Keyed BLAKE2b-128 of each user id: 16 bytes that only the key's holder can link to a user."""
    keyed = hashlib.blake2b(digest_size=USER_HASH_BYTES, key=key)
    hashes = []
    for user_id in user_ids:
        state = keyed.copy()
        state.update(user_id.encode())
        hashes.append(state.digest())
    return hashes


def first_occurrences(keys: Keys) -> tuple[npt.NDArray[np.int64], Mask]:
    """Group equal keys: each row's group number, and whether it is the first row of its group."""
    if len(keys) == 0:
        return np.empty(0, np.int64), np.empty(0, np.bool_)
    table = hirola.HashTable(_capacity_for(len(keys)), dtype=(np.uint64, 2))
    groups = np.asarray(table.add(np.ascontiguousarray(keys)), dtype=np.int64)
    before = np.concatenate((np.array([-1]), np.maximum.accumulate(groups)[:-1]))
    return groups, groups > before


def _capacity_for(count: int) -> int:
    return max(_MIN_CAPACITY, int(count / _MAX_FILL) + 1)


class _Table:
    """A growing hash set of keys."""

    def __init__(self) -> None:
        self._table = hirola.HashTable(_MIN_CAPACITY, dtype=(np.uint64, 2))

    def __len__(self) -> int:
        return len(self._table)

    def contains(self, keys: Keys) -> Mask:
        return np.asarray(self._table.contains(keys), dtype=np.bool_)

    def add(self, keys: Keys) -> None:
        needed = len(self._table) + len(keys)
        if needed > self._table.max * _MAX_FILL:
            self._table = self._table.resize(_capacity_for(needed * 2))
        self._table.add(keys)

    def keys(self) -> Keys:
        return np.asarray(self._table.keys, dtype=np.uint64)


class IdSet:
    """Keys seen by a shard, in generations that are dropped whole.

    A generation spans half the horizon of log time (the largest record timestamp consumed), so a
    key is kept for at least the horizon after it was added. Generations past the horizon are kept
    on while the set is within `keep_at_most` keys: where old records can come again (CreateTime
    topics, a topic resent whole), memory that is there is used to recognise them.
    """

    def __init__(self, horizon_ms: int, keep_at_most: int) -> None:
        self._horizon_ms = horizon_ms
        self._generation_ms = max(1, horizon_ms // 2)
        self._keep_at_most = keep_at_most
        self._generations: dict[int, _Table] = {}

    def __len__(self) -> int:
        return sum(len(table) for table in self._generations.values())

    def contains(self, keys: Keys) -> Mask:
        """Which keys are in the set."""
        found = np.zeros(len(keys), dtype=np.bool_)
        if len(keys) == 0:
            return found
        contiguous = np.ascontiguousarray(keys)
        for table in self._generations.values():
            found |= table.contains(contiguous)
        return found

    def add(self, keys: Keys, log_time_ms: int) -> None:
        """Add keys at this log time, and drop generations that are due."""
        if len(keys) == 0:
            return
        generation = log_time_ms // self._generation_ms
        table = self._generations.setdefault(generation, _Table())
        table.add(np.ascontiguousarray(keys))
        self._expire(log_time_ms)

    def _expire(self, log_time_ms: int) -> None:
        for generation in sorted(self._generations):
            ended_ms = (generation + 1) * self._generation_ms
            if ended_ms + self._horizon_ms > log_time_ms or len(self) <= self._keep_at_most:
                return
            del self._generations[generation]

    def dump(self) -> dict[int, bytes]:
        """The set by generation: 16 bytes a key."""
        return {number: table.keys().tobytes() for number, table in self._generations.items()}

    def load(self, generations: dict[int, bytes]) -> None:
        """Take over what `dump` gave."""
        self._generations = {}
        for number, packed in generations.items():
            table = _Table()
            table.add(np.ascontiguousarray(keys_from_bytes(packed)))
            self._generations[number] = table


class Interner:
    """Dense small integers for ids, given in the order of first sight and never taken back."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._texts: list[str] = []

    def __len__(self) -> int:
        return len(self._texts)

    def intern(self, text: str) -> int:
        """The id's number; a new one where it was never seen."""
        index = self._index.get(text)
        if index is None:
            index = self._index[text] = len(self._texts)
            self._texts.append(text)
        return index

    def find(self, text: str) -> int | None:
        return self._index.get(text)

    def text(self, index: int) -> str:
        return self._texts[index]
