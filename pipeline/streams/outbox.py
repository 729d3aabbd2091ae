"""What goes out after a journal record counts: signals, rejects, and strays sent home.

Everything here may be sent again: signals are versioned levels, a reject's key names its source
record, a stray that arrives twice is a `duplicate` there, and a repeated record of the catalog is
passed over.

What its topic does not take for its size is sent once more, compressed, as it may have come; then
a reject without the original, whose place it names. A stray or a catalog record must not be lost,
so that it stops its shard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import polars as pl
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import MessageSizeTooLargeError
from aiokafka.producer.message_accumulator import BatchBuilder

from pipeline.billing.decide import Outcome
from pipeline.billing.decode import Decoder, Fault
from pipeline.contract.events import Event
from pipeline.contract.log import LogRecord
from pipeline.contract.partitioning import partition_of
from pipeline.contract.rejects import Reject, to_base64
from pipeline.contract.signals import Signal, encode_signal
from pipeline.contract.vocabulary import (
    CATALOG,
    DISPOSITIONS,
    EVENT_TOPICS,
    FUTURE,
    MISROUTED,
    REJECTED,
    REJECTS,
    SIGNALS,
)

_DECODERS = tuple(Decoder(topic) for topic in EVENT_TOPICS)

_CONCERNED = np.zeros(len(DISPOSITIONS), dtype=np.bool_)
"""By disposition: whether the outbox has something to send of such a record."""
_CONCERNED[[MISROUTED, *REJECTED]] = True

_ZSTD = 4
"""Kafka's number of the codec."""
_SHORT = 1_000
"""Characters that a reject without its original keeps of each text that may be long."""

Headers = tuple[tuple[str, bytes], ...]


class UndeliverableError(Exception):
    """A record that must not be lost is too large for its topic; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Original:
    """A source record as it came, with what was made of it."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    disposition: int
    decoded: Event | Fault


@dataclass(frozen=True, slots=True)
class _Message:
    """One record to send; without a partition its key chooses it, without a time it is now."""

    topic: str
    value: bytes | None
    key: bytes | None
    partition: int | None = None
    timestamp_ms: int | None = None
    headers: Headers = ()
    reject: Reject | None = None
    """What the value tells, where it is a reject."""


class Outbox:
    """Sends; every send is awaited, for a failed one that nobody awaits is lost in silence."""

    def __init__(
        self, of_signals: AIOKafkaProducer, of_others: AIOKafkaProducer, partitions: int
    ) -> None:
        """`of_others` is not to be idempotent: a record that is refused for its size would leave a
        gap in the numbers by which the broker knows the next ones, and it would take none."""
        self._of_signals = of_signals
        self._of_others = of_others
        self._partitions = partitions

    async def send(
        self,
        signals: Iterable[Signal],
        originals: Iterable[Original],
        refusals: Iterable[Reject] = (),
        repetitions: Iterable[LogRecord] = (),
    ) -> None:
        """Send all of it; returns when every send is acknowledged.

        Raises `UndeliverableError` where something does not fit; all else is sent by then.
        """
        signalled = [await self._send_signal(signal) for signal in signals]
        messages = [
            self._home(original)
            if original.disposition == MISROUTED
            else _rejection(reject_of(original))
            for original in originals
        ]
        messages += [_rejection(reject) for reject in refusals]
        messages += [_repetition(record) for record in repetitions]
        sends = [await self._send(message) for message in messages]
        if signalled:
            await asyncio.gather(*signalled)
        if sends:
            sent = await asyncio.gather(*sends, return_exceptions=True)
            await self._send_smaller(zip(messages, sent, strict=True))

    async def _send_signal(self, signal: Signal) -> Any:
        key = signal.entity.encode()
        return await self._of_signals.send(SIGNALS, encode_signal(signal), key=key)

    async def _send(self, message: _Message) -> Awaitable[Any]:
        try:
            sent: Awaitable[Any] = await self._of_others.send(
                message.topic,
                message.value,
                key=message.key,
                partition=message.partition,
                timestamp_ms=message.timestamp_ms,
                headers=list(message.headers),
            )
        except MessageSizeTooLargeError as error:
            # The client's own limit: to be found where the broker's refusal is.
            refused = asyncio.get_running_loop().create_future()
            refused.set_exception(error)
            return refused
        return sent

    async def _send_smaller(self, sent: Iterable[tuple[_Message, Any]]) -> None:
        """See to what was too large. `sent`: each message with its acknowledgement or error."""
        undelivered: UndeliverableError | None = None
        for message, result in sent:
            if isinstance(result, MessageSizeTooLargeError):
                try:
                    await self._insist(message)
                except UndeliverableError as error:
                    undelivered = error
            elif isinstance(result, BaseException):
                raise result
        if undelivered is not None:
            raise undelivered

    async def _insist(self, message: _Message) -> None:
        try:
            await (await self._send_compressed(message))
        except MessageSizeTooLargeError as error:
            if message.reject is None:
                size = len(message.key or b"") + len(message.value or b"")
                raise UndeliverableError(
                    f"a record with the key {(message.key or b'')[:100]!r} has to go to "
                    f"{message.topic} again and is too large for it, compressed too. Raise the "
                    f"topic's max.message.bytes to {size + 1_000:,} and restart the worker, before "
                    "retention deletes what waits"
                ) from error
            await (await self._send(_rejection(_without_original(message.reject))))

    async def _send_compressed(self, message: _Message) -> Awaitable[Any]:
        """Send a record in a compressed batch of its own."""
        key, partition = message.key or b"", message.partition
        if partition is None:
            count = len(await self._of_others.partitions_for(message.topic))
            partition = partition_of(key.decode(), count)
        batch = BatchBuilder(len(message.value or b""), _ZSTD)
        batch.append(
            timestamp=message.timestamp_ms,
            key=message.key,
            value=message.value,
            headers=list(message.headers),
        )
        sent: Awaitable[Any] = await self._of_others.send_batch(
            batch, message.topic, partition=partition
        )
        return sent

    def _home(self, original: Original) -> _Message:
        """A stray as it came, timestamp included, for its campaign's partition."""
        assert not isinstance(original.decoded, Fault)
        return _Message(
            original.topic,
            original.value,
            original.key,
            partition_of(original.decoded.campaign_id, self._partitions),
            original.timestamp_ms,
            original.headers,
        )


def _rejection(reject: Reject) -> _Message:
    value = msgspec.json.encode(reject)
    return _Message(REJECTS, value, reject.message_key.encode(), reject=reject)


def _repetition(record: LogRecord) -> _Message:
    """A record of the catalog once more, in the topic's only partition."""
    return _Message(CATALOG, record.value, record.key, 0, record.timestamp_ms, record.headers)


def _without_original(reject: Reject) -> Reject:
    """A reject that fits into any topic; it still names the place of what it leaves out."""
    key, left_out = reject.key or "", len(reject.original_bytes or b"")
    return msgspec.structs.replace(
        reject,
        field=reject.field[:_SHORT],
        detail=f"{reject.detail[:_SHORT]} (the original of {left_out} bytes is left out: too large "
        f"for {REJECTS})",
        key=reject.key if len(key) <= _SHORT else None,
        original=None,
    )


def reject_of(original: Original) -> Reject:
    """The reject of a record that rule 1, 3 or 4 turned away."""
    field, detail = _fault_of(original)
    return Reject(
        source=original.topic,
        partition=original.partition,
        offset=original.offset,
        timestamp_ms=original.timestamp_ms,
        reason=DISPOSITIONS[original.disposition],
        field=field,
        detail=detail,
        key=to_base64(original.key),
        original=to_base64(original.value),
    )


def _fault_of(original: Original) -> tuple[str, str]:
    decoded = original.decoded
    if isinstance(decoded, Fault):
        return decoded.field, decoded.detail
    if original.disposition == FUTURE:
        ahead_ms = decoded.event_time_ms - original.timestamp_ms
        return "event_time_ms", f"{ahead_ms} ms later than the record's own timestamp"
    return "promoted_pin_id", (
        f"campaign {decoded.campaign_id}, ad group {decoded.ad_group_id} and promoted pin "
        f"{decoded.promoted_pin_id} are not in the catalog, or not each other's"
    )


def originals_of(outcome: Outcome) -> dict[int, list[Original]]:
    """Shard -> its records that are to be rejected or sent home, where it has any.

    They are decoded once more, by the reference: it says what is wrong with a malformed one.
    """
    concerned = np.flatnonzero(_CONCERNED[outcome.disposition])
    batch = outcome.batch
    found: dict[int, list[Original]] = {}
    for row in concerned.tolist():
        key, value, headers = batch.original(row)
        found.setdefault(int(batch.shard[row]), []).append(
            Original(
                topic=EVENT_TOPICS[batch.source[row]],
                partition=int(batch.shard[row]),
                offset=int(batch.offset[row]),
                timestamp_ms=int(batch.record_ms[row]),
                key=key,
                value=value,
                headers=headers,
                disposition=int(outcome.disposition[row]),
                decoded=_DECODERS[int(batch.source[row])].decode_one(value),
            )
        )
    return found


async def read_originals(
    shard: int,
    dispositions: Mapping[tuple[str, int], int],
    client_options: Mapping[str, Any],
) -> list[Original]:
    """Read source records again, by (topic, offset), for an outbox that may not have been sent.

    A record that has been deleted since is left out: there is nothing to send of it.
    """
    found: list[Original] = []
    if not dispositions:
        return found
    consumer = AIOKafkaConsumer(
        **client_options, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        for (topic, offset), disposition in sorted(dispositions.items()):
            tp = TopicPartition(topic, shard)
            consumer.assign([tp])
            if offset < (await consumer.beginning_offsets([tp]))[tp]:
                continue
            consumer.seek(tp, offset)
            record = await consumer.getone(tp)
            if record.offset != offset:
                continue  # there is none: the client went on with the first that there is
            decoded = _DECODERS[EVENT_TOPICS.index(topic)].decode_one(record.value)
            found.append(
                Original(
                    topic=topic,
                    partition=shard,
                    offset=offset,
                    timestamp_ms=record.timestamp,
                    key=record.key,
                    value=record.value,
                    headers=tuple(record.headers),
                    disposition=disposition,
                    decoded=decoded,
                )
            )
    finally:
        await consumer.stop()
    return found


def unsent_dispositions(events: pl.DataFrame) -> dict[tuple[str, int], int]:
    """(topic, offset) -> disposition of a journal record's events that the outbox concerns."""
    concerned = events.filter(pl.col("disposition").is_in([MISROUTED, *REJECTED]))
    rows = concerned.select("source", "source_offset", "disposition").iter_rows()
    return {(EVENT_TOPICS[source], offset): disposition for source, offset, disposition in rows}
