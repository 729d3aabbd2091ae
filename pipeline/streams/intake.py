"""What a worker has been given and has not judged yet."""

from __future__ import annotations

import asyncio
import time

from pipeline.billing.batch import Chunk
from pipeline.streams.transport import Delivery

_ENOUGH_EVENTS = 1_500


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
        self._epoch: int | None = None
        self._room = asyncio.Event()
        self._room.set()
        self.wake = asyncio.Event()
        self.enough = asyncio.Event()
        """As many wait as make a turn worth its while."""
        self.last_arrival_s = 0.0

    async def put(self, delivery: Delivery) -> None:
        await self._room.wait()
        if delivery.epoch != self._epoch:
            return
        self._chunks += delivery.chunks
        self._count(self.events + sum(len(chunk.values) for chunk in delivery.chunks))
        self.last_arrival_s = time.monotonic()
        self.wake.set()

    def take(self, max_events: int) -> list[Chunk]:
        """The oldest chunks, up to about so many events."""
        taken: list[Chunk] = []
        events = 0
        while self._chunks and events < max_events:
            chunk = self._chunks.pop(0)
            taken.append(chunk)
            events += len(chunk.values)
        self._count(self.events - events)
        if self._chunks:
            self.wake.set()
        return taken

    def close(self) -> None:
        """Forget what came and take nothing in: the sources are being sought anew."""
        self._epoch = None
        self._chunks.clear()
        self._count(0)

    def open(self, epoch: int) -> None:
        """Take in what is fetched in this epoch."""
        self._epoch = epoch

    def _count(self, events: int) -> None:
        """So many wait now."""
        self.events = events
        for flag, is_so in (
            (self._room, events < self._max_events),
            (self.enough, events >= _ENOUGH_EVENTS),
        ):
            if is_so:
                flag.set()
            else:
                flag.clear()
