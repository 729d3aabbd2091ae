"""Billing lag, through the engine: throttled while figures are old, resumed when they are not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from pipeline.billing.batch import Assembler
from pipeline.contract.log import LogRecord
from pipeline.contract.partitioning import partition_of
from pipeline.contract.signals import Signal
from pipeline.pacing.lag import PUNCTUAL_AFTER_MS
from pipeline.pacing.predictive import Predictive
from pipeline.pacing.serving import PlainLimits, Policy
from pipeline.streams.engine import Engine
from tests.auditor import SourceRecord
from tests.property.worlds import DAY_MS, HOUR_MS, PARTITIONS, START_MS, chunks_of, make_engine

BOUND_MS = 60_000
NOON_MS = START_MS + 12 * HOUR_MS

HERE, THERE = (
    next(f"c{n}" for n in range(99) if partition_of(f"c{n}", PARTITIONS) == shard)
    for shard in range(2)
)
"""Campaigns of two shards."""

Told = tuple[str, str, float]
"""Campaign or ad group, action and probability of a signal."""


class Lagging:
    """An engine with a bound on the lag; its ad groups may spend three impressions a day."""

    def __init__(self, pacing: Policy | None = None, bound_ms: int = BOUND_MS) -> None:
        self.engine = Engine(replace(make_engine().settings, lag_bound_ms=bound_ms), pacing)
        for shard in range(PARTITIONS):
            self.engine.new_shard(shard)
        self._offset = 0
        self._assembler = Assembler()
        self.put("account:a", {"account_id": "a", "country": "US", "currency": "USD"})
        for campaign in (HERE, THERE):
            self.add_campaign(campaign)

    def put(self, key: str, entity: Mapping[str, Any], now_ms: int = START_MS) -> None:
        self._offset += 1
        value = json.dumps(entity).encode()
        record = LogRecord("ads.catalog", 0, self._offset, now_ms, key.encode(), value)
        self.engine.apply_catalog(record, now_ms)

    def add_campaign(self, campaign: str, now_ms: int = START_MS, **more: Any) -> None:
        of = {"campaign_id": campaign, "account_id": "a", "objective": "awareness"} | more
        self.put(f"campaign:{campaign}", of, now_ms)
        group = {"ad_group_id": f"g{campaign}", "campaign_id": campaign, "budget_type": "daily"}
        terms = {"budget_micros": 6_000, "bid_micros": 2_000_000, "start_ms": START_MS - DAY_MS}
        self.put(f"ad_group:g{campaign}", group | terms, now_ms)
        pin = {"ad_group_id": f"g{campaign}", "review": "approved"}
        self.put(f"promoted_pin:p{campaign}", {"promoted_pin_id": f"p{campaign}"} | pin, now_ms)

    def turn(self, now_ms: int, campaign: str = "", age_ms: int = 0) -> list[Told]:
        """A turn with one impression of this campaign, or none; what ad servers are told."""
        records = [self._impression(campaign, now_ms - age_ms)] if campaign else []
        batch = self._assembler.assemble(chunks_of(records))
        turn = self.engine.turn(batch, now_ms, {})
        signals = [signal for draft in turn.drafts.values() for signal in draft.signals]
        return [told(signal) for signal in signals]

    def is_due(self, now_ms: int) -> bool:
        return self.engine.is_due(now_ms, {})

    def _impression(self, campaign: str, time_ms: int) -> SourceRecord:
        self._offset += 1
        event = {
            "event_id": f"e{self._offset}",
            "event_time_ms": time_ms,
            "campaign_id": campaign,
            "ad_group_id": f"g{campaign}",
            "promoted_pin_id": f"p{campaign}",
            "user_id": "u",
            "impression_id": f"i{self._offset}",
            "price_micros": 2_000_000,
            "placement": "browse",
        }
        partition, value = partition_of(campaign, PARTITIONS), json.dumps(event).encode()
        topic, key = "ads.impressions", campaign.encode()
        return SourceRecord(topic, partition, self._offset, time_ms, key, value)


def told(signal: Signal) -> Told:
    return signal.entity.partition(":")[2], signal.action, signal.serve_probability


def throttle(campaign: str) -> Told:
    return campaign, "throttle", 0.5


def resume(campaign: str) -> Told:
    return campaign, "resume", 1.0


def test_a_lagging_shard_throttles_its_campaigns_once_and_resumes_them_when_it_is_over() -> None:
    lagging = Lagging()
    assert lagging.turn(NOON_MS, HERE, BOUND_MS) == []
    assert lagging.turn(NOON_MS + 1, HERE, BOUND_MS + 1) == [throttle(HERE)]
    standing = lagging.engine.shards[0].standing[f"campaign:{HERE}"]
    assert standing.reason == "billing_lag"
    # The limit is reached meanwhile: the ad group is paused as ever, the throttle stays.
    assert lagging.turn(NOON_MS + 2, HERE, BOUND_MS) == [(f"g{HERE}", "pause", 0.0)]
    assert lagging.turn(NOON_MS + 3, HERE, BOUND_MS // 2) == []
    over_ms = NOON_MS + 3 + PUNCTUAL_AFTER_MS
    assert lagging.turn(over_ms - 1, HERE, BOUND_MS // 2 - 1) == []
    assert lagging.turn(over_ms, HERE, BOUND_MS // 2 - 1) == [resume(HERE)]
    assert lagging.engine.shards[0].versions[f"campaign:{HERE}"] == 2


def test_turns_that_bring_nothing_of_a_lagging_shard_do_not_end_its_lag() -> None:
    """A backlog is read a few partitions at a time, and punctual ones between them."""
    lagging, found = Lagging(), []
    for number in range(40):
        campaign, age_ms = ((HERE, HOUR_MS), (THERE, 500), ("", 0))[number % 3]
        found += lagging.turn(NOON_MS + number * 10_000, campaign, age_ms)
    assert [signal for signal in found if not signal[0].startswith("g")] == [throttle(HERE)]


def test_a_lag_that_nothing_more_comes_of_ends_by_itself() -> None:
    lagging = Lagging()
    assert lagging.turn(NOON_MS, HERE, HOUR_MS) == [throttle(HERE)]
    assert not lagging.is_due(NOON_MS + PUNCTUAL_AFTER_MS - 1)
    assert lagging.is_due(NOON_MS + PUNCTUAL_AFTER_MS)
    assert lagging.turn(NOON_MS + PUNCTUAL_AFTER_MS) == [resume(HERE)]
    assert not lagging.is_due(NOON_MS + HOUR_MS)


@pytest.mark.parametrize("pacing", [PlainLimits, Predictive])
def test_a_campaign_that_begins_to_serve_while_its_shard_lags_is_throttled_too(
    pacing: type[Policy],
) -> None:
    lagging = Lagging(pacing())
    limited = {"daily_spend_limit_micros": 2_000}
    lagging.add_campaign(HERE, **limited)
    assert lagging.turn(START_MS + 23 * HOUR_MS, HERE) == [(HERE, "pause", 0.0)]
    midnight_ms = START_MS + DAY_MS
    assert lagging.turn(midnight_ms - 1, HERE, HOUR_MS) == []
    # Its day's limit frees up.
    assert lagging.turn(midnight_ms) == [resume(HERE), throttle(HERE)]
    # A campaign is added.
    more = next(f"d{n}" for n in range(99) if partition_of(f"d{n}", PARTITIONS) == 0)
    lagging.add_campaign(more, midnight_ms)
    assert lagging.turn(midnight_ms + 1) == [throttle(more)]
    assert lagging.turn(midnight_ms + 2) == []
    over = lagging.turn(midnight_ms + PUNCTUAL_AFTER_MS)
    assert sorted(over) == sorted([resume(HERE), resume(more)])


def test_after_a_takeover_a_lag_lasts_until_nothing_late_has_come_for_a_minute() -> None:
    lagging, heir = Lagging(), Lagging()
    lagging.turn(NOON_MS, HERE, HOUR_MS)
    heir.engine.shards[0].note_signal(lagging.engine.shards[0].standing[f"campaign:{HERE}"])
    heir.engine.adopt(0)
    later_ms = NOON_MS + HOUR_MS
    assert heir.is_due(later_ms)
    assert heir.turn(later_ms) == []
    assert heir.turn(later_ms + 50_000, HERE, HOUR_MS) == []
    assert not heir.is_due(later_ms + 50_000 + PUNCTUAL_AFTER_MS - 1)
    assert heir.turn(later_ms + 50_000 + PUNCTUAL_AFTER_MS) == [resume(HERE)]


def test_of_a_shard_that_is_another_workers_now_nothing_more_is_due() -> None:
    lagging = Lagging()
    lagging.turn(NOON_MS, HERE, HOUR_MS)
    lagging.engine.release(0)
    assert not lagging.is_due(NOON_MS + HOUR_MS)


def test_without_a_bound_no_lag_is_told() -> None:
    lagging = Lagging(bound_ms=0)
    assert lagging.turn(NOON_MS, HERE, HOUR_MS) == []
    assert not lagging.is_due(NOON_MS + PUNCTUAL_AFTER_MS)
