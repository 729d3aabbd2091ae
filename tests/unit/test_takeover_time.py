"""A takeover may fold the journal's whole retention, and is not cut off meanwhile."""

from __future__ import annotations

from pathlib import Path

from pipeline.billing.decide import Policy
from pipeline.streams.clock import StreamClock
from pipeline.streams.engine import EngineSettings
from pipeline.streams.worker import Worker, WorkerSettings


async def test_the_group_waits_as_long_for_a_takeover_as_the_worker_itself(tmp_path: Path) -> None:
    """Nothing is fetched meanwhile: to the group the worker is idle, and after the longest that a
    member may be so it would lose what it is about to own."""
    engine = EngineSettings(1, Policy(7, b"0123456789abcdef"), 0)
    worker = Worker(WorkerSettings(engine, {}, "127.0.0.1:1", tmp_path), StreamClock())
    try:
        conf = worker.app.conf
        assert conf.broker_max_poll_interval == conf.broker_request_timeout == 3_600
    finally:
        await worker._writer.stop()
        await worker._feed._reader.stop()
