"""A process that is started before its Kafka waits for it, says so, and can be told to end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.contract.vocabulary import JOURNAL
from pipeline.embedded.ports import free_port
from pipeline.streams.writer import JournalWriter
from tests.fault.cluster import FaultCluster
from tests.integration.cluster import PARTITIONS
from tests.integration.product import at, until


@pytest.mark.parametrize("command", ["worker", "reporter"])
def test_it_waits_and_ends_when_told(tmp_path: Path, command: str) -> None:
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", command],
            env={
                **os.environ,
                "PIPELINE_KAFKA_BOOTSTRAP": f"127.0.0.1:{free_port()}",
                "PIPELINE_DATA_DIR": str(tmp_path),
            },
            stderr=out,
        )
    try:
        until(lambda: "waiting" in log.read_text(), "a word about waiting")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FaultCluster]:
    with FaultCluster(tmp_path) as running:
        yield running


def trouble(cluster: FaultCluster, name: str) -> str:
    """What its health page says is wrong; empty if nothing."""
    return str(cluster.health(name).get("trouble") or "")


def test_it_starts_once_kafka_answers(cluster: FaultCluster) -> None:
    with cluster.broker_away():
        cluster.run_always("reporter", "first")
        for name in ("first", "reporter"):
            until(partial(trouble, cluster, name), f"{name} to wait")
            assert "Kafka" in trouble(cluster, name)
            assert cluster.status(name, "ready") == 503
            assert cluster.status(name, "live") == 200, "nobody is to end it for that"
    cluster.until_all_owned()
    until(lambda: cluster.health("reporter").get("trouble") == "", "the reporter to run")
    assert [cluster.status(name, "ready") for name in ("first", "reporter")] == [200, 200]
    assert cluster.exits.total() == 0


def least_of_the_journal(cluster: FaultCluster) -> int:
    """The records of the shard that has the fewest."""
    return min(cluster.kafka.ends(JOURNAL).values())


def test_it_ends_when_told_though_kafka_is_away(cluster: FaultCluster) -> None:
    cluster.run_always("reporter", "first")
    ad = cluster.ad("left", "traffic", at("2026-02-10"))
    cluster.until_all_owned()
    cluster.publish(ad.click("left-0", at("2026-03-02T12:00")))
    cluster.settle()
    # A shard that has a journal and no checkpoint begins with one when it is taken over, and the
    # append that is to be held back is a decision's.
    until(lambda: least_of_the_journal(cluster) >= 1, "every shard to close the day before")
    cluster.kill("first")
    until(lambda: least_of_the_journal(cluster) >= 2, "every shard to have a checkpoint")
    cluster.until_all_owned()
    # An append is to be on its way when Kafka goes: what leads to it is published before, for
    # publishing may take as long as the append is held back.
    with cluster.held_down("first"):
        cluster.queue("first", "append_sent:1:sleep:5000")
        cluster.publish(ad.click("left-1", at("2026-03-02T12:01")))
    until(lambda: cluster.fired("first", "append_sent"), "the append")
    os.kill(cluster.broker.pid, signal.SIGKILL)
    with cluster.broker_away():
        until(lambda: trouble(cluster, "first"), "the worker to say that it waits")
        assert [cluster.retire(name) for name in ("first", "reporter")] == [0, 0]
    assert "ending with appends on their way" in cluster.log("first")
    cluster.run_always("reporter", "first")
    cluster.until_all_owned()
    assert "is damaged" not in cluster.log("first")
    assert cluster.judged(ad, "disposition") == [("charged",)] * 2


def test_a_batch_that_waits_for_a_leader_asks_seldom(cluster: FaultCluster) -> None:
    async def asked(within_s: float) -> int:
        writer = JournalWriter({"bootstrap_servers": cluster.kafka.bootstrap}, PARTITIONS)
        await writer.start()
        producer: Any = writer._producer
        await producer.send_and_wait("billing.journal", b"", partition=0)
        with cluster.broker_away():
            # What a broker says of itself as it goes down.
            led = producer.client.cluster._partitions["billing.journal"]
            led[0] = led[0]._replace(leader=-1)
            times = 0
            connect = producer.client._get_conn

            async def counted(*args: Any, **named: Any) -> Any:
                nonlocal times
                times += 1
                return await connect(*args, **named)

            producer.client._get_conn = counted
            await producer.send("billing.journal", b"", partition=0)
            await asyncio.sleep(within_s)
            await writer.stop()
        return times

    assert 1 <= asyncio.run(asked(2.0)) <= 20
