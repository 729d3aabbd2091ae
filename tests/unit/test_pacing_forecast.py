"""When budgets will have run out: by the prices to come, by campaigns, and as it is recorded."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.contract.pacing_notes import PacingNote
from pipeline.contract.vocabulary import CPM, MS_PER_DAY
from pipeline.pacing import forecast
from pipeline.pacing.forecast import NEAR_MS
from pipeline.pacing.observed import Facts, Seen, Today
from pipeline.pacing.predictive import Predictive
from pipeline.pacing.serving import LimitUse, Standing

HOURS = 24
HOUR_MS = 3_600_000
MINUTE_MS = 60_000
DAY = 20_513
PER_MINUTE = 50
PRICE = 4_000
UNLIMITED = 2**62
NOON_MS = DAY * MS_PER_DAY + 12 * HOUR_MS
TWO = np.array([0, 1])


def step(
    policy: Predictive,
    now_ms: int,
    price: int,
    campaign: np.ndarray,
    impressions: float = 5.0 * PER_MINUTE,
    basis: int = CPM,
    age_ms: float = 1_000.0,
) -> None:
    """Five minutes' impressions of two ad groups, each with a billed event."""
    day = now_ms // MS_PER_DAY
    today = Today(*(np.array([at]) for at in (day, day * MS_PER_DAY, (day + 1) * MS_PER_DAY)))
    count, nothing = np.full(2, impressions), np.zeros(2)
    seen = Seen(
        now_ms=now_ms,
        group=TWO,
        impressions=count,
        mean_age_ms=np.full(2, age_ms),
        last_impression_ms=np.full(2, now_ms - 1_000),
        billable=count,
        value_nanos=count * price,
        offered_nanos=count * price,
        clicks=nothing,
        mean_click_age_ms=nothing,
        installs=nothing,
    )
    policy.observe(
        seen, Facts(np.full(2, basis), campaign, np.zeros(2, int), np.zeros(2, bool)), today
    )


def watched(prices: np.ndarray, campaign: np.ndarray = TWO, basis: int = CPM) -> Predictive:
    """A policy that has seen two days of these hourly prices, and half of a third."""
    policy = Predictive()
    step_ms = 5 * MINUTE_MS
    for now_ms in range((DAY - 2) * MS_PER_DAY + step_ms, NOON_MS + 1, step_ms):
        price = int(prices[(now_ms - 1) // HOUR_MS % HOURS])
        step(policy, now_ms - 1, price, campaign, basis=basis)
    return policy


def minutes_left(policy: Predictive, own: list[int], campaign: list[int]) -> np.ndarray:
    """Shape (3, n): minutes from noon until limits that so much is left of are reached."""
    room = np.array([own, campaign], dtype=np.int64)
    return (policy.exhaustion(TWO, room, NOON_MS) - NOON_MS) / MINUTE_MS


STEADY = np.full(HOURS, PRICE)


def test_a_budget_lasts_as_long_as_its_share_of_the_traffic() -> None:
    hour = 60 * PER_MINUTE * PRICE
    likeliest, low, high = minutes_left(watched(STEADY), [hour, 3 * hour], [UNLIMITED] * 2)
    assert likeliest == pytest.approx([60, 180], rel=0.03)
    assert (low < likeliest - 2).all()
    assert (high > likeliest + 2).all()


def test_the_likeliest_end_is_before_the_middle_of_what_is_poorly_known() -> None:
    hour = 60 * PER_MINUTE * PRICE
    policy, early = watched(STEADY), []
    for error in (0.05, 0.3):
        policy.forecasts.prices.errors[:] = error**2, 1.0
        likeliest, low, high = minutes_left(policy, [3 * hour] * 2, [UNLIMITED] * 2)[:, 0]
        middle = np.sqrt(low * high)
        assert low < likeliest < middle
        early.append(middle / likeliest)
    assert 1.0 < early[0] < 1.02 < early[1] < 1.08


def test_cheap_hours_to_come_make_a_budget_last_longer() -> None:
    hour = 60 * PER_MINUTE * PRICE
    cheap = np.where(np.arange(HOURS) >= 13, PRICE // 2, PRICE)
    [steady, cheaper] = (
        minutes_left(watched(prices), [2 * hour] * 2, [UNLIMITED] * 2)[0, 0]
        for prices in (STEADY, cheap)
    )
    assert steady == pytest.approx(120, rel=0.03)
    # An hour at today's price; what the evenings before cost is believed in part.
    assert 60 + 60 * 1.3 < cheaper < 60 + 60 * 2


def test_a_campaigns_limit_is_reached_by_all_of_its_ad_groups_together() -> None:
    hour = 60 * PER_MINUTE * PRICE
    together, apart = watched(STEADY, np.array([0, 0])), watched(STEADY)
    own = [UNLIMITED] * 2
    assert minutes_left(together, own, [2 * hour] * 2)[0] == pytest.approx([60, 60], rel=0.03)
    assert minutes_left(apart, own, [2 * hour] * 2)[0] == pytest.approx([120, 120], rel=0.03)


def test_an_ad_group_that_ends_before_leaves_the_campaigns_limit_to_the_others() -> None:
    hour = 60 * PER_MINUTE * PRICE
    policy = watched(STEADY, np.array([0, 0]))
    found = minutes_left(policy, [hour, UNLIMITED], [3 * hour] * 2)[0]
    assert found == pytest.approx([60, 120], rel=0.03)


def test_forecasts_are_recorded_more_finely_where_the_end_is_near() -> None:
    policy, names = watched(STEADY), ["ad_group:a", "ad_group:b"]

    def recorded(now_ms: int, near_ms: int) -> list[str]:
        """Whose forecasts are recorded when they are foretold to run out so far from noon."""
        rows = policy.forecasts_due(now_ms)
        if len(rows) == 0:
            return []
        far_ms = NOON_MS + 3 * NEAR_MS + (now_ms - NOON_MS)
        ends = np.array([[NOON_MS + near_ms, far_ms][row] for row in rows.tolist()])
        policy.record(rows, [names[row] for row in rows.tolist()], np.tile(ends, (3, 1)), now_ms)
        return [note.entity for _, note in policy.take_notes()]

    first_ms = NOON_MS
    policy.take_notes()
    assert recorded(first_ms, HOUR_MS) == names
    assert recorded(first_ms + 60_000, HOUR_MS) == []  # not so soon
    assert recorded(first_ms + 120_000, HOUR_MS + 60_000) == []  # hardly moved
    assert recorded(first_ms + 240_000, HOUR_MS + 180_000) == names[:1]
    assert recorded(first_ms + 600_000, HOUR_MS + 180_000) == names[1:]


def test_where_the_end_is_near_all_of_the_campaign_is_asked() -> None:
    policy = watched(STEADY, np.array([0, 0]))
    assert policy.forecasts_due(NOON_MS).tolist() == [0, 1]
    near = np.tile(np.array([NOON_MS + HOUR_MS, NOON_MS + 3 * NEAR_MS]), (3, 1))
    policy.record(TWO, ["ad_group:a", "ad_group:b"], near, NOON_MS)
    assert policy.forecasts_due(NOON_MS + 120_000).tolist() == [0, 1]
    assert policy.forecasts_due(NOON_MS + 121_000).tolist() == []


@pytest.mark.parametrize(
    ("campaign", "pieces"), [(np.array([3, 1]), [[1], [0]]), (np.array([1, 1]), [[0, 1]])]
)
def test_a_round_of_forecasts_is_made_over_several_turns(
    campaign: np.ndarray, pieces: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A campaign's ad groups in one, since its limit is reached by their sum."""
    monkeypatch.setattr(forecast, "PIECE", 1)
    policy = watched(STEADY, campaign)
    found = [policy.forecasts_due(NOON_MS + turn).tolist() for turn in range(3)]
    assert [piece for piece in found if piece] == pieces


NAMES = ["ad_group:a", "ad_group:b"]
END_MS = NOON_MS + 12 * HOUR_MS


def say(policy: Predictive, now_ms: int, ends_ms: list[int]) -> list[tuple[str, int]]:
    """Forecasts of the two ad groups; what of them is put on record."""
    taken(policy)
    policy.record(TWO, NAMES, np.tile(np.array(ends_ms), (3, 1)), now_ms)
    return [(note.entity, note.predicted) for note in taken(policy)]


def taken(policy: Predictive) -> list[PacingNote]:
    return [note for _, note in policy.take_notes() if note.kind == "exhaustion"]


def limit_reached(policy: Predictive, entity: str, row: int, now_ms: int) -> list[PacingNote]:
    """A limit stops an ad group or a campaign; what is put on record of that."""
    uses = (LimitUse("ad_group_daily", 1_000, 1_000, 0, 0),)
    signal = policy.review(Standing(entity, uses, DAY, END_MS, None, 0, row), now_ms)
    assert signal is not None
    assert signal.action == "pause"
    policy.end_reviews(now_ms)
    return taken(policy)


def raise_limit(policy: Predictive, entity: str, row: int, now_ms: int) -> None:
    paused = policy.review(
        Standing(entity, (LimitUse("ad_group_daily", 1, 1),), DAY, END_MS, None, 0, row), now_ms
    )
    uses = (LimitUse("ad_group_daily", 2_000, 1_000),)
    signal = policy.review(Standing(entity, uses, DAY, END_MS, paused, 1, row), now_ms)
    assert signal is not None
    assert signal.action == "resume"
    policy.end_reviews(now_ms)


def turn_the_day(policy: Predictive) -> list[PacingNote]:
    """The first turn of the next day; what is put on record of the one before."""
    policy.take_notes()
    step(policy, END_MS + MINUTE_MS, PRICE, TWO)
    return taken(policy)


def test_what_was_said_an_hour_before_is_compared_with_what_came() -> None:
    """Be it that the budget would last, of which nothing is on record before."""
    policy = watched(STEADY)
    foretold = [(NAMES[0], 0), (NAMES[1], NOON_MS + 3 * HOUR_MS)]
    assert say(policy, NOON_MS, [time_ms for _, time_ms in foretold]) == foretold[1:]
    ran_out_ms = NOON_MS + 2 * HOUR_MS
    for row, (entity, predicted) in enumerate(foretold):
        [note] = limit_reached(policy, entity, row, ran_out_ms)
        assert (note.entity, note.made_at_ms, note.predicted) == (entity, NOON_MS, predicted)
        assert note.realised == note.realised_at_ms == ran_out_ms
    assert turn_the_day(policy) == []


def test_a_campaigns_limit_stops_those_of_its_ad_groups_that_are_served() -> None:
    policy = watched(STEADY, np.array([0, 0]))
    say(policy, NOON_MS, [NOON_MS + 3 * HOUR_MS] * 2)
    assert limit_reached(policy, NAMES[0], 0, NOON_MS + MINUTE_MS) == []
    ran_out_ms = NOON_MS + 2 * HOUR_MS
    [note] = limit_reached(policy, "campaign:c", 0, ran_out_ms)
    assert (note.entity, note.realised) == (NAMES[1], ran_out_ms)


def test_what_was_foretold_and_did_not_come_is_settled_when_the_day_is_over() -> None:
    policy = watched(STEADY)
    say(policy, NOON_MS, [NOON_MS + 3 * HOUR_MS] * 2)
    say(policy, NOON_MS + HOUR_MS, [NOON_MS + 5 * HOUR_MS, 0])
    assert limit_reached(policy, NAMES[1], 1, NOON_MS + HOUR_MS + MINUTE_MS)
    say(policy, NOON_MS + 4 * HOUR_MS + MINUTE_MS, [0, 0])
    [note] = turn_the_day(policy)
    assert (note.entity, note.made_at_ms) == (NAMES[0], NOON_MS + HOUR_MS)
    assert (note.predicted, note.realised) == (NOON_MS + 5 * HOUR_MS, 0)
    assert note.realised_at_ms == END_MS
    step(policy, END_MS + 2 * MINUTE_MS, PRICE, TWO)
    assert taken(policy) == []


def test_what_was_taken_back_an_hour_before_is_no_miss() -> None:
    policy = watched(STEADY)
    say(policy, NOON_MS, [NOON_MS + 3 * HOUR_MS] * 2)
    say(policy, NOON_MS + 2 * HOUR_MS, [0, NOON_MS + 3 * HOUR_MS])
    assert [note.entity for note in turn_the_day(policy)] == NAMES[1:]


def test_what_was_foretold_of_an_ad_group_that_is_paused_in_the_catalog_is_taken_back() -> None:
    policy = watched(STEADY)
    foretold = [NOON_MS + 3 * HOUR_MS] * 2
    say(policy, NOON_MS, foretold)
    policy.note_active(TWO, np.array([False, True]))
    policy.end_reviews(NOON_MS + MINUTE_MS)
    assert say(policy, NOON_MS + HOUR_MS, foretold) == [(NAMES[0], 0)]
    assert [note.entity for note in turn_the_day(policy)] == NAMES[1:]


def test_days_that_are_over_are_settled_over_several_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = watched(STEADY)
    say(policy, NOON_MS, [NOON_MS + 3 * HOUR_MS] * 2)
    monkeypatch.setattr(forecast, "PIECE", 1)
    assert [note.entity for note in turn_the_day(policy)] == NAMES[:1]
    # A forecast for the day that has begun does not wait for it.
    assert say(policy, END_MS + 2 * MINUTE_MS, [0, 0]) == [(NAMES[1], NOON_MS + 3 * HOUR_MS)]


def test_that_a_budget_lasts_is_recorded_where_the_record_may_say_otherwise() -> None:
    policy = watched(STEADY)
    assert say(policy, NOON_MS, [0, 0]) == []
    # Another worker may have foretold something since.
    policy.forget(TWO, TWO)
    step(policy, NOON_MS + 5 * MINUTE_MS, PRICE, TWO)
    assert say(policy, NOON_MS + 6 * MINUTE_MS, [0, 0]) == [(name, 0) for name in NAMES]
    foretold = [(NAMES[1], NOON_MS + 3 * HOUR_MS)]
    assert say(policy, NOON_MS + 10 * MINUTE_MS, [0, NOON_MS + 3 * HOUR_MS]) == foretold
    # What has run out stays as it was foretold ...
    limit_reached(policy, NAMES[1], 1, NOON_MS + 2 * HOUR_MS)
    assert say(policy, NOON_MS + 2 * HOUR_MS, [0, 0]) == []
    # ... until it is served again.
    raise_limit(policy, NAMES[1], 1, NOON_MS + 3 * HOUR_MS)
    assert say(policy, NOON_MS + 3 * HOUR_MS, [0, 0]) == [(NAMES[1], 0)]
    assert say(policy, NOON_MS + 4 * HOUR_MS, [0, 0]) == []
    turn_the_day(policy)
    assert say(policy, END_MS + MINUTE_MS, [0, 0]) == []


def test_of_an_ad_group_that_is_another_workers_now_no_day_is_settled() -> None:
    policy = watched(STEADY)
    say(policy, NOON_MS, [NOON_MS + 3 * HOUR_MS] * 2)
    policy.forget(np.array([0]), np.array([0]))
    assert [note.entity for note in turn_the_day(policy)] == NAMES[1:]
