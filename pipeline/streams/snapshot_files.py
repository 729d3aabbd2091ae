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

from pipeline.streams.id_files import sync_directory

log = logging.getLogger(__name__)

_MAGIC = b"PPS1"


@dataclass(frozen=True, slots=True)
class SnapshotFiles:
    """The snapshots of a directory, each checked before it is trusted."""

    directory: Path
    is_shared: bool = False
    """Other processes may write here at the same time."""

    def path(self, shard: int) -> Path:
        """Of the shard's snapshot."""
        return self.directory / f"shard-{shard}.snapshot"

    def runs(self, shard: int) -> Path:
        """The directory of the shard's runs of ids."""
        return self.directory / f"shard-{shard}"

    def write(self, shard: int, packed: bytes) -> None:
        """In place of the one before, whole or not at all. Raises `OSError`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.path(shard)
        part = path.with_suffix(f".{uuid.uuid4().hex}.part" if self.is_shared else ".part")
        with part.open("wb") as file:
            file.write(_MAGIC + hashlib.sha256(packed).digest() + packed)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_directory(self.directory)

    def read(self, shard: int) -> bytes | None:
        """The packed state, or None where there is none that is whole."""
        path = self.path(shard)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("snapshot of shard %d not read: %s", shard, error)
            return None
        head = len(_MAGIC)
        digest, packed = content[head : head + 32], content[head + 32 :]
        if content[:head] != _MAGIC or hashlib.sha256(packed).digest() != digest:
            log.warning("snapshot of shard %d is damaged: %s is not used", shard, path)
            return None
        return packed
