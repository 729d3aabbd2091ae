"""Even pacing: the probability by which a budget lasts, and when it is worth a signal."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.pacing.even import (
    END_EARLY_SHARE,
    FIRST_PROBABILITY,
    LOOK_AHEAD_SHARE,
    LOWEST_PROBABILITY,
    Budget,
    Line,
    PotentialModel,
    next_probability,
    probability_along,
    wanted_probability,
    with_scarce_traffic,
)
from pipeline.pacing.traffic import HOURS, TrafficModel


def test_a_budget_of_half_the_potential_is_served_half() -> None:
    assert wanted_probability(Budget(50.0, 1.0 + END_EARLY_SHARE), 100.0) == pytest.approx(0.5)


def test_what_cannot_be_used_up_is_served_whole() -> None:
    assert wanted_probability(Budget(500.0, 1.0), 100.0) == 1.0


def test_where_most_of_the_traffic_to_come_is_needed_it_is_not_waited_for() -> None:
    def served(left: float) -> float:
        return with_scarce_traffic(0.1, Budget(left, 1.0 + END_EARLY_SHARE), 100.0)

    assert served(80.0) == pytest.approx(0.92)
    assert served(95.0) == 1.0
    assert served(45.0) == 0.1  # the line says so, and can be trusted
    steps = np.diff([served(left) for left in np.arange(45.0, 95.0, 0.5)])
    assert steps.min() >= 0.0
    assert steps.max() < 0.05  # no jump from one extreme into the other
    assert with_scarce_traffic(0.1, Budget(80.0, 1.0), 0.0) == 0.1


def test_an_unknown_ad_group_begins_slowly() -> None:
    assert wanted_probability(Budget(50.0, 1.0), 0.0) == FIRST_PROBABILITY


def test_a_used_up_budget_never_asks_for_less_than_the_least() -> None:
    assert wanted_probability(Budget(-5.0, 1.0), 100.0) == LOWEST_PROBABILITY


def test_small_corrections_cost_no_signal() -> None:
    assert next_probability(0.5, 0.53, 0.01, left_share=1.0) is None
    assert next_probability(0.5, 0.7, 0.01, left_share=1.0) == 0.7


def test_an_ad_group_that_is_ahead_of_its_line_is_brought_back_within_a_while() -> None:
    line = Line(0.0, 0.0, 99.0)
    on_it = probability_along(line, 0.3, line.at(0.3), 200.0, LOOK_AHEAD_SHARE)
    assert on_it == pytest.approx(0.5)
    ahead = line.at(0.3) + 99.0 * LOOK_AHEAD_SHARE / 2
    assert probability_along(line, 0.3, ahead, 200.0, LOOK_AHEAD_SHARE) < on_it * 0.6
    # Within the while it spends what the line asks for: it is back.
    spent = ahead + 200.0 * LOOK_AHEAD_SHARE * probability_along(
        line, 0.3, ahead, 200.0, LOOK_AHEAD_SHARE
    )
    assert spent == pytest.approx(line.at(0.3 + LOOK_AHEAD_SHARE))


def test_a_line_ends_with_the_budget_before_the_day_does() -> None:
    line = Line(0.4, 30.0, 100.0)
    assert (line.at(0.1), line.at(0.4), line.at(1.0)) == (30.0, 30.0, 100.0)
    assert line.at(1.0 - END_EARLY_SHARE) == pytest.approx(100.0)


def test_a_changed_budget_and_a_lost_ad_group_ask_for_a_new_line() -> None:
    line = Line(0.0, 0.0, 100.0)
    assert line.holds(0.5, 55.0, 100.0)
    assert not line.holds(0.5, 55.0, 200.0)
    assert not line.holds(0.5, 10.0, 100.0)


def test_what_is_poorly_known_or_little_is_corrected_less() -> None:
    assert next_probability(0.5, 0.64, relative_error=0.6, left_share=1.0) is None
    assert next_probability(0.5, 0.64, relative_error=0.01, left_share=0.05) is None


def test_steps_are_bounded() -> None:
    assert next_probability(0.1, 1.0, 0.01, left_share=1.0) == 0.2
    assert next_probability(0.8, 0.01, 0.01, left_share=1.0) == 0.4


def test_potential_is_value_over_traffic_times_probability() -> None:
    model, rows = PotentialModel(), np.array([3])
    for _ in range(200):
        passed, probability = np.array([0.01]), np.array([0.25])
        model.observe(rows, 1_000.0 * passed * probability, passed, probability)
    model.note_worth(rows, np.array([7.0]))
    assert model.nanos_per_day(3) == pytest.approx(7_000.0)


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


def test_what_an_ad_group_differs_in_for_hours_is_kept_and_a_single_hour_only_in_part() -> None:
    rows = np.arange(20)
    counts = np.full((len(rows), HOURS), 1_000.0)
    counts[0, 12:20] = 2_000.0
    counts[1, 15] = 2_000.0
    model = TrafficModel()
    for hour in range(2 * HOURS):
        at, day = np.full(len(rows), hour), np.full(len(rows), hour // HOURS)
        model.observe(rows, at, day, counts[:, hour % HOURS], np.full(len(rows), 3_600.0))
        model.fit()
    lasting, single = model.shapes(rows[:2], 2)
    assert lasting[13:19].mean() / lasting[:11].mean() == pytest.approx(2.0, rel=0.05)
    assert 1.5 < single[15] / single[:11].mean() < 1.8
    assert 1.05 < single[16] / single[:11].mean() < 1.3
    assert single[14] == pytest.approx(single[16])
