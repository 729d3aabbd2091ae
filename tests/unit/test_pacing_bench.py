"""The bench is honest: deterministic, the same demand for all, and its figures add up."""

from __future__ import annotations

import numpy as np

from pipeline.simulate.bench import Bench, BenchOptions
from pipeline.simulate.compare import POLICIES
from pipeline.simulate.curves import synthetic_curves
from pipeline.simulate.market import build_market, demand_of

OPTIONS = BenchOptions(groups=10, days=1, warmup_days=0, impressions_per_day=100_000)


def test_the_same_seed_gives_the_same_figures_and_another_gives_others() -> None:
    first = Bench(OPTIONS, POLICIES["inflight"]).run()
    assert Bench(OPTIONS, POLICIES["inflight"]).run() == first
    other = BenchOptions(seed=2, groups=10, days=1, warmup_days=0, impressions_per_day=100_000)
    assert Bench(other, POLICIES["inflight"]).run() != first


def test_signals_save_what_ignoring_them_gives_away() -> None:
    ignored = Bench(OPTIONS, POLICIES["none"])
    obeyed = Bench(OPTIONS, POLICIES["plain"])
    free, saved = ignored.run().overdelivery, obeyed.run().overdelivery
    assert free > 0.2
    assert saved < free / 20
    # The same Pinners: what could be spent does not depend on the policy.
    assert np.array_equal(ignored.recorder.demand_nanos, obeyed.recorder.demand_nanos)
    spend = ignored.recorder.curve_nanos.sum() + ignored.recorder.free_nanos.sum()
    assert abs(spend / ignored.recorder.demand_nanos.sum() - 1) < 0.02


def test_demand_is_of_the_seed_and_the_minute_alone() -> None:
    market = build_market(3, 10, 100_000, synthetic_curves(), 0, even=False)
    first, again = demand_of(market, 7_200_000), demand_of(market, 7_200_000)
    assert np.array_equal(first.time_ms, again.time_ms)
    assert np.array_equal(first.price_micros, again.price_micros)
    assert (np.diff(first.time_ms) >= 0).all()
    assert (first.price_micros <= market.bid_micros[first.group]).all()
