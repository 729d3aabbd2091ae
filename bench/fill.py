"""Publishing a workload quickly: batches are built whole, which a client takes as they are."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder

from bench.workload import Message
from pipeline.contract.partitioning import partition_of
from pipeline.contract.vocabulary import CATALOG, EVENT_TOPICS

Place = tuple[str, int]
"""Topic and partition."""
_HIDDEN_AT_MOST_MS = 600_000
_REQUEST_BYTES = 64 << 20
"""A request may carry a batch of every partition. Brokers hang up on one of 100 MB, and aiokafka
would send it again for ever."""


class Batches:
    """Builds batches for each partition."""

    def __init__(self, producer: AIOKafkaProducer, partitions: int) -> None:
        self._producer = producer
        self._partitions = partitions
        self._open: dict[Place, BatchBuilder] = {}

    def add(self, message: Message) -> tuple[Place, BatchBuilder] | None:
        """Add a message; the batch before, where this one found it full."""
        place = message.topic, partition_of(message.key.decode(), self._partitions)
        batch = self._open.get(place)
        if batch is not None and _append(batch, message):
            return None
        self._open[place] = fresh = self._producer.create_batch()
        _append(fresh, message)
        return None if batch is None else (place, batch)

    def rest(self) -> list[tuple[Place, BatchBuilder]]:
        """The batches that are not full, which are begun anew."""
        rest = list(self._open.items())
        self._open = {}
        return rest


def _append(batch: BatchBuilder, message: Message) -> bool:
    added = batch.append(key=message.key, value=message.value, timestamp=message.timestamp_ms)
    return added is not None


async def fill(
    bootstrap: str,
    catalog: Iterable[tuple[bytes, bytes]],
    messages: Iterable[Message],
    partitions: int,
) -> int:
    """Publish a catalog, then events; returns how many events. Acknowledged when it returns."""
    async with _producer(bootstrap, partitions) as producer:
        await _publish_catalog(producer, catalog)
        return await _publish_events(producer, messages, partitions)


@contextlib.asynccontextmanager
async def hidden(
    bootstrap: str, messages: Iterable[Message], partitions: int
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Publish events that no reader of committed records sees before the given call, which shows
    them all at once. Of several such, the first published is to be shown first: what lies behind
    an open transaction is not seen."""
    async with _producer(
        bootstrap,
        partitions,
        transactional_id=f"bench-hidden-{uuid.uuid4()}",
        transaction_timeout_ms=_HIDDEN_AT_MOST_MS,
    ) as producer:
        await producer.begin_transaction()
        await _publish_events(producer, messages, partitions)
        yield producer.commit_transaction


@contextlib.asynccontextmanager
async def _producer(
    bootstrap: str, partitions: int, **options: Any
) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        acks="all",
        linger_ms=5,
        max_batch_size=min(1 << 20, _REQUEST_BYTES // (len(EVENT_TOPICS) * partitions)),
        **options,
    )
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def _publish_events(
    producer: AIOKafkaProducer, messages: Iterable[Message], partitions: int
) -> int:
    batches = Batches(producer, partitions)
    acks: list[asyncio.Future[object]] = []
    count = 0
    for message in messages:
        count += 1
        if (full := batches.add(message)) is not None:
            acks.append(await _send(producer, *full))
    acks += [await _send(producer, *rest) for rest in batches.rest()]
    await asyncio.gather(*acks)
    return count


async def _publish_catalog(
    producer: AIOKafkaProducer, catalog: Iterable[tuple[bytes, bytes]]
) -> None:
    acks = [await producer.send(CATALOG, value, key=key) for key, value in catalog]
    await asyncio.gather(*acks)


async def _send(
    producer: AIOKafkaProducer, place: Place, batch: BatchBuilder
) -> asyncio.Future[object]:
    topic, partition = place
    ack: asyncio.Future[object] = await producer.send_batch(batch, topic, partition=partition)
    return ack
