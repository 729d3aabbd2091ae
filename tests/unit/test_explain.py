"""What `explain ad_group:ID` says of an ad group that no limit has stopped."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.contract.catalog import Catalog
from pipeline.contract.log import LogRecord
from pipeline.reporting.explain import own_state

NOON_MS = 12 * 3_600_000
ENTITIES: list[tuple[str, dict[str, Any]]] = [
    ("account:a", {"account_id": "a", "country": "US", "currency": "USD"}),
    ("campaign:c", {"campaign_id": "c", "account_id": "a", "objective": "traffic"}),
    (
        "ad_group:g",
        {
            "ad_group_id": "g",
            "campaign_id": "c",
            "budget_type": "daily",
            "budget_micros": 1_000_000,
            "bid_micros": 200_000,
            "start_ms": NOON_MS,
            "end_ms": 2 * NOON_MS,
        },
    ),
]


@pytest.mark.parametrize(
    ("changed", "value", "now_ms", "state"),
    [
        ("", None, NOON_MS, "serving"),
        ("", None, NOON_MS - 1, "starts 1970-01-01 12:00:00.000 UTC"),
        ("", None, 2 * NOON_MS, "ended 1970-01-02 00:00:00.000 UTC"),
        ("ad_group:g", {"status": "paused"}, NOON_MS, "paused"),
        ("ad_group:g", None, NOON_MS, "not in the catalog"),
        ("campaign:c", {"status": "paused"}, NOON_MS, "campaign paused"),
        ("campaign:c", None, NOON_MS, "campaign not in the catalog"),
    ],
)
def test_the_state_of_an_ad_group_is_its_own_and_its_campaigns(
    changed: str, value: dict[str, Any] | None, now_ms: int, state: str
) -> None:
    catalog = Catalog()
    records: list[tuple[str, dict[str, Any] | None]] = [*ENTITIES]
    if changed:
        records.append((changed, None if value is None else dict(ENTITIES)[changed] | value))
    for offset, (key, entity) in enumerate(records):
        encoded = None if entity is None else json.dumps(entity).encode()
        catalog.apply(LogRecord("ads.catalog", 0, offset, 1, key.encode(), encoded))
    assert own_state(catalog, "g", now_ms) == state
    assert own_state(catalog, "nobody", now_ms) == "not in the catalog"
