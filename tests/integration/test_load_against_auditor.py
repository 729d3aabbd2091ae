"""A random load over all rules, through the running product, row by row as the auditor has it.

The auditor (tests/auditor.py) is a second, naive model of the contract that shares no code with the
product. It is given the records in the product's own order of judgement and the time of each
decision, and must come to the same disposition, days and nanos for every one of them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest

from tests.auditor import Auditor, CatalogRecord, SourceRecord
from tests.integration.product import (
    CATALOG,
    EVENT_TOPICS,
    HOUR_MS,
    Product,
)
from tests.integration.world import START_MS, World

SEED = 20260307
PARTITIONS = 3
EVENTS = 3_000


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("loaded") / "data"
    with Product(directory, partitions=PARTITIONS) as product:
        world = World(SEED, PARTITIONS)
        catalog = world.catalog + world.changes
        product.publish_catalog(*catalog, timestamp_ms=START_MS - 24 * HOUR_MS)
        messages = list(itertools.islice(world.messages(), EVENTS))
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
        place = {"topic", "partition", "offset"}
        expected = {k: v for k, v in verdict.compared().items() if k not in place} | {
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
    world = World(SEED, PARTITIONS)
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
