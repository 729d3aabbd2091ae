"""Target CPI bids: what a click is charged at most follows from the signals alone, anywhere."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing.batch import Assembler
from pipeline.billing.journal import decode
from pipeline.contract.signals import Signal
from pipeline.pacing.predictive import Predictive
from pipeline.pacing.serving import Policy as PacingPolicy
from pipeline.streams.engine import Engine
from pipeline.streams.replay import Change
from tests.auditor import Auditor, CatalogRecord
from tests.property.test_decide_against_auditor import by_place
from tests.property.test_fold import folded, journaled, state
from tests.property.test_replay import replayed
from tests.property.worlds import (
    World,
    catalog_records,
    chunks_of,
    make_engine,
    verdict,
    worlds,
)


class Estimating(Predictive):
    """A policy that knows from the start how many installs a million clicks bring: by ad group
    and by how often it was asked, so that every day's bid is another."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def estimate_installs(self, row: int, campaign: int, now_ms: int) -> tuple[int, int, int]:
        self.asked += 1
        likeliest = (37_123 * (row + 1) * self.asked) % 1_000_000
        return likeliest, likeliest // 2, min(1_000_000, 2 * likeliest)


def target_cpi(world: World) -> World:
    """The same world with all campaigns app installs, and ad groups that aim at a CPI; those of
    every second version at their own bid."""
    catalog = []
    for number, (key, value, time_ms) in enumerate(world.catalog):
        if value is not None and key.startswith("campaign:"):
            value = value | {"objective": "app_install"}
        if value is not None and key.startswith("ad_group:") and number % 4:
            value = value | {"bid_strategy": "target_cpi"}
        catalog.append((key, value, time_ms))
    return World(catalog, world.records, world.now_ms)


def run(world: World, batch: int) -> tuple[Engine, list[dict[int, bytes]], list[dict[str, Any]]]:
    """As the product judges and journals it, and the auditor's verdicts beside its own."""
    engine = make_engine(pacing=Estimating())
    auditor = Auditor(len(engine.shards))
    for offset, record in enumerate(catalog_records(world)):
        engine.apply_catalog(record, world.now_ms)
        key = (record.key or b"").decode()
        auditor.catalog(CatalogRecord(offset, record.timestamp_ms, key, record.value))
    assembler, journal, found = Assembler(), [], []
    now_ms = 0
    for start in range(0, len(world.records), batch):
        records = world.records[start : start + batch]
        now_ms = max([now_ms, *(record.timestamp_ms for record in records)])
        turn = engine.turn(assembler.assemble(chunks_of(records)), now_ms, {})
        found += [verdict(turn.outcome, row) for row in range(len(records))]
        expected = [auditor.judge(record, world.now_ms).compared() for record in records]
        assert by_place(found[-len(records) :]) == by_place(expected)
        for draft in turn.drafts.values():
            for signal in draft.signals:
                tell(auditor, signal)
        journal.append(journaled(engine, turn))
    return engine, journal, found


def tell(auditor: Auditor, signal: Signal) -> None:
    if signal.action == "bid":
        assert signal.bid_micros is not None
        auditor.decided_bid(
            signal.entity.removeprefix("ad_group:"), signal.decided_at_ms, signal.bid_micros
        )


@given(worlds().map(target_cpi), st.integers(1, 30))
def test_every_nano_is_the_auditors_who_hears_the_signals(world: World, batch: int) -> None:
    run(world, batch)


@given(worlds().map(target_cpi), st.integers(1, 30))
def test_the_fold_of_the_journal_knows_the_bids(world: World, batch: int) -> None:
    live, journal, _ = run(world, batch)
    assert state(folded(world, journal)) == state(live)


@given(worlds().map(target_cpi), st.integers(1, 30), st.integers(0, 3))
def test_a_replay_charges_by_the_recorded_bids(world: World, batch: int, window_from: int) -> None:
    _, journal, _ = run(world, batch)
    for policy in (Estimating, Predictive):
        pacing: PacingPolicy = policy()
        for replay in replayed(world, journal, pacing, Change(), window_from):
            assert all(tally.differs == 0 for tally in replay.tallies.values())


@given(worlds().map(target_cpi))
def test_one_bid_a_day_within_bounds_and_every_later_signal_says_it(world: World) -> None:
    engine, journal, _ = run(world, 1)
    bids: dict[str, list[Signal]] = {}
    in_force: dict[str, int | None] = {}
    for turn in journal:
        for signal in (
            signal for value in turn.values() for signal in decode(value).header.signals
        ):
            if signal.entity.startswith("campaign:"):
                continue
            before, last = bids.setdefault(signal.entity, []), in_force.get(signal.entity)
            ad_group = engine.catalog.ad_groups[signal.entity.removeprefix("ad_group:")].at(
                signal.decided_at_ms
            )
            if ad_group.bid_strategy != "target_cpi":
                last = None
            if signal.action == "bid":
                assert signal.bid_micros is not None
                assert 80_000 <= signal.bid_micros <= ad_group.bid_micros
                assert last is None or signal.bid_micros <= max(3 * last, 100_000)
                assert not before or signal.billing_day > before[-1].billing_day
                before.append(signal)
            else:
                assert signal.bid_micros == last
            in_force[signal.entity] = signal.bid_micros
