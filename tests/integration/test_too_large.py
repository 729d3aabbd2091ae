"""Records too large for the topic that they have to go to: no worker ends, and nothing is lost."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from pipeline.embedded.kafka import EmbeddedKafka
from tests.auditor import partition_of
from tests.integration.cluster import PARTITIONS, Cluster
from tests.integration.product import CLICKS, REJECTS, Ad, Message, at, until

NOON_MS = at("2026-03-02T12:00")
KAFKAS_DEFAULT = 1_048_588
PLENTY = 8 << 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A worker and a reporter."""
    directory: Path = tmp_path_factory.mktemp("cluster")
    with (
        EmbeddedKafka(directory) as kafka,
        Cluster(directory, kafka.bootstrap, "stream") as running,
    ):
        running.start_reporter()
        running.start_worker("worker")
        running.until_shared("worker")
        yield running


def stop_worker(cluster: Cluster) -> None:
    cluster.send("worker", signal.SIGTERM)
    assert cluster.wait("worker") == 0


def limit(cluster: Cluster, topic: str, max_bytes: int) -> None:
    async def alter() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=cluster.kafka.bootstrap)
        await admin.start()
        try:
            configs = {"max.message.bytes": str(max_bytes), "retention.ms": "-1"}
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs)])
        finally:
            await admin.close()

    asyncio.run(alter())


def ads_on_shards(cluster: Cluster, name: str) -> list[Ad]:
    """An ad on each shard."""
    found: dict[int, Ad] = {}
    number = 0
    while len(found) < PARTITIONS:
        number += 1
        campaign = f"{name}-{number}-campaign"
        if (shard := partition_of(campaign, PARTITIONS)) not in found:
            found[shard] = cluster.ad(f"{name}-{number}", "traffic", at("2026-02-10"))
    return [found[shard] for shard in range(PARTITIONS)]


def charged(cluster: Cluster, ads: list[Ad]) -> list[int]:
    rows = cluster.query(
        "SELECT campaign_id, count() AS n FROM billing.events WHERE disposition = 'charged' "
        "GROUP BY campaign_id"
    )
    counts = {row["campaign_id"]: row["n"] for row in rows}
    return [counts.get(ad.campaign_id, 0) for ad in ads]


@pytest.mark.parametrize(
    ("max_bytes", "is_whole"), [(KAFKAS_DEFAULT, True), (500_000, False)], ids=["1MiB", "500kB"]
)
def test_a_reject_that_is_too_large_ends_no_worker(
    cluster: Cluster, max_bytes: int, is_whole: bool
) -> None:
    limit(cluster, REJECTS, max_bytes)
    [ad, *_] = ads_on_shards(cluster, f"reject-{max_bytes}")
    key, garbage = ad.campaign_id.encode(), os.urandom(800_000)
    values = [b"small", garbage, b"small", garbage, b"small"]
    places = [
        place
        for value in values  # the last ones in a turn of their own
        for place in cluster.publish(
            Message(CLICKS, value, NOON_MS, key, 0), ad.click(f"{max_bytes}-{value[:9]!r}", NOON_MS)
        )
    ]
    cluster.settle()
    assert cluster.is_running("worker"), cluster.log("worker")[-2000:]
    sent = {
        f"{CLICKS}-0-{place.offset}": value
        for place, value in zip(places[::2], values, strict=True)
    }

    def rejects() -> dict[str, dict[str, Any]]:
        found = {reject["message_key"]: reject for reject in cluster.rejects()}
        return {key: found[key] for key in sent if key in found}

    until(lambda: len(rejects()) == len(sent), "a reject for each")
    for name, reject in rejects().items():
        assert (reject["reason"], base64.b64decode(reject["key"])) == ("malformed", key)
        if is_whole or sent[name] == b"small":
            assert base64.b64decode(reject["original"]) == sent[name]
        else:
            assert reject["original"] is None
            assert "the original of 800000 bytes is left out: too large" in reject["detail"]


def test_a_stray_that_came_well_compressed_goes_home(cluster: Cluster) -> None:
    [_, ad, *_] = ads_on_shards(cluster, "packed")
    stray = ad.click("packed", NOON_MS, partition=0, extra="0" * (4 << 20))

    async def publish() -> None:
        async with AIOKafkaProducer(
            bootstrap_servers=cluster.kafka.bootstrap,
            compression_type="zstd",
            max_request_size=PLENTY,
        ) as producer:
            await producer.send_and_wait(
                CLICKS, stray.encoded, key=stray.key, partition=0, timestamp_ms=NOON_MS
            )

    asyncio.run(publish())
    until(lambda: charged(cluster, [ad]) == [1], "the stray to come home")
    assert cluster.is_running("worker"), cluster.log("worker")[-2000:]


def test_a_stray_that_cannot_go_home_stops_its_shard_alone_until_it_can(cluster: Cluster) -> None:
    ads = ads_on_shards(cluster, "stuck")
    noise = base64.b64encode(os.urandom(700_000)).decode()
    stop_worker(cluster)
    cluster.publish(ads[1].click("stray", NOON_MS, partition=0, extra=noise))
    limit(cluster, CLICKS, 500_000)
    for times, when in enumerate(("as it is judged", "as its shard is taken over"), 1):
        cluster.start_worker("worker")
        until(lambda: cluster.health("worker").get("stopped"), f"the shard to be stopped, {when}")
        [(shard, reason)] = cluster.health("worker")["stopped"].items()
        assert (shard, f"{CLICKS} again and is too large for it" in reason) == ("0", True)
        assert "Raise the topic's max.message.bytes to" in reason
        cluster.publish(*(ad.click(f"{ad.campaign_id}-{times}", NOON_MS) for ad in ads))
        until(lambda: charged(cluster, ads) == [0, *[times] * 3], "the others to be judged")  # noqa: B023
        stop_worker(cluster)
    limit(cluster, CLICKS, PLENTY)
    cluster.start_worker("worker")
    until(lambda: charged(cluster, ads) == [2, 3, 2, 2], "the stray to come home")
    assert cluster.health("worker")["stopped"] == {}
    cluster.settle()
    cluster.assert_reconciled()
