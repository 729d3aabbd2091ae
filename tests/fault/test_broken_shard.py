"""A broken invariant stops its shard, says which and what to do, and lets the others go on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.structs import ConsumerRecord, TopicPartition

from pipeline.billing.journal import decode_header, seal
from tests.auditor import partition_of
from tests.fault.cluster import FaultCluster
from tests.integration.cluster import PARTITIONS
from tests.integration.product import CLICKS, ENGAGEMENTS, Ad, Message, at, until

JOURNAL = "billing.journal"
NOON_MS = at("2026-03-02T12:00")
BROKEN = 2
OTHERS = [shard for shard in range(PARTITIONS) if shard != BROKEN]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FaultCluster]:
    with FaultCluster(tmp_path) as running:
        running.run_always("reporter", "first")
        running.until_all_owned()
        yield running


class Ads:
    """An ad on every shard, and clicks on all of them."""

    def __init__(self, cluster: FaultCluster) -> None:
        self._cluster = cluster
        self._clicks = 0
        self.of: dict[int, Ad] = {}
        for number in range(60):
            shard = partition_of(f"ad-{number}-campaign", PARTITIONS)
            if shard not in self.of:
                self.of[shard] = cluster.ad(f"ad-{number}", "traffic", at("2026-02-10"))

    def click(self, times: int = 10) -> None:
        """So many clicks on each ad."""
        for _ in range(times):
            self._clicks += 1
            self._cluster.publish(
                *(ad.click(f"{s}-{self._clicks}", NOON_MS) for s, ad in self.of.items())
            )

    def click_again(self) -> None:
        """The last click on each ad, published once more."""
        self._clicks -= 1
        self.click(1)

    def charged(self) -> dict[int, int]:
        """Shard -> how many were charged, by the tables."""
        with contextlib.suppress(OSError):
            return {
                row["journal_partition"]: row["n"]
                for row in self._cluster.query(
                    "SELECT journal_partition, count() AS n FROM billing.events "
                    "WHERE disposition = 'charged' GROUP BY ALL"
                )
            }
        return {}

    def until_charged(self, shards: list[int], count: int) -> None:
        until(
            lambda: all(self.charged().get(shard, 0) == count for shard in shards),
            f"{count} charges on each of {shards}; there are {self.charged()}",
        )


def append(cluster: FaultCluster, value: bytes, shard: int = BROKEN) -> None:
    """Write to the journal past the worker."""

    async def send() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=cluster.kafka.bootstrap)
        await producer.start()
        try:
            await producer.send_and_wait(JOURNAL, value, partition=shard, timestamp_ms=NOON_MS)
        finally:
            await producer.stop()

    asyncio.run(send())


def journal(cluster: FaultCluster, shard: int = BROKEN) -> list[ConsumerRecord]:
    return [record for record in cluster.kafka.read(JOURNAL) if record.partition == shard]


def wrong_digest(cluster: FaultCluster) -> bytes:
    """A record that follows on the last one, but for its digest."""
    last = journal(cluster)[-1]
    header, _ = decode_header(last.value)
    after = msgspec.structs.replace(
        header, previous=last.offset, seq=header.seq + header.events, sources={}, events=0
    )
    return seal(after, b"", b"x" * 32)[1]


def garbage(_: FaultCluster) -> bytes:
    return b"not a journal record"


@pytest.mark.parametrize(("make", "says"), [(wrong_digest, "digest"), (garbage, "journal record")])
def test_a_journal_that_contradicts_itself_stops_its_shard_alone(
    cluster: FaultCluster, make: Callable[[FaultCluster], bytes], says: str
) -> None:
    ads = Ads(cluster)
    ads.click()
    ads.until_charged(list(range(PARTITIONS)), 10)
    append(cluster, make(cluster))
    # The worker finds out at its next append, gives up, and comes back without that shard.
    ads.click()
    ads.until_charged(OTHERS, 20)
    until(lambda: cluster.shards("first") == OTHERS, "the other shards at work")
    [(shard, reason)] = cluster.health("first")["stopped"].items()
    assert (shard, says in reason, "restore that partition" in reason) == (str(BROKEN), True, True)
    [(shard, reason)] = cluster.health("reporter")["stopped"].items()
    assert (shard, says in reason) == (str(BROKEN), True)
    # It stays with that: no process ends any more, and the others go on.
    ended = cluster.exits.total()
    ads.click()
    ads.until_charged(OTHERS, 30)
    assert cluster.exits.total() == ended
    assert ads.charged()[BROKEN] == 10


async def delete(cluster: FaultCluster, topic: str, before: int) -> None:
    """Delete the broken shard's records of a topic before an offset, as retention does."""
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.kafka.bootstrap)
    await admin.start()
    try:
        gone = {TopicPartition(topic, BROKEN): RecordsToDelete(before_offset=before)}
        await admin.delete_records(gone)
    finally:
        await admin.close()


def test_a_gap_in_the_sources_stops_its_shard_alone(cluster: FaultCluster) -> None:
    ads = Ads(cluster)
    ads.click()
    ads.until_charged(list(range(PARTITIONS)), 10)
    with cluster.held_down("first"):
        ads.click()
        asyncio.run(delete(cluster, CLICKS, before=15))
    ads.until_charged(OTHERS, 20)
    until(lambda: cluster.health("first").get("stopped"), "the shard to be stopped")
    [(shard, reason)] = cluster.health("first")["stopped"].items()
    assert shard == str(BROKEN)
    assert f"{CLICKS}-{BROKEN}: records 10 to 14 are gone" in reason
    assert "retention" in reason
    ads.click()
    ads.until_charged(OTHERS, 30)
    assert cluster.shards("first") == OTHERS


def test_a_gap_before_a_sources_first_judged_record_stops_its_shard(cluster: FaultCluster) -> None:
    ads = Ads(cluster)
    ads.click(1)
    ads.until_charged(list(range(PARTITIONS)), 1)
    with cluster.held_down("first"):
        ad = ads.of[BROKEN]
        cluster.publish(*(ad.engagement("save", f"save-{n}", NOON_MS) for n in range(2)))
        asyncio.run(delete(cluster, ENGAGEMENTS, before=1))
    until(lambda: cluster.health("first").get("stopped"), "the shard to be stopped")
    [(shard, reason)] = cluster.health("first")["stopped"].items()
    assert shard == str(BROKEN)
    assert f"{ENGAGEMENTS}-{BROKEN}: records 0 to 0 are gone" in reason


def test_a_source_that_was_created_anew_stops_its_shard_until_it_is_filled_up(
    cluster: FaultCluster,
) -> None:
    ads = Ads(cluster)
    ads.click()
    ads.until_charged(list(range(PARTITIONS)), 10)

    async def create_anew() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=cluster.kafka.bootstrap)
        await admin.start()
        try:
            await admin.delete_topics([CLICKS])
            while True:
                made = await admin.create_topics([NewTopic(CLICKS, PARTITIONS, 1)])
                if not any(error for _, error, *_ in made.topic_errors):
                    return
                await asyncio.sleep(0.1)
        finally:
            await admin.close()

    def fill(*shards: int) -> None:
        cluster.publish(*(Message(CLICKS, b"", NOON_MS, None, s) for s in shards for _ in range(9)))

    with cluster.held_down("first"):
        asyncio.run(create_anew())
        ads.click(1)
        fill(*OTHERS)
    until(lambda: cluster.health("first").get("stopped"), "the shard to be stopped")
    [(shard, reason)] = cluster.health("first")["stopped"].items()
    assert shard == str(BROKEN)
    assert f"{CLICKS}-{BROKEN} was judged up to offset 10, and ends at 1" in reason
    # As the reason says: fill it up, publish again what came since, restart the worker.
    fill(BROKEN)
    ads.click_again()
    cluster.kill("first")
    ads.until_charged(list(range(PARTITIONS)), 11)
    assert not cluster.health("first")["stopped"]
    cluster.assert_reconciled()


AHEAD = """
import sys
import clickhouse_connect
client = clickhouse_connect.get_client(dsn=f"chdb:////{sys.argv[1].lstrip('/')}")
client.command(
    "ALTER TABLE reporting.reporter_batches UPDATE next_offset = next_offset + 1000 "
    "WHERE topic = 'billing.journal' AND log_partition = 2",
    settings={"mutations_sync": 2},
)
client.close()
"""


def test_tables_ahead_of_a_journal_stop_its_partition_alone(cluster: FaultCluster) -> None:
    ads = Ads(cluster)
    ads.click()
    ads.until_charged(list(range(PARTITIONS)), 10)
    with cluster.held_down("reporter"):
        subprocess.run(
            [sys.executable, "-c", AHEAD, str(cluster.directory / "clickhouse")], check=True
        )
    ads.click()
    ads.until_charged(OTHERS, 20)
    [(shard, reason)] = cluster.health("reporter")["stopped"].items()
    assert (shard, "was reported up to" in reason) == (str(BROKEN), True)
    assert "restore the partition" in reason
    assert ads.charged()[BROKEN] == 10
    assert cluster.shards("first") == list(range(PARTITIONS)), "charging knows nothing of it"


def test_a_zombies_append_is_passed_over_by_all_alike(cluster: FaultCluster) -> None:
    """What another owner appended after the one that won: here the last record once more."""
    ads = Ads(cluster)
    ads.click()
    ads.until_charged(list(range(PARTITIONS)), 10)
    lost = [record for record in journal(cluster) if decode_header(record.value)[0].events][-1]
    append(cluster, lost.value)
    ads.click()
    # The owner: its next append lands further on; it passes the record over and goes on.
    ads.until_charged(list(range(PARTITIONS)), 20)
    assert cluster.exits.total() == 0
    assert f"shard {BROKEN}: passed over journal records" in cluster.log("first")
    # The reporter.
    skipped = cluster.query(
        "SELECT log_partition, max(skipped) AS n FROM reporting.reporter_batches "
        "WHERE topic = 'billing.journal' GROUP BY ALL ORDER BY ALL"
    )
    assert [row["n"] >= 1 for row in skipped] == [shard == BROKEN for shard in range(PARTITIONS)]
    # Explain: each of its events has one occurrence.
    explained = cluster.run("explain", f"{BROKEN}-10", "--json")
    assert explained.returncode == 0, explained.stderr
    assert explained.stdout.count('"charged"') == 1
    cluster.assert_reconciled()
    # Replay: each event is judged once, and to what the owner's record says.
    replayed = cluster.run("replay", "--from", "2026-01-01", "--to", "2026-12-31", "--json")
    assert replayed.returncode == 0, replayed.stderr
    found = json.loads(replayed.stdout)
    groups = [tally for name, tally in found["entities"].items() if name.startswith("ad_group:")]
    assert (found["differs"], [tally["events"] for tally in groups]) == (0, [20] * PARTITIONS)
    # And a start from the journal alone, without a snapshot, comes to the same.
    with cluster.held_down("first"):
        shutil.rmtree(cluster.directory / "first" / "snapshots", ignore_errors=True)
    ads.click()
    ads.until_charged(list(range(PARTITIONS)), 30)
    cluster.assert_reconciled()
