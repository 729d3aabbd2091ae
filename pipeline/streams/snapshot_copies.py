"""Copies of snapshots in a directory that all workers see: who takes a shard over goes on from one.

Without them a worker that has no snapshot of a shard folds all of its journal. They are laid out
as a worker's own, and a cache of a cache: whatever is lost or damaged costs time, never data. A
worker that is no longer the owner and does not know may put its own in place of a newer one, or
delete a run that it names: the owner's next copy makes up for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from pipeline import failpoints
from pipeline.streams.background import give_way
from pipeline.streams.id_files import copy_run, path_of, remove_abandoned
from pipeline.streams.snapshot_files import SnapshotFiles

log = logging.getLogger(__name__)


class SnapshotCopies:
    """Keeps the copies of a worker's shards up to date, on a thread of its own that no end waits
    for: where all see it is slower than a disk, and may not answer at all."""

    def __init__(self, own: SnapshotFiles, directory: Path, on_failure: Callable[[], None]) -> None:
        """`on_failure` is called for each copy that was not made, on any thread."""
        self.files = SnapshotFiles(directory, is_shared=True)
        self._own = own
        self._on_failure = on_failure
        self._changed = threading.Condition()
        """Held where the three below it are changed, and waited for."""
        self._due: dict[int, Callable[[], bool]] = {}
        self._is_busy = False
        self._is_over = False
        threading.Thread(target=self._run, name="copies", daemon=True).start()

    def update(self, shard: int, is_wanted: Callable[[], bool]) -> None:
        """Copy what is newest of a shard by the time that it comes to it, while it is wanted."""
        with self._changed:
            is_behind = shard in self._due
            self._due[shard] = is_wanted
            self._changed.notify_all()
        if is_behind:
            self._failed(shard, "the copies before it have not ended yet")

    def idle_within(self, timeout_s: float) -> bool:
        """Whether all that was asked for is done, so much later at most."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._due and not self._is_busy, timeout_s)

    def stop(self, within_s: float) -> None:
        """Copy what was asked for, but no longer than this: nobody has the shards meanwhile."""
        self.idle_within(within_s)
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    # -- on the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        give_way()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._due or self._is_over)
                if self._is_over:
                    return
                shard = next(iter(self._due))
                is_wanted = self._due.pop(shard)
                self._is_busy = True
            try:
                self._copy(shard, is_wanted)
            except Exception as error:  # whatever it is, the next one may go well
                self._failed(shard, repr(error))
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()

    def _failed(self, shard: int, reason: str) -> None:
        log.warning(
            "snapshot of shard %d not copied to %s: %s", shard, self.files.directory, reason
        )
        self._on_failure()

    def _copy(self, shard: int, is_wanted: Callable[[], bool]) -> None:
        """Raises where a run is not there any more, too: it is merged only once the next snapshot
        is written, before which this one should have been copied."""
        own = self._own.read(shard)
        if own is None or not is_wanted():
            return
        here = self.files.runs(shard)
        here.mkdir(exist_ok=True)
        self._clear(shard, own.outline.runs)
        for name in sorted(own.outline.runs):
            if self._is_over or not is_wanted():
                return
            size = _size(path_of(here, name))
            if size < 0 or size != _size(path_of(own.runs, name)):
                copy_run(own.runs, here, name)
        if not self._is_over and is_wanted():
            self.files.write(shard, own.packed)
            failpoints.reach("snapshot_copied")

    def _clear(self, shard: int, runs: set[str]) -> None:
        """Delete what neither these need nor the copy that is there: so a run outlives its last
        copy by one, which somebody may be reading when it is replaced."""
        here, copy = self.files.runs(shard), self.files.read(shard)
        needed = runs if copy is None else runs | copy.outline.runs
        for path in here.glob("*.ids"):
            if path.stem not in needed:
                path.unlink(missing_ok=True)
        remove_abandoned(here)
        remove_abandoned(self.files.directory)


def _size(path: Path) -> int:
    """In bytes; -1 of a file that is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
