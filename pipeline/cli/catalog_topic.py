"""The catalog's topic as commands read and write it: checked before, published together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aiokafka import AIOKafkaProducer

from pipeline.contract.catalog import Catalog, Refused
from pipeline.contract.catalog_entities import Entity, to_record
from pipeline.contract.log import LogRecord
from pipeline.contract.vocabulary import CATALOG
from pipeline.settings import Settings
from pipeline.streams.log_reader import KafkaLogReader


async def read_catalog(settings: Settings) -> Catalog:
    """The catalog as its topic has it now."""
    catalog = Catalog()
    reader = KafkaLogReader(CATALOG, settings.kafka_client_options())
    try:
        await reader.start()
        end = (await reader.end_offsets())[0]
        while await reader.position(0) < end:
            for record in await reader.fetch(timeout_ms=500):
                catalog.apply(record)
    finally:
        await reader.stop()
    return catalog


def record_of(catalog: Catalog, entity: Entity, timestamp_ms: int) -> LogRecord:
    """An entity as the next record of the catalog."""
    return LogRecord(CATALOG, 0, catalog.end_offset, timestamp_ms, *to_record(entity))


def refusal_of(catalog: Catalog, record: LogRecord) -> str:
    """Why the workers would refuse a record, in words; empty where it is taken over, here too."""
    result = catalog.apply(record)
    if isinstance(result, Refused):
        return f"{result.reason}: {result.field} {result.detail}"
    return ""


async def publish(settings: Settings, records: Iterable[LogRecord]) -> None:
    """Publish records of the catalog, in order; all acknowledged on return."""
    producer = AIOKafkaProducer(**settings.kafka_client_options(), acks="all", linger_ms=5)
    await producer.start()
    try:
        sends = [
            await producer.send(CATALOG, one.value, key=one.key, timestamp_ms=one.timestamp_ms)
            for one in records
        ]
        await asyncio.gather(*sends)
    finally:
        await producer.stop()
