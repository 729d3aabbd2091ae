"""Keeping the engine's catalog up to the end of its topic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from pipeline.contract.catalog import Refused
from pipeline.contract.log import LogRecord
from pipeline.contract.rejects import Reject, to_base64
from pipeline.contract.vocabulary import CATALOG
from pipeline.streams.clock import Clock
from pipeline.streams.engine import Engine
from pipeline.streams.log_reader import ANSWER_WITHIN_S, KafkaLogReader

_MAX_REFUSALS_KEPT = 100_000


class CatalogFeed:
    """Reads `ads.catalog` into the engine; every worker reads all of it."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        client_options: Mapping[str, Any],
        on_change: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._reader = KafkaLogReader(CATALOG, client_options, fetch_wait_ms=500)
        self._on_change = on_change
        self._moved = asyncio.Condition()
        self._read_to = 0
        self.refusals: list[tuple[int, Reject]] = []
        """Refused records by catalog offset, oldest first; bounded."""

    async def run(self) -> None:
        """Read for ever."""
        await self._reader.start()
        try:
            self._read_to = await self._reader.position(0)
            while True:
                records = await self._reader.fetch(timeout_ms=500)
                for record in records:
                    self._take(record)
                position = await self._reader.position(0)
                if records or position != self._read_to:
                    async with self._moved:
                        self._read_to = position
                        self._moved.notify_all()
                    self._on_change()
        finally:
            await self._reader.stop()

    async def catch_up(self, ends: AIOKafkaConsumer) -> None:
        """Wait until all that is in the topic now has been read.

        Its end is asked for through another client: a broker answers a connection in order, and on
        the reader's own the question would wait behind a fetch that waits for news.

        Raises TimeoutError where Kafka does not answer.
        """
        catalog = TopicPartition(CATALOG, 0)
        async with asyncio.timeout(ANSWER_WITHIN_S):
            end = (await ends.end_offsets([catalog]))[catalog]
        async with self._moved:
            await self._moved.wait_for(lambda: self._read_to >= end)

    def refused_from(self, offset: int) -> list[Reject]:
        """Rejects of the catalog records from this offset on."""
        return [reject for at, reject in self.refusals if at >= offset]

    def _take(self, record: LogRecord) -> None:
        self._clock.observe(record.timestamp_ms)
        result = self._engine.apply_catalog(record, self._clock.now_ms())
        if isinstance(result, Refused):
            reject = Reject(
                source=CATALOG,
                partition=record.partition,
                offset=record.offset,
                timestamp_ms=record.timestamp_ms,
                reason=result.reason,
                field=result.field,
                detail=result.detail,
                key=to_base64(record.key),
                original=to_base64(record.value),
            )
            self.refusals.append((record.offset, reject))
            del self.refusals[:-_MAX_REFUSALS_KEPT]
