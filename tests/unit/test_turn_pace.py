"""A turn begins at once after a rest, else a while after the last one, or when enough wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faust.types import TP

from pipeline.billing.batch import Chunk
from pipeline.billing.decide import Policy
from pipeline.billing.texts import Packed
from pipeline.streams import intake as intake_module
from pipeline.streams import worker as worker_module
from pipeline.streams.clock import StreamClock
from pipeline.streams.engine import EngineSettings
from pipeline.streams.intake import Intake, events_a_turn
from pipeline.streams.transport import ChunkConsumer, Delivery
from pipeline.streams.worker import Worker, WorkerSettings

LONG_S = 20.0


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    """One to which something has come."""
    engine = EngineSettings(1, Policy(7, b"0123456789abcdef"), 0)
    one = Worker(WorkerSettings(engine, {}, "127.0.0.1:1", tmp_path), StreamClock())
    one._intake.wake.set()
    yield one
    await one._writer.stop()
    await one._feed._reader.stop()


async def waited_s(worker: Worker) -> float:
    began_s = time.monotonic()
    await worker._wait_for_work()
    return time.monotonic() - began_s


@pytest.fixture
def turns_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_TURN_EVERY_S", LONG_S)


@pytest.mark.usefixtures("turns_are_rare")
async def test_what_comes_after_a_rest_is_decided_at_once(worker: Worker) -> None:
    worker._last_turn_at_s = time.monotonic() - LONG_S
    assert await waited_s(worker) < LONG_S / 2


@pytest.mark.usefixtures("turns_are_rare")
async def test_enough_events_are_decided_at_once(worker: Worker) -> None:
    worker._last_turn_at_s = time.monotonic()
    worker._intake.enough.set()
    assert await waited_s(worker) < LONG_S / 2


async def test_few_events_wait_until_a_while_after_the_last_turn(worker: Worker) -> None:
    worker._last_turn_at_s = time.monotonic()
    assert await waited_s(worker) >= worker_module._TURN_EVERY_S - 0.001
    assert not worker._intake.wake.is_set()


async def test_nothing_more_is_taken_from_the_fetcher_than_there_is_room_for(
    worker: Worker,
) -> None:
    """Faust would keep thousands of fetches of a backlog, of 16 MiB each."""
    numbers, texts = np.arange(3), Packed.of([b"x"] * 3)
    chunk = Chunk(0, 0, 0, 3, numbers, numbers, texts, texts)
    intake = worker._intake = Intake(max_events=5)
    intake.open(epoch=1)
    asked = 0

    class Asking(ChunkConsumer):
        async def _wait_next_records(self, timeout: float) -> tuple[dict[TP, Any], set[TP]]:
            nonlocal asked
            asked += 1
            return {}, set()

    async def ignored(_: Any) -> None:
        """Nothing is delivered here."""

    consumer = Asking(worker.app.transport, ignored, ignored, ignored)
    for _ in range(2):
        assert [one async for one in consumer.getmany(0.1)] == []
        intake.put(Delivery([chunk], epoch=1))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(aiter(consumer.getmany(0.1)))
    assert asked == 2
    intake.take(of_few_shards=1)
    assert [one async for one in consumer.getmany(0.1)] == []
    assert asked == 3


async def test_large_messages_are_bounded_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "_MAX_WAITING_BYTES", 50)
    monkeypatch.setattr(intake_module, "_MAX_TURN_BYTES", 25)
    numbers, texts = np.arange(1), Packed.of([b"x" * 20])
    chunks = [Chunk(0, 0, at, at + 1, numbers + at, numbers, texts, texts) for at in range(3)]
    intake = Intake(max_events=1_000)
    intake.open(epoch=1)
    intake.put(Delivery(chunks, epoch=1))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await intake.has_room()
    assert [chunk.start for chunk in intake.take(1_000)] == [0, 1]
    await intake.has_room()
    assert intake.wake.is_set()
    assert [chunk.start for chunk in intake.take(1_000)] == [2]


@pytest.mark.parametrize(
    ("shards", "events"), [(0, 500), (1, 500), (32, 500), (48, 750), (64, 1_000), (256, 1_000)]
)
def test_a_turn_of_many_shards_takes_more_events(shards: int, events: int) -> None:
    assert events_a_turn(500, shards) == events
