"""Prices by hour of the day, and a tight budget that is used up although the evening is cheap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.contract.vocabulary import CPM, MS_PER_DAY
from pipeline.pacing.observed import Facts, Seen, Today
from pipeline.pacing.predictive import Predictive
from pipeline.pacing.prices import HOURS, HourlyPrices
from pipeline.pacing.serving import LimitUse, Standing

Floats = npt.NDArray[np.float64]

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


def coming(model: HourlyPrices, hour: int, now: float) -> Floats:
    """The prices expected of each hour of the day over this hour's."""
    return np.asarray(model.coming(ROW, np.array([hour]), np.array([now]))[0])


def test_a_price_that_falls_every_evening_is_expected_to_fall() -> None:
    model = learned(2, np.where(np.arange(HOURS) < EVENING, 400.0, 200.0))
    afternoon = coming(model, EVENING - 1, 400.0)
    assert (afternoon[:EVENING] == 1.0).all()
    # By less than the evenings before: what one day shows is not all there to stay.
    assert (afternoon[EVENING:] > 0.5).all()
    assert (afternoon[EVENING:] < 0.75).all()
    assert coming(model, EVENING, 200.0)[EVENING + 1] == pytest.approx(1.0, abs=0.15)


def test_what_this_hour_differs_from_earlier_days_fades_from_hour_to_hour() -> None:
    model = learned(2, np.full(HOURS, 100.0))
    for now in (200.0, 50.0):
        left = np.log(coming(model, 12, now)[12:] * now / 100.0) / np.log(now / 100.0)
        assert left[0] == pytest.approx(1.0)
        assert (np.diff(left) < 0).all()
        assert left[1] > 0.5
        assert left[-1] == pytest.approx(0.0, abs=0.06)


def test_what_happened_at_an_hour_is_expected_of_the_hours_beside_it_too() -> None:
    model = learned(2, np.where(np.arange(HOURS) == 10, 400.0, 100.0))
    ahead = coming(model, 5, 100.0)
    assert 1.5 < ahead[10] < 2.5
    assert 1.2 < ahead[9] < ahead[10]
    assert ahead[11] == pytest.approx(ahead[9], rel=0.02)
    assert ahead[13] == pytest.approx(1.0, abs=0.05)


def test_what_the_last_hour_differed_by_lasts_longer_than_what_has_just_begun() -> None:
    expected = []
    for before in (100.0, 200.0):
        model, prices = learned(2, np.full(HOURS, 100.0)), [100.0] * 11 + [before, 200.0]
        for hour, price in enumerate(prices, 2 * HOURS):
            model.observe(ROW, np.array([hour]), np.array([200.0]), np.array([200.0 * price]))
        expected.append(coming(model, 12, 200.0)[13] * 200.0)
    assert 100.0 < expected[0] < expected[1] < 200.0


def test_todays_hours_are_usual_from_tomorrow_on() -> None:
    model, price = learned(2, np.full(HOURS, 100.0)), 300.0
    before = coming(model, 5, 100.0)
    for hour in range(2 * HOURS, 3 * HOURS - 1):
        model.observe(ROW, np.array([hour]), np.array([10.0]), np.array([10.0 * price]))
    # Fewer impressions than an hour is compared by: nothing lasts of them either.
    assert coming(model, 5, 100.0) == pytest.approx(before)
    model.observe(ROW, np.array([3 * HOURS]), np.array([10.0]), np.array([10.0 * price]))
    assert coming(model, 5, 100.0)[20] > 1.2


def test_without_earlier_days_the_price_of_now_is_all_that_is_known() -> None:
    assert (coming(HourlyPrices(), 5, 300.0) == 1.0).all()
    today = HourlyPrices()
    for hour, price in ((5, 300.0), (6, 900.0), (7, 900.0)):
        today.observe(ROW, np.array([hour]), np.array([10.0]), np.array([10.0 * price]))
        assert (coming(today, hour, price) == 1.0).all()


def test_hours_never_seen_count_as_the_mean_and_what_is_forgotten_as_unknown() -> None:
    model = HourlyPrices()
    for hour, price in ((3, 100.0), (4, 400.0), (5, 100.0)):
        model.observe(ROW, np.array([hour]), np.array([10.0]), np.array([10.0 * price]))
    usual = model.usual(ROW, np.array([100.0]))[0] * 100.0
    assert usual[3] < usual[23] < usual[4]
    assert usual[23] == pytest.approx((100.0 + 400.0) / 2, rel=0.1)
    model.forget(ROW)
    assert (coming(model, 2, 100.0) == 1.0).all()
    assert (model.usual(ROW, np.array([100.0])) == 1.0).all()


def test_how_far_prices_can_be_foretold_is_measured() -> None:
    steady, erratic = HourlyPrices(), HourlyPrices()
    draws = np.random.default_rng(1).lognormal(6.0, 0.5, 600)
    for hour, draw in enumerate(draws.tolist()):
        for model, price in ((steady, 400.0), (erratic, draw)):
            model.observe(ROW, np.array([hour]), np.array([200.0]), np.array([200.0 * price]))
    assert steady.error < 0.1
    # Twice the prices' own variance less what the mean of a few days tells.
    assert 0.5 < erratic.error < 0.7


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
        mean_click_age_ms=np.zeros(1),
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


def test_a_lifetime_budget_is_spread_by_the_prices_to_come() -> None:
    policy = Predictive()
    prices = np.where(np.arange(HOURS) < EVENING, 4_000, 1_500)
    facts = Facts(np.array([CPM]), ROW, ROW, np.array([True]))
    noon_ms = DAY * MS_PER_DAY + MS_PER_DAY // 2
    for now_ms in range((DAY - 2) * MS_PER_DAY + 300_000, noon_ms + 1, 300_000):
        day, price = (now_ms - 1) // MS_PER_DAY, int(prices[(now_ms - 1) // 3_600_000 % HOURS])
        today = Today(*(np.array([at]) for at in (day, day * MS_PER_DAY, (day + 1) * MS_PER_DAY)))
        policy.observe(seen(now_ms - 1, 5 * PER_MINUTE, price), facts, today)
    hours = (DAY + 2) * HOURS - noon_ms // 3_600_000
    left = PER_MINUTE * 60 * hours * 4_000 // 2
    use = LimitUse("ad_group_lifetime", 2 * left, left, 0, 0)
    end_ms = (DAY + 2) * MS_PER_DAY
    at = Standing("ad_group:g", (use,), DAY, end_ms - MS_PER_DAY, None, 0, 0, True, end_ms)
    signal = policy.review(at, noon_ms)
    assert signal is not None
    # Half would do were all hours as dear as now; what comes is worth two thirds of that.
    assert 0.65 < signal.serve_probability < 0.8
