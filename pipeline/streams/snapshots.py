"""Snapshots: local files with the states of shards, and beside them the files of their ids.

    DIRECTORY/shard-N.snapshot     `PPS1`, the SHA-256 of the rest, the packed state
    DIRECTORY/shard-N/NAME.ids     the runs of ids that the state names (`id_files`)

A state names files that are written for good before it is, and files that it does not name are
deleted after it is. All of it is written on threads, while the worker decides on. It is a cache:
whatever of it is lost or damaged costs time, never data.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pipeline import failpoints
from pipeline.streams.id_files import DiskShelf, Share, Standing, sync_directory

log = logging.getLogger(__name__)

_MAGIC = b"PPS1"
_NICENESS = 10
"""Of threads whose work can wait: some tenth of a core that others want too."""


def _give_way() -> None:
    """Let this thread run where others have nothing to do: a run of ids is a tenth of a second of
    sorting, for which a decision would wait on a full core. Not where threads have no priorities of
    their own: only on Linux."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class SnapshotStore:
    """The snapshots of a worker, each checked before it is trusted; and its shards' shelves."""

    def __init__(self, directory: Path, memory_bytes: int) -> None:
        """`memory_bytes` are for the ids of all shards that are not in files."""
        self._directory = directory
        self._thread = ThreadPoolExecutor(1, "snapshots", _give_way)
        self._merges = ThreadPoolExecutor(1, "merges", _give_way)
        self._share = Share(memory_bytes, seals=self._thread, merges=self._merges)
        self._shelves: dict[int, DiskShelf] = {}
        self._saving: dict[int, Future[None]] = {}

    def _path(self, shard: int) -> Path:
        return self._directory / f"shard-{shard}.snapshot"

    # -- shelves ------------------------------------------------------------------------------

    def open(self, shard: int) -> DiskShelf:
        """A shelf for a shard that begins empty."""
        self._await_saved(shard)
        directory = self._directory / f"shard-{shard}"
        self._shelves[shard] = DiskShelf(shard, directory, self._share)
        self._share.shards = len(self._shelves)
        return self._shelves[shard]

    def close(self, shard: int) -> None:
        """The shard is not this worker's any more."""
        shelf = self._shelves.pop(shard, None)
        if shelf is not None:
            shelf.cancel()
        self._share.shards = len(self._shelves)

    # -- snapshots ----------------------------------------------------------------------------

    def is_saving(self, shard: int) -> bool:
        """Whether a snapshot of the shard is being written."""
        return shard in self._saving and not self._saving[shard].done()

    def save(self, shard: int, packed: bytes) -> Future[None]:
        """Write a state as it was packed just now. Losing a snapshot costs time only: what goes
        wrong is logged, not raised."""
        shelf = self._shelves.get(shard)
        standing = None if shelf is None else shelf.standing()
        future = self._thread.submit(self._save, shard, packed, shelf, standing)
        self._saving[shard] = future
        return future

    def _save(
        self, shard: int, packed: bytes, shelf: DiskShelf | None, standing: Standing | None
    ) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            if shelf is not None and standing is not None:
                shelf.restore(standing)
            self._write(shard, packed)
            failpoints.reach("snapshot_written")
            if shelf is not None and standing is not None:
                shelf.clear(standing)
        except OSError as error:
            log.warning("snapshot of shard %d not written: %s", shard, error)

    def _write(self, shard: int, packed: bytes) -> None:
        path = self._path(shard)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            file.write(_MAGIC + hashlib.sha256(packed).digest() + packed)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_directory(self._directory)

    def load(self, shard: int) -> bytes | None:
        """The packed state, or None where there is none that is whole."""
        self._await_saved(shard)
        try:
            content = self._path(shard).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("snapshot of shard %d not read: %s", shard, error)
            return None
        head = len(_MAGIC)
        digest, packed = content[head : head + 32], content[head + 32 :]
        if content[:head] != _MAGIC or hashlib.sha256(packed).digest() != digest:
            log.warning("snapshot of shard %d is damaged: starting from the journal", shard)
            return None
        return packed

    def _await_saved(self, shard: int) -> None:
        if shard in self._saving:
            self._saving.pop(shard).result()

    def stop(self) -> None:
        """Write the snapshots that were asked for, make no more runs, and end the threads."""
        for shelf in self._shelves.values():
            shelf.cancel()
        self._thread.shutdown(wait=True)
        self._merges.shutdown(wait=True)
