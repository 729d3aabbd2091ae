"""What a worker has been given and has not judged yet."""

from __future__ import annotations

import asyncio
import time

from pipeline.billing.batch import Chunk
from pipeline.streams.transport import Delivery

_ENOUGH_EVENTS = 1_500
_MAX_WAITING_BYTES = 256 * 1024 * 1024
_MAX_TURN_BYTES = 64 * 1024 * 1024
"""Of messages; events of a usual size come to their own bounds long before."""
_FEW_SHARDS, _MANY_SHARDS = 32, 64
"""A shard's record costs as much as judging some hundred events. So a turn of more than few shards
takes more, up to what one of many does: it holds signals up for longer."""


def events_a_turn(of_few_shards: int, shards: int) -> int:
    """How many events a turn takes that wait in so many shards, where those of few are so many."""
    return of_few_shards * min(max(shards, _FEW_SHARDS), _MANY_SHARDS) // _FEW_SHARDS


class Intake:
    """Chunks that came and are not judged yet; bounded, so that Kafka holds the rest.

    Closed while the sources are being sought anew: what comes then, and whatever was fetched
    before the seek and comes after it, would not follow on what was taken. It is fetched again.
    """

    def __init__(self, max_events: int) -> None:
        self._max_events = max_events
        self._chunks: list[Chunk] = []
        self.events = 0
        """Events waiting."""
        self._bytes = 0
        """That these have."""
        self._epoch: int | None = None
        self._room = asyncio.Event()
        self._room.set()
        self.wake = asyncio.Event()
        self.enough = asyncio.Event()
        """As many wait as make a turn worth its while."""
        self.last_arrival_s = 0.0

    async def has_room(self) -> None:
        """Return when less is waiting than the bounds say."""
        await self._room.wait()

    def put(self, delivery: Delivery) -> None:
        if delivery.epoch != self._epoch:
            return
        for chunk in delivery.chunks:
            self._chunks.append(chunk)
            self.events += len(chunk.values)
            self._bytes += _bytes_of(chunk)
        self._tell()
        self.last_arrival_s = time.monotonic()
        self.wake.set()

    def take(self, of_few_shards: int) -> list[Chunk]:
        """The oldest chunks, up to about so many events; of many shards more."""
        max_events = events_a_turn(of_few_shards, len({chunk.shard for chunk in self._chunks}))
        taken: list[Chunk] = []
        events = size = 0
        while self._chunks and events < max_events and size < _MAX_TURN_BYTES:
            chunk = self._chunks.pop(0)
            taken.append(chunk)
            events += len(chunk.values)
            size += _bytes_of(chunk)
        self.events -= events
        self._bytes -= size
        self._tell()
        if self._chunks:
            self.wake.set()
        return taken

    def close(self) -> None:
        """Forget what came and take nothing in: the sources are being sought anew."""
        self._epoch = None
        self._chunks.clear()
        self.events = self._bytes = 0
        self._tell()

    def open(self, epoch: int) -> None:
        """Take in what is fetched in this epoch."""
        self._epoch = epoch

    def _tell(self) -> None:
        """Set the flags by what waits now."""
        for flag, is_so in (
            (self._room, self.events < self._max_events and self._bytes < _MAX_WAITING_BYTES),
            (self.enough, self.events >= _ENOUGH_EVENTS),
        ):
            if is_so:
                flag.set()
            else:
                flag.clear()


def _bytes_of(chunk: Chunk) -> int:
    return int(chunk.values.sizes.sum())
