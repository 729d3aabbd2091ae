"""Billing lag, through the engine: throttled while figures are old, resumed when they are not."""

from __future__ import annotations

from dataclasses import replace

from pipeline.billing.batch import Assembler
from pipeline.contract.signals import Signal
from pipeline.streams.engine import Engine
from tests.auditor import SourceRecord
from tests.property.test_replay import limited_world
from tests.property.worlds import PARTITIONS, catalog_records, chunks_of, make_engine

BOUND_MS = 60_000


def lagging_engine() -> tuple[Engine, list[SourceRecord]]:
    settings = replace(make_engine().settings, lag_bound_ms=BOUND_MS)
    engine, world = Engine(settings), limited_world()
    for shard in range(PARTITIONS):
        engine.new_shard(shard)
    for record in catalog_records(world):
        engine.apply_catalog(record, world.records[0].timestamp_ms)
    return engine, world.records


def signals_of(
    engine: Engine, record: SourceRecord, lag_ms: int, assembler: Assembler
) -> list[Signal]:
    batch = assembler.assemble(chunks_of([record]))
    turn = engine.turn(batch, record.timestamp_ms + lag_ms, {})
    return [signal for draft in turn.drafts.values() for signal in draft.signals]


def test_a_lagging_shard_throttles_its_campaigns_once_and_resumes_them_when_it_is_over() -> None:
    (engine, records), assembler = lagging_engine(), Assembler()
    assert signals_of(engine, records[0], BOUND_MS, assembler) == []
    [signal] = signals_of(engine, records[1], BOUND_MS + 1, assembler)
    assert (signal.entity, signal.action) == ("campaign:c", "throttle")
    assert signal.reason == "billing_lag"
    assert 0 < signal.serve_probability < 1
    # The limit is reached meanwhile: the ad group is paused as ever, the throttle stays.
    [paused] = signals_of(engine, records[2], BOUND_MS, assembler)
    assert (paused.entity, paused.action) == ("ad_group:g", "pause")
    [over] = signals_of(engine, records[3], BOUND_MS // 2 - 1, assembler)
    assert (over.entity, over.action, over.version) == ("campaign:c", "resume", 2)


def test_without_a_bound_no_lag_is_told() -> None:
    engine, assembler = make_engine(), Assembler()
    world = limited_world()
    for record in catalog_records(world):
        engine.apply_catalog(record, world.records[0].timestamp_ms)
    assert signals_of(engine, world.records[0], 10**9, assembler) == []
