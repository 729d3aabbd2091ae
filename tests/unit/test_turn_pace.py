"""A turn begins at once after a rest, else a while after the last one, or when enough wait."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pipeline.billing.decide import Policy
from pipeline.streams import worker as worker_module
from pipeline.streams.clock import StreamClock
from pipeline.streams.engine import EngineSettings
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
