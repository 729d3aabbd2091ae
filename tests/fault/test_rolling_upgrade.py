"""Workers are upgraded one by one while events flow, and back: two versions of the journal.

What an older release wrote to the byte is held in tests/unit/test_journal_versions.py; here a
worker that is told to write the older format stands for one.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
from aiokafka import AIOKafkaProducer

from pipeline.billing.journal import NEWEST, version_of
from pipeline.contract.vocabulary import JOURNAL, JOURNAL_VERSIONS
from pipeline.embedded.kafka import EmbeddedKafka
from tests.integration.cluster import PARTITIONS, Cluster
from tests.integration.product import until
from tests.integration.test_two_workers import Load

OLD, NEW = (str(version) for version in JOURNAL_VERSIONS)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("upgrade")
    with EmbeddedKafka(directory) as kafka, Cluster(directory, kafka.bootstrap, "wall") as running:
        running.start_reporter()
        yield running


def written(cluster: Cluster) -> list[list[int]]:
    """Per shard: the versions of its journal's records, in their order."""
    versions: list[list[int]] = [[] for _ in range(PARTITIONS)]
    for record in cluster.kafka.read(JOURNAL):
        versions[record.partition].append(version_of(record.value))
    return versions


def restart(cluster: Cluster, name: str, version: str) -> None:
    """As a StatefulSet does it: told to end, and started on the same disk."""
    cluster.send(name, signal.SIGTERM)
    assert cluster.wait(name) == 0
    cluster.start_worker(name, worker_journal_version=version)


def test_workers_are_upgraded_one_by_one_under_load(cluster: Cluster) -> None:
    both = ("first", "second")
    for name in both:
        cluster.start_worker(name, worker_journal_version=OLD)
    cluster.until_shared(*both)
    with Load(cluster, "upgraded") as load:
        time.sleep(1)
        for name in both:
            restart(cluster, name, NEW)
            cluster.until_shared(*both)
            time.sleep(1)
    load.check()
    for versions in written(cluster):
        assert set(versions) == {1, 2}
        assert versions[0] == 1
        assert versions[-1] == 2
    for name in both:
        assert "not used" not in cluster.log(name), "snapshots of the older version are read"
        assert "damaged" not in cluster.log(name)


def test_shards_are_taken_over_in_both_directions(cluster: Cluster) -> None:
    """Killed, so that nothing is handed over but the journal; without snapshots once."""
    with Load(cluster, "taken-over") as load:
        for name, version, other in (("first", OLD, "second"), ("second", NEW, "first")):
            cluster.send(name, signal.SIGKILL)
            cluster.wait(name)
            cluster.until_shared(other)
            shutil.rmtree(cluster.data_dir(name) / "snapshots")
            cluster.start_worker(name, worker_journal_version=version)
            cluster.until_shared(name, other)
            time.sleep(1)
            # The other one takes over what this one has written, in the other version.
            cluster.send(name, signal.SIGTERM)
            assert cluster.wait(name) == 0
            cluster.until_shared(other)
            cluster.start_worker(name, worker_journal_version=version)
            cluster.until_shared(name, other)
    load.check()
    turns = [
        sum(before > after for before, after in pairwise(versions)) for versions in written(cluster)
    ]
    assert any(turns), "the older version went on from the newer one"


def test_a_version_that_is_not_known_yet_is_held_with_what_to_do(cluster: Cluster) -> None:
    """The last test here: a release after this one has written to shard 2, too early."""
    [name, other] = cluster.workers()
    cluster.send(other, signal.SIGTERM)
    cluster.wait(other)
    cluster.until_shared(name)
    last = [record for record in cluster.kafka.read(JOURNAL) if record.partition == 2][-1]

    async def append() -> None:
        async with AIOKafkaProducer(bootstrap_servers=cluster.kafka.bootstrap) as producer:
            later = b"PPJ%d" % (NEWEST + 1) + last.value[4:]
            await producer.send_and_wait(JOURNAL, later, partition=2)

    cluster.send(name, signal.SIGTERM)
    cluster.wait(name)
    asyncio.run(append())
    cluster.start_worker(name)
    until(lambda: cluster.shards(name) == [0, 1, 3], "the other shards at work")
    [(shard, reason)] = cluster.health(name)["stopped"].items()
    assert (shard, "Upgrade this process" in reason) == ("2", True)
    assert "restore" not in reason
    until(lambda: cluster.health("reporter").get("stopped"), "the reporter to hold the partition")
    [(shard, reason)] = cluster.health("reporter")["stopped"].items()
    assert (shard, "Upgrade this process" in reason) == ("2", True)
