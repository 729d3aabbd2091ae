"""The end that even pacing plans for: the ad group's own, on days of 23 to 25 hours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.contract.days import calendar, from_iso
from pipeline.contract.vocabulary import CPM, MS_PER_DAY, LimitName
from pipeline.pacing.observed import Facts, Today
from pipeline.pacing.predictive import Predictive
from pipeline.pacing.serving import LimitUse, Standing
from tests.unit.test_pacing_few_events import DAY, FACTS, PRICE, ROW, seen

HOUR_MS = 3_600_000
LOOK_MS = 300_000
START_MS = DAY * MS_PER_DAY
TODAY = Today(*(np.array([of]) for of in (DAY, START_MS, START_MS + MS_PER_DAY)))


@pytest.mark.parametrize("limit", ["ad_group_daily", "ad_group_lifetime"])
def test_a_budget_whose_dates_end_at_noon_is_used_by_noon(limit: LimitName) -> None:
    """Half of what comes until noon would do."""
    policy, a_look = Predictive(), 40
    looks = 12 * HOUR_MS // LOOK_MS
    limit_nanos = a_look * looks // 2 * PRICE
    ends_ms = START_MS + 12 * HOUR_MS
    at = Standing("ad_group:g", (), DAY, START_MS + MS_PER_DAY, None, 0, 0, True, ends_ms)
    spend, by = 0, []
    for now_ms in range(START_MS + LOOK_MS, ends_ms + 1, LOOK_MS):
        probability = 1.0 if at.last is None else at.last.serve_probability
        count = round(a_look * probability)
        spend = min(limit_nanos, spend + count * PRICE)
        policy.observe(seen(now_ms, count), FACTS, TODAY)
        signal = policy.review(replace(at, uses=(LimitUse(limit, limit_nanos, spend),)), now_ms)
        if signal is not None:
            at = replace(at, last=signal, last_version=signal.version)
        by.append(spend / limit_nanos)
    assert by[-1] > 0.98
    assert by[looks // 2] < 0.65


@pytest.mark.parametrize(
    ("day", "hours"),
    [
        ("2026-03-07", [0, 1, 2, 3, 22, 23]),
        ("2026-03-08", [0, 1, 3, 4, 23, 24]),
        ("2026-11-01", [0, 1, 1, 2, 21, 22]),
    ],
)
def test_hours_are_those_on_the_clock(day: str, hours: list[int]) -> None:
    zone, at = calendar("America/New_York"), from_iso(day)
    today = Today(*(np.array([of]) for of in (at, zone.start_ms(at), zone.end_ms(at))))
    times = zone.start_ms(at) + np.array([0, 1, 2, 3, 22, 23]) * HOUR_MS
    where = np.zeros(len(times), dtype=np.int64)
    assert today.hours(where, times).tolist() == hours
    later = today.times_ms(where, np.array(hours, dtype=np.float64))
    assert later[2:].tolist() == times[2:].tolist()
    assert today.hours(ROW, zone.end_ms(at)).tolist() == [24.0]


def test_a_longer_day_is_not_over_for_an_hour() -> None:
    zone, at = calendar("America/New_York"), from_iso("2026-11-01")
    today = Today(*(np.array([of]) for of in (at, zone.start_ms(at), zone.end_ms(at))))
    policy, end_ms = Predictive(), zone.end_ms(at)
    facts = Facts(np.array([CPM]), ROW, ROW, np.array([True]))
    policy.observe(seen(end_ms - HOUR_MS, 100), facts, today)
    gone, by_end = policy.forecasts.shares_gone(0, end_ms - HOUR_MS, end_ms)
    assert (gone, by_end) == pytest.approx((23 / 24, 1.0))
