"""What a real broker's fetches become: chunks of the records that any consumer would be given."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pipeline.contract.vocabulary import CLICKS
from pipeline.streams.transport import as_chunks

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


async def test_chunks_hold_what_a_plain_consumer_is_given_from_every_offset(written: str) -> None:
    plain, chunked = (
        AIOKafkaConsumer(
            bootstrap_servers=written,
            isolation_level="read_committed",
            value_deserializer=deserializer,
            fetch_max_wait_ms=10,  # a fetch at the end is under way while the test seeks
        )
        for deserializer in (None, as_chunks)
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
