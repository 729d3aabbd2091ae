"""How far the tables have come, as the last batch says."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.reporting.clickhouse import Store
from pipeline.reporting.plans import Position, read_plans

Ends = Mapping[tuple[str, int], tuple[int, int]]
"""(topic, partition) -> its first and its end offset, as Kafka says."""


def is_reported(store: Store, ends: Ends) -> bool:
    """Whether the tables have all events that the topics hold up to these ends."""
    journal = reported_positions(store)
    judged_to = judged_offsets(journal)
    if any(judged_to.get(place, begin) < end for place, (begin, end) in ends.items()):
        return False
    # A batch is planned before its rows are written.
    rows = dict(store.rows("SELECT journal_partition, count() FROM billing.events GROUP BY ALL"))
    return all(rows.get(shard, 0) >= at.seq for shard, at in journal.items())


def reported_positions(store: Store) -> Mapping[int, Position]:
    """Up to where the tables have the journal, by shard, as the last batch says."""
    plans = read_plans(store, 0)
    return plans[-1].journal if plans else {}


def judged_offsets(journal: Mapping[int, Position]) -> dict[tuple[str, int], int]:
    """(topic, partition) -> the offset after the last that was consumed."""
    return {
        (topic, shard): offset
        for shard, at in journal.items()
        for topic, offset in at.next_source_offsets.items()
    }
