"""A worker's records on their way into the journal, and what they let out once they count.

A record names the offset of the one before it in its shard, so it waits for that one's
acknowledgement, and not for its signals: those of a turn fly while the next turn's records do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import Histogram

from pipeline.streams.recovery import Owned
from pipeline.streams.writer import Entry, JournalWriter

_OfShard = tuple[Owned, asyncio.Task[Any]]


@dataclass(frozen=True, slots=True)
class _Flight:
    owned: Owned
    append: asyncio.Task[int]
    outbox: asyncio.Task[None]


class Flights:
    """What flies, of the last turn and the one before it."""

    def __init__(
        self, writer: JournalWriter, is_current: Callable[[Owned], bool], flight_s: Histogram
    ) -> None:
        """`is_current` tells whether a shard is still owned as it was; what fails of one that is
        not concerns nobody. `flight_s` is told how long each record and its outbox took."""
        self._writer = writer
        self._is_current = is_current
        self._flight_s = flight_s
        self._last: dict[int, _Flight] = {}
        """By shard."""
        self._older: dict[int, _Flight] = {}
        """Their records are in the journal; what they let out may still fly."""

    async def make_way(self) -> None:
        """Wait until the next turn's records may follow; raise what failed."""
        await self._landed([(flight.owned, flight.append) for flight in self._last.values()])
        await self._landed([(flight.owned, flight.outbox) for flight in self._older.values()])
        self._older, self._last = self._last, {}

    def launch(self, owned: Owned, entry: Entry) -> None:
        """Append a record of the next turn, and then send what it lets out."""
        append = asyncio.ensure_future(self._writer.append(owned, entry))
        older = self._older.get(owned.state.shard)
        before = older.outbox if older is not None and older.owned is owned else None
        outbox = asyncio.ensure_future(self._send_outbox(owned, entry, append, before))
        self._last[owned.state.shard] = _Flight(owned, append, outbox)

    async def _send_outbox(
        self,
        owned: Owned,
        entry: Entry,
        append: asyncio.Task[int],
        before: asyncio.Task[None] | None,
    ) -> None:
        with self._flight_s.time():
            await self._writer.send_outbox(owned, entry, append, before)

    async def land(self) -> None:
        """Wait for all that flies; raise what failed."""
        await self._landed(self._outboxes())
        self._older, self._last = {}, {}

    async def let_land(self, within_s: float) -> bool:
        """Wait for all that flies, but no longer than this; whether all of it has landed well.

        What has failed and was raised is not forgotten: until all is, the books hold a decision
        that may not be in the journal, and nothing of them may be kept. Whoever owns the shard next
        starts from the journal.
        """
        outboxes = [outbox for _, outbox in self._outboxes()]
        if outboxes:
            await asyncio.wait(outboxes, timeout=within_s)
        return all(outbox.done() and outbox.exception() is None for outbox in outboxes)

    def check(self) -> None:
        """Raise what has failed by now."""
        self._raise_failure((owned, outbox) for owned, outbox in self._outboxes() if outbox.done())

    def _outboxes(self) -> list[_OfShard]:
        """Each of which ends after its append, and fails with it."""
        flights = (*self._older.values(), *self._last.values())
        return [(flight.owned, flight.outbox) for flight in flights]

    async def _landed(self, tasks: Sequence[_OfShard]) -> None:
        if tasks:
            await asyncio.wait([task for _, task in tasks])
        self._raise_failure(tasks)

    def _raise_failure(self, tasks: Iterable[_OfShard]) -> None:
        for owned, task in tasks:
            error = task.exception()
            if error is not None and self._is_current(owned):
                raise error
