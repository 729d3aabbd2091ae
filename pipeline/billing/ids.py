"""128-bit identities, and exact sets of them that age out.

An event_id is remembered by XXH3-128 of its UTF-8 bytes: two of 100 million ids share one by
chance with a probability under 2e-23 (birthday bound n^2 / 2^129), which this ledger accepts as
exact. The hash is fixed by its specification, so sets written by one version are read by the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from pipeline.billing.id_runs import Keys as Keys
from pipeline.billing.id_runs import Mask, MemoryShelf, Run, Shelf, to_merge
from pipeline.billing.key_table import KeyTable
from pipeline.billing.texts import Texts
from pipeline.billing.xxh3 import hash_joined

Rows = npt.NDArray[np.int64]

_MOST_SEALING = 4
"""Tables of a generation that wait to become runs; with more, adding waits."""
_LOAD_KEYS = 1 << 16
_HALF = 1 << 64
SEPARATOR = "\0"
"""Joins the parts of an identity; no part can hold it: an event with a NUL is malformed."""


def hash_columns(texts: Texts, *names: str) -> Keys:
    """XXH3-128 of each row's UTF-8 bytes in columns without nulls; several columns make one
    identity together."""
    starts, ends = texts.stretches(*names)
    return hash_joined(texts.buffer, starts, ends - starts)


def hash_text(*parts: str) -> tuple[int, int]:
    """The two halves of what `hash_columns` gives for a row of these parts."""
    whole = xxhash.xxh3_128_intdigest(SEPARATOR.join(parts).encode())
    return whole % _HALF, whole // _HALF


def join_keys(low: npt.NDArray[np.uint64], high: npt.NDArray[np.uint64]) -> Keys:
    """Keys from their halves."""
    return np.ascontiguousarray(np.column_stack((low, high)))


def keys_from_bytes(packed: bytes) -> Keys:
    """Keys from 16 bytes each, one after the other."""
    return np.frombuffer(packed, dtype=np.uint64).reshape(-1, 2)


class UserHasher:
    """A keyed pseudonym of each user id: 16 bytes that only the key's holder can link to a user.

    AES-128 under a key derived from the setting, applied to the id's XXH3-128: a permutation that
    nobody can compute, or undo, without the key. (A keyed hash of the id itself costs ten times as
    much an event: docs/decisions.)
    """

    def __init__(self, key: bytes) -> None:
        derived = hashlib.blake2b(key, digest_size=16, person=b"user_hash").digest()
        # ECB is what is wanted here: equal ids give equal hashes, block by block.
        self._cipher = Cipher(algorithms.AES128(derived), modes.ECB())

    def hash(self, user_keys: Keys) -> Keys:
        """Of the users whose ids hash to these keys."""
        encryptor = self._cipher.encryptor()
        return keys_from_bytes(encryptor.update(user_keys.tobytes()) + encryptor.finalize())


@lru_cache(maxsize=4)
def user_hasher(key: bytes) -> UserHasher:
    """The hasher of a key."""
    return UserHasher(key)


def first_occurrences(keys: Keys) -> tuple[Rows, Mask]:
    """Group equal keys: each row's group number, and whether it is the first row of its group."""
    if len(keys) == 0:
        return np.empty(0, np.int64), np.empty(0, np.bool_)
    groups = KeyTable(len(keys)).add(keys)
    before = np.concatenate((np.array([-1]), np.maximum.accumulate(groups)[:-1]))
    return groups, groups > before


class _Generation:
    """The keys of one span of log time: the newest in a table, the others in runs."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._hot = KeyTable()
        self._sealing: list[tuple[KeyTable, Future[Run]]] = []
        """Tables that take nothing more, until there is a run in place of each."""
        self.runs: list[Run] = []
        self._merging: tuple[list[Run], Future[Run | None]] | None = None

    def __len__(self) -> int:
        return sum(map(len, self._tables())) + sum(map(len, self.runs))

    def _tables(self) -> list[KeyTable]:
        return [self._hot, *(table for table, _ in self._sealing)]

    def mark_new(self, keys: Keys, found: Mask) -> None:
        """Set `found` where a key is in here and in no run yet."""
        for table in self._tables():
            if len(table):
                found |= table.find(keys) >= 0

    def add(self, keys: Keys) -> None:
        hot_ids = self._shelf.hot_ids()
        expected = hot_ids + len(keys)
        self._hot.add(keys, expected)
        if len(self._hot) >= hot_ids:
            self._seal(KeyTable(expected))
            if len(self._sealing) > _MOST_SEALING:
                self._sealing[0][1].result()  # what makes runs does not keep up: wait for it

    def end(self) -> None:
        """Nothing is added any more."""
        if len(self._hot):
            self._seal(KeyTable())

    def _seal(self, next_table: KeyTable) -> None:
        self._sealing.append((self._hot, self._shelf.seal(self._hot.keys())))
        self._hot = next_table

    def settle(self) -> None:
        """Take over the runs that have been made."""
        changed = False
        while self._sealing and self._sealing[0][1].done():
            self.runs.append(self._sealing.pop(0)[1].result())
            changed = True
        if self._merging is not None and self._merging[1].done():
            merged, (replaced, _) = self._merging[1].result(), self._merging
            self._merging = None
            if merged is not None:
                self._replace(replaced, merged)
                changed = True
        if changed and self._merging is None and (runs := to_merge(self.runs)):
            self._merging = runs, self._shelf.merge(runs)
            if self._merging[1].done():
                self.settle()

    def _replace(self, runs: list[Run], merged: Run) -> None:
        self.runs = [run for run in self.runs if run not in runs]
        self.runs.append(merged)
        for run in runs:
            self._shelf.retire(run)

    def is_settled(self) -> bool:
        """Whether nothing is being made."""
        return not self._sealing and self._merging is None

    def retire(self) -> None:
        """Nothing of it is wanted any more."""
        for run in self.runs:
            self._shelf.retire(run)
        for _, sealing in self._sealing:
            sealing.add_done_callback(self._retire_made)
        if self._merging is not None:
            self._merging[1].add_done_callback(self._retire_made)

    def _retire_made(self, future: Future[Any]) -> None:
        if not future.cancelled() and future.exception() is None and future.result() is not None:
            self._shelf.retire(future.result())

    def loose(self) -> bytes:
        """The keys that no named run holds, 16 bytes each."""
        unnamed = (run.keys() for run in self.runs if not run.name)
        parts = (*(table.keys() for table in self._tables()), *unnamed)
        return b"".join(part.tobytes() for part in parts)

    def names(self) -> list[str]:
        return [run.name for run in self.runs if run.name]

    def open(self, names: Sequence[str]) -> None:
        self.runs += [self._shelf.open(name) for name in names]


class IdSet:
    """Keys seen by a shard, in generations that are dropped whole.

    A generation spans half the horizon of log time (the largest record timestamp consumed), so a
    key is kept for at least the horizon after it was added. Generations past the horizon are kept
    on while the set is within `keep_at_most` keys: where old records can come again (CreateTime
    topics, a topic resent whole), room that is there is used to recognise them.

    The newest keys are in hash tables of bounded size; the others are in sorted runs, which the
    shelf may keep on disk. What is in the set does not depend on where it lies.
    """

    def __init__(self, horizon_ms: int, keep_at_most: int, shelf: Shelf | None = None) -> None:
        self._horizon_ms = horizon_ms
        self.generation_ms = max(1, horizon_ms // 2)
        self._keep_at_most = keep_at_most
        self._shelf: Shelf = shelf or MemoryShelf()
        self._generations: dict[int, _Generation] = {}

    def __len__(self) -> int:
        return sum(len(generation) for generation in self._generations.values())

    def contains(self, keys: Keys) -> Mask:
        """Which keys are in the set."""
        found = np.zeros(len(keys), dtype=np.bool_)
        if len(keys) == 0:
            return found
        contiguous = np.ascontiguousarray(keys)
        for generation in self._generations.values():
            generation.mark_new(contiguous, found)
            for run in generation.runs:
                run.mark(contiguous, found)
        return found

    def add(self, keys: Keys, log_time_ms: int) -> None:
        """Add keys that are not in the set at this log time, and drop generations that are due."""
        if len(keys) == 0:
            return
        number = self.generation(log_time_ms)
        if number not in self._generations:
            for generation in self._generations.values():
                generation.end()
        self._at(number).add(keys)
        self.settle()
        self._expire(log_time_ms)

    def settle(self) -> bool:
        """Take over the runs that have been made; whether none is being made any more."""
        for generation in self._generations.values():
            generation.settle()
        return all(generation.is_settled() for generation in self._generations.values())

    def _at(self, number: int) -> _Generation:
        if number not in self._generations:
            self._generations[number] = _Generation(self._shelf)
        return self._generations[number]

    def generation(self, log_time_ms: int) -> int:
        """The number of the generation that keys added at this log time belong to."""
        return log_time_ms // self.generation_ms

    def _expire(self, log_time_ms: int) -> None:
        for number in sorted(self._generations):
            ended_ms = (number + 1) * self.generation_ms
            if ended_ms + self._horizon_ms > log_time_ms or len(self) <= self._keep_at_most:
                return
            self._generations.pop(number).retire()

    def dump(self) -> dict[int, bytes]:
        """The keys by generation that no named run holds: 16 bytes a key."""
        return {number: one.loose() for number, one in self._generations.items()}

    def run_names(self) -> dict[int, list[str]]:
        """The named runs by generation; with what `dump` gives, the whole set."""
        return {number: one.names() for number, one in self._generations.items() if one.names()}

    def load(
        self,
        loose: dict[int, bytes],
        names: dict[int, list[str]],
        generation_ms: int,
        log_time_ms: int,
    ) -> None:
        """Take over what `dump` and `run_names` gave, at this log time, of a set whose generations
        are so long (0: as long as here). Raises `RunError` where a run is lost.

        Under another horizon a generation becomes the one that its youngest keys may be of.
        """

        def here(number: int) -> _Generation:
            if generation_ms in (0, self.generation_ms):
                return self._at(number)
            last_ms = (number + 1) * generation_ms - 1
            return self._at(self.generation(min(last_ms, log_time_ms)))

        self._generations = {}
        for number, of_generation in names.items():
            here(number).open(of_generation)
        for number, packed in loose.items():
            keys, generation = keys_from_bytes(packed), here(number)
            for start in range(0, len(keys), _LOAD_KEYS):
                generation.add(keys[start : start + _LOAD_KEYS])
                generation.settle()


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


class KeyIndex:
    """A growing map from keys to the row numbers that they were added with."""

    def __init__(self) -> None:
        self._table = KeyTable()
        self._rows = np.empty(1, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._table)

    def add(self, key: tuple[int, int], row: int) -> None:
        """Map one key to a row."""
        [at] = self._table.add(np.array([key], dtype=np.uint64))
        if at >= len(self._rows):
            self._rows = np.resize(self._rows, 2 * int(at))
        self._rows[at] = row

    def find(self, keys: Keys) -> Rows:
        """The row of each key; -1 where it was never added."""
        at = self._table.find(keys)
        return np.where(at >= 0, self._rows[at], -1)
