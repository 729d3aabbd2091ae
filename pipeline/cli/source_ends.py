"""Where the event topics begin and end."""

from __future__ import annotations

from pipeline.contract.vocabulary import EVENT_TOPICS
from pipeline.reporting.reached import Ends
from pipeline.settings import Settings
from pipeline.streams.log_reader import KafkaLogReader


async def source_ends(settings: Settings) -> Ends:
    """(topic, partition) -> first and end offset of every event topic partition."""
    found: dict[tuple[str, int], tuple[int, int]] = {}
    for topic in EVENT_TOPICS:
        reader = KafkaLogReader(topic, settings.kafka_client_options())
        try:
            await reader.start()
            begin, end = await reader.begin_offsets(), await reader.end_offsets()
        finally:
            await reader.stop()
        found |= {(topic, partition): (begin[partition], end[partition]) for partition in end}
    return found
