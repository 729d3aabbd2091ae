"""State = fold of the journal: a recovered shard decides as the one that crashed would have."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing import fold
from pipeline.billing.batch import Assembler
from pipeline.billing.journal import decode, seal
from pipeline.pacing.serving import Policy
from pipeline.streams.engine import Engine, Turn
from pipeline.streams.writer import Entry, prepare
from tests.property.worlds import (
    PARTITIONS,
    TO_THE_END,
    World,
    catalog_records,
    chunks_of,
    make_engine,
    worlds,
)


def journaled(engine: Engine, turn: Turn) -> dict[int, bytes]:
    """The journal records of a turn, chained; the engine's chains move on."""
    return {entry.shard: _append(engine, entry) for entry in prepare(engine, turn)}


def _append(engine: Engine, entry: Entry) -> bytes:
    chain = engine.shards[entry.shard].chain
    placed = msgspec.structs.replace(entry.header, previous=chain.last_offset, seq=chain.seq)
    header, value = seal(placed, entry.body, chain.digest)
    chain.extend(chain.last_offset + 1, header)
    return value


def run(
    world: World, batch: int, pacing: Policy | None = None
) -> tuple[Engine, list[dict[int, bytes]]]:
    engine = make_engine(pacing=pacing)
    for record in catalog_records(world):
        engine.apply_catalog(record, world.now_ms)
    assembler, journal = Assembler(), []
    now_ms = 0
    for start in range(0, len(world.records), batch):
        records = world.records[start : start + batch]
        now_ms = max([now_ms, *(record.timestamp_ms for record in records)])
        turn = engine.turn(assembler.assemble(chunks_of(records)), now_ms, TO_THE_END)
        journal.append(journaled(engine, turn))
    return engine, journal


def folded(world: World, journal: list[dict[int, bytes]], at_once: int = 1) -> Engine:
    """The state that the journal folds to, so many records at once."""
    engine = make_engine()
    for record in catalog_records(world):
        engine.apply_catalog(record, world.now_ms)
    offsets = dict.fromkeys(range(PARTITIONS), 0)
    counted: dict[int, list[fold.Counted]] = {shard: [] for shard in offsets}
    for turn in journal:
        for shard, value in turn.items():
            decided = decode(value)
            chain = engine.shards[shard].chain
            assert chain.admit(offsets[shard], decided.header, value)
            counted[shard].append((decided.header, decided.events))
            offsets[shard] += 1
    for shard, records in counted.items():
        for start in range(0, len(records), at_once):
            engine.fold(shard, records[start : start + at_once])
    return engine


def state(engine: Engine, *, with_ids: bool = True) -> list[dict[str, Any]]:
    """Both shards' packed states, in a form that compares."""
    states = []
    for shard in range(PARTITIONS):
        packed = fold.pack(engine.shards[shard], engine.balances, engine.terms, with_ids=with_ids)
        fields = msgspec.msgpack.decode(packed, strict=False)
        fields["standing"] = sorted(fields["standing"], key=str)
        fields["blocks"] = sorted(fields["blocks"])
        fields["balances"] = sorted(
            [limit, day, sorted(zip(names, nanos, strict=True))]
            for limit, day, names, nanos in fields["balances"]
        )
        fields["ids"] = _keys(fields["ids"])
        fields["unique"] = _keys(fields["unique"])
        fields.pop("catalog_end")
        states.append(fields)
    return states


def _keys(generations: dict[int, bytes] | None) -> Any:
    if generations is None:
        return None
    return {
        number: sorted(packed[i : i + 16] for i in range(0, len(packed), 16))
        for number, packed in generations.items()
    }


@given(worlds(), st.integers(1, 30))
def test_the_fold_of_the_journal_is_the_live_state(world: World, batch: int) -> None:
    live, journal = run(world, batch)
    assert state(folded(world, journal)) == state(live)


@given(worlds(), st.integers(1, 5), st.integers(2, 20))
def test_records_folded_at_once_come_to_what_they_do_one_by_one(
    world: World, batch: int, at_once: int
) -> None:
    live, journal = run(world, batch)
    assert state(folded(world, journal, at_once)) == state(live)


@given(worlds(), st.integers(1, 30))
def test_a_snapshot_brings_back_the_whole_state(world: World, batch: int) -> None:
    live, _ = run(world, batch)
    restored = make_engine()
    for record in catalog_records(world):
        restored.apply_catalog(record, world.now_ms)
    for shard in range(PARTITIONS):
        packed = fold.pack(live.shards[shard], live.balances, live.terms, with_ids=True)
        fold.unpack(packed, restored.shards[shard], restored.balances, restored.terms)
    assert state(restored) == state(live)


@given(worlds(max_events=80), st.integers(1, 30))
def test_posted_blocks_and_open_blocks_are_what_was_accrued(world: World, batch: int) -> None:
    live, journal = run(world, batch)
    posted = accrued = 0
    for turn in journal:
        for value in turn.values():
            record = decode(value)
            posted += sum(block.amount_nanos for block in record.header.blocks)
            cpm = record.events.filter(record.events["basis"] == 3)
            accrued += int(cpm["amount_nanos"].sum())
    blocks = live.balances.blocks.open_in(np.arange(len(live.terms.group_ids)))
    still_open = sum(block.amount_nanos for block in blocks)
    assert posted + still_open == accrued
