"""Time without serving, and what an outage has held up, are not learned as traffic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from pipeline.contract.log import LogRecord
from pipeline.contract.vocabulary import CATALOG, MS_PER_DAY
from pipeline.pacing.predictive import Predictive
from pipeline.pacing.serving import LimitUse, Standing
from pipeline.simulate.bench import EventColumns, bench_engine
from pipeline.simulate.curves import synthetic_curves
from pipeline.simulate.market import build_market
from tests.unit.test_pacing_forecast import (
    DAY,
    HOUR_MS,
    MINUTE_MS,
    NOON_MS,
    PER_MINUTE,
    PRICE,
    STEADY,
    TWO,
    step,
    watched,
)
from tests.unit.test_pacing_pauses import ONE_CAMPAIGN, pause

Rows = npt.NDArray[np.int64]
A_DAY = 24 * 60 * PER_MINUTE * PRICE


def stopped_by_campaign(policy: Predictive) -> None:
    """The campaign is paused at noon, and served again four hours later."""
    paused = pause(policy, "campaign:c", 0, "campaign_daily")
    policy.end_reviews(NOON_MS)
    raised = (LimitUse("campaign_daily", 2_000, 1_000),)
    at = Standing("campaign:c", raised, DAY, NOON_MS + 12 * HOUR_MS, paused, 1, 0)
    signal = policy.review(at, NOON_MS + 4 * HOUR_MS)
    assert signal is not None
    assert signal.action == "resume"
    policy.end_reviews(NOON_MS + 4 * HOUR_MS)


def stopped_by_advertiser(policy: Predictive) -> None:
    policy.note_active(TWO, np.zeros(2, dtype=np.bool_))
    policy.end_reviews(NOON_MS)
    policy.note_active(TWO, np.ones(2, dtype=np.bool_))
    policy.end_reviews(NOON_MS + 4 * HOUR_MS)


@pytest.mark.parametrize("stopped", [stopped_by_campaign, stopped_by_advertiser])
def test_what_was_not_served_is_no_less_traffic(stopped: Callable[[Predictive], None]) -> None:
    policy = watched(STEADY, ONE_CAMPAIGN)
    stopped(policy)
    now_ms = NOON_MS + 4 * HOUR_MS + 5 * MINUTE_MS
    step(policy, now_ms, PRICE, ONE_CAMPAIGN)
    policy.forecasts.catch_up(0, now_ms, 1.0)
    assert policy.forecasts.potential.nanos_per_day(0) == pytest.approx(A_DAY, rel=0.05)


@pytest.mark.parametrize("why", ["paused", "deleted", "campaign"])
def test_an_ad_group_that_cannot_serve_is_not_told_how_much(why: str) -> None:
    policy = watched(STEADY, ONE_CAMPAIGN)
    uses = (LimitUse("ad_group_daily", A_DAY // 4, A_DAY // 8),)
    at = Standing("ad_group:a", uses, DAY, NOON_MS + 12 * HOUR_MS, None, 0, 0, is_even=True)
    if why == "paused":
        policy.note_active(TWO, np.zeros(2, dtype=np.bool_))
    elif why == "campaign":
        pause(policy, "campaign:c", 0, "campaign_daily")
    assert policy.review(replace(at, is_alive=why != "deleted"), NOON_MS) is None


def test_what_an_outage_held_up_is_not_this_hours_traffic() -> None:
    learned, untouched = watched(STEADY), watched(STEADY)
    for turn in range(10):
        now_ms = NOON_MS + 1_000 * turn
        step(learned, now_ms, 3 * PRICE, TWO, impressions=5_000.0, age_ms=2.0 * HOUR_MS)
    traffic, before = (policy.forecasts.traffic.groups for policy in (learned, untouched))
    assert traffic.now_counts.tolist() == before.now_counts.tolist()
    assert traffic.now_exposure_s.tolist() == before.now_exposure_s.tolist()
    prices, before = (policy.forecasts.prices.groups for policy in (learned, untouched))
    assert prices.now_offers.tolist() == before.now_offers.tolist()


class Told(Predictive):
    """Keeps what the engine tells it of statuses."""

    def __init__(self) -> None:
        super().__init__()
        self.active: dict[int, bool] = {}

    def note_active(self, rows: Rows, active: npt.NDArray[np.bool_]) -> None:
        self.active |= dict(zip(rows.tolist(), active.tolist(), strict=True))
        super().note_active(rows, active)


def test_the_engine_tells_which_ad_groups_serve() -> None:
    market = build_market(1, 3, 10_000, synthetic_curves(), DAY * MS_PER_DAY, even=True)
    policy = Told()
    engine, entities = bench_engine(market, policy), dict(market.entities)
    nothing = EventColumns(market).batch([np.empty(0, dtype=np.int64)] * 6)
    engine.turn(nothing, NOON_MS, {})
    assert list(policy.active.values()) == [True] * 3
    group = f"ad_group:{market.group_ids[0]}"
    campaign = f"campaign:{market.campaign_ids[market.campaign[0]]}"
    row = engine.terms.group_row(market.group_ids[0])
    for at, key in enumerate((group, campaign)):
        for status in ("paused", "active"):
            now_ms = NOON_MS + 1_000 * (2 * at + 1 + (status == "active"))
            value = msgspec.json.encode(entities[key] | {"status": status})
            record = LogRecord(CATALOG, 0, now_ms, now_ms, key.encode(), value)
            engine.apply_catalog(record, now_ms)
            engine.turn(nothing, now_ms, {})
            assert policy.active[row] == (status == "active")
