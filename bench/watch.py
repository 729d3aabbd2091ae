"""Following what a contestant puts out, and the rate that comes of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord

from pipeline.billing.journal import decode_header

_FETCH_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Output:
    """One output: when it was made, of how many input events, and its size."""

    at_ms: int
    events: int
    size_bytes: int


def journal_output(record: ConsumerRecord) -> Output:
    """A journal record; its time is that of the decision."""
    header, _ = decode_header(record.value)
    return Output(header.now_ms, header.events, len(record.value))


def peer_output(record: ConsumerRecord) -> Output:
    """A record of a peer: JSON with `events`, stamped by the broker."""
    return Output(record.timestamp, json.loads(record.value)["events"], len(record.value))


async def follow(
    bootstrap: str,
    topic: str,
    partitions: int,
    output_of: Callable[[ConsumerRecord], Output],
    *,
    events: int,
    first_within_s: float,
    within_s: float,
    alive: Callable[[], bool],
) -> list[Output]:
    """The committed outputs in the order of their times.

    Until so many events, or `within_s` after the first output (`first_within_s` for that), or the
    end of the process that `alive` asks about.
    """
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=_FETCH_BYTES,
        fetch_max_bytes=_FETCH_BYTES,
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, partition) for partition in range(partitions)])
        outputs: list[Output] = []
        seen = 0
        until_s = time.monotonic() + first_within_s
        while seen < events and time.monotonic() < until_s and alive():
            for records in (await consumer.getmany(timeout_ms=200)).values():
                if not outputs:
                    until_s = time.monotonic() + within_s
                outputs += [output_of(record) for record in records]
            seen = sum(output.events for output in outputs)
    finally:
        await consumer.stop()
    return sorted(outputs, key=lambda output: output.at_ms)


def steady_events_per_s(outputs: Sequence[Output]) -> float:
    """The rate from the first output to the last; what the first held came before, and is out.

    Raises `ValueError` where that is no span of time.
    """
    first_ms, last_ms = outputs[0].at_ms, outputs[-1].at_ms
    if last_ms <= first_ms:
        raise ValueError(f"all {len(outputs)} outputs came at one time: publish more events")
    within = sum(output.events for output in outputs if output.at_ms > first_ms)
    return within / (last_ms - first_ms) * 1_000
