"""A refused record does not outlive the valid one before it where the topic is compacted."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pipeline.contract.catalog_repeats import HEADER, repeated_by
from pipeline.contract.vocabulary import CATALOG
from pipeline.embedded.kafka import EmbeddedKafka
from tests.integration.cluster import Cluster
from tests.integration.product import DAY_MS, entities_of, until

COMPACTED_AT_ONCE = {
    "cleanup.policy": "compact",
    "min.compaction.lag.ms": "0",
    "max.compaction.lag.ms": "100",
    "min.cleanable.dirty.ratio": "0.01",
    "segment.ms": "100",
}
COMPACTED_WITHIN_S = 90
"""Kafka's cleaner looks every 15 s."""


async def make_catalog_topic(bootstrap: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        topic = NewTopic(CATALOG, num_partitions=1, replication_factor=1)
        topic.topic_configs = COMPACTED_AT_ONCE
        await admin.create_topics([topic])
    finally:
        await admin.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with EmbeddedKafka(tmp_path) as kafka:
        asyncio.run(make_catalog_topic(kafka.bootstrap))
        with Cluster(tmp_path, kafka.bootstrap, "wall") as running:
            running.start_reporter()
            running.start_worker("first")
            running.start_worker("second")
            running.until_shared("first", "second")
            yield running


def test_a_fresh_worker_has_what_was_valid_before_it_was_compacted_away(cluster: Cluster) -> None:
    created_ms = time.time_ns() // 1_000_000 - DAY_MS
    ad, (account, _, group, _) = entities_of("kept", "traffic")
    first = cluster.publish_catalog(*entities_of("kept", "traffic")[1], timestamp_ms=created_ms)
    refused = [
        account | {"country": "GB", "currency": "GBP"},  # only who knows the past refuses it
        group | {"bid_micros": 1},
    ]
    places = cluster.publish_catalog(*refused, timestamp_ms=created_ms + 1)

    def repetitions() -> list[bytes]:
        records = cluster.kafka.read(CATALOG)
        return [record.key for record in records if repeated_by(record.headers)]

    until(lambda: len(repetitions()) == 2, "the repetitions")
    assert sorted(repetitions()) == [f"account:{ad.account_id}".encode(), b"ad_group:kept-group"]

    # What is later by its timestamp begins a new segment: Kafka compacts all before the last one.
    later_ms = count(created_ms + 1_000, 1_000)

    def compacted() -> bool:
        cluster.ad("filler", "traffic", next(later_ms))
        time.sleep(1)
        left = {record.offset for record in cluster.kafka.read(CATALOG)}
        gone = {first[0].offset, first[2].offset, *(place.offset for place in places)}
        return not left & gone

    until(compacted, "the compaction of the catalog", COMPACTED_WITHIN_S)
    for name in ("first", "second"):
        cluster.send(name, signal.SIGTERM)
        assert cluster.wait(name) == 0
    cluster.start_worker("fresh")
    cluster.until_shared("fresh")
    now_ms = time.time_ns() // 1_000_000
    cluster.publish(*(ad.click(f"kept-{number}", now_ms) for number in range(10)))
    cluster.settle()
    assert cluster.query(
        "SELECT disposition, currency, count() AS n FROM billing.events GROUP BY ALL"
    ) == [{"disposition": "charged", "currency": "USD", "n": 10}]
    # Nobody repeats what was repeated, and its changes are told once.
    headers = [name for record in cluster.kafka.read(CATALOG) for name, _ in record.headers]
    assert headers == [HEADER] * 2
    assert cluster.query(
        "SELECT count() AS n FROM reporting.changes WHERE entity = 'ad_group:kept-group' "
        "AND field = 'bid_micros'"
    ) == [{"n": 1}]
    shown = cluster.run("catalog", "show", f"account:{ad.account_id}", "--json")
    assert '"currency": "USD"' in shown.stdout
    cluster.assert_reconciled()
