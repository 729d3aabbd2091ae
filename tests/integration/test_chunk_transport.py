"""What a real broker's fetches become: chunks of the records that any consumer would be given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest
from aiokafka import (
    AIOKafkaConsumer,
    AIOKafkaProducer,
    ConsumerRebalanceListener,
    TopicPartition,
)
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pipeline.billing.batch import Chunk
from pipeline.contract.vocabulary import CLICKS
from pipeline.streams.transport import _METADATA_EVERY_MS, _PacedConsumer, as_chunks

PLACE = TopicPartition(CLICKS, 0)
HEADERS = [("traceparent", b"00-1"), ("empty", b"")]


@pytest.fixture
async def written(bootstrap: str) -> AsyncIterator[str]:
    """A topic of plain and compressed batches, and of transactions, every other one aborted."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(CLICKS, 1, 1)])
        await _write(bootstrap, None, transactional=False)
        await _write(bootstrap, "gzip", transactional=False)
        await _write(bootstrap, None, transactional=True)
        await _write(bootstrap, "gzip", transactional=True)
        yield bootstrap
        await admin.delete_topics([CLICKS])
    finally:
        await admin.close()


async def _write(bootstrap: str, codec: str | None, transactional: bool) -> None:
    name = f"chunks-{codec}" if transactional else None
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, compression_type=codec, transactional_id=name
    )
    await producer.start()
    try:
        for turn in range(4):
            if transactional:
                await producer.begin_transaction()
            for number in range(5):
                of_record = HEADERS if number == 3 else []
                value = None if number == 2 else f"{codec} {turn} {number}".encode() * number
                await producer.send(CLICKS, value, b"key" if number else None, 0, None, of_record)
            await producer.flush()
            if transactional and turn % 2:
                await producer.abort_transaction()
            elif transactional:
                await producer.commit_transaction()
    finally:
        await producer.stop()


@pytest.mark.parametrize("consumer_class", [AIOKafkaConsumer, _PacedConsumer])
async def test_chunks_hold_what_a_plain_consumer_is_given_from_every_offset(
    written: str, consumer_class: type[AIOKafkaConsumer]
) -> None:
    plain, chunked = (
        one(
            bootstrap_servers=written,
            isolation_level="read_committed",
            value_deserializer=deserializer,
            fetch_max_wait_ms=10,  # a fetch at the end is under way while the test seeks
        )
        for one, deserializer in ((AIOKafkaConsumer, None), (consumer_class, as_chunks))
    )
    for consumer in (plain, chunked):
        await consumer.start()
        consumer.assign([PLACE])
    try:
        end = (await plain.end_offsets([PLACE]))[PLACE]
        for start in range(end):
            expected = await _records(plain, start, end)
            assert await _of_chunks(chunked, start, end) == expected
        assert len(await _of_chunks(chunked, 0, end)) == 2 * 4 * 5 + 2 * 2 * 5
    finally:
        await plain.stop()
        await chunked.stop()


async def test_large_answers_are_read_where_they_were_received(bootstrap: str) -> None:
    """The worker's consumer; values of all sizes up to one that no block has room for, headers too,
    while what was fetched before is still held."""
    sizes = [n % 2_000 for n in range(4_000)] + [40_000, 5_000_000, 18_000_000, 7]
    values = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_request_size=20_000_000)
    consumer = _PacedConsumer(
        bootstrap_servers=bootstrap,
        value_deserializer=as_chunks,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=4 * 1024 * 1024,
    )
    largest = {"max.message.bytes": "20000000"}
    await admin.start()
    await producer.start()
    await consumer.start()
    try:
        await admin.create_topics([NewTopic(CLICKS, 1, 1, topic_configs=largest)])
        for number, value in enumerate(values):
            headers = HEADERS if number % 1_000 == 0 else []
            await producer.send(CLICKS, value, b"key", 0, None, headers)
        await producer.flush()
        consumer.assign([PLACE])
        chunks: list[Chunk] = []
        while sum(len(chunk.values) for chunk in chunks) < len(values):
            messages = (await consumer.getmany(PLACE, timeout_ms=100)).get(PLACE, [])
            chunks += [message.value for message in messages]
        assert [value for chunk in chunks for value in chunk.values] == values
        assert {at for chunk in chunks for at in chunk.headers} == {0, 1_000, 2_000, 3_000, 4_000}
        assert all(chunk.headers[at] == tuple(HEADERS) for chunk in chunks for at in chunk.headers)
        assert not any(chunk.values.buffer.flags.writeable for chunk in chunks)
    finally:
        await consumer.stop()
        await producer.stop()
        await admin.delete_topics([CLICKS])
        await admin.close()


async def _records(consumer: AIOKafkaConsumer, start: int, end: int) -> list[tuple[object, ...]]:
    consumer.seek(PLACE, start)
    found: list[tuple[object, ...]] = []
    while await consumer.position(PLACE) < end:
        records = (await consumer.getmany(PLACE, timeout_ms=100)).get(PLACE, [])
        found += [(r.offset, r.timestamp, r.key, r.value, r.headers) for r in records]
    return found


async def _of_chunks(consumer: AIOKafkaConsumer, start: int, end: int) -> list[tuple[object, ...]]:
    """The records of the chunks, which follow on one another without a gap."""
    consumer.seek(PLACE, start)
    found: list[tuple[object, ...]] = []
    position = start
    while position < end:
        for message in (await consumer.getmany(PLACE, timeout_ms=100)).get(PLACE, []):
            chunk = message.value
            assert chunk.start == position
            position = chunk.end
            offsets = chunk.offsets.tolist()
            headers = [chunk.headers.get(offset, ()) for offset in offsets]
            times = chunk.timestamps_ms.tolist()
            found += zip(offsets, times, chunk.keys, chunk.values, headers, strict=True)
    return found


class Given(ConsumerRebalanceListener):  # type: ignore[misc]
    """Waits for a partition."""

    def __init__(self) -> None:
        self.none = asyncio.Event()
        self.place = asyncio.Event()

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        pass

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        (self.place if PLACE in assigned else self.none).set()


async def test_who_joins_before_kafka_tells_of_the_topics_is_given_them_soon(
    bootstrap: str,
) -> None:
    """As a worker that is started while a broker comes back."""
    consumer = _PacedConsumer(
        bootstrap_servers=bootstrap,
        group_id="early",
        value_deserializer=as_chunks,
        enable_auto_commit=False,
    )
    admin, given = AIOKafkaAdminClient(bootstrap_servers=bootstrap), Given()
    await admin.start()
    await consumer.start()
    try:
        consumer.subscribe([CLICKS], listener=given)
        await asyncio.wait_for(given.none.wait(), 20)
        await admin.create_topics([NewTopic(CLICKS, 1, 1)])
        await asyncio.wait_for(given.place.wait(), 4 * _METADATA_EVERY_MS / 1_000)
    finally:
        await consumer.stop()
        await admin.delete_topics([CLICKS])
        await admin.close()
