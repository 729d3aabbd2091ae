"""Snapshots: local files with the states of shards, and beside them the files of their ids.

A state names files that are written for good before it is, and files that it does not name are
deleted after it is. All of it is written on threads, while the worker decides on. It is a cache:
whatever of it is lost or damaged costs time, never data.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future
from pathlib import Path

from pipeline import failpoints
from pipeline.billing.fold import Outline, StateError, outline_of
from pipeline.billing.id_runs import RunError
from pipeline.streams.background import background_thread
from pipeline.streams.id_files import DiskShelf, Share, Standing
from pipeline.streams.snapshot_copies import SnapshotCopies
from pipeline.streams.snapshot_files import SnapshotFiles

log = logging.getLogger(__name__)

_Found = tuple[Outline, bytes, SnapshotFiles]
_COPY_WAIT_S = 5.0
"""How long a worker that ends goes on copying: its shards stand still meanwhile."""


class SnapshotStore:
    """The snapshots of a worker, and its shards' shelves."""

    def __init__(
        self, directory: Path, memory_bytes: int, copies: SnapshotCopies | None = None
    ) -> None:
        """`memory_bytes` are for the ids of all shards that are not in files."""
        self._own = SnapshotFiles(directory)
        self._copies = copies
        self._thread = background_thread("snapshots")
        self._merges = background_thread("merges")
        self._share = Share(memory_bytes, seals=self._thread, merges=self._merges)
        self._shelves: dict[int, DiskShelf] = {}
        self._saving: dict[int, Future[None]] = {}

    # -- shelves ------------------------------------------------------------------------------

    def open(self, shard: int) -> DiskShelf:
        """A shelf for a shard that begins empty."""
        self._await_saved(shard)
        self._shelves[shard] = DiskShelf(shard, self._own.runs(shard), self._share)
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
            if shelf is not None and standing is not None:
                shelf.restore(standing)
            self._own.write(shard, packed)
            failpoints.reach("snapshot_written")
            if shelf is not None and standing is not None:
                shelf.clear(standing)
        except OSError as error:
            log.warning("snapshot of shard %d not written: %s", shard, error)
            return
        if self._copies is not None and shelf is not None:
            self._copies.update(shard, self._own, lambda: self._shelves.get(shard) is shelf)

    def load(self, shard: int) -> bytes | None:
        """The state that is furthest, of those that are whole; None where there is none.

        Its runs of ids are looked at and brought to the shard's shelf, which is open: that may take
        minutes, so not for an event loop.
        """
        self._await_saved(shard)
        shelf = self._shelves[shard]
        found = self._found(shard, self._own)
        if self._copies is not None:
            found += self._found(shard, self._copies.files)
        for outline, packed, files in sorted(found, key=_how_far, reverse=True):
            try:
                shelf.bring(sorted(outline.runs), files.runs(shard))
            except RunError as error:
                _log_unused(shard, error)
                continue
            if files is not self._own:
                log.info("shard %d goes on from the copy in %s", shard, files.directory)
            return packed
        return None

    def _found(self, shard: int, files: SnapshotFiles) -> list[_Found]:
        packed = files.read(shard)
        if packed is None:
            return []
        try:
            return [(outline_of(packed), packed, files)]
        except StateError as error:
            _log_unused(shard, error)
            return []

    def _await_saved(self, shard: int) -> None:
        if shard in self._saving:
            self._saving.pop(shard).result()

    def stop(self) -> None:
        """Write the snapshots that were asked for, make no more runs, and end the threads."""
        for shelf in self._shelves.values():
            shelf.cancel()
        self._thread.shutdown(wait=True)
        self._merges.shutdown(wait=True)
        if self._copies is not None:
            self._copies.stop(_COPY_WAIT_S)


def _how_far(found: _Found) -> int:
    return found[0].last_offset


def _log_unused(shard: int, error: Exception) -> None:
    log.warning("snapshot of shard %d not used: %s", shard, error)
