"""Inflight: what is learned is what the simulated Pinners do."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.contract.vocabulary import CPC, CPM, MS_PER_DAY
from pipeline.pacing import inflight_rows
from pipeline.pacing.inflight import InflightModel
from pipeline.pacing.observed import Events, Seen, by_group

GROUP = np.array([0])
CAMPAIGN = np.array([0])
PRICE = 400_000_000
INGEST_MS = 1_000


def cpc_traffic(
    seconds: int, per_s: float, response: float, mean_delay_s: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Times of impressions, served every other 1,000 s, and of the clicks that follow them,
    exponentially late."""
    rng = np.random.default_rng(1)
    shown = np.sort(rng.uniform(0, seconds * 1_000, rng.poisson(seconds * per_s)))
    shown = shown[shown // 1_000_000 % 2 == 1]
    clicks = shown[rng.random(len(shown)) < response]
    clicks = np.sort(clicks + rng.exponential(mean_delay_s * 1_000, len(clicks)))
    return shown.astype(np.int64), clicks.astype(np.int64)


def events(
    now_ms: int, shown: npt.NDArray[np.int64], clicks: npt.NDArray[np.int64], price: int = PRICE
) -> Seen:
    times = np.concatenate((shown, clicks))
    is_click = np.arange(len(times)) >= len(shown)
    return by_group(
        Events(
            now_ms=now_ms,
            group=np.zeros(len(times), dtype=np.int64),
            is_impression=~is_click,
            is_billable=is_click,
            value_nanos=np.where(is_click, price, 0),
            event_time_ms=times,
            price_nanos=np.full(len(times), price),
            is_install=np.zeros(len(times), dtype=np.bool_),
            is_click=is_click,
        )
    )


def learned(
    shown: npt.NDArray[np.int64], clicks: npt.NDArray[np.int64], until_ms: int
) -> InflightModel:
    """A model that has seen all that arrived by then, second by second."""
    model = InflightModel()
    for now_ms in range(1_000, until_ms + 1, 1_000):
        window = (now_ms - 1_000 - INGEST_MS, now_ms - INGEST_MS)
        here = shown[(shown > window[0]) & (shown <= window[1])]
        acted = clicks[(clicks > window[0]) & (clicks <= window[1])]
        seen = events(now_ms, here, acted)
        if len(seen.group):
            model.observe(seen, np.array([CPC]), CAMPAIGN)
    return model


def test_clicks_still_to_come_are_predicted_by_the_learned_curve_and_rate() -> None:
    shown, clicks = cpc_traffic(40_000, per_s=2.0, response=0.05, mean_delay_s=60.0)
    model = learned(shown, clicks, 40_000_000)
    predicted = model.predict(GROUP, np.array([CPC]), CAMPAIGN, 40_000_000)
    # Steady state: rate x response x (mean delay + ingest + pause-to-stop).
    expected = 2.0 * 0.05 * (60.0 + 1.0 + model.stop_s) * PRICE
    assert predicted.mean[0] == pytest.approx(expected, rel=0.25)
    assert predicted.price[0] == pytest.approx(PRICE)


def test_inflight_dies_down_once_nothing_is_served() -> None:
    shown, clicks = cpc_traffic(6_000, per_s=2.0, response=0.05, mean_delay_s=20.0)
    model = learned(shown, clicks, 6_000_000)
    at_once = model.predict(GROUP, np.array([CPC]), CAMPAIGN, 6_000_000).mean[0]
    later = model.predict(GROUP, np.array([CPC]), CAMPAIGN, 6_000_000 + 600_000).mean[0]
    assert later < 0.1 * at_once


def test_nothing_is_predicted_of_an_ad_group_with_a_few_events() -> None:
    model = InflightModel()
    model.observe(events(1_000, np.arange(900), np.arange(20)), np.array([CPC]), CAMPAIGN)
    assert model.predict(GROUP, np.array([CPC]), CAMPAIGN, 1_000).mean[0] == 0


def test_what_is_predicted_of_some_does_not_hang_on_who_is_asked_for_beside_them() -> None:
    shown, clicks = cpc_traffic(6_000, per_s=2.0, response=0.05, mean_delay_s=20.0)
    model = learned(shown, clicks, 6_000_000)
    alone = model.predict(GROUP, np.array([CPC]), CAMPAIGN, 6_000_000)
    rows, zeros = np.array([3, 0, 7]), np.zeros(3, dtype=np.int64)
    together = model.predict(rows, zeros + CPC, zeros, 6_000_000)
    assert alone.mean[0] > 0
    for name in ("mean", "if_served", "variance", "price"):
        assert getattr(together, name).tolist() == [0.0, getattr(alone, name)[0], 0.0], name


def test_decays_are_the_same_taken_at_once_and_one_by_one() -> None:
    times_s = np.array([0.0, 0.02, 1.0, 59.0, 7_000.0, 1e9])
    slower = inflight_rows.slower_decays(times_s)
    for at, time_s in enumerate(times_s.tolist()):
        expected = np.exp(-time_s / inflight_rows.TIME_CONSTANTS_S)
        at_once = inflight_rows._all_decays(*slower[:, at])
        assert at_once == pytest.approx(expected, rel=1e-12, abs=1e-300)
        assert inflight_rows._decays(time_s) == pytest.approx(at_once, rel=1e-12, abs=1e-300)


def cpm_second(now_ms: int, count: int) -> Seen:
    times = now_ms - INGEST_MS - np.arange(count) * 10
    return of_impressions(now_ms, times, np.zeros(count, dtype=np.int64))


def of_impressions(
    now_ms: int, times: npt.NDArray[np.int64], groups: npt.NDArray[np.int64]
) -> Seen:
    """Billed impressions of some ad groups."""
    count = len(times)
    return by_group(
        Events(
            now_ms=now_ms,
            group=groups,
            is_impression=np.ones(count, dtype=np.bool_),
            is_billable=np.ones(count, dtype=np.bool_),
            value_nanos=np.full(count, 2_000_000),
            event_time_ms=times,
            price_nanos=np.full(count, 2_000_000),
            is_install=np.zeros(count, dtype=np.bool_),
            is_click=np.zeros(count, dtype=np.bool_),
        )
    )


def seen_at(turn_ms: int, every_ms: int, delay_ms: int) -> Seen:
    """A turn that sees an impression of each tenth of a second since the one before."""
    arrived = np.arange(turn_ms - every_ms + 100, turn_ms + 1, 100)
    return events(turn_ms, arrived - delay_ms, np.empty(0, dtype=np.int64))


@pytest.mark.parametrize("every_ms", [200, 2_000, 30_000])
def test_waiting_for_a_turn_is_not_being_on_the_way(every_ms: int) -> None:
    model = InflightModel()
    for turn_ms in range(every_ms, 600_000, every_ms):
        model.observe(seen_at(turn_ms, every_ms, INGEST_MS), np.array([CPM]), CAMPAIGN)
    assert model.ingest_s == pytest.approx(1.0, abs=0.06)


def test_what_is_on_the_way_is_as_old_as_when_it_arrives() -> None:
    """Delays differ, so the newest of a turn tells less of the waiting than the time between."""
    rng, model = np.random.default_rng(1), InflightModel()
    served = np.arange(0, 600_000, 5)
    arrived = served + rng.uniform(500, 1_500, len(served)).astype(np.int64)
    for turn_ms in range(200, 600_000, 200):
        times = served[(arrived > turn_ms - 200) & (arrived <= turn_ms)]
        if len(times):
            seen = events(turn_ms, times, np.empty(0, dtype=np.int64))
            model.observe(seen, np.array([CPM]), CAMPAIGN)
    assert model.ingest_s == pytest.approx(1.0, abs=0.03)


def test_one_impression_of_yesterday_is_one_late_impression() -> None:
    """An ad group of its own, in every tenth turn of a hundred impressions."""
    model = InflightModel()
    for turn in range(1, 1_000):
        turn_ms = MS_PER_DAY * 2 + turn * 500
        times = np.arange(turn_ms - 500, turn_ms, 5) - INGEST_MS
        groups = np.zeros(len(times), dtype=np.int64)
        if turn % 10 == 0:
            times, groups = np.append(times, turn_ms - MS_PER_DAY), np.append(groups, 1)
        seen = of_impressions(turn_ms, times, groups)
        model.observe(seen, np.full(len(seen.group), CPM), np.zeros(len(seen.group), dtype=int))
    # A minute of one in a thousand.
    assert model.ingest_s == pytest.approx(1.0 + 0.06, abs=0.05)


def test_impressions_that_come_all_at_once_have_not_waited() -> None:
    """A rest between turns is no waiting: what ends it is decided at once."""
    model = InflightModel()
    for turn_ms in range(60_000, 3_000_000, 60_000):
        times = np.full(50, turn_ms - 4_000)
        seen = events(turn_ms, times, np.empty(0, dtype=np.int64))
        model.observe(seen, np.array([CPM]), CAMPAIGN)
    assert model.ingest_s == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize("late", [False, True])
def test_of_a_turn_that_a_pause_falls_into_only_what_was_served_after_it_counts(
    late: bool,
) -> None:
    """Ten impressions a second until 2 s after each pause; one of an hour before may come too."""
    model, every_ms = InflightModel(), 10_000
    for pause in range(20):
        start_ms = (pause + 1) * 10_000_000
        for turn_ms in range(start_ms, start_ms + 600_000, every_ms):
            model.observe(seen_at(turn_ms, every_ms, INGEST_MS), np.array([CPM]), CAMPAIGN)
        # The last turn sees 8 s before the pause and 2 s after it.
        last_ms = start_ms + 600_000
        model.note_pauses(np.array([0]), last_ms - 3_000)
        times = np.arange(last_ms - every_ms + 100, last_ms + 1, 100) - INGEST_MS
        if late:
            times = np.append(times, last_ms - 3_600_000)
        seen = events(last_ms, times, np.empty(0, dtype=np.int64))
        model.observe(seen, np.array([CPM]), CAMPAIGN)
        later_ms = last_ms + 300_000
        later = events(later_ms, np.array([later_ms - INGEST_MS]), np.empty(0, dtype=np.int64))
        model.observe(later, np.array([CPM]), CAMPAIGN)
    assert model.stop_s == pytest.approx(1.0 if late else 2.0, rel=0.2)


def paused_fleet(seconds_after: int) -> InflightModel:
    """Ten impressions a second, a pause at 600 s, and so many seconds more of them after it."""
    model = InflightModel()
    for pause in range(20):
        start_ms = pause * 1_000_000
        for second in range(1, 600):
            model.observe(cpm_second(start_ms + second * 1_000, 10), np.array([CPM]), CAMPAIGN)
        pause_ms = start_ms + 600_000
        model.note_pauses(np.array([0]), pause_ms)
        for second in range(1, seconds_after + 2):
            model.observe(cpm_second(pause_ms + second * 1_000, 10), np.array([CPM]), CAMPAIGN)
        model.observe(cpm_second(pause_ms + 300_000, 1), np.array([CPM]), CAMPAIGN)
    return model


def test_pause_to_stop_is_measured_by_the_impressions_that_come_after_a_pause() -> None:
    assert paused_fleet(6).stop_s == pytest.approx(6.0, rel=0.3)


def test_a_pause_that_nobody_obeys_says_nothing_of_reaction_times() -> None:
    assert paused_fleet(120).stop_s == pytest.approx(3.0)


def stopped_and_served_again(again_s: int) -> InflightModel:
    """Ten impressions a second for ten minutes, two minutes of none, and so many seconds more."""
    model, no_clicks = InflightModel(), np.empty(0, dtype=np.int64)
    for turn_ms in range(1_000, 720_000 + again_s * 1_000 + 1, 1_000):
        if turn_ms in (600_000, 720_000):
            model.note_serving(GROUP, np.array([turn_ms == 720_000]), turn_ms)
        times = np.arange(turn_ms - 900, turn_ms + 1, 100)
        stopped = (times > 600_000) & (times <= 720_000)
        seen = events(turn_ms, times[~stopped], no_clicks)
        if len(seen.group):
            model.observe(seen, np.array([CPM]), CAMPAIGN)
    return model


def test_what_is_served_again_is_served_as_much_as_before() -> None:
    before, again = (stopped_and_served_again(seconds) for seconds in (0, 20))
    assert before.impressions_per_s(GROUP, 720_000)[0] == pytest.approx(10.0, rel=0.05)
    assert again.impressions_per_s(GROUP, 740_000)[0] == pytest.approx(10.0, rel=0.05)


def test_of_a_stopped_ad_group_nothing_is_on_its_way() -> None:
    model = paused_fleet(6)
    now_ms = 19_901_000
    asked = GROUP, np.array([CPM]), CAMPAIGN, now_ms
    served = model.predict(*asked)
    assert served.mean[0] == served.if_served[0] > 0
    model.note_serving(GROUP, np.array([False]), now_ms)
    stopped = model.predict(*asked)
    assert (stopped.mean[0], stopped.if_served[0]) == (0.0, pytest.approx(served.if_served[0]))


def test_pause_to_stop_is_not_measured_of_what_was_stopped_before() -> None:
    """As a campaign's pause reaches ad groups that had theirs."""
    model = stopped_and_served_again(30)
    before_s = model.stop_s
    for serves in (True, False):
        model.note_serving(GROUP, np.array([serves]), 750_000)
        model.note_pauses(GROUP, 750_000)
        seen = events(850_000, np.array([849_000]), np.empty(0, dtype=np.int64))
        model.observe(seen, np.array([CPM]), CAMPAIGN)
        assert (model.stop_s < before_s) == serves
        before_s = model.stop_s
