"""What pacing has learned outlives a takeover, and is left out where it cannot be read."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest

from pipeline.billing import fold
from pipeline.billing.decide import Policy as Judging
from pipeline.contract.log import LogRecord
from pipeline.contract.vocabulary import MS_PER_DAY
from pipeline.pacing.observed import Facts, Today
from pipeline.pacing.predictive import Predictive
from pipeline.streams.engine import Engine, EngineSettings
from tests.unit.test_pacing_inflight import CAMPAIGN, events

CPC = 1
START_MS = 20_513 * MS_PER_DAY
ENTITIES = (
    ("account:a", {"account_id": "a", "country": "US", "currency": "USD"}),
    ("campaign:c", {"campaign_id": "c", "account_id": "a", "objective": "traffic"}),
    (
        "ad_group:g",
        {"ad_group_id": "g", "campaign_id": "c", "budget_type": "daily"}
        | {"budget_micros": 900_000_000, "bid_micros": 500_000},
    ),
)


def engine_with(pacing: Predictive) -> Engine:
    judging = Judging(acceptance_horizon_days=7, user_hash_key=b"0123456789abcdef")
    engine = Engine(EngineSettings(1, judging, 0), pacing)
    engine.new_shard(0)
    for offset, (key, entity) in enumerate(ENTITIES):
        record = LogRecord("ads.catalog", 0, offset, 0, key.encode(), json.dumps(entity).encode())
        engine.apply_catalog(record, START_MS)
    return engine


def taught() -> Predictive:
    """A policy that has watched an hour of the ad group in row 0: ten impressions a second, a
    tenth of them clicked 20 s later, and a pause."""
    pacing = Predictive()
    today = Today(*(np.array([at]) for at in (20_513, START_MS, START_MS + MS_PER_DAY)))
    facts = Facts(np.array([CPC]), CAMPAIGN, np.array([0]), np.array([False]))
    for second in range(600):
        now_ms = START_MS + second * 1_000
        shown = now_ms - 1_000 + np.arange(10) * 100
        clicks = shown[:1] if second > 20 else shown[:0]
        pacing.observe(events(now_ms, shown, clicks), facts, today)
    pacing.forecasts.traffic.fit()
    return pacing


def taken_over(learned: bytes, pacing: Predictive) -> Engine:
    """A worker that begins with a snapshot in which pacing had left this."""
    before = engine_with(Predictive())
    before.shards[0].learned = learned
    packed = fold.pack(before.shards[0], before.balances, before.terms, with_ids=True)
    engine = engine_with(pacing)
    fold.unpack(packed, engine.shards[0], engine.balances, engine.terms)
    engine.adopt(0)
    return engine


def test_what_was_learned_is_known_after_a_takeover() -> None:
    pacing = taught()
    engine = engine_with(pacing)
    engine.note_learned(0)
    heir = Predictive()
    taken_over(engine.shards[0].learned, heir)
    row, basis = np.array([0]), np.array([CPC])
    known = pacing.model.unit_nanos(row, basis, CAMPAIGN)[0]
    assert known > 0
    assert heir.model.unit_nanos(row, basis, CAMPAIGN)[0] == pytest.approx(known, rel=1e-4)
    assert heir.model.stop_s == pacing.model.stop_s
    assert heir.model.ingest_s == pacing.model.ingest_s
    curves = [one.forecasts.traffic.shapes(row, 0) for one in (pacing, heir)]
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
    assert heir.forecasts.potential.per_day(row) == pytest.approx(
        pacing.forecasts.potential.per_day(row), rel=1e-3
    )
    assert heir.forecasts.prices.groups.now_offers[0] > 0
    # Nothing is on its way that the new worker has not seen itself.
    assert heir.model.impressions_per_s(row, START_MS + 900_000)[0] == 0.0


def test_a_campaign_that_was_taken_over_is_known_by_its_ad_groups_at_once() -> None:
    """A pause before its limit is not taken back for want of a reserve."""
    engine = engine_with(taught())
    engine.note_learned(0)
    heir = Predictive()
    taken_over(engine.shards[0].learned, heir)
    price = heir.model.price_nanos(np.array([0]))[0]
    reserve = heir.reserve("campaign", CAMPAIGN, START_MS + 900_000, np.array([10**15]))[0]
    assert price > 0
    assert reserve == pytest.approx(0.9 * price)


def test_what_an_earlier_version_did_not_keep_is_as_new_and_the_rest_is_known() -> None:
    engine = engine_with(taught())
    engine.note_learned(0)
    memory = msgspec.msgpack.decode(engine.shards[0].learned)
    for name in ("usual", "differed"):
        del memory["columns"]["prices"][name]
    heir = Predictive()
    taken_over(msgspec.msgpack.encode(memory), heir)
    prices = heir.forecasts.prices
    assert prices.groups.now_offers[0] > 0
    assert np.isnan(prices.groups.usual[0]).all()
    assert (prices.coming(np.array([0]), np.array([1]), np.array([100.0])) == 1.0).all()


def test_a_worker_that_has_learned_itself_keeps_its_own_delays() -> None:
    engine = engine_with(taught())
    engine.note_learned(0)
    heir = taught()
    heir.model.note_pauses(np.array([0]), START_MS)
    heir.model._stops[:] = (70.0, 10.0)
    taken_over(engine.shards[0].learned, heir)
    assert heir.model.stop_s == 7.0


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_what_cannot_be_read_is_left_out(cut: int) -> None:
    engine = engine_with(taught())
    engine.note_learned(0)
    whole = engine.shards[0].learned
    heir = Predictive()
    broken = b"\xc1" + whole if cut == 0 else whole[:cut]
    taken_over(broken, heir)
    assert heir.model.is_new
    assert heir.model.stop_s == Predictive().model.stop_s


def test_a_checkpoint_carries_nothing_of_it() -> None:
    engine = engine_with(taught())
    engine.note_learned(0)
    sizes = [
        len(fold.pack(engine.shards[0], engine.balances, engine.terms, with_ids=with_ids))
        for with_ids in (True, False)
    ]
    assert sizes[0] - sizes[1] > len(engine.shards[0].learned) > 0
