"""A Faust transport whose messages are chunks of records, not records.

Faust is used for what it is good at (worker, group membership, co-partitioned assignment,
rebalance); an object for each record would cost more than judging it does. Three seams:

- aiokafka's `PartitionRecords`, which unpacks a fetch, is replaced for consumers that ask for it
  by their value deserializer: it yields one `ConsumerRecord` for many records, its value a
  `Chunk`;
- `seek_to_committed`, which Faust calls before it resumes the flow after every rebalance, asks
  the journal where to start, not the group's offsets. Seeking anywhere else races the fetch,
  which lives in a thread of its own;
- `commit` writes down how far the journal is, for lag monitors alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Protocol

import aiokafka
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.structs import ConsumerRecord
from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from pipeline.billing.batch import Chunk
from pipeline.contract.vocabulary import EVENT_TOPICS

SCHEME = "chunk"
MAX_CHUNK_RECORDS = 4_096
MAX_CHUNK_BYTES = 8 * 1024 * 1024


class ShardOwner(Protocol):
    """Who takes over the shards that Faust assigns."""

    async def recover(self, assigned: set[TP]) -> dict[TP, int]:
        """Own exactly these partitions, and tell where in them to go on; an offset below 0 means
        the partition's first retained record."""
        ...

    def go_on_from(self, positions: Mapping[TP, int]) -> None:
        """The sources have been sought to these offsets."""

    def journaled(self) -> dict[TP, int]:
        """How far the journal has each owned source."""
        ...


def as_chunks(value: bytes) -> bytes:
    """The deserializer that marks a consumer as one that wants chunks; never called."""
    raise AssertionError("chunks hold the records' bytes as they are")


class _ChunkRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """Unpacks a fetched partition into chunks."""

    next_fetch_offset: int

    def _unpack_records(self) -> Iterator[ConsumerRecord]:
        chunk = _OpenChunk(self._tp, self.next_fetch_offset)
        while self._records.has_next():
            batch = self._records.next_batch()
            if self._check_crcs and not batch.validate_crc():
                raise CorruptRecordException(f"Invalid CRC - {self._tp}")
            if not self._is_skipped(batch):
                for record in batch:
                    if record.offset >= self.next_fetch_offset:
                        chunk.add(record)
            self.next_fetch_offset = batch.next_offset
            if chunk.is_full():
                yield chunk.close(self.next_fetch_offset)
                chunk = _OpenChunk(self._tp, self.next_fetch_offset)
        if self.next_fetch_offset > chunk.start:
            yield chunk.close(self.next_fetch_offset)

    def _is_skipped(self, batch: Any) -> bool:
        """Control batches, and batches of transactions that were aborted."""
        if batch.producer_id is not None:
            self._consume_aborted_up_to(batch.base_offset)
            if batch.is_control_batch and self._contains_abort_marker(batch):
                self._aborted_producers.discard(batch.producer_id)
            elif batch.is_transactional and batch.producer_id in self._aborted_producers:
                return True
        return bool(batch.is_control_batch)


class _OpenChunk:
    """A chunk that is being filled."""

    def __init__(self, tp: Any, start: int) -> None:
        self._tp = tp
        self.start = start
        self._bytes = 0
        self._offsets: list[int] = []
        self._timestamps_ms: list[int] = []
        self._values: list[bytes | None] = []
        self._keys: list[bytes | None] = []
        self._headers: dict[int, tuple[tuple[str, bytes], ...]] = {}

    def add(self, record: Any) -> None:
        value = record.value
        self._offsets.append(record.offset)
        self._timestamps_ms.append(record.timestamp)
        self._values.append(value)
        self._keys.append(record.key)
        self._bytes += 0 if value is None else len(value)
        if record.headers:
            self._headers[record.offset] = tuple(record.headers)

    def is_full(self) -> bool:
        return len(self._values) >= MAX_CHUNK_RECORDS or self._bytes >= MAX_CHUNK_BYTES

    def close(self, end: int) -> ConsumerRecord:
        chunk = Chunk(
            source=EVENT_TOPICS.index(self._tp.topic),
            shard=self._tp.partition,
            start=self.start,
            end=end,
            offsets=self._offsets,
            timestamps_ms=self._timestamps_ms,
            values=self._values,
            keys=self._keys,
            headers=self._headers,
        )
        topic, partition = self._tp.topic, self._tp.partition
        return ConsumerRecord(topic, partition, end - 1, 0, 0, None, chunk, None, 0, 0, ())


def _partition_records(*args: Any) -> Any:
    """Chunks for the consumers that ask for them, records for all others."""
    value_deserializer = args[5]
    if value_deserializer is as_chunks:
        return _ChunkRecords(*args)
    return _PLAIN_RECORDS(*args)


_PLAIN_RECORDS = fetcher.PartitionRecords
fetcher.PartitionRecords = _partition_records  # every consumer's fetcher looks it up here


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread with our consumer in it."""

    def _create_worker_consumer(self, transport: driver.Transport) -> aiokafka.AIOKafkaConsumer:
        assert isinstance(transport, Transport)
        conf = self.app.conf
        # Faust's own assignor keeps topics with the same number of partitions together, which is
        # what makes a shard; without tables Faust would take plain round-robin.
        self._assignor = self.app.assignor
        return aiokafka.AIOKafkaConsumer(
            **transport.client_options,
            group_id=conf.id,
            client_id=conf.broker_client_id,
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            value_deserializer=as_chunks,
            max_poll_records=conf.broker_max_poll_records,
            max_poll_interval_ms=int(conf.broker_max_poll_interval * 1000),
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            fetch_max_wait_ms=500,
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
        )


class ChunkConsumer(driver.Consumer):
    """Faust's consumer with chunks for messages and the journal for offsets."""

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    @property
    def _chunk_transport(self) -> Transport:
        assert isinstance(self.transport, Transport)
        return self.transport

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        seeks = self._chunk_transport
        epoch = seeks.epoch
        records, _ = await self._wait_next_records(timeout)
        generation = self.app.consumer_generation_id
        if not records or self.should_stop:
            return
        if not self.flow_active:
            await self.perform_seek()
            return

        def still_ours() -> bool:
            same = self.app.consumer_generation_id == generation and seeks.epoch == epoch
            return bool(self.flow_active) and same

        for tp, chunks in records.items():
            for record in chunks:
                if not still_ours():
                    return
                yield tp, self._to_message(tp, record)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Take over what is newly assigned and seek to where its journal ends."""
        transport = self._chunk_transport
        transport.epoch += 1
        assigned = {tp for tp in self._thread.assignment() if tp.topic in EVENT_TOPICS}
        positions: dict[TP, int] = await transport.owner.recover(assigned)
        fresh = [tp for tp, offset in positions.items() if offset < 0]
        if fresh:
            positions.update(await self._thread.earliest_offsets(*fresh))
        if positions:
            await self._thread.seek_wait(positions)
        transport.epoch += 1
        transport.owner.go_on_from(positions)
        return positions

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Tell the group how far the journal is; only lag monitors read it."""
        offsets = self._chunk_transport.owner.journaled()
        if not offsets or not self.flow_active:
            return False
        return bool(await self._thread.commit(offsets))


class ChunkProducer(driver.Producer):
    """Faust's producer, which nothing is sent by, but which connects at the start: with the same
    credentials as every other client."""

    def _settings_auth(self) -> Mapping[str, Any]:
        assert isinstance(self.transport, Transport)
        return self.transport.client_options


class Transport(driver.Transport):
    """Faust's aiokafka transport; its owner is set before the app starts."""

    Consumer = ChunkConsumer
    Producer = ChunkProducer
    client_options: Mapping[str, Any]
    owner: ShardOwner
    epoch = 0
    """Counts seeks: what was fetched before one is never delivered after it."""


TRANSPORTS.aliases[SCHEME] = f"{__name__}:Transport"
