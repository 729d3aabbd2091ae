"""A Faust transport whose messages are fetches of chunks of records, not records.

Faust is used for what it is good at (worker, group membership, co-partitioned assignment,
rebalance); an object for each record would cost more than judging it does. Three seams:

- aiokafka's `PartitionRecords`, which unpacks a fetch, is replaced for consumers that ask for it
  by their value deserializer: it yields one `ConsumerRecord` for many records, its value a
  `Chunk`, read from the fetched bytes, which lie where they were received (`answers`);
- `seek_to_committed`, which Faust calls before it resumes the flow after every rebalance, asks
  the journal where to start, not the group's offsets. Seeking anywhere else races the fetch,
  which lives in a thread of its own;
- `commit` writes down how far the journal is, for lag monitors alone.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import aiokafka
from aiokafka.consumer import fetcher
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.structs import ConsumerRecord
from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from pipeline import failpoints
from pipeline.billing.batch import Chunk
from pipeline.contract.vocabulary import EVENT_TOPICS
from pipeline.streams.answers import Blocks, straight
from pipeline.streams.log_reader import Consumer
from pipeline.streams.record_batches import (
    Fetched,
    PlainBatches,
    RecordBatch,
    Records,
    batches_in,
    holds_batch,
    read,
)

SCHEME = "chunk"
MAX_CHUNK_RECORDS = 4_096
MAX_CHUNK_BYTES = 8 * 1024 * 1024
LARGEST_FETCH_BYTES = 16 * 1024 * 1024
"""Of all partitions of a broker."""
_AROUND_RECORDS_BYTES = 1024 * 1024
"""Of an answer: names, numbers, and what a partition's first batch may have more."""
_FETCH_EVERY_S = 0.02
_SLOW_FETCH_EVERY_S = 0.06
_SLOW_BYTES_A_S = 8_000_000
"""From a broker: what comes is let gather there, for a fetch costs as much as judging some hundred
events; and longer while this process fetches less than so much, as it came over the wire."""
_RATE_OVER_S = 0.25
"""What comes is taken over about so long: one answer that brings little, asked for between two
batches of a sender, says nothing of what comes next."""

_METADATA_EVERY_MS = 5_000
"""How often Kafka is asked which partitions there are. A broker that has just come back may say
that there are none: who joins the group then is given none until it hears of them. With aiokafka's
own 5 minutes the worker would stand still for so long."""


class ShardOwner(Protocol):
    """Who takes over the shards that Faust assigns."""

    async def has_room(self) -> None:
        """Wait while enough was delivered and is not judged yet. Faust itself would put thousands
        of messages in a queue, and here each is all that a fetch brought: of a backlog, 16 MiB."""
        ...

    async def let_go(self) -> None:
        """Partitions are revoked: decide nothing more until `recover`, and let land what flies."""
        ...

    async def recover(self, assigned: set[TP]) -> dict[TP, int]:
        """Own exactly these partitions, and tell where in them to go on; an offset below 0 means
        the partition's first retained record."""
        ...

    def go_on_from(self, positions: Mapping[TP, int], epoch: int) -> None:
        """The sources have been sought to these offsets; only deliveries of this epoch follow on
        them."""

    def journaled(self) -> dict[TP, int]:
        """How far the journal has each owned source."""
        ...


def as_chunks(value: bytes) -> bytes:
    """The deserializer that marks a consumer as one that wants chunks; never called."""
    raise AssertionError("chunks hold the records' bytes as they are")


class _FetchedRecords:
    """The bytes of a fetched partition's records, and what aiokafka's fetcher asks of them."""

    all_bytes: ClassVar[int] = 0
    """That were ever fetched by this process."""

    def __init__(self, data: Fetched) -> None:
        self.data = data
        _FetchedRecords.all_bytes += len(data)

    def size_in_bytes(self) -> int:
        return len(self.data)

    def has_next(self) -> bool:
        """Whether there is a whole batch."""
        return holds_batch(self.data)


class _ChunkRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """Unpacks a fetched partition into chunks."""

    next_fetch_offset: int
    _records: _FetchedRecords

    def _unpack_records(self) -> Iterator[ConsumerRecord]:
        plain = PlainBatches.in_fetch(self._records.data, self._check_crcs)
        if plain is None:
            yield from self._unpack_each()
            return
        for part in plain.parts(MAX_CHUNK_RECORDS, MAX_CHUNK_BYTES):
            start = self.next_fetch_offset
            if part.next_offset > start:
                self.next_fetch_offset = part.next_offset
                yield self._chunk(start, part.read(self._place))

    def _unpack_each(self) -> Iterator[ConsumerRecord]:
        """The same, one batch looked at after the other."""
        start, taken, records, size = self.next_fetch_offset, list[RecordBatch](), 0, 0
        for batch in batches_in(self._records.data, self._place):
            if self._check_crcs and not batch.is_whole():
                raise batch.corrupt(self._place, "invalid CRC")
            if not self._is_skipped(batch):
                taken.append(batch)
                size += batch.size_bytes
                records += batch.count
            self.next_fetch_offset = max(self.next_fetch_offset, batch.next_offset)
            if records >= MAX_CHUNK_RECORDS or size >= MAX_CHUNK_BYTES:
                if self.next_fetch_offset > start:
                    yield self._chunk(start, read(taken, self._place))
                start, taken, records, size = self.next_fetch_offset, [], 0, 0
        if self.next_fetch_offset > start:
            yield self._chunk(start, read(taken, self._place))

    @property
    def _place(self) -> str:
        return f"{self._tp.topic}-{self._tp.partition}"

    def _is_skipped(self, batch: RecordBatch) -> bool:
        """Control batches, and batches of transactions that were aborted."""
        self._consume_aborted_up_to(batch.base_offset)
        if batch.is_control and self._is_abort_marker(batch):
            self._aborted_producers.discard(batch.producer_id)
        elif batch.is_transactional and batch.producer_id in self._aborted_producers:
            return True
        return batch.is_control

    def _is_abort_marker(self, batch: RecordBatch) -> bool:
        marker = next(iter(read([batch], self._place).keys), None)
        if marker is None or len(marker) < _MARKER_BYTES:
            raise batch.corrupt(self._place, "a control batch without a marker")
        return bool(ControlRecord.parse(marker) == ABORT_MARKER)

    def _chunk(self, start: int, fetched: Records) -> ConsumerRecord:
        records = fetched.from_offset(start)  # a fetch may begin within a batch
        topic, partition = self._tp.topic, self._tp.partition
        chunk = Chunk(
            source=EVENT_TOPICS.index(topic),
            shard=partition,
            start=start,
            end=self.next_fetch_offset,
            offsets=records.offsets,
            timestamps_ms=records.timestamps_ms,
            values=records.values,
            keys=records.keys,
            headers=records.headers,
        )
        return ConsumerRecord(topic, partition, chunk.end - 1, 0, 0, None, chunk, None, 0, 0, ())


_MARKER_BYTES = 4


def _partition_records(*args: Any) -> Any:
    """Chunks for the consumers that ask for them, records for all others."""
    value_deserializer = args[5]
    if value_deserializer is as_chunks:
        return _ChunkRecords(*args)
    tp, fetched, *others = args
    return _PLAIN_RECORDS(tp, _PLAIN_MEMORY(fetched.data), *others)


_PLAIN_RECORDS, _PLAIN_MEMORY = fetcher.PartitionRecords, fetcher.MemoryRecords
# Every consumer's fetcher looks them up here.
fetcher.MemoryRecords = _FetchedRecords
fetcher.PartitionRecords = _partition_records


@dataclass(frozen=True, slots=True)
class Delivery:
    """The chunks of a fetch, and its epoch: how often the sources had been sought before."""

    chunks: list[Chunk]
    epoch: int


class _Fetched(dict[TP, list[ConsumerRecord]]):
    """The records of one fetch, by partition."""

    epoch: int


class _PacedConsumer(Consumer):
    """A consumer that asks each broker for more at most so often, is answered into blocks, and soon
    hears of partitions that it was not told of when it joined its group."""

    def __init__(self, *topics: str, **options: Any) -> None:
        super().__init__(*topics, metadata_max_age_ms=_METADATA_EVERY_MS, **options)

    async def start(self) -> None:
        await super().start()
        blocks = Blocks(LARGEST_FETCH_BYTES + _AROUND_RECORDS_BYTES)
        self._client._get_conn = straight(self._client._get_conn, blocks)
        self._fetcher._proc_fetch_request = _paced(self._fetcher._proc_fetch_request)


@dataclass(slots=True)
class _Pace:
    """When a broker is asked, and how fast bytes come meanwhile, from all of them."""

    asked_s: float = -math.inf
    """When it was last asked."""
    fetched_bytes: int = 0
    """By then."""
    bytes_a_s: float = 0.0

    def note_asked(self, now_s: float, fetched_bytes: int) -> None:
        passed_s = now_s - self.asked_s
        if passed_s > 0:
            came = (fetched_bytes - self.fetched_bytes) / passed_s
            self.bytes_a_s += -math.expm1(-passed_s / _RATE_OVER_S) * (came - self.bytes_a_s)
            self.asked_s, self.fetched_bytes = now_s, fetched_bytes

    def next_s(self) -> float:
        """The time before which it is not asked again."""
        is_slow = self.bytes_a_s < _SLOW_BYTES_A_S
        return self.asked_s + (_SLOW_FETCH_EVERY_S if is_slow else _FETCH_EVERY_S)


def _paced(
    fetch: Callable[..., Awaitable[bool]],
    clock_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Callable[..., Awaitable[bool]]:
    """aiokafka's fetch, with a wait before each that would come too soon after the one before."""
    paces: dict[int, _Pace] = {}
    """By broker."""

    async def paced(assignment: Any, node_id: int, request: Any) -> bool:
        pace = paces.setdefault(node_id, _Pace())
        try:
            await sleep(max(0.0, pace.next_s() - clock_s()))
        except asyncio.CancelledError:
            return False  # as the fetch itself does
        pace.note_asked(clock_s(), _FetchedRecords.all_bytes)
        return await fetch(assignment, node_id, request)

    return paced


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread with our consumer in it.

    Whether a fetch came before or after a seek can be told in this thread alone: a fetch that
    waits while the sources are being sought returns what lies behind the seek, so when it was
    asked for says nothing.
    """

    epoch = 0
    """How often the sources have been sought."""

    async def _seek_wait(
        self, consumer: aiokafka.AIOKafkaConsumer, partitions: Mapping[TP, int]
    ) -> None:
        self.epoch += 1  # the seeks themselves are done before anything else runs in this thread
        await super()._seek_wait(consumer, partitions)

    async def _fetch_records(self, *args: Any, **kwargs: Any) -> _Fetched:
        fetched = _Fetched(await super()._fetch_records(*args, **kwargs))
        fetched.epoch = self.epoch
        return fetched

    def _create_worker_consumer(self, transport: driver.Transport) -> aiokafka.AIOKafkaConsumer:
        assert isinstance(transport, Transport)
        conf = self.app.conf
        # Faust's own assignor keeps topics with the same number of partitions together, which is
        # what makes a shard; without tables Faust would take plain round-robin.
        self._assignor = self.app.assignor
        return _PacedConsumer(
            **transport.client_options,
            group_id=conf.id,
            client_id=conf.broker_client_id,
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # the worker sees that such a chunk does not follow
            isolation_level="read_committed",
            value_deserializer=as_chunks,
            max_poll_records=conf.broker_max_poll_records,
            max_poll_interval_ms=int(conf.broker_max_poll_interval * 1000),
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            fetch_max_bytes=LARGEST_FETCH_BYTES,
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
        await self._chunk_transport.owner.has_room()
        records, _ = await self._wait_next_records(timeout)
        if not records:
            return
        assert isinstance(records, _Fetched)
        failpoints.reach("fetch")
        if not self.flow_active:
            # A rebalance: what was fetched before its seek is fetched again, what was fetched
            # after it is kept until the flow resumes.
            await self.wait(self.can_resume_flow)  # type: ignore[arg-type]
        if not self._may_deliver(records.epoch):
            return
        # One message for all that was fetched, under the name of its first partition: what Faust
        # does for each message costs as much as judging some twenty events.
        tp, (first, *_) = next(iter(records.items()))
        chunks = [record.value for of_tp in records.values() for record in of_tp]
        delivery = Delivery(chunks, records.epoch)
        yield tp, self._to_message(tp, replace(first, value=delivery))

    def _may_deliver(self, epoch: int) -> bool:
        """Whether no seek has come, and none is to come, after what was fetched in this epoch."""
        same = self._chunk_transport.epoch == epoch
        return bool(self.flow_active) and same and not self.should_stop

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Comes before this member joins the group anew, so before anybody else owns a shard."""
        await super().on_partitions_revoked(revoked)
        await self._chunk_transport.owner.let_go()

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Take over what is newly assigned and seek to where its journal ends."""
        transport = self._chunk_transport
        assigned = {tp for tp in self._thread.assignment() if tp.topic in EVENT_TOPICS}
        positions: dict[TP, int] = await transport.owner.recover(assigned)
        fresh = [tp for tp, offset in positions.items() if offset < 0]
        if fresh:
            positions.update(await self._thread.earliest_offsets(*fresh))
        if positions:
            await self._thread.seek_wait(positions)
        assert isinstance(self._thread, _ConsumerThread)
        transport.epoch = self._thread.epoch
        transport.owner.go_on_from(positions, transport.epoch)
        return positions

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """A chunk is one message over many offsets, which is no gap.

        Faust would keep each as one in a tree that it merges at every message: most of a worker's
        time at a few thousand events a second. What is committed the journal says.
        """

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Tell the group how far the journal is; only lag monitors read it."""
        offsets = self._chunk_transport.owner.journaled()
        if not offsets or not self.flow_active:
            return False
        committed = bool(await self._thread.commit(offsets))
        failpoints.reach("offset_commit")
        return committed


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
    """Counts the seeks: what was fetched before the last one is not delivered any more."""


TRANSPORTS.aliases[SCHEME] = f"{__name__}:Transport"
