"""Reading whole topics outside any consumer group: the `LogReader` of `pipeline.contract.log`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaTimeoutError, NodeNotReadyError

from pipeline.contract.log import LogRecord, LogUnavailable

_FETCH_BYTES = 64 * 1024 * 1024

ANSWER_WITHIN_S = 5.0
"""How long Kafka may take to tell a topic's end before it counts as away."""
AWAY = (TimeoutError, KafkaConnectionError, KafkaTimeoutError, NodeNotReadyError)
"""What the client raises while Kafka does not answer."""


class Consumer(AIOKafkaConsumer):  # type: ignore[misc]
    """aiokafka's consumer, but for its end."""

    async def stop(self) -> None:
        """Close the client, though Kafka be away.

        aiokafka lets the cancellation of a fetch of its own out, where that waits to be tried
        again, and stays half open: a Faust worker then waits for its thread for ever.
        """
        try:
            await super().stop()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            await self._client.close()


class KafkaLogReader:
    """Reads all partitions of a topic, or some of them, from given offsets on."""

    def __init__(
        self,
        topic: str,
        client_options: Mapping[str, Any],
        partitions: list[int] | None = None,
        fetch_wait_ms: int = 100,
    ) -> None:
        self._topic = topic
        self._only = partitions
        # auto_offset_reset must be earliest: an explicit seek right after assign races aiokafka's
        # own reset, which goes to the end by default.
        self._consumer = Consumer(
            **client_options,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=fetch_wait_ms,
            max_partition_fetch_bytes=_FETCH_BYTES,
            fetch_max_bytes=_FETCH_BYTES,
        )
        self._assigned: list[TopicPartition] = []

    async def start(self, positions: Mapping[int, int] | None = None) -> None:
        try:
            await self._consumer.start()
        except KafkaConnectionError as error:
            raise LogUnavailable(str(error)) from error
        known = self._only
        if known is None:
            known = sorted(await self._partitions())
        self._assigned = [TopicPartition(self._topic, partition) for partition in known]
        self._consumer.assign(self._assigned)
        begin = await self.begin_offsets()
        await self.seek({p: (positions or {}).get(p, begin[p]) for p in known})

    async def _partitions(self) -> set[int]:
        partitions = await self._consumer._client.fetch_all_metadata()
        found = partitions.partitions_for_topic(self._topic)
        if not found:
            raise LookupError(f"topic {self._topic} is not there; run `pipeline topics` first")
        return set(found)

    async def fetch(self, timeout_ms: int) -> list[LogRecord]:
        fetched = await self._consumer.getmany(timeout_ms=timeout_ms)
        return [
            LogRecord(
                tp.topic, tp.partition, r.offset, r.timestamp, r.key, r.value, tuple(r.headers)
            )
            for tp, records in fetched.items()
            for r in records
        ]

    async def bounds(self) -> dict[int, range]:
        """By partition: the offsets that it has now. Raises `LogUnavailable`."""
        begin, end = await self.begin_offsets(), await self.end_offsets()
        return {partition: range(begin[partition], end[partition]) for partition in begin}

    async def begin_offsets(self) -> dict[int, int]:
        offsets = await self._consumer.beginning_offsets(self._assigned)
        return {tp.partition: offset for tp, offset in offsets.items()}

    async def end_offsets(self) -> dict[int, int]:
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                offsets = await self._consumer.end_offsets(self._assigned)
        except AWAY as error:
            raise LogUnavailable(f"Kafka does not tell the end of {self._topic}") from error
        return {tp.partition: offset for tp, offset in offsets.items()}

    async def seek(self, positions: Mapping[int, int]) -> None:
        for partition, offset in positions.items():
            self._consumer.seek(TopicPartition(self._topic, partition), offset)

    async def position(self, partition: int) -> int:
        """The offset that the next fetch of a partition begins with."""
        return int(await self._consumer.position(TopicPartition(self._topic, partition)))

    async def stop(self) -> None:
        await self._consumer.stop()
