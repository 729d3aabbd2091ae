"""Serving states: the plain rule as it always was, and what prediction adds to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.contract.days import from_iso
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import CPM, LimitName
from pipeline.pacing.observed import Events, Facts, Seen, Today, by_group
from pipeline.pacing.predictive import INFLIGHT, INFLIGHT_SMALLER, Predictive, Tuning
from pipeline.pacing.serving import LIMIT_FREE, LIMIT_REACHED, LimitUse, PlainLimits, Standing

DAY = from_iso("2026-03-02")
DAY_END_MS = (DAY + 1) * 86_400_000
NOW_MS = DAY * 86_400_000 + 3_600_000


def use(spend: int, reserve: int = 0, limit: LimitName = "ad_group_daily") -> LimitUse:
    return LimitUse(limit, 1_000, spend, reserve, reserve)


def standing(
    *uses: LimitUse, last: Signal | None = None, day: int = DAY, entity: str = "ad_group:g"
) -> Standing:
    return Standing(
        entity=entity,
        uses=uses,
        billing_day=day,
        day_end_ms=DAY_END_MS,
        last=last,
        last_version=0 if last is None else last.version,
        row=0,
    )


def test_a_reached_limit_pauses_with_its_figures_under_either_policy() -> None:
    for policy in (PlainLimits(), Predictive()):
        signal = policy.review(standing(use(1_000)), NOW_MS)
        assert signal is not None
        assert (signal.action, signal.reason, signal.version) == ("pause", LIMIT_REACHED, 1)
        assert (signal.limit, signal.limit_nanos, signal.spend_nanos) == (
            "ad_group_daily",
            1_000,
            1_000,
        )
        assert signal.resume_at_ms == DAY_END_MS


def test_the_next_day_resumes_under_either_policy() -> None:
    for policy in (PlainLimits(), Predictive()):
        paused = policy.review(standing(use(1_000)), NOW_MS)
        assert policy.review(standing(use(1_000), last=paused), NOW_MS + 1) is None
        signal = policy.review(standing(use(0), last=paused, day=DAY + 1), DAY_END_MS)
        assert signal is not None
        assert (signal.action, signal.reason, signal.version) == ("resume", LIMIT_FREE, 2)


def test_inflight_pauses_before_the_limit_and_says_so() -> None:
    signal = Predictive().review(standing(use(900, reserve=100)), NOW_MS)
    assert signal is not None
    assert (signal.action, signal.reason, signal.inflight_nanos) == ("pause", INFLIGHT, 100)


def test_the_limit_is_announced_even_after_an_inflight_pause() -> None:
    policy = Predictive()
    early = policy.review(standing(use(900, reserve=100)), NOW_MS)
    signal = policy.review(standing(use(1_000), last=early), NOW_MS + 5_000)
    assert signal is not None
    assert (signal.action, signal.reason, signal.version) == ("pause", LIMIT_REACHED, 2)


def test_an_inflight_pause_is_taken_back_late_and_only_for_clear_room() -> None:
    policy = Predictive()
    paused = policy.review(standing(use(900, reserve=100)), NOW_MS)
    later_ms = NOW_MS + Tuning().resume_after_ms
    assert policy.review(standing(use(900, reserve=10), last=paused), later_ms - 1) is None
    assert policy.review(standing(use(900, reserve=80), last=paused), later_ms) is None
    signal = policy.review(standing(use(900, reserve=10), last=paused), later_ms)
    assert signal is not None
    assert (signal.action, signal.reason) == ("resume", INFLIGHT_SMALLER)


@pytest.mark.parametrize(
    ("entity", "limit"),
    [("ad_group:g", "ad_group_daily"), ("campaign:c", "campaign_lifetime")],
)
def test_an_inflight_pause_is_looked_at_again_until_it_is_taken_back(
    entity: str, limit: LimitName
) -> None:
    """By time alone: nothing more may come of what is stopped. After a takeover too."""
    level, near = entity.partition(":")[0], use(900, reserve=100, limit=limit)
    policy, heir = Predictive(), Predictive()
    paused = policy.review(standing(near, entity=entity), NOW_MS)
    assert paused is not None
    heir.note_standing(level, 0, paused)
    for one, due_ms in ((policy, NOW_MS + Tuning().look_ms), (heir, NOW_MS)):
        for _ in range(2):
            assert one.is_due(due_ms)
            assert one.due(level, due_ms).tolist() == [0]
            assert one.due(level, due_ms).tolist() == []
            assert one.review(standing(near, last=paused, entity=entity), due_ms) is None
            due_ms += Tuning().look_ms
    late_ms = NOW_MS + 10 * Tuning().look_ms
    little = use(900, reserve=10, limit=limit)
    signal = policy.review(standing(little, last=paused, entity=entity), late_ms)
    assert signal is not None
    assert (signal.action, signal.reason) == ("resume", INFLIGHT_SMALLER)


@pytest.mark.parametrize("entity", ["ad_group:g", "campaign:c"])
def test_serving_never_flaps(entity: str) -> None:
    policy, last, signals = Predictive(), None, 0
    for minute in range(60):
        of = standing(use(900, 100 if minute % 2 == 0 else 1), last=last, entity=entity)
        signal = policy.review(of, NOW_MS + minute * 60_000)
        if signal is not None:
            signals += 1
            last = signal
    assert signals == 2 * Tuning().resumes_an_hour + 1


def test_what_another_worker_serves_now_has_its_resumes_again() -> None:
    policy, last, resumes = Predictive(), None, 0
    for minute in range(60):
        if minute == 30:
            policy.forget(np.array([0]), np.array([0]))
        of = standing(use(900, 100 if minute % 2 == 0 else 1), last=last)
        last = policy.review(of, NOW_MS + minute * 60_000) or last
        resumes += last is not None and last.decided_at_ms == NOW_MS + minute * 60_000
    assert resumes > 2 * Tuning().resumes_an_hour + 1


def test_a_raised_limit_resumes_at_once() -> None:
    policy = Predictive()
    paused = policy.review(standing(use(900, reserve=100)), NOW_MS)
    raised = LimitUse("ad_group_daily", 5_000, 900, 100, 100)
    signal = policy.review(standing(raised, last=paused), NOW_MS + 1)
    assert signal is not None
    assert (signal.action, signal.reason) == ("resume", LIMIT_FREE)


def test_without_evidence_nothing_is_held_back_before_a_limit() -> None:
    limits = np.array([1_000, 1_000])
    assert Predictive().reserve("ad_group", np.array([0, 1]), NOW_MS, limits).tolist() == [0, 0]
    assert Predictive().reserve("campaign", np.array([0, 1]), NOW_MS, limits).tolist() == [0, 0]


def impressions(now_ms: int, count: int) -> Seen:
    """As many impressions of one ad group, in the second before."""
    return by_group(
        Events(
            now_ms=now_ms,
            group=np.zeros(count, dtype=np.int64),
            is_impression=np.ones(count, dtype=np.bool_),
            is_billable=np.ones(count, dtype=np.bool_),
            value_nanos=np.ones(count, dtype=np.int64),
            event_time_ms=now_ms - np.arange(count) * 10,
            price_nanos=np.ones(count, dtype=np.int64),
            is_install=np.zeros(count, dtype=np.bool_),
            is_click=np.zeros(count, dtype=np.bool_),
        )
    )


def test_a_campaigns_lost_pause_is_sent_again_ever_more_seldom_while_it_is_served() -> None:
    facts = Facts(np.array([CPM]), np.array([7]), np.array([0]), np.array([False]))
    today = Today(np.array([DAY]), np.array([DAY * 86_400_000]), np.array([DAY_END_MS]))
    policy = Predictive()
    policy.observe(impressions(NOW_MS, 90), facts, today)
    limit = use(1_000, limit="campaign_daily")
    of_campaign = replace(standing(limit), entity="campaign:c", row=7)
    paused = policy.review(of_campaign, NOW_MS)
    assert paused is not None
    last, sent_s = paused, []
    for second in range(1, 121):
        now_ms = NOW_MS + second * 1_000
        policy.observe(impressions(now_ms, 5), facts, today)
        for row in policy.due("campaign", now_ms).tolist():
            again = policy.review(
                replace(of_campaign, row=row, last=last, last_version=last.version), now_ms
            )
            if again is not None:
                assert (again.action, again.reason) == ("pause", LIMIT_REACHED)
                assert again.version == last.version + 1
                last = again
                sent_s.append(second)
    assert len(sent_s) >= 3
    waits = np.diff([0, *sent_s])
    assert (waits[2:] >= 1.5 * waits[1:-1]).all()
    assert sent_s[0] >= Tuning().again_first_ms // 1_000


def test_a_campaign_that_is_no_longer_served_is_not_told_again() -> None:
    facts = Facts(np.array([CPM]), np.array([7]), np.array([0]), np.array([False]))
    today = Today(np.array([DAY]), np.array([DAY * 86_400_000]), np.array([DAY_END_MS]))
    policy = Predictive()
    policy.observe(impressions(NOW_MS, 90), facts, today)
    limit = use(1_000, limit="campaign_daily")
    assert policy.review(replace(standing(limit), entity="campaign:c", row=7), NOW_MS)
    policy.observe(impressions(NOW_MS + 2_000, 5), facts, today)
    assert policy.due("campaign", NOW_MS + 60_000).tolist() == []
