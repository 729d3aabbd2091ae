"""Whether a source still holds what a shard has not judged of it, and what it has.

Offsets tell which records were judged. Where a source has lost records at either end they no
longer do: going on would leave out records that nobody would miss, so the shard is stopped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition

from pipeline.contract.vocabulary import EVENT_TOPICS
from pipeline.streams.recovery import Owned

_RAISE_RETENTION = (
    "Deleted by retention or by hand: raise the topic's retention over the longest outage. Restore "
    "the records and restart the worker; without them the shard cannot go on"
)


@dataclass(frozen=True, slots=True)
class Source:
    """One of a shard's event topics, as it is in Kafka when the shard is taken over."""

    name: str
    """Topic and partition."""
    position: int
    """The next offset to judge."""
    end: int
    """The offset after its last record."""

    def trouble(self) -> str:
        """Why the shard cannot go on from here, and what to do; empty where it can."""
        if self.position > self.end:
            lost = f"{self.name} was judged up to offset {self.position}, and ends at {self.end}"
            return f"{lost}. {_end_lost(self.position)}"
        return ""


def misplaced(name: str, position: int, start: int) -> str:
    """Why records from `start` on cannot be judged where those from `position` on are to come.

    A fetch begins where the one before it ended, but where the source no longer has, or not yet
    has, a record there: then with the first that it has.
    """
    if start > position:
        gone = f"{name}: records {position} to {start - 1} are gone, and were not judged"
        return f"{gone}. {_RAISE_RETENTION}"
    again = f"{name} was read up to offset {position}, and is read from {start} again"
    return f"{again}. {_end_lost(position)}"


def _end_lost(position: int) -> str:
    return (
        "It has lost its end, or was created anew: what is published now gets offsets that count "
        f"as judged. Restore it, or fill it up to offset {position} and publish again what came "
        "since (what was judged before is a duplicate); then restart the worker"
    )


async def troubles(consumer: AIOKafkaConsumer, owned: Iterable[Owned]) -> dict[int, str]:
    """Shard -> why it cannot go on from its sources as they are now; the others are left out."""
    positions = {
        TopicPartition(topic, one.state.shard): one.taken.get(topic, 0)
        for one in owned
        for topic in EVENT_TOPICS
    }
    ends = await consumer.end_offsets(list(positions)) if positions else {}
    found: dict[int, str] = {}
    for tp, position in positions.items():
        source = Source(f"{tp.topic}-{tp.partition}", position, ends[tp])
        if trouble := source.trouble():
            found.setdefault(tp.partition, trouble)
    return found
