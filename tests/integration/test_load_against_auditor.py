"""A random load over all rules, through the running product, row by row as the auditor has it.

The auditor (tests/auditor.py) is a second, naive model of the contract that shares no code with the
product. It is given the records in the product's own order of judgement and the time of each
decision, and must come to the same disposition, days and nanos for every one of them.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from tests.auditor import Auditor, CatalogRecord, SourceRecord, partition_of
from tests.integration.product import (
    CATALOG,
    ENGAGEMENTS,
    EVENT_TOPICS,
    HOUR_MS,
    MINUTE_MS,
    Ad,
    Message,
    Product,
    at,
)

SEED = 20260307
PARTITIONS = 3
EVENTS = 3_000
START_MS = at("2026-03-07T18:00")
"""Two days and a bit follow; in New York the clocks change in the middle of them."""
OBJECTIVES = ("traffic", "engagement", "awareness", "video_awareness", "app_install")
GARBAGE = (b"", None, b"{", b"[]", b"\xff\xfe", b'{"event_id": 1}', b'{"a": 1, "a": 2}')
LAGS_MS = (*[0] * 6, 5, MINUTE_MS, 2 * HOUR_MS, 30 * HOUR_MS, 8 * 24 * HOUR_MS, -6 * MINUTE_MS)


class World:
    """A catalog and events, all from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.ads: list[Ad] = []
        self.catalog: list[dict[str, Any]] = [
            {"account_id": "east", "country": "US", "currency": "USD"}
            | {"time_zone": "America/New_York"},
            {"account_id": "nepal", "country": "GB", "currency": "GBP"}
            | {"time_zone": "Asia/Kathmandu"},
        ]
        for number in range(10):
            self._add_campaign(number)
        self.changes = [self._change() for _ in range(12)]

    def _add_campaign(self, number: int) -> None:
        choose = self.random
        campaign = f"c{number}"
        entity: dict[str, Any] = {
            "campaign_id": campaign,
            "account_id": choose.choice(("east", "nepal")),
            "objective": OBJECTIVES[number % len(OBJECTIVES)],
        }
        if choose.random() < 0.5:
            entity["daily_spend_limit_micros"] = choose.randrange(40) * 1_000_000
        if choose.random() < 0.3:
            entity["lifetime_spend_limit_micros"] = choose.randrange(90) * 1_000_001
        self.catalog.append(entity)
        for group_number in range(2):
            group = f"{campaign}-g{group_number}"
            self.catalog.append(self._ad_group(campaign, group))
            for pin_number in range(2):
                pin = f"{group}-p{pin_number}"
                review = "approved" if choose.random() < 0.9 else "pending"
                self.catalog.append(
                    {"promoted_pin_id": pin, "ad_group_id": group, "review": review}
                )
                self.ads.append(Ad("", campaign, group, pin))

    def _ad_group(self, campaign: str, group: str) -> dict[str, Any]:
        choose = self.random
        entity: dict[str, Any] = {
            "ad_group_id": group,
            "campaign_id": campaign,
            "budget_type": choose.choice(("daily", "lifetime")),
            "budget_micros": choose.choice((1, 50_000, 15_000_001, 60_000_000, 10**12)),
            "bid_micros": choose.choice((6_000_000, 7_000_001, 10_000_000)),
            "keyword_bids_micros": {"shoes": 6_500_000, "hats": 9_000_000},
        }
        if choose.random() < 0.8:
            entity["start_ms"] = START_MS + choose.randrange(3) * 9 * HOUR_MS
        if entity["budget_type"] == "lifetime":
            entity["end_ms"] = START_MS + choose.randrange(40, 200) * HOUR_MS
        return entity

    def _change(self) -> dict[str, Any]:
        """A later version of an entity that takes effect in the middle; some are not valid."""
        choose = self.random
        entities = [entity for entity in self.catalog if "campaign_id" in entity]
        changed = dict(choose.choice(entities))
        what = choose.choice(("pause", "bid", "low bid", "budget", "limit"))
        if what == "pause":
            changed["status"] = "paused"
        elif "ad_group_id" in changed and what in ("bid", "low bid"):
            changed["bid_micros"] = 8_000_000 if what == "bid" else 1_000
        elif "ad_group_id" in changed:
            changed["budget_micros"] = choose.choice((1, 20_000_000, 10**13))
        else:
            changed["daily_spend_limit_micros"] = choose.randrange(60) * 1_000_000
        return changed | {"effective_ms": START_MS + choose.randrange(50) * HOUR_MS}

    def messages(self) -> list[Message]:
        """Events over two days, some of them resent, strayed, spoiled, early or late."""
        choose = self.random
        record_ms = START_MS
        made = []
        for number in range(EVENTS):
            record_ms += choose.choice((0, 0, 1, MINUTE_MS, 2 * MINUTE_MS))
            made.append(self._message(number, record_ms))
        return made

    def _message(self, number: int, record_ms: int) -> Message:
        choose = self.random
        ad = choose.choice(self.ads)
        if choose.random() < 0.03:
            ad = Ad("", ad.campaign_id, choose.choice(self.ads).ad_group_id, "nobody's pin")
        event = ad.event(
            f"e{number if choose.random() < 0.9 else choose.randrange(number + 1)}",
            record_ms - choose.choice(LAGS_MS),
            user_id=f"u{choose.randrange(4)}",
            impression_id=f"{ad.campaign_id}-i{choose.randrange(120)}",
            price_micros=choose.choice((0, 1, 100_000, 3_333_333, 6_200_000, 2**62)),
        )
        topic = choose.choice(EVENT_TOPICS)
        if topic == ENGAGEMENTS:
            event["kind"] = choose.choice(("closeup", "save", "install"))
        if choose.random() < 0.5:
            event["keyword"] = choose.choice(("shoes", "hats", "socks"))
        value: Any = event if choose.random() < 0.98 else choose.choice(GARBAGE)
        home = partition_of(ad.campaign_id, PARTITIONS)
        partition = home if choose.random() < 0.97 else (home + 1) % PARTITIONS
        return Message(topic, value, record_ms, ad.campaign_id.encode(), partition)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("loaded") / "data"
    with Product(directory, partitions=PARTITIONS) as product:
        world = World(SEED)
        catalog = world.catalog + world.changes
        product.publish_catalog(*catalog, timestamp_ms=START_MS - 24 * HOUR_MS)
        messages = world.messages()
        for start in range(0, len(messages), 250):
            product.publish(*messages[start : start + 250])
        product.settle()
        assert product.run("close-day", "2026-03-09").returncode == 0
        yield product


def audited(product: Product) -> list[dict[str, Any]]:
    """The product's rows, each with the auditor's verdict on the same record."""
    auditor = Auditor(PARTITIONS)
    for record in product.kafka.read(CATALOG):
        if not record.key.startswith(b"close:"):
            auditor.catalog(
                CatalogRecord(record.offset, record.timestamp, record.key.decode(), record.value)
            )
    sources = {
        (record.topic, record.partition, record.offset): record
        for topic in EVENT_TOPICS
        for record in product.kafka.read(topic)
    }
    rows = product.query("SELECT * FROM billing.events ORDER BY journal_partition, shard_seq")
    for row in rows:
        place = (row["source_topic"], row["source_partition"], row["source_offset"])
        record = sources.pop(place)
        source = SourceRecord(*place, record.timestamp, record.key, record.value)
        row["verdict"] = auditor.judge(source, row["decided_at_ms"])
    assert sources == {}, "records without a row"
    return rows


def test_every_row_is_the_auditors_to_the_nano(loaded: Product) -> None:
    rows = audited(loaded)
    assert len(rows) >= EVENTS
    for row in rows:
        verdict = row["verdict"]
        expected = {
            "disposition": verdict.disposition,
            "limit": verdict.limit,
            "amount_nanos": verdict.amount_nanos,
            "free_nanos": verdict.free_nanos,
            "billing_day": verdict.billing_day.isoformat(),
            "kind": verdict.kind,
            "event_id": verdict.event_id,
            "basis": verdict.basis,
            "price_micros": verdict.price_micros,
            "campaign_id": verdict.campaign_id,
            "ad_group_id": verdict.ad_group_id,
            "promoted_pin_id": verdict.promoted_pin_id,
        }
        assert {name: row[name] for name in expected} == expected, row


def test_the_load_was_worth_the_comparison(loaded: Product) -> None:
    rows = loaded.query(
        "SELECT disposition, `limit`, basis, posting_day != billing_day AS adjusts "
        "FROM billing.events"
    )
    dispositions = Counter(row["disposition"] for row in rows)
    assert min(dispositions.values()) >= 20, dispositions
    assert len(dispositions) == 11
    assert {row["limit"] for row in rows if row["limit"]} == {
        "ad_group_daily",
        "ad_group_lifetime",
        "campaign_daily",
        "campaign_lifetime",
    }
    assert {row["basis"] for row in rows} == {"", "cpc", "cpe", "cpm"}
    assert sum(row["adjusts"] for row in rows) >= 20


def test_the_books_of_the_load_balance(loaded: Product) -> None:
    loaded.assert_reconciled()


def test_no_daily_budget_is_exceeded_by_a_nano(loaded: Product) -> None:
    world = World(SEED)
    changed = {change.get("ad_group_id") for change in world.changes}
    budgets = {
        entity["ad_group_id"]: entity["budget_micros"] * 1_000
        for entity in world.catalog
        if entity.get("budget_type") == "daily" and entity["ad_group_id"] not in changed
    }
    spent = loaded.query(
        "SELECT ad_group_id, billing_day, sum(amount_nanos) AS nanos FROM billing.events "
        "WHERE ad_group_id IN {groups:Array(String)} GROUP BY ad_group_id, billing_day",
        groups=str(list(budgets)),
    )
    assert {row["ad_group_id"] for row in spent} == set(budgets)
    assert [row for row in spent if row["nanos"] > budgets[row["ad_group_id"]]] == []
    # And the budgets were worth a try: some are used to the last nano.
    assert [row for row in spent if row["nanos"] == budgets[row["ad_group_id"]]]
