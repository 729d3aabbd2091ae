"""A process that is started before its Kafka waits for it, says so, and can be told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.embedded.ports import free_port
from tests.fault.cluster import FaultCluster
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


def test_it_starts_once_kafka_answers(cluster: FaultCluster) -> None:
    with cluster.broker_away():
        cluster.run_always("reporter", "first")
        for name in ("first", "reporter"):
            until(lambda name=name: cluster.health(name).get("trouble"), f"{name} to wait")
            assert "Kafka" in cluster.health(name)["trouble"]
            assert cluster.status(name, "ready") == 503
            assert cluster.status(name, "live") == 200, "nobody is to end it for that"
    cluster.until_all_owned()
    until(lambda: cluster.health("reporter").get("trouble") == "", "the reporter to run")
    assert [cluster.status(name, "ready") for name in ("first", "reporter")] == [200, 200]
    assert cluster.exits.total() == 0


def test_it_ends_when_told_though_kafka_is_away(cluster: FaultCluster) -> None:
    cluster.run_always("reporter", "first")
    ad = cluster.ad("left", "traffic", at("2026-02-10"))
    cluster.until_all_owned()
    cluster.publish(ad.click("left-0", at("2026-03-02T12:00")))
    cluster.settle()
    # An append is to be on its way when Kafka goes.
    cluster.restart_armed("first", "append_sent:1:sleep:3000")
    until(lambda: "fail points are armed" in cluster.log("first"), "the armed worker")
    cluster.until_all_owned()
    cluster.publish(ad.click("left-1", at("2026-03-02T12:01")))
    until(lambda: cluster.fired("first", "append_sent"), "the append")
    os.kill(cluster.broker.pid, signal.SIGKILL)
    with cluster.broker_away():
        until(lambda: cluster.health("first").get("trouble"), "the worker to say that it waits")
        assert [cluster.retire(name) for name in ("first", "reporter")] == [0, 0]
    assert "ending with appends on their way" in cluster.log("first")
    cluster.run_always("reporter", "first")
    cluster.until_all_owned()
    assert "is damaged" not in cluster.log("first")
    assert cluster.judged(ad, "disposition") == [("charged",)] * 2
