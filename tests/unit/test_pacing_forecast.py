"""When budgets will have run out: by the prices to come, by campaigns, and as it is recorded."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.contract.vocabulary import CPM, MS_PER_DAY
from pipeline.pacing import forecast
from pipeline.pacing.forecast import NEAR_MS
from pipeline.pacing.observed import Facts, Seen, Today
from pipeline.pacing.predictive import Predictive

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
