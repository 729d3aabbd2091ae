"""Copies of snapshots in a directory that all workers see: who takes a shard over goes on from one.

Without them a worker that has no snapshot of a shard folds all of its journal. They are laid out
as a worker's own, and a cache of a cache: whatever is lost or damaged costs time, never data. A
worker that is no longer the owner and does not know may put its own in place of a newer one, or
delete a run that it names: the owner's next copy makes up for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path

from pipeline import failpoints
from pipeline.billing.fold import outline_of
from pipeline.streams.background import background_thread
from pipeline.streams.id_files import copy_run, path_of, remove_abandoned
from pipeline.streams.snapshot_files import SnapshotFiles

log = logging.getLogger(__name__)


class SnapshotCopies:
    """Keeps the copies of a worker's shards up to date, on a thread of its own: where all see it
    is slower, and may not answer at all."""

    def __init__(self, directory: Path, on_failure: Callable[[], None]) -> None:
        """`on_failure` is called on that thread for each copy that was not made."""
        self.files = SnapshotFiles(directory, is_shared=True)
        self._on_failure = on_failure
        self._thread = background_thread("copies")
        self._due: dict[int, Callable[[], bool]] = {}
        self._last: Future[None] | None = None
        self._named: dict[int, set[str]] = {}
        """By shard: the runs that the last copy of this worker needs."""
        self._is_over = False

    def update(self, shard: int, own: SnapshotFiles, is_wanted: Callable[[], bool]) -> None:
        """Copy what is newest of a shard by the time that it comes to it, while it is wanted."""
        self._due[shard] = is_wanted
        self._last = self._thread.submit(self._update, shard, own)

    def stop(self, within_s: float) -> None:
        """Copy what was asked for, but no longer than this: nobody has the shards meanwhile."""
        if self._last is not None:
            wait([self._last], within_s)
        self._is_over = True
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _update(self, shard: int, own: SnapshotFiles) -> None:
        is_wanted = self._due.pop(shard, None)
        if is_wanted is None:
            return  # copied already
        try:
            self._copy(shard, own, is_wanted)
        except OSError as error:
            log.warning("snapshot of shard %d not copied: %s", shard, error)
            self._on_failure()

    def _copy(self, shard: int, own: SnapshotFiles, is_wanted: Callable[[], bool]) -> None:
        packed = own.read(shard)
        if packed is None:
            return
        runs = outline_of(packed).runs
        here = self.files.runs(shard)
        for name in sorted(runs):
            if path_of(here, name).exists():
                continue
            if not path_of(own.runs(shard), name).exists():
                return  # merged since, and the snapshot after this one comes next
            if self._is_over or not is_wanted():
                return
            copy_run(own.runs(shard), here, name)
        if self._is_over or not is_wanted():
            return
        self.files.write(shard, packed)
        failpoints.reach("snapshot_copied")
        self._clear(shard, runs)

    def _clear(self, shard: int, runs: set[str]) -> None:
        """Delete what neither this copy needs nor the one before it, which somebody may be reading
        now."""
        here = self.files.runs(shard)
        found = {path.stem for path in here.glob("*.ids")}
        for name in found - self._named.get(shard, found) - runs:
            path_of(here, name).unlink(missing_ok=True)
        self._named[shard] = runs
        remove_abandoned(here)
        remove_abandoned(self.files.directory)
