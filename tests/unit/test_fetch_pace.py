"""How often a broker is asked for more: seldom while little comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pipeline.streams import transport

FETCHES = 12


class Clock:
    """Passes only while somebody sleeps: spacings are exact, however busy the machine is."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s


class Broker:
    """Answers each fetch at once with as much as comes in the time between two."""

    def __init__(self, bytes_a_s: float, clock: Clock) -> None:
        self.bytes_a_s = bytes_a_s
        self._clock = clock
        self.asked_s: list[float] = []

    async def fetch(self, assignment: Any, node_id: int, request: Any) -> bool:
        now_s = self._clock()
        passed_s = now_s - self.asked_s[-1] if self.asked_s else 0.0
        transport._FetchedRecords.all_bytes += int(self.bytes_a_s * passed_s)
        self.asked_s.append(now_s)
        return True

    def spacings_s(self) -> list[float]:
        """Between two fetches, the first few left out."""
        pairs = zip(self.asked_s[3:], self.asked_s[4:], strict=False)
        return [after - before for before, after in pairs]


Fetch = Callable[[Any, int, Any], Awaitable[bool]]


async def paced_by(bytes_a_s: float) -> tuple[Clock, Broker, Fetch]:
    """A broker that was asked some times, its clock, and what asks it."""
    clock = Clock()
    broker = Broker(bytes_a_s, clock)
    paced = transport._paced(broker.fetch, clock, clock.sleep)
    for _ in range(FETCHES):
        assert await paced(None, 0, None)
    return clock, broker, paced


async def test_a_broker_is_asked_less_often_where_little_comes() -> None:
    _, slow, _ = await paced_by(transport._SLOW_BYTES_A_S / 4)
    assert slow.spacings_s() == pytest.approx([transport._SLOW_FETCH_EVERY_S] * (FETCHES - 4))
    _, fast, _ = await paced_by(transport._SLOW_BYTES_A_S * 4)
    assert fast.spacings_s() == pytest.approx([transport._FETCH_EVERY_S] * (FETCHES - 4))


async def test_one_answer_that_brings_little_changes_nothing() -> None:
    _, broker, paced = await paced_by(transport._SLOW_BYTES_A_S * 8)
    for number in range(4 * FETCHES):
        lull = number % FETCHES == FETCHES - 1
        broker.bytes_a_s = 0.0 if lull else transport._SLOW_BYTES_A_S * 8
        await paced(None, 0, None)
    spacings_s = broker.spacings_s()
    assert spacings_s == pytest.approx([transport._FETCH_EVERY_S] * len(spacings_s))


async def test_a_broker_from_which_nothing_comes_any_more_is_soon_asked_less_often() -> None:
    clock, broker, paced = await paced_by(transport._SLOW_BYTES_A_S * 8)
    broker.bytes_a_s = 0.0
    ended_s = clock()
    while broker.spacings_s()[-1] < transport._SLOW_FETCH_EVERY_S - 1e-6:
        await paced(None, 0, None)
        assert clock() < ended_s + 1.0


async def test_each_broker_is_paced_for_itself() -> None:
    clock, _, paced = await paced_by(transport._SLOW_BYTES_A_S * 8)
    at_s = clock()
    await paced(None, 1, None)
    assert clock() == at_s  # never asked before
    await paced(None, 0, None)
    assert clock() == pytest.approx(at_s + transport._FETCH_EVERY_S)


async def test_a_wait_that_is_cancelled_fetches_nothing() -> None:
    broker = Broker(0.0, Clock())
    paced = transport._paced(broker.fetch)
    await paced(None, 0, None)
    waiting = asyncio.ensure_future(paced(None, 0, None))
    await asyncio.sleep(0.005)
    waiting.cancel()
    assert await waiting is False
    assert len(broker.asked_s) == 1


async def test_a_fetch_that_fails_is_paced_all_the_same() -> None:
    clock = Clock()
    asked_s: list[float] = []

    async def fails(*_: Any) -> bool:
        asked_s.append(clock())
        raise ConnectionError

    paced = transport._paced(fails, clock, clock.sleep)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await paced(None, 0, None)
    assert asked_s[1] - asked_s[0] == pytest.approx(transport._SLOW_FETCH_EVERY_S)
