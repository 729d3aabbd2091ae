"""On the stream's clock it does not matter which events come in one batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing.batch import Assembler, in_steps
from pipeline.contract.days import iso
from tests.property.test_decide_against_auditor import by_place
from tests.property.worlds import (
    HOUR_MS,
    START_MS,
    TO_THE_END,
    World,
    catalog_records,
    chunks_of,
    make_engine,
    verdict,
    worlds,
)


def judged(world: World, sizes: list[int]) -> list[dict[str, Any]]:
    """Verdicts with their posting days, the records cut into batches of these sizes, in turn."""
    engine, assembler = make_engine(), Assembler()
    for record in catalog_records(world):
        engine.apply_catalog(record, START_MS)
    steps = [(assembler.assemble([]), START_MS)]
    engine.turn(*steps[0], TO_THE_END)
    verdicts = []
    start, number = 0, 0
    while start < len(world.records):
        size = sizes[number % len(sizes)]
        batch = assembler.assemble(chunks_of(world.records[start : start + size]))
        _, before_ms = steps[-1]
        boundaries_ms = engine.boundaries_ms(before_ms, int(batch.order_ms.max()))
        steps = in_steps(batch, before_ms, boundaries_ms)
        for part, now_ms in steps:
            outcome = engine.turn(part, now_ms, TO_THE_END).outcome
            for row in range(len(part)):
                posted = {"posting_day": iso(int(outcome.posting_day[row]))}
                verdicts.append(verdict(outcome, row) | posted)
        start, number = start + size, number + 1
    return verdicts


@given(worlds(), st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_any_batches_give_what_events_one_by_one_give(world: World, sizes: list[int]) -> None:
    assert by_place(judged(world, sizes)) == by_place(judged(world, [1]))


HOURS = st.sets(st.integers(1, 400), max_size=30)


@given(worlds(), HOURS)
def test_a_batch_in_steps_is_all_of_it_and_time_never_falls(world: World, hours: set[int]) -> None:
    batch = Assembler().assemble(chunks_of(world.records))
    boundaries_ms = [START_MS + hour * HOUR_MS for hour in sorted(hours)]
    steps = in_steps(batch, START_MS, boundaries_ms)
    times_ms = [now_ms for _, now_ms in steps]
    assert times_ms == sorted(times_ms)
    for shard, span in batch.spans.items():
        of_shard = [part.came_as[part.shard == shard] for part, _ in steps]
        assert np.concatenate(of_shard).tolist() == batch.came_as[span].tolist()
    taken: dict[tuple[int, str], tuple[int, int]] = {}
    for part, now_ms in steps:
        assert (part.order_ms <= now_ms).all()
        for shard, topics in part.ranges.items():
            for topic, (start, end) in topics.items():
                first, so_far = taken.get((shard, topic), (start, start))
                assert start == so_far
                taken[shard, topic] = first, end
    assert taken == {
        (shard, topic): offsets
        for shard, topics in batch.ranges.items()
        for topic, offsets in topics.items()
    }
