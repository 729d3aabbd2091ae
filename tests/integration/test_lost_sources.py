"""What a real broker tells of sources that a shard cannot go on from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pipeline.billing.books import Shard
from pipeline.billing.id_runs import MemoryShelf
from pipeline.contract.vocabulary import CLICKS, EVENT_TOPICS, MALFORMED
from pipeline.streams.outbox import read_originals
from pipeline.streams.recovery import Owned
from pipeline.streams.sources import troubles
from pipeline.streams.transport import as_chunks

PLACE = TopicPartition(CLICKS, 0)


@pytest.fixture
async def admin(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """Of a broker that has empty event topics of one partition."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await create(admin, *EVENT_TOPICS)
        yield admin
        await admin.delete_topics(list(EVENT_TOPICS))
    finally:
        await admin.close()


async def create(admin: AIOKafkaAdminClient, *topics: str) -> None:
    """Create topics; what was deleted just now may take a while to be gone."""
    while True:
        answer = await admin.create_topics([NewTopic(topic, 1, 1) for topic in topics])
        if not any(error for _, error, *_ in answer.topic_errors):
            return
        await asyncio.sleep(0.1)


async def publish(bootstrap: str, *values: bytes, at_ms: int | None = None) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait(CLICKS, value, partition=0, timestamp_ms=at_ms)
    finally:
        await producer.stop()


async def next_start(consumer: AIOKafkaConsumer) -> tuple[int, int]:
    """Where the next chunk begins and ends."""
    async with asyncio.timeout(60):
        while True:
            for message in (await consumer.getmany(PLACE, timeout_ms=200)).get(PLACE, []):
                return message.value.start, message.value.end


async def test_a_source_that_was_created_anew_is_noticed(
    bootstrap: str, admin: AIOKafkaAdminClient
) -> None:
    await publish(bootstrap, b"1", b"2", b"3")
    owned = Owned(Shard.new(0, 7, 0, MemoryShelf()), taken={CLICKS: 3})
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        auto_offset_reset="earliest",
        value_deserializer=as_chunks,
        fetch_max_wait_ms=50,
    )
    await consumer.start()
    try:
        consumer.assign([PLACE])
        consumer.seek(PLACE, 0)
        assert await next_start(consumer) == (0, 3)
        assert not await troubles(consumer, [owned])
        await admin.delete_topics([CLICKS])
        await create(admin, CLICKS)
        await publish(bootstrap, b"4")
        # By a worker that goes on reading: the chunk does not follow on the one before.
        assert await next_start(consumer) == (0, 1)
        # By one that takes the shard over.
        found = await troubles(consumer, [owned])
        assert "ads.clicks-0 was judged up to offset 3, and ends at 1" in found[0]
        # And another record is not sent for the one that was judged.
        options = {"bootstrap_servers": bootstrap}
        assert not await read_originals(0, {(CLICKS, 2): MALFORMED}, options)
        [original] = await read_originals(0, {(CLICKS, 0): MALFORMED}, options)
        assert original.value == b"4"
    finally:
        await consumer.stop()


@pytest.mark.parametrize(
    ("taken", "judges_from_ms", "waited_too_long"),
    [(1, 0, False), (1, 2_000, False), (1, 2_001, True), (1, 9_999, True), (3, 9_999, False)],
    ids=["all ids are known", "just", "one too old", "all too old", "nothing waits"],
)
@pytest.mark.usefixtures("admin")
async def test_events_that_may_repeat_forgotten_ones_are_noticed(
    bootstrap: str,
    taken: int,
    judges_from_ms: int,
    waited_too_long: bool,
) -> None:
    for at_ms in (1_000, 2_000, 3_000):
        await publish(bootstrap, b"", at_ms=at_ms)
    shard = Shard.new(0, 7, 0, MemoryShelf())
    owned = Owned(shard, taken={CLICKS: taken}, judges_from_ms=judges_from_ms)
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    try:
        found = await troubles(consumer, [owned])
    finally:
        await consumer.stop()
    assert ["waited for too long" in text for text in found.values()] == [True] * waited_too_long
