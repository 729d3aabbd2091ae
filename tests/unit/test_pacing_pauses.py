"""What is learned from a turn's pauses: all at once, each ad group once, and nothing of one that
is gone."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.contract.pacing_notes import PacingNote
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import CPC, LimitName
from pipeline.pacing.inflight_rows import TIME_CONSTANTS_S
from pipeline.pacing.predictive import Predictive
from pipeline.pacing.serving import LimitUse, Standing
from tests.unit.test_pacing_forecast import (
    DAY,
    HOUR_MS,
    MINUTE_MS,
    NOON_MS,
    PER_MINUTE,
    PRICE,
    STEADY,
    TWO,
    step,
    watched,
)

NAMES = ("ad_group:a", "ad_group:b")
ONE_CAMPAIGN = np.array([0, 0])
COMES = 5 * PER_MINUTE * PRICE
"""Nanos of an ad group in each step."""


def pause(policy: Predictive, entity: str, row: int, limit: LimitName) -> Signal:
    uses = (LimitUse(limit, 1_000, 1_000, 0, 0),)
    standing = Standing(entity, uses, DAY, NOON_MS + 12 * HOUR_MS, None, 0, row)
    signal = policy.review(standing, NOON_MS)
    assert signal is not None
    return signal


def paused_in_one_turn(campaign_too: bool) -> Predictive:
    policy = watched(STEADY, ONE_CAMPAIGN)
    policy.take_notes()
    for row, name in enumerate(NAMES):
        pause(policy, name, row, "ad_group_daily")
    if campaign_too:
        pause(policy, "campaign:c", 0, "campaign_daily")
    policy.end_reviews(NOON_MS)
    return policy


def settled(policy: Predictive, minutes: list[int]) -> dict[str, int]:
    """Steps at these minutes after the pauses; what came of each ad group, once it is noted."""
    for minute in minutes:
        step(policy, NOON_MS + minute * MINUTE_MS, PRICE, ONE_CAMPAIGN)
    notes = [note for _, note in policy.take_notes() if note.kind == "inflight"]
    assert len({note.entity for note in notes}) == len(notes)
    return {note.entity: note.realised for note in notes}


@pytest.mark.parametrize("campaign_too", [False, True])
def test_what_came_after_each_pause_of_a_turn_is_noted_once(campaign_too: bool) -> None:
    policy = paused_in_one_turn(campaign_too)
    assert settled(policy, [5, 10]) == {}
    assert settled(policy, [16]) == dict.fromkeys(NAMES, 3 * COMES)
    assert settled(policy, [40]) == {}


def test_pause_to_stop_is_measured_of_each_ad_group_once() -> None:
    """Nothing comes after the pauses: both have stopped at once."""
    once, twice = (paused_in_one_turn(campaign_too) for campaign_too in (False, True))
    before_s = once.model.stop_s
    for policy in (once, twice):
        step(policy, NOON_MS + 2 * MINUTE_MS, PRICE, ONE_CAMPAIGN, impressions=0.0)
    assert once.model.stop_s < before_s
    assert twice.model.stop_s == once.model.stop_s


def test_of_an_ad_group_that_is_another_workers_now_nothing_more_is_noted() -> None:
    policy = paused_in_one_turn(campaign_too=True)
    policy.forget(np.array([0]), np.empty(0, np.int64))
    assert settled(policy, [5, 10, 16]) == {NAMES[1]: 3 * COMES}
    policy.forget(TWO, np.array([0]))
    assert settled(policy, [40]) == {}


def resumed(policy: Predictive, after_ms: int) -> list[PacingNote]:
    """The first ad group is paused at noon and served again so long after it, its budget raised;
    what is noted then."""
    policy.take_notes()
    paused, _ = [pause(policy, name, row, "ad_group_daily") for row, name in enumerate(NAMES)]
    policy.end_reviews(NOON_MS)
    if after_ms > MINUTE_MS:
        step(policy, NOON_MS + MINUTE_MS, PRICE, ONE_CAMPAIGN)
    raised = (LimitUse("ad_group_daily", 2_000, 1_000, 0, 0),)
    standing = Standing(NAMES[0], raised, DAY, NOON_MS + 12 * HOUR_MS, paused, 0, 0)
    signal = policy.review(standing, NOON_MS + after_ms)
    assert signal is not None
    assert signal.action == "resume"
    return [note for _, note in policy.take_notes() if note.kind == "inflight"]


def test_what_comes_once_it_serves_again_is_not_what_was_inflight() -> None:
    policy = watched(STEADY, ONE_CAMPAIGN)
    (note,) = resumed(policy, 2 * MINUTE_MS)
    assert (note.entity, note.realised) == (NAMES[0], COMES)
    assert note.realised_at_ms == NOON_MS + 2 * MINUTE_MS
    assert settled(policy, [5, 10, 16]) == {NAMES[1]: 4 * COMES}


def test_nothing_is_said_before_what_was_on_the_way_can_have_come() -> None:
    assert resumed(watched(STEADY, ONE_CAMPAIGN), 1_000) == []


def test_of_clicks_only_those_are_expected_that_should_have_come_by_then() -> None:
    policy = watched(STEADY, ONE_CAMPAIGN, basis=CPC)
    asked = np.array([0]), np.array([CPC]), np.array([0]), NOON_MS
    predicted = policy.model.predict(*asked)
    late = policy.model.late_nanos(*asked)[0]
    assert late.sum() == pytest.approx(predicted.mean[0])
    (note,) = resumed(policy, 2 * MINUTE_MS)
    by_then = float((late * (1 - np.exp(-120.0 / TIME_CONSTANTS_S))).sum())
    assert note.predicted == pytest.approx(by_then, rel=1e-6)
    assert 0.5 * predicted.mean[0] < by_then < 0.99 * predicted.mean[0]
    deviation = np.sqrt(by_then * predicted.price[0])
    bounds = by_then - 1.2816 * deviation, by_then + 1.2816 * deviation
    assert (note.low, note.high) == pytest.approx(bounds, abs=1)
