"""Odd records are refused or judged; one that raised would stop every worker, again and again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.billing.batch import Assembler
from pipeline.contract.catalog import Accepted, Refused
from pipeline.contract.log import LogRecord
from pipeline.contract.partitioning import partition_of
from pipeline.contract.vocabulary import CLICKS, DISPOSITIONS
from pipeline.streams.engine import Engine
from pipeline.streams.writer import prepare
from tests.auditor import SourceRecord
from tests.property.worlds import PARTITIONS, START_MS, TO_THE_END, chunks_of, make_engine

ENTITIES: list[tuple[str, dict[str, Any]]] = [
    ("account:a", {"account_id": "a", "country": "GB", "currency": "GBP"}),
    ("campaign:c", {"campaign_id": "c", "account_id": "a", "objective": "awareness"}),
]
GROUP = {
    "ad_group_id": "g",
    "campaign_id": "c",
    "budget_type": "daily",
    "budget_micros": 10**9,
    "bid_micros": 10**9,
}


class Feed:
    """An engine and the offset of its next catalog record."""

    def __init__(self) -> None:
        self.engine: Engine = make_engine()
        self._offset = 0

    def publish(self, key: str, value: dict[str, Any] | None) -> Accepted | Refused:
        encoded = None if value is None else json.dumps(value).encode()
        record = LogRecord("ads.catalog", 0, self._offset, START_MS, key.encode(), encoded)
        self._offset += 1
        return self.engine.apply_catalog(record, START_MS)


@pytest.fixture
def feed() -> Feed:
    found = Feed()
    for key, value in ENTITIES:
        assert isinstance(found.publish(key, value), Accepted)
    return found


@pytest.mark.parametrize("kind", ["account", "campaign", "ad_group", "promoted_pin", "fx", "close"])
def test_a_deletion_of_what_was_never_there_does_nothing(feed: Feed, kind: str) -> None:
    assert isinstance(feed.publish(f"{kind}:2026-01-01", None), Accepted)


def test_null_for_an_optional_field_counts_as_absent(feed: Feed) -> None:
    account = {"account_id": "b", "country": "US", "currency": "USD", "time_zone": None}
    assert isinstance(feed.publish("account:b", account), Accepted)
    given = {"status": None, "pacing": None, "bid_strategy": None, "start_ms": None}
    assert isinstance(feed.publish("ad_group:g", GROUP | given), Accepted)
    group = feed.engine.catalog.ad_groups["g"].latest
    assert (group.status, group.pacing, group.bid_strategy) == ("active", "asap", "max_bid")


@pytest.mark.parametrize("field", ["budget_micros", "budget_type", "campaign_id"])
def test_null_for_a_required_field_is_refused(feed: Feed, field: str) -> None:
    refused = feed.publish("ad_group:g", GROUP | {field: None, "pacing": None})
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.field) == ("malformed", field)


def test_a_zone_that_each_machine_has_its_own_of_is_refused(feed: Feed) -> None:
    account = {"account_id": "b", "country": "US", "currency": "USD", "time_zone": "localtime"}
    assert isinstance(feed.publish("account:b", account), Refused)


def test_a_credit_cannot_be_deleted(feed: Feed) -> None:
    assert isinstance(feed.publish("credit:nobody", None), Refused)


@pytest.mark.parametrize("rate", ["1e-5000", "1e-999999", "1e9", "1_0", " 1", "0", "-1", "NaN", ""])
def test_a_rate_that_is_none_is_refused(feed: Feed, rate: str) -> None:
    rates = {"fx_day": "2026-03-01", "usd_per_unit": {"GBP": rate}}
    assert isinstance(feed.publish("fx:2026-03-01", rates), Refused)
    assert isinstance(feed.publish("ad_group:g", GROUP), Accepted)


@pytest.mark.parametrize("rate", ["0.000001", "1000000", "1.25"])
def test_bids_are_held_against_any_rate_that_is_one(feed: Feed, rate: str) -> None:
    rates = {"fx_day": "2026-03-01", "usd_per_unit": {"GBP": rate}}
    assert isinstance(feed.publish("fx:2026-03-01", rates), Accepted)
    feed.publish("ad_group:g", GROUP)


def test_times_at_the_end_of_int64_are_times(feed: Feed) -> None:
    last_ms = 2**63 - 1
    assert isinstance(feed.publish("ad_group:g", GROUP | {"effective_ms": last_ms}), Accepted)
    assert isinstance(
        feed.publish("ad_group:h", GROUP | {"ad_group_id": "h", "end_ms": last_ms}), Accepted
    )
    feed.engine.turn(Assembler().assemble([]), START_MS, TO_THE_END)


@pytest.mark.parametrize("day", ["9999-12-31", "9998-12-30", "0000-00-00"])
def test_a_close_beyond_the_calendars_is_refused(feed: Feed, day: str) -> None:
    assert isinstance(feed.publish(f"close:{day}", {"day": day}), Refused)


@pytest.mark.parametrize("timestamp_ms", [-1, 0, 2**62])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"campaign_id": ""},
        {"campaign_id": "x" * 70_000},
        {"event_time_ms": -(2**63)},
        {"event_time_ms": 2**63 - 1},
        {"price_micros": 2**63 - 1},
        {"user_id": "é\U0001f600", "impression_id": ""},
        {"event_id": 7},
    ],
)
def test_an_odd_event_is_judged_and_journaled(
    feed: Feed, timestamp_ms: int, changes: dict[str, Any]
) -> None:
    event = {
        "event_id": "e",
        "event_time_ms": START_MS,
        "campaign_id": "c",
        "ad_group_id": "g",
        "promoted_pin_id": "p",
        "user_id": "u",
        "impression_id": "i",
        "price_micros": 1,
        "placement": "browse",
    } | changes
    partition = partition_of(event["campaign_id"], PARTITIONS)
    value = json.dumps(event).encode()
    record = SourceRecord(CLICKS, partition, 0, timestamp_ms, b"c", value)
    batch = Assembler().assemble(chunks_of([record]))
    turn = feed.engine.turn(batch, START_MS, {})
    assert DISPOSITIONS[turn.outcome.disposition[0]] in (
        "malformed",
        "future",
        "expired",
        "unknown",
    )
    assert [entry.header.events for entry in prepare(feed.engine, turn)] == [1]
