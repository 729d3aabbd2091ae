"""A catalog read after compaction is the one that was read before it."""

from __future__ import annotations

import json
from typing import Any

from pipeline.contract.catalog import Accepted, Catalog, Refused
from pipeline.contract.log import LogRecord

ACCOUNT = {"account_id": "a", "country": "US", "currency": "USD"}
CAMPAIGN = {"campaign_id": "c", "account_id": "a", "objective": "traffic"}
GROUP = {
    "ad_group_id": "g",
    "campaign_id": "c",
    "budget_type": "daily",
    "budget_micros": 10_000_000,
    "bid_micros": 500_000,
}


def record(offset: int, key: str, value: dict[str, Any] | None) -> LogRecord:
    encoded = None if value is None else json.dumps(value).encode()
    return LogRecord("ads.catalog", 0, offset, 1_000 + offset, key.encode(), encoded)


def test_children_wait_for_a_parent_whose_first_record_was_compacted_away() -> None:
    # Offset 0 held the account; it was published again at 3.
    catalog = Catalog()
    assert isinstance(catalog.apply(record(1, "campaign:c", CAMPAIGN)), Refused)
    assert isinstance(catalog.apply(record(2, "ad_group:g", GROUP)), Refused)
    parent = catalog.apply(record(3, "account:a", ACCOUNT))
    assert isinstance(parent, Accepted)
    assert parent.adopted == (("campaign", "c"), ("ad_group", "g"))
    assert catalog.ad_groups["g"].latest.bid_micros == 500_000


def test_where_nothing_was_compacted_a_child_before_its_parent_stays_refused() -> None:
    catalog = Catalog()
    assert isinstance(catalog.apply(record(0, "campaign:c", CAMPAIGN)), Refused)
    parent = catalog.apply(record(1, "account:a", ACCOUNT))
    assert isinstance(parent, Accepted)
    assert parent.adopted == ()
    assert "c" not in catalog.campaigns


def test_a_child_that_was_deleted_while_it_waited_does_not_come_back() -> None:
    catalog = Catalog()
    catalog.apply(record(1, "campaign:c", CAMPAIGN))
    catalog.apply(record(2, "campaign:c", None))
    parent = catalog.apply(record(3, "account:a", ACCOUNT))
    assert isinstance(parent, Accepted)
    assert parent.adopted == ()
    assert "c" not in catalog.campaigns
