"""Running a simulation against a real Kafka, and publishing recorded events from a file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
from aiokafka import AIOKafkaProducer

from pipeline.contract.days import from_iso
from pipeline.contract.signals import decode_signal
from pipeline.contract.vocabulary import (
    CATALOG,
    CLICKS,
    ENGAGEMENT_KINDS,
    ENGAGEMENTS,
    EVENT_TOPICS,
    IMPRESSIONS,
    MS_PER_DAY,
    SIGNALS,
)
from pipeline.simulate.fleet import AdServer, Message
from pipeline.simulate.world import World, build_world, share_of_day
from pipeline.streams.log_reader import KafkaLogReader

STEPS: Final = 288
"""Of a simulated day: five minutes each."""
STEP_MS: Final = MS_PER_DAY // STEPS
FILE_CHUNK: Final = 5_000


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """What to simulate; the same options give the same world and the same random choices."""

    day: str
    seed: int = 1
    servers: int = 3
    campaigns: int = 20
    impressions: int = 120_000
    seconds: float = 20.0
    """Real time that the simulated day takes; 0: as fast as it goes."""


@dataclass(slots=True)
class Progress:
    """How far a simulation is."""

    now_ms: int = 0
    sent: int = 0
    withheld: int = 0
    resent: int = 0
    rate: float = 0.0
    """Events sent a second, over the last step."""
    signals: dict[str, int] = field(default_factory=dict)
    """Action -> signals seen."""
    paused: set[str] = field(default_factory=set)


class FileError(Exception):
    """A file of events that cannot be published; the text says which line and why."""


async def simulate(
    options: SimulationOptions,
    client_options: Mapping[str, Any],
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[World, Progress]:
    """Run one simulated day: publish its catalog, then serve, obey signals, and publish events."""
    day_start_ms = from_iso(options.day) * MS_PER_DAY
    world = build_world(options.seed, options.campaigns, day_start_ms, options.impressions)
    servers = [
        AdServer(number, world, options.seed, reaction_ms=1_000 + 1_000 * number)
        for number in range(options.servers)
    ]
    progress = Progress(now_ms=day_start_ms)
    producer = AIOKafkaProducer(
        **client_options, acks="all", enable_idempotence=True, linger_ms=5, max_batch_size=262_144
    )
    signals = KafkaLogReader(SIGNALS, client_options, fetch_wait_ms=10)
    await producer.start()
    await signals.start()
    try:
        await _publish_catalog(producer, world, day_start_ms - 1)
        for step in range(STEPS):
            started_s = time.monotonic()
            await _hear(signals, servers, progress)
            await _serve_step(producer, servers, options, progress, day_start_ms, step)
            on_progress(progress)
            left_s = options.seconds / STEPS - (time.monotonic() - started_s)
            await asyncio.sleep(max(0.0, left_s))
        await producer.flush()
        await asyncio.sleep(0.5)
        await _hear(signals, servers, progress)
        on_progress(progress)
    finally:
        await signals.stop()
        await producer.stop()
    return world, progress


async def _publish_catalog(producer: AIOKafkaProducer, world: World, timestamp_ms: int) -> None:
    sends = [
        await producer.send(
            CATALOG, msgspec.json.encode(entity), key=key.encode(), timestamp_ms=timestamp_ms
        )
        for key, entity in world.entities
    ]
    await asyncio.gather(*sends)


async def _hear(signals: KafkaLogReader, servers: list[AdServer], progress: Progress) -> None:
    for record in await signals.fetch(timeout_ms=1):
        if record.value is None:
            continue
        signal = decode_signal(record.value)
        progress.signals[signal.action] = progress.signals.get(signal.action, 0) + 1
        if signal.action == "pause":
            progress.paused.add(signal.entity)
        else:
            progress.paused.discard(signal.entity)
        for server in servers:
            server.hear(signal, progress.now_ms)


async def _serve_step(
    producer: AIOKafkaProducer,
    servers: list[AdServer],
    options: SimulationOptions,
    progress: Progress,
    day_start_ms: int,
    step: int,
) -> None:
    started_s = time.monotonic()
    share = share_of_day(step * STEP_MS, (step + 1) * STEP_MS)
    impressions = round(options.impressions * share / len(servers))
    from_ms = day_start_ms + step * STEP_MS
    messages: list[Message] = []
    for server in servers:
        messages += server.step(from_ms, from_ms + STEP_MS, impressions)
    messages.sort(key=lambda message: message.timestamp_ms)
    await _send(producer, messages)
    progress.now_ms = from_ms + STEP_MS
    progress.sent += len(messages)
    progress.withheld = sum(server.counts.withheld for server in servers)
    progress.resent = sum(server.counts.resent for server in servers)
    progress.rate = len(messages) / max(1e-9, time.monotonic() - started_s)


async def _send(producer: AIOKafkaProducer, messages: list[Message]) -> None:
    sends = [
        await producer.send(
            message.topic, message.value, key=message.key, timestamp_ms=message.timestamp_ms
        )
        for message in messages
    ]
    await asyncio.gather(*sends)


# -- recorded events --------------------------------------------------------------------------


async def publish_file(
    path: Path,
    client_options: Mapping[str, Any],
    on_progress: Callable[[int], None] = lambda sent: None,
) -> int:
    """Publish the events of an NDJSON file with their own timestamps; how many.

    A line is an event of the contract, plus optionally `topic`, `kind` (which tells the topic
    where `topic` is not given; impressions by default) and `record_timestamp_ms` (default: its
    event_time_ms). The whole file is read once before anything is sent: raises `FileError` at the
    first line that is not such an object.
    """
    total = sum(1 for _ in file_messages(path))
    producer = AIOKafkaProducer(
        **client_options, acks="all", enable_idempotence=True, linger_ms=10, max_batch_size=262_144
    )
    await producer.start()
    try:
        chunk: list[Message] = []
        sent = 0
        for message in file_messages(path):
            chunk.append(message)
            if len(chunk) == FILE_CHUNK:
                await _send(producer, chunk)
                sent += len(chunk)
                on_progress(sent)
                chunk = []
        await _send(producer, chunk)
        on_progress(total)
    finally:
        await producer.stop()
    return total


def file_messages(path: Path) -> Iterator[Message]:
    """The messages of an NDJSON file, line by line. Raises `FileError`."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _message_of_line(line, f"{path}:{number}")
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error


def _message_of_line(line: bytes, where: str) -> Message:
    try:
        event = msgspec.json.decode(line)
    except msgspec.MsgspecError as error:
        raise FileError(f"{where}: not JSON: {error}") from error
    if not isinstance(event, dict) or not isinstance(event.get("event_time_ms"), int):
        raise FileError(f"{where}: not an event: an object with an integer event_time_ms")
    topic = event.pop("topic", None) or _topic_of_kind(event)
    if topic not in EVENT_TOPICS:
        raise FileError(f"{where}: {topic!r} is none of {', '.join(EVENT_TOPICS)}")
    if topic != ENGAGEMENTS:
        event.pop("kind", None)
    timestamp_ms = event.pop("record_timestamp_ms", event["event_time_ms"])
    key = str(event.get("campaign_id", "")).encode()
    return Message(topic, key, msgspec.json.encode(event), int(timestamp_ms))


def _topic_of_kind(event: dict[str, Any]) -> str:
    kind = event.get("kind", "impression")
    if kind in ENGAGEMENT_KINDS:
        return ENGAGEMENTS
    return CLICKS if kind == "click" else IMPRESSIONS
