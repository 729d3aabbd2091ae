"""Whether a shard can go on from its sources as they are; where it cannot, it is stopped.

Offsets tell which records were judged. Where a source has lost records at either end they no
longer do: going on would leave out records that nobody would miss. And ids tell which events were:
where they are lost, what waits could be charged again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition

from pipeline.contract.vocabulary import EVENT_TOPICS
from pipeline.streams.log_reader import ANSWER_WITHIN_S, AWAY
from pipeline.streams.recovery import Owned

log = logging.getLogger(__name__)

_RAISE_RETENTION = (
    "Deleted by retention or by hand: raise the topic's retention over the longest outage. Restore "
    "the records and restart the worker; without them the shard cannot go on"
)

_SETTLED_AFTER_S = 3.0

_IDS_LOST = (
    "Retention has deleted journal records whose events they may repeat, and these could be "
    "charged again. Restore a snapshot of the shard, or shorten the acceptance horizon until they "
    "are judged (older events are expired then); raise the journal's retention over the longest "
    "outage"
)


@dataclass(frozen=True, slots=True)
class Source:
    """One of a shard's event topics, as it is in Kafka when the shard is taken over."""

    topic: str
    shard: int
    position: int
    """The next offset to judge."""
    end: int
    """The offset after its last record."""
    judged_from: int = 0
    """Of the records before this offset the ids may be forgotten that they could repeat."""

    @property
    def name(self) -> str:
        return f"{self.topic}-{self.shard}"

    def trouble(self) -> str:
        """Why the shard cannot go on from here, and what to do; empty where it can."""
        if self.position > self.end:
            lost = f"{self.name} was judged up to offset {self.position}, and ends at {self.end}"
            return f"{lost}. {_end_lost(self.position)}"
        if self.position < self.judged_from:
            waiting = f"{self.name}: records from {self.position} on have waited for too long"
            return f"{waiting}. {_IDS_LOST}"
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
    """Shard -> why it cannot go on from its sources as they are now; the others are left out.

    What is found is looked at once more: a broker that has just become the leader tells an end
    that is too low until the other replicas have fetched from it. A source that Kafka tells
    nothing of, because it has no leader, stops nothing: there is nothing to be read of it.
    """
    shards = {one.state.shard: one for one in owned}
    found = await _troubles_now(consumer, shards)
    if found:
        await asyncio.sleep(_SETTLED_AFTER_S)
        found = await _troubles_now(consumer, {shard: shards[shard] for shard in found})
    return found


async def _troubles_now(consumer: AIOKafkaConsumer, owned: Mapping[int, Owned]) -> dict[int, str]:
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            sources = await _sources(consumer, owned)
    except AWAY:
        if len(owned) > 1:
            one_by_one = [{shard: one} for shard, one in owned.items()]
            found = await asyncio.gather(*(_troubles_now(consumer, one) for one in one_by_one))
            return {shard: trouble for of_one in found for shard, trouble in of_one.items()}
        [(shard, one)] = owned.items()
        log.warning("Kafka does not tell where the sources of shard %d begin and end", shard)
        return {shard: f"its sources cannot be asked. {_IDS_LOST}"} if one.judges_from_ms else {}
    found_of: dict[int, str] = {}
    for source in sources:
        if trouble := source.trouble():
            found_of.setdefault(source.shard, trouble)
    return found_of


async def _sources(consumer: AIOKafkaConsumer, owned: Mapping[int, Owned]) -> list[Source]:
    tps = [TopicPartition(topic, shard) for shard in owned for topic in EVENT_TOPICS]
    if not tps:
        return []
    begins, ends = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
    from_ms = {tp: owned[tp.partition].judges_from_ms for tp in tps}
    asked = {tp: at_ms for tp, at_ms in from_ms.items() if at_ms}
    firsts = await consumer.offsets_for_times(asked) if asked else {}
    judged_from = {tp: first.offset if first else ends[tp] for tp, first in firsts.items()}
    return [
        Source(
            tp.topic,
            tp.partition,
            position=owned[tp.partition].taken.get(tp.topic, begins[tp]),
            end=ends[tp],
            judged_from=min(judged_from.get(tp, 0), ends[tp]),
        )
        for tp in tps
    ]
