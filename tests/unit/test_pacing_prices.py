"""Prices by hour of the day, and a tight budget that is used up although the evening is cheap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.contract.vocabulary import CPM, MS_PER_DAY
from pipeline.pacing.observed import Facts, Seen, Today
from pipeline.pacing.predictive import Predictive
from pipeline.pacing.prices import HOURS, HourlyPrices
from pipeline.pacing.serving import LimitUse, Standing

EVENING = 14
DAY = 20_513
PER_MINUTE = 50
ROW = np.array([0])


def learned(days: int, prices: np.ndarray) -> HourlyPrices:
    """An ad group that has seen whole days of these prices, and the first event of another."""
    model = HourlyPrices()
    for hour in range(days * HOURS + 1):
        price = prices[hour % HOURS]
        model.observe(ROW, np.array([hour]), np.array([40.0]), np.array([40.0 * price]))
    return model


def from_hour(hour: int) -> np.ndarray:
    """Even traffic of which so many hours have gone by."""
    return np.where(np.arange(HOURS) >= hour, 1.0 / HOURS, 0.0)


def test_a_price_that_falls_every_evening_is_expected_to_fall() -> None:
    model = learned(2, np.where(np.arange(HOURS) < EVENING, 400.0, 200.0))
    later = (400.0 + 10 * 200.0) / 11
    assert model.to_come(0, from_hour(EVENING - 1), 400.0) == pytest.approx(later / 400.0)
    assert model.to_come(0, from_hour(EVENING), 200.0) == pytest.approx(1.0)


def test_half_of_todays_difference_is_expected_to_last() -> None:
    model = learned(2, np.full(HOURS, 100.0))
    assert model.to_come(0, from_hour(12), 200.0) == pytest.approx(2**0.5 / 2)
    assert model.to_come(0, from_hour(12), 50.0) == pytest.approx(2**0.5)


def test_without_earlier_days_the_price_of_now_is_all_that_is_known() -> None:
    assert HourlyPrices().to_come(0, from_hour(5), 300.0) == 1.0
    today = HourlyPrices()
    today.observe(ROW, np.array([5]), np.array([10.0]), np.array([3_000.0]))
    assert today.to_come(0, from_hour(5), 300.0) == 1.0
    for hour, price in ((5, 300.0), (6, 900.0), (7, 900.0)):
        today.observe(ROW, np.array([hour]), np.array([10.0]), np.array([10.0 * price]))
    assert today.to_come(0, from_hour(7), 900.0) == 1.0
    assert learned(1, np.full(HOURS, 100.0)).to_come(0, np.zeros(HOURS), 100.0) == 1.0


def test_hours_never_seen_count_as_the_mean_and_what_is_forgotten_as_unknown() -> None:
    model = HourlyPrices()
    for hour, price in ((3, 100.0), (4, 300.0), (5, 100.0)):
        model.observe(ROW, np.array([hour]), np.array([10.0]), np.array([10.0 * price]))
    assert model.to_come(0, from_hour(20), 200.0) == pytest.approx(1.0)
    model.forget(ROW)
    assert model.to_come(0, from_hour(20), 200.0) == 1.0


def seen(now_ms: int, impressions: int, price_nanos: int) -> Seen:
    """A minute's impressions of the ad group, all billed."""
    count, nanos = np.array([float(impressions)]), np.array([float(impressions * price_nanos)])
    return Seen(
        now_ms=now_ms,
        group=ROW,
        impressions=count,
        mean_age_ms=np.array([1_000.0]),
        last_impression_ms=np.array([now_ms - 1_000]),
        billable=count,
        value_nanos=nanos,
        offered_nanos=nanos,
        clicks=np.zeros(1),
        installs=np.zeros(1),
    )


def shares_used(days: int, budget_of_demand: float) -> list[float]:
    """What an evenly paced ad group uses of its budget on days whose evenings are cheap; the
    budget is this share of what a day's impressions cost."""
    policy, used = Predictive(), []
    prices = np.where(np.arange(HOURS) < EVENING, 4_000, 1_500)
    limit = int(prices.sum() * 60 * PER_MINUTE * budget_of_demand)
    facts = Facts(np.array([CPM]), ROW, ROW, np.array([True]))
    at = Standing("ad_group:g", (), DAY, 0, None, 0, row=0, is_even=True)
    for day in range(DAY, DAY + days):
        start_ms, spend = day * MS_PER_DAY, 0
        at = replace(at, billing_day=day, day_end_ms=start_ms + MS_PER_DAY)
        today = Today(np.array([day]), np.array([start_ms]), np.array([start_ms + MS_PER_DAY]))
        for minute in range(HOURS * 60):
            now_ms = start_ms + (minute + 1) * 60_000 - 1
            probability = 1.0 if at.last is None else at.last.serve_probability
            count, price = round(PER_MINUTE * probability), int(prices[minute // 60])
            policy.observe(seen(now_ms, count, price), facts, today)
            spend += count * price
            use = LimitUse("ad_group_daily", limit, spend, 0, 0)
            signal = policy.review(replace(at, uses=(use,)), now_ms)
            at = at if signal is None else replace(at, last=signal, last_version=signal.version)
        used.append(spend / limit)
    return used


def test_a_tight_budget_is_used_up_although_what_comes_late_is_worth_little() -> None:
    used = shares_used(days=3, budget_of_demand=0.85)
    assert used[0] < 0.97  # nobody knew
    assert used[1] > 0.98
    assert used[2] > 0.98
