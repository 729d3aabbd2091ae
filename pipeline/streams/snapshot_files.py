"""A directory of snapshots.

DIRECTORY/shard-N.snapshot     `PPS1`, the SHA-256 of the rest, the packed state
DIRECTORY/shard-N/NAME.ids     the runs of ids that the state names (`id_files`)
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from pipeline.billing.fold import Outline, StateError, outline_of
from pipeline.streams.id_files import sync_directory

log = logging.getLogger(__name__)

_MAGIC = b"PPS1"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that is whole; its runs of ids were not looked at."""

    packed: bytes
    outline: Outline
    runs: Path
    """The directory of its runs."""


@dataclass(frozen=True, slots=True)
class SnapshotFiles:
    """The snapshots of a directory, each checked before it is trusted."""

    directory: Path
    is_shared: bool = False
    """Other processes write here too, and whoever mounts it makes it: it may be away."""

    def path(self, shard: int) -> Path:
        """Of the shard's snapshot."""
        return self.directory / f"shard-{shard}.snapshot"

    def runs(self, shard: int) -> Path:
        """The directory of the shard's runs of ids."""
        return self.directory / f"shard-{shard}"

    def write(self, shard: int, packed: bytes) -> None:
        """In place of the one before, whole or not at all. Raises `OSError`."""
        if not self.is_shared:
            self.directory.mkdir(parents=True, exist_ok=True)
        path = self.path(shard)
        part = path.with_suffix(f".{uuid.uuid4().hex}.part" if self.is_shared else ".part")
        try:
            with part.open("wb") as file:
                file.write(_MAGIC + hashlib.sha256(packed).digest() + packed)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError:
            if self.is_shared:
                part.unlink(missing_ok=True)  # nobody would write it again
            raise
        sync_directory(self.directory)

    def read(self, shard: int) -> Snapshot | None:
        """The shard's snapshot; None, and a warning, where there is none that can be used. Raises
        `OSError`."""
        path = self.path(shard)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        head = len(_MAGIC)
        digest, packed = content[head : head + 32], content[head + 32 :]
        if content[:head] != _MAGIC or hashlib.sha256(packed).digest() != digest:
            log.warning("snapshot of shard %d is damaged: %s is not used", shard, path)
            return None
        try:
            outline = outline_of(packed, shard)
        except StateError as error:
            log.warning("snapshot of shard %d not used: %s: %s", shard, error, path)
            return None
        return Snapshot(packed, outline, self.runs(shard))
