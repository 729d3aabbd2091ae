"""Snapshots: local files with the states of shards, and beside them the files of their ids.

A state names files that are written for good before it is, and files that it does not name are
deleted after it is. All of it is written on threads, while the worker decides on. It is a cache:
whatever of it is lost or damaged costs time, never data.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Set
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from pipeline import failpoints
from pipeline.billing.id_runs import RunError
from pipeline.streams.background import apart, background_thread
from pipeline.streams.id_files import DiskShelf, Share, Standing
from pipeline.streams.snapshot_copies import SnapshotCopies
from pipeline.streams.snapshot_files import Snapshot, SnapshotFiles

log = logging.getLogger(__name__)

_COPY_WAIT_S = 5.0
"""How long a worker that ends goes on copying: its shards stand still meanwhile."""
_COPY_ANSWERS_WITHIN_S = 60.0
_RUN_COPIED_WITHIN_S = 120.0
"""A run is some 340 MB at most."""
_WITHOUT_COPIES_S = 600.0
"""Where copies did not answer, other shards are not to wait for them as well."""


class SnapshotStore:
    """The snapshots of a worker, and its shards' shelves."""

    def __init__(
        self,
        directory: Path,
        memory_bytes: int,
        copies_dir: Path | None = None,
        on_copy_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """`memory_bytes` are for the ids of all shards that are not in files; `on_copy_failure` is
        called, on any thread, for each copy that was not made."""
        self._own = SnapshotFiles(directory)
        with contextlib.suppress(OSError):
            for part in directory.glob("shard-*/*.part"):
                part.unlink()  # of a process that was killed: a worker is alone here
        self._copies: SnapshotCopies | None = None
        if copies_dir is not None:
            self._copies = SnapshotCopies(self._own, copies_dir, on_copy_failure)
        self._no_copies_until_s = 0.0
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
        except OSError as error:
            log.warning("snapshot of shard %d not written: %s", shard, error)
            return
        if shelf is None or standing is None:
            return
        if self._copies is not None:
            self._copies.update(shard, lambda: self._shelves.get(shard) is shelf)
        try:
            shelf.clear(standing)
        except OSError as error:
            log.warning("ids of shard %d that nobody needs not deleted: %s", shard, error)

    async def load(
        self, shard: int, within: range, refused: Set[bytes] = frozenset()
    ) -> bytes | None:
        """The state that is furthest, of the snapshots that are whole and whose last record is at
        one of these offsets of the journal and has none of these digests; None where there is none.

        Its runs of ids are brought to the shard's shelf, which is open: that may take minutes.
        Raises `NoLongerWantedError`.
        """
        own, copy = await self._read_own(shard), await self._read_copy(shard)
        while found := [snapshot for snapshot in (own, copy) if snapshot is not None]:
            furthest = max(found, key=lambda snapshot: snapshot.outline.last_offset)
            stands_on = furthest.outline
            if stands_on.last_offset not in within or stands_on.digest in refused:
                log.warning("snapshot of shard %d is not of this journal: %s", shard, furthest.runs)
            elif await self._bring(shard, furthest, is_copy=furthest is copy):
                return furthest.packed
            if furthest is own:
                own = None
            else:  # it may have been replaced, and its runs deleted, while they were copied
                now = await self._read_copy(shard)
                copy = None if now is None or now.packed == furthest.packed else now
        return None

    async def _read_own(self, shard: int) -> Snapshot | None:
        try:
            return await apart(partial(self._own.read, shard))
        except OSError as error:
            log.warning("snapshot of shard %d not read: %s", shard, error)
            return None

    async def _read_copy(self, shard: int) -> Snapshot | None:
        if self._copies is None or time.monotonic() < self._no_copies_until_s:
            return None
        try:
            async with asyncio.timeout(_COPY_ANSWERS_WITHIN_S):
                return await apart(partial(self._copies.files.read, shard))
        except TimeoutError:
            self._do_without_copies()
        except OSError as error:
            log.warning("copy of the snapshot of shard %d not read: %s", shard, error)
        return None

    async def _bring(self, shard: int, snapshot: Snapshot, is_copy: bool) -> bool:
        """Whether the snapshot can be gone on from: its runs are on the shard's shelf then."""
        shelf = self._shelves[shard]
        try:
            for name in sorted(snapshot.outline.runs):
                async with asyncio.timeout(_RUN_COPIED_WITHIN_S if is_copy else None):
                    await apart(partial(shelf.bring, name, snapshot.runs))
        except TimeoutError:
            self._do_without_copies()
        except RunError as error:
            log.warning("snapshot of shard %d not used: %s", shard, error)
        else:
            if is_copy:
                log.info("shard %d goes on from the copy in %s", shard, snapshot.runs.parent)
            return True
        shelf.take_back()
        return False

    def _do_without_copies(self) -> None:
        assert self._copies is not None
        where = self._copies.files.directory
        log.warning("%s does not answer: no copies for %.0f s", where, _WITHOUT_COPIES_S)
        self._no_copies_until_s = time.monotonic() + _WITHOUT_COPIES_S

    def _await_saved(self, shard: int) -> None:
        if shard in self._saving:
            self._saving.pop(shard).result()

    def stop(self) -> None:
        """Write the snapshots that were asked for, make no more runs, and end the threads."""
        for shelf in list(self._shelves.values()):
            shelf.cancel()
        self._thread.shutdown(wait=True)
        self._merges.shutdown(wait=True)
        if self._copies is not None:
            self._copies.stop(_COPY_WAIT_S)
