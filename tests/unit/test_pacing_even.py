"""Even pacing: the probability by which a budget lasts, and when it is worth a signal."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.pacing.even import (
    END_EARLY_SHARE,
    FIRST_PROBABILITY,
    LOWEST_PROBABILITY,
    Budget,
    PotentialModel,
    next_probability,
    wanted_probability,
)
from pipeline.pacing.traffic import HOURS, TrafficModel


def test_a_budget_of_half_the_potential_is_served_half() -> None:
    assert wanted_probability(Budget(50.0, 1.0 + END_EARLY_SHARE), 100.0) == pytest.approx(0.5)


def test_what_cannot_be_used_up_is_served_whole() -> None:
    assert wanted_probability(Budget(500.0, 1.0), 100.0) == 1.0


def test_an_unknown_ad_group_begins_slowly() -> None:
    assert wanted_probability(Budget(50.0, 1.0), 0.0) == FIRST_PROBABILITY


def test_a_used_up_budget_never_asks_for_less_than_the_least() -> None:
    assert wanted_probability(Budget(-5.0, 1.0), 100.0) == LOWEST_PROBABILITY


def test_small_corrections_cost_no_signal() -> None:
    assert next_probability(0.5, 0.53, 0.01, left_share=1.0) is None
    assert next_probability(0.5, 0.6, 0.01, left_share=1.0) == 0.6


def test_what_is_poorly_known_or_little_is_corrected_less() -> None:
    assert next_probability(0.5, 0.6, relative_error=0.6, left_share=1.0) is None
    assert next_probability(0.5, 0.6, relative_error=0.01, left_share=0.1) is None


def test_steps_are_bounded() -> None:
    assert next_probability(0.1, 1.0, 0.01, left_share=1.0) == 0.2
    assert next_probability(0.8, 0.01, 0.01, left_share=1.0) == 0.4


def test_potential_is_value_over_traffic_times_probability() -> None:
    model, rows = PotentialModel(), np.array([3])
    for _ in range(200):
        passed, probability = np.array([0.01]), np.array([0.25])
        model.observe(rows, 1_000.0 * passed * probability, np.array([5.0]), passed, probability)
    assert model.nanos_per_day(3) == pytest.approx(1_000.0)


def _days(model: TrafficModel, truth: np.ndarray, served: np.ndarray, days: int) -> None:
    """Whole days of hourly traffic of ad groups, of which `served` (groups, hours) is seen."""
    rows = np.arange(len(served))
    for day in range(days):
        for hour in range(HOURS):
            share = served[:, hour]
            model.observe(
                rows,
                np.full(len(rows), day * HOURS + hour),
                np.full(len(rows), day % 7),
                truth[hour] * share,
                3_600.0 * share,
            )
        model.fit()


def test_hours_that_were_throttled_or_stopped_do_not_look_quiet() -> None:
    truth = 1_000.0 * (1.5 + np.sin(np.arange(HOURS) / HOURS * 2 * np.pi))
    served = np.ones((5, HOURS))
    served[0, 12:] = 0.0  # ran out at noon
    served[1, :] = 0.2  # throttled
    model = TrafficModel()
    _days(model, truth, served, days=4)
    wanted = truth / truth.mean()
    for row in (0, 1, 2):
        assert np.abs(model.shapes(np.array([row]), 0)[0] - wanted).max() < 0.05


def test_an_unseen_ad_group_has_the_common_curve_and_nobody_a_flat_one() -> None:
    assert TrafficModel().shapes(np.array([7]), 0)[0].tolist() == [1.0] * HOURS
    truth = 1_000.0 * (1.5 + np.cos(np.arange(HOURS) / HOURS * 2 * np.pi))
    model = TrafficModel()
    _days(model, truth, np.ones((3, HOURS)), days=3)
    assert np.abs(model.shapes(np.array([9]), 2)[0] - truth / truth.mean()).max() < 0.05
