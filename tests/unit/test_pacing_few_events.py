"""Even pacing of ad groups with a few events a day: budgets are used, without flapping."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from pipeline.contract.vocabulary import CPM, MS_PER_DAY, LimitName
from pipeline.pacing.even import FIRST_PROBABILITY, PotentialModel
from pipeline.pacing.observed import Facts, Seen, Today
from pipeline.pacing.predictive import Predictive
from pipeline.pacing.serving import LimitUse, Standing

DAY = 20_513
LOOK_MS = 1_200_000
PRICE = 2_000_000
ROW = np.array([0])
FACTS = Facts(np.array([CPM]), ROW, ROW, np.array([True]))


@dataclass(frozen=True, slots=True)
class Served:
    """By day: impressions that could be won, those that were charged, and signals."""

    demand: np.ndarray
    charged: np.ndarray
    signals: np.ndarray


def seen(now_ms: int, impressions: int) -> Seen:
    count, nothing = np.array([float(impressions)]), np.zeros(1)
    return Seen(
        now_ms=now_ms,
        group=ROW,
        impressions=count,
        mean_age_ms=np.full(1, LOOK_MS / 2),
        last_impression_ms=np.full(1, now_ms - 1_000 if impressions else 0),
        billable=count,
        value_nanos=count * PRICE,
        offered_nanos=count * PRICE,
        clicks=nothing,
        mean_click_age_ms=nothing,
        installs=nothing,
    )


def served(a_day: int, budget: int, days: int, limit: LimitName, seed: int) -> Served:
    """An ad group with so many impressions a day, whose budget pays for `budget` a day."""
    policy, rng = Predictive(), np.random.default_rng(seed)
    found = Served(*(np.zeros(days) for _ in range(3)))
    lasting = limit == "ad_group_lifetime"
    limit_nanos = budget * PRICE * (days if lasting else 1)
    ends_ms = (DAY + days) * MS_PER_DAY
    at = Standing("ad_group:g", (), DAY, 0, None, 0, 0, True, ends_ms)
    for day in range(days):
        start_ms = (DAY + day) * MS_PER_DAY
        today = Today(*(np.array([of]) for of in (DAY + day, start_ms, start_ms + MS_PER_DAY)))
        at = replace(at, billing_day=DAY + day, day_end_ms=start_ms + MS_PER_DAY)
        for now_ms in range(start_ms + LOOK_MS, start_ms + MS_PER_DAY + 1, LOOK_MS):
            probability = 1.0 if at.last is None else at.last.serve_probability
            demand = rng.poisson(a_day * LOOK_MS / MS_PER_DAY)
            count = rng.binomial(demand, probability)
            spent = found.charged.sum() if lasting else found.charged[day]
            found.demand[day] += demand
            found.charged[day] += min(count, limit_nanos // PRICE - spent)
            spent = found.charged.sum() if lasting else found.charged[day]
            policy.observe(seen(now_ms - 1, count), FACTS, today)
            due = policy.due("ad_group", now_ms)
            if len(due) == 0 and spent * PRICE < limit_nanos:
                continue
            use = LimitUse(limit, limit_nanos, round(spent) * PRICE)
            signal = policy.review(replace(at, uses=(use,)), now_ms - 1)
            policy.end_reviews(now_ms - 1)
            if signal is not None:
                found.signals[day] += 1
                at = replace(at, last=signal, last_version=signal.version)
    return found


@pytest.mark.parametrize("limit", ["ad_group_daily", "ad_group_lifetime"])
@pytest.mark.parametrize(("a_day", "budget"), [(30, 28), (30, 10), (10, 3)])
def test_a_budget_of_a_few_events_is_used(a_day: int, budget: int, limit: LimitName) -> None:
    runs = [served(a_day, budget, 3, limit, seed) for seed in range(3)]
    # The first day, nobody knew.
    used = sum(run.charged[1:].sum() for run in runs)
    if limit == "ad_group_daily":
        could = sum(np.minimum(run.demand, budget)[1:].sum() for run in runs)
    else:
        could = sum(min(3 * budget - run.charged[0], run.demand[1:].sum()) for run in runs)
    assert used >= (0.95 if limit == "ad_group_daily" else 0.85) * could
    assert np.median([run.signals for run in runs]) <= 10


@pytest.mark.parametrize(("a_day", "budget"), [(130, 40), (130, 110), (500, 150)])
def test_chance_costs_no_signals_where_events_are_few(a_day: int, budget: int) -> None:
    runs = [served(a_day, budget, 2, "ad_group_daily", seed) for seed in range(2)]
    could = sum(np.minimum(run.demand, budget)[1:].sum() for run in runs)
    assert sum(run.charged[1:].sum() for run in runs) >= 0.98 * could
    assert np.median([run.signals for run in runs]) < 18


def test_the_longer_nothing_comes_the_less_is_thought_to_be_there() -> None:
    model, found = PotentialModel(), []
    model.note_worth(ROW, np.array([1.0]))
    for _ in range(3):
        model.observe(ROW, np.zeros(1), np.array([0.1]), np.array([FIRST_PROBABILITY]))
        found.append(model.nanos_per_day(0))
    assert not model.is_known(0)
    assert found == pytest.approx([200.0, 100.0, 66.7], rel=0.05)


def test_few_events_are_remembered_until_they_say_something() -> None:
    """Ten a day: an eighth of a day, as long as many are remembered, has one."""
    model = PotentialModel()
    model.note_worth(ROW, np.array([1.0]))
    for _ in range(30):
        model.observe(ROW, np.array([1.0]), np.array([0.1]), np.ones(1))
    assert model.is_known(0)
    assert model.nanos_per_day(0) == pytest.approx(10.0, rel=0.02)
