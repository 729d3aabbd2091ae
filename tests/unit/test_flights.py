"""What waits for what, of the records that fly and of what they let out."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry, Histogram

from pipeline.billing.books import Shard
from pipeline.billing.id_runs import MemoryShelf
from pipeline.streams.flights import Flights
from pipeline.streams.recovery import Owned
from pipeline.streams.writer import Entry, JournalWriter

AT_ONCE_S = 0.05


@dataclass
class Writer:
    """Acknowledges when the test says so. Entries are named by numbers."""

    appends: dict[int, asyncio.Future[int]] = field(default_factory=dict)
    outboxes: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    before: dict[int, Any] = field(default_factory=dict)

    async def append(self, owned: Owned, entry: int) -> int:
        self.appends[entry] = asyncio.get_running_loop().create_future()
        return await self.appends[entry]

    async def send_outbox(
        self, owned: Owned, entry: int, append: asyncio.Task[int], before: Any
    ) -> None:
        self.before[entry] = before
        await append
        self.outboxes[entry] = asyncio.get_running_loop().create_future()
        await self.outboxes[entry]


def shard(number: int) -> Owned:
    return Owned(Shard.new(number, 7, 0, MemoryShelf()))


class Test:
    """Two shards that are owned."""

    @pytest.fixture(autouse=True)
    def made(self) -> None:
        self.writer, self.current = Writer(), [shard(0), shard(1)]
        self.flights = Flights(
            cast(JournalWriter, self.writer),
            lambda owned: any(owned is one for one in self.current),
            Histogram("flight", "-", registry=CollectorRegistry()),
        )

    async def launch(self, *entries: tuple[int, int]) -> None:
        """Entries of a turn as (shard, name)."""
        await asyncio.wait_for(self.flights.make_way(), AT_ONCE_S)
        for at, name in entries:
            self.flights.launch(self.current[at], cast(Entry, name))
        await asyncio.sleep(0.001)

    async def append(self, name: int) -> None:
        self.writer.appends[name].set_result(name)
        await asyncio.sleep(0.001)

    async def make_way_waits(self) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(self.flights.make_way(), AT_ONCE_S)

    async def test_a_record_waits_for_the_one_before_it_and_not_for_its_signals(self) -> None:
        await self.launch((0, 1), (1, 2))
        await self.append(1)
        await self.make_way_waits()
        await self.append(2)
        await self.launch((0, 3))
        # The turn after that waits for the first one's signals.
        await self.append(3)
        self.writer.outboxes[1].set_result(None)
        await self.make_way_waits()
        self.writer.outboxes[2].set_result(None)
        await self.launch((1, 4))

    async def test_an_outbox_is_given_the_one_before_it_of_its_shard(self) -> None:
        await self.launch((0, 1), (1, 2))
        await self.append(1)
        await self.append(2)
        await self.launch((1, 3))
        assert self.writer.before[3] is self.flights._older[1].outbox
        assert self.writer.before[1] is None

    async def test_a_shard_that_was_given_up_and_taken_back_waits_for_nothing(self) -> None:
        """What its owner before let out may have failed, as it should."""
        await self.launch((0, 1))
        self.current[0] = shard(0)
        self.writer.appends[1].set_exception(OSError("contested"))
        await self.launch((0, 2))
        assert self.writer.before[2] is None
        self.flights.check()
        # Books are kept again once the turn that it was of is over.
        await self.append(2)
        self.writer.outboxes[2].set_result(None)
        await self.launch()
        assert await self.flights.let_land(AT_ONCE_S)

    @pytest.mark.parametrize("part", ["append", "outbox"])
    async def test_what_fails_is_raised_and_no_books_are_kept(self, part: str) -> None:
        await self.launch((0, 1))
        if part == "outbox":
            await self.append(1)
        waited_for = self.writer.appends if part == "append" else self.writer.outboxes
        self.flights.check()
        waited_for[1].set_exception(OSError("refused"))
        assert not await self.flights.let_land(1.0)
        with pytest.raises(OSError, match="refused"):
            self.flights.check()
        assert not await self.flights.let_land(1.0)
        with pytest.raises(OSError, match="refused"):
            await self.flights.land()

    async def test_what_does_not_land_in_time_has_not_landed(self) -> None:
        assert await self.flights.let_land(AT_ONCE_S)
        await self.launch((0, 1))
        assert not await self.flights.let_land(AT_ONCE_S)
        await self.append(1)
        assert not await self.flights.let_land(AT_ONCE_S)
        self.writer.outboxes[1].set_result(None)
        assert await self.flights.let_land(AT_ONCE_S)
        await self.flights.land()
