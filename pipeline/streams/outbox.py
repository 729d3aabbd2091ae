"""What goes out after a journal record counts: signals, rejects, and strays sent home.

Everything here may be sent again: signals are versioned levels, a reject's key names its source
record, a stray that arrives twice is a `duplicate` there, and a repeated record of the catalog is
passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import polars as pl
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

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

Headers = tuple[tuple[str, bytes], ...]


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


class Outbox:
    """Sends; every send is awaited, for a failed one that nobody awaits is lost in silence."""

    def __init__(self, producer: AIOKafkaProducer, partitions: int) -> None:
        self._producer = producer
        self._partitions = partitions

    async def send(
        self,
        signals: Iterable[Signal],
        originals: Iterable[Original],
        refusals: Iterable[Reject] = (),
        repetitions: Iterable[LogRecord] = (),
    ) -> None:
        """Send all of it; returns when every send is acknowledged."""
        sends = [await self._send_signal(signal) for signal in signals]
        for original in originals:
            if original.disposition == MISROUTED:
                sends.append(await self._send_home(original))
            else:
                sends.append(await self._send_reject(reject_of(original)))
        sends += [await self._send_reject(reject) for reject in refusals]
        sends += [await self._repeat(record) for record in repetitions]
        if sends:
            await asyncio.gather(*sends)

    async def _send_signal(self, signal: Signal) -> Any:
        key = signal.entity.encode()
        return await self._producer.send(SIGNALS, encode_signal(signal), key=key)

    async def _send_reject(self, reject: Reject) -> Any:
        key = reject.message_key.encode()
        return await self._producer.send(REJECTS, msgspec.json.encode(reject), key=key)

    async def _repeat(self, record: LogRecord) -> Any:
        """Publish a record of the catalog once more. The partition is the topic's only one."""
        return await self._producer.send(
            CATALOG,
            record.value,
            key=record.key,
            timestamp_ms=record.timestamp_ms,
            headers=list(record.headers),
        )

    async def _send_home(self, original: Original) -> Any:
        """Republish a stray unchanged, timestamp included, in its campaign's partition."""
        assert not isinstance(original.decoded, Fault)
        return await self._producer.send(
            original.topic,
            original.value,
            key=original.key,
            partition=partition_of(original.decoded.campaign_id, self._partitions),
            timestamp_ms=original.timestamp_ms,
            headers=list(original.headers),
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


def originals_of(outcome: Outcome, rows: np.ndarray[Any, np.dtype[np.int64]]) -> list[Original]:
    """The records among these rows that are to be rejected or sent home.

    They are decoded once more, by the reference: it says what is wrong with a malformed one.
    """
    concerned = rows[_CONCERNED[outcome.disposition[rows]]]
    batch = outcome.batch
    found = []
    for row in concerned.tolist():
        key, value = batch.original(row)
        found.append(
            Original(
                topic=EVENT_TOPICS[batch.source[row]],
                partition=int(batch.shard[row]),
                offset=int(batch.offset[row]),
                timestamp_ms=int(batch.record_ms[row]),
                key=key,
                value=value,
                headers=batch.headers(row),
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
