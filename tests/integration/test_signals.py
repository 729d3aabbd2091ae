"""Signals to the ad servers: pause at a limit, resume when it is free, and again after a crash.

The clock only goes on, so each test is given days of its own, later than those of the others.
What a pacing policy adds (predicted spend) is left room for: a pause says spend + inflight.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from datetime import date, timedelta
from itertools import count
from typing import Any

import pytest

from tests.integration.product import SIGNALS, Ad, Product, at, until

CREATED_MS = at("2026-02-10")
UNIT = 1_000_000_000

NextDay = Callable[[], str]

FIELDS = {
    "entity",
    "action",
    "reason",
    "serve_probability",
    "limit",
    "limit_nanos",
    "spend_nanos",
    "inflight_nanos",
    "billing_day",
    "decided_at_ms",
    "version",
}

LIMITED: dict[str, tuple[str, dict[str, Any]]] = {
    "ad_group_daily": ("ad_group", {"ad_group": {"budget_micros": 2_500_000}}),
    "ad_group_lifetime": (
        "ad_group",
        {
            "ad_group": {
                "budget_type": "lifetime",
                "budget_micros": 2_500_000,
                "end_ms": at("2027-12-31"),
            }
        },
    ),
    "campaign_daily": ("campaign", {"campaign": {"daily_spend_limit_micros": 2_500_000}}),
    "campaign_lifetime": ("campaign", {"campaign": {"lifetime_spend_limit_micros": 2_500_000}}),
}


@pytest.fixture(scope="module")
def next_day() -> NextDay:
    """Gives a day, ISO, three days after the one before: room for a test to go on in."""
    days = (date(2026, 4, 1) + timedelta(days=3 * number) for number in count())
    return lambda: next(days).isoformat()


def entity_of(ad: Ad, level: str) -> str:
    return f"ad_group:{ad.ad_group_id}" if level == "ad_group" else f"campaign:{ad.campaign_id}"


def spend_all(product: Product, ad: Ad, time_ms: int, clicks: int = 3) -> None:
    product.publish(*(ad.click(f"{ad.campaign_id}-{time_ms}-{n}", time_ms) for n in range(clicks)))


def last_signal(product: Product, entity: str, action: str) -> dict[str, Any]:
    """The signal in force, once it is of this action; versions must have grown up to it."""

    def in_force() -> dict[str, Any] | None:
        found = product.signals(entity)
        versions = [one["version"] for one in found]
        assert versions == sorted(versions), found
        return found[-1] if found and found[-1]["action"] == action else None

    until(in_force, f"{action} of {entity}")
    found = in_force()
    assert found is not None
    return found


@pytest.mark.parametrize("limit", LIMITED)
def test_a_reached_limit_pauses_its_entity(
    own_product: Product, next_day: NextDay, limit: str
) -> None:
    level, differences = LIMITED[limit]
    day = next_day()
    ad = own_product.ad(f"pause-{limit}", "traffic", CREATED_MS, **differences)
    spend_all(own_product, ad, at(f"{day}T12:00"))
    entity = entity_of(ad, level)
    sent = last_signal(own_product, entity, "pause")
    assert set(sent) - {"resume_at_ms", "bid_micros"} == FIELDS
    assert (sent["entity"], sent["limit"], sent["billing_day"]) == (entity, limit, day)
    assert sent["limit_nanos"] == 2 * UNIT + UNIT // 2
    assert sent["spend_nanos"] <= sent["limit_nanos"]
    assert sent["spend_nanos"] + sent["inflight_nanos"] >= sent["limit_nanos"]
    assert sent["serve_probability"] == 0
    assert sent["decided_at_ms"] == at(f"{day}T12:00")
    if limit.endswith("daily"):
        assert sent["resume_at_ms"] == at(day) + 24 * 3_600_000
    else:
        assert "resume_at_ms" not in sent
    other = entity_of(ad, "campaign" if level == "ad_group" else "ad_group")
    assert [s for s in own_product.signals(other) if s["action"] == "pause"] == []


def test_a_daily_limit_frees_up_at_the_accounts_midnight(
    own_product: Product, next_day: NextDay
) -> None:
    day = next_day()
    ad = own_product.ad(
        "midnight",
        "traffic",
        CREATED_MS,
        account={"time_zone": "Asia/Kathmandu"},
        ad_group={"budget_micros": 2_000_000},
    )
    entity = f"ad_group:{ad.ad_group_id}"
    spend_all(own_product, ad, at(f"{day}T12:00"))
    paused = last_signal(own_product, entity, "pause")
    midnight_ms = at(f"{day}T18:15")  # 00:00 in Kathmandu
    assert paused["resume_at_ms"] == midnight_ms
    # Another account's event moves the clock to the last moment before, and then to it.
    other = own_product.ad("midnight-other", "traffic", CREATED_MS)
    own_product.publish(other.click("midnight-before", midnight_ms - 1))
    own_product.settle()
    assert own_product.signals(entity)[-1] == paused
    own_product.publish(other.click("midnight-at", midnight_ms))
    resumed = last_signal(own_product, entity, "resume")
    assert resumed["version"] > paused["version"]
    assert (resumed["serve_probability"], resumed["limit"]) == (1, "ad_group_daily")
    assert resumed["spend_nanos"] == 0
    assert resumed["decided_at_ms"] == midnight_ms
    tomorrow = (date.fromisoformat(day) + timedelta(days=1)).isoformat()
    assert resumed["billing_day"] == tomorrow
    # And what it serves then counts against the new day.
    spend_all(own_product, ad, midnight_ms + 1)
    again = last_signal(own_product, entity, "pause")
    assert (again["billing_day"], again["spend_nanos"]) == (tomorrow, 2 * UNIT)


@pytest.mark.parametrize("level", ["ad_group", "campaign"])
def test_a_raised_limit_resumes_at_once(
    own_product: Product, next_day: NextDay, level: str
) -> None:
    noon_ms = at(f"{next_day()}T12:00")
    name = f"raised-{level}"
    low: dict[str, dict[str, Any]] = {
        "ad_group": {"ad_group": {"budget_micros": 2_000_000}},
        "campaign": {"campaign": {"lifetime_spend_limit_micros": 2_000_000}},
    }
    ad = own_product.ad(name, "traffic", CREATED_MS, **low[level])
    entity = entity_of(ad, level)
    spend_all(own_product, ad, noon_ms)
    paused = last_signal(own_product, entity, "pause")
    raised: dict[str, Any] = {
        "ad_group": {
            "ad_group_id": ad.ad_group_id,
            "campaign_id": ad.campaign_id,
            "budget_type": "daily",
            "budget_micros": 3_000_000,
            "bid_micros": 10_000_000,
            "start_ms": at("2000-01-01"),
        },
        "campaign": {
            "campaign_id": ad.campaign_id,
            "account_id": ad.account_id,
            "objective": "traffic",
            "lifetime_spend_limit_micros": 3_000_000,
        },
    }[level]
    own_product.publish_catalog(raised, timestamp_ms=noon_ms + 1)
    resumed = last_signal(own_product, entity, "resume")
    assert resumed["version"] > paused["version"]
    assert (resumed["limit_nanos"], resumed["spend_nanos"]) == (3 * UNIT, 2 * UNIT)
    own_product.publish(
        *(ad.click(f"{name}-after-{n}", noon_ms + 2) for n in range(2)),
    )
    assert own_product.judged(ad, "disposition", "amount_nanos")[3:] == [
        ("charged", UNIT),
        ("over_budget", 0),
    ]
    assert last_signal(own_product, entity, "pause")["version"] > resumed["version"]


def test_what_has_room_is_not_stopped(own_product: Product, next_day: NextDay) -> None:
    noon_ms = at(f"{next_day()}T12:00")
    ad = own_product.ad("room", "traffic", CREATED_MS, ad_group={"budget_micros": 4_000_000_000})
    spend_all(own_product, ad, noon_ms)
    own_product.settle()
    for level in ("ad_group", "campaign"):
        sent = own_product.signals(entity_of(ad, level))
        assert [one for one in sent if one["action"] == "pause"] == []


def test_a_stopped_entity_is_stopped_again_by_the_next_owner(
    own_product: Product, next_day: NextDay
) -> None:
    noon_ms = at(f"{next_day()}T12:00")
    paused_ad = own_product.ad(
        "takeover", "traffic", CREATED_MS, ad_group={"budget_micros": 2_000_000}
    )
    serving_ad = own_product.ad("takeover-serving", "traffic", CREATED_MS)
    entity = f"ad_group:{paused_ad.ad_group_id}"
    spend_all(own_product, paused_ad, noon_ms)
    spend_all(own_product, serving_ad, noon_ms)
    last_signal(own_product, entity, "pause")
    own_product.settle()
    before = own_product.signals(entity)
    serving_before = own_product.signals(f"ad_group:{serving_ad.ad_group_id}")
    os.kill(own_product.part_pid("worker"), signal.SIGKILL)
    until(lambda: len(own_product.signals(entity)) > len(before), "the pause told again")
    after = own_product.signals(entity)
    assert {one["action"] for one in after[len(before) :]} == {"pause"}
    assert after[-1]["version"] >= before[-1]["version"]
    assert after[-1]["limit"] == before[-1]["limit"]
    assert own_product.signals(f"ad_group:{serving_ad.ad_group_id}") == serving_before
    # And it goes on where it was.
    own_product.publish(paused_ad.click("takeover-more", noon_ms + 1))
    assert own_product.judged(paused_ad, "disposition")[-1] == ("over_budget",)
    assert len({one["version"] for one in own_product.signals(entity)}) <= len(after)


def test_a_signal_is_keyed_by_its_entity(own_product: Product) -> None:
    records = own_product.kafka.read(SIGNALS)
    assert records
    for record in records:
        assert json.loads(record.value)["entity"] == record.key.decode()
