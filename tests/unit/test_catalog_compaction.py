"""A catalog read after compaction is the one that was read before it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.billing.ids import hash_text
from pipeline.billing.journal import Ad, pack_ad
from pipeline.contract.catalog import Accepted, Catalog, Refused
from pipeline.contract.catalog_repeats import Repeated
from pipeline.contract.log import LogRecord
from pipeline.streams.engine import Engine
from tests.property.worlds import make_engine

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


def test_an_ad_is_found_under_the_parents_that_it_turned_out_to_have() -> None:
    """What was refused for its parent, and is taken over by who begins behind the valid record, is
    put right by the repetition of that."""
    engine = make_engine()
    pin = {"promoted_pin_id": "p", "ad_group_id": "g", "status": "active", "review": "approved"}
    other = CAMPAIGN | {"campaign_id": "d"}
    records = [
        record(0, "account:a", ACCOUNT),
        record(1, "campaign:c", CAMPAIGN),
        record(2, "campaign:d", other),
        record(8, "ad_group:g", GROUP | {"campaign_id": "d"}),  # of c in record 3, compacted away
        record(9, "promoted_pin:p", pin),
    ]
    for one in records:
        engine.apply_catalog(one, 0)
    assert ads_found(engine) == {"d"}
    repetition = replace(record(10, "ad_group:g", GROUP), headers=Repeated(3, 10).headers)
    assert isinstance(engine.apply_catalog(repetition, 0), Accepted)
    assert ads_found(engine) == {"c"}
    assert packed_ad(engine) == pack_ad(Ad("a", "c", "g", "p"))
    # And of its account: the campaign is published under another one, and put right.
    engine.apply_catalog(record(11, "account:b", ACCOUNT | {"account_id": "b"}), 0)
    moved = record(12, "campaign:c", CAMPAIGN | {"account_id": "b"})
    engine.apply_catalog(replace(moved, headers=Repeated(11, 12).headers), 0)
    assert packed_ad(engine) == pack_ad(Ad("b", "c", "g", "p"))


def find(engine: Engine, campaign_id: str) -> int:
    key = np.array([hash_text(campaign_id, "g", "p")], np.uint64)
    return int(engine.terms.find_ads(key)[0])


def packed_ad(engine: Engine) -> bytes:
    """What the journal is told of campaign c's ad."""
    _, packed = engine.terms.packed_ads(np.array([find(engine, "c")]))
    return packed


def ads_found(engine: Engine) -> set[str]:
    """The campaigns under which the pin is found and alive."""
    rows = {campaign_id: find(engine, campaign_id) for campaign_id in ("c", "d")}
    return {name for name, row in rows.items() if row >= 0 and engine.terms.pin.alive[row]}


def test_what_has_waited_for_its_parent_is_not_repeated() -> None:
    catalog = Catalog()
    catalog.apply(record(1, "campaign:c", CAMPAIGN))
    catalog.apply(record(3, "account:a", ACCOUNT))
    assert catalog.repetition_of(b"campaign:c", 1, 0) is None
    catalog.apply(record(4, "campaign:c", CAMPAIGN | {"objective": "fame"}))
    assert catalog.repetition_of(b"campaign:c", 4, 0) is not None
