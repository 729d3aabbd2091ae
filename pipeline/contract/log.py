"""Reading a log (a Kafka topic), as those see it who may not know Kafka.

`pipeline.streams` implements it; `pipeline.reporting` is given it by the composition root.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One record of a topic. `timestamp_ms` is the record's own Kafka timestamp."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class LogUnavailable(Exception):
    """The log cannot be reached: another try may succeed."""


class LogReader(Protocol):
    """A reader of all partitions of one topic, outside any consumer group.

    While the log cannot be reached `fetch` brings nothing, and what asks it a question raises
    `LogUnavailable`.
    """

    async def start(self, positions: Mapping[int, int] | None = None) -> None:
        """Begin at these offsets; a partition not named begins at its first retained record."""

    async def fetch(self, timeout_ms: int) -> list[LogRecord]:
        """The next records, in offset order within each partition; empty after the timeout."""
        ...

    async def begin_offsets(self) -> dict[int, int]:
        """Partition -> offset of its first retained record."""
        ...

    async def end_offsets(self) -> dict[int, int]:
        """Partition -> offset after its last record, asked of the broker now."""
        ...

    async def seek(self, positions: Mapping[int, int]) -> None:
        """Go on from these offsets."""

    async def position(self, partition: int) -> int:
        """The offset that the next fetch of a partition begins with."""
        ...

    async def stop(self) -> None: ...
