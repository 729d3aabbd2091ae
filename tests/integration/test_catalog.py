"""The catalog: what is refused and why, the last valid version in force, every change on record."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.integration.product import (
    CATALOG,
    Message,
    Place,
    Product,
    at,
    entities_of,
    key_of,
    until,
)

CREATED_MS = at("2026-02-10")
NOON_MS = at("2026-03-02T12:00")
UNIT = 1_000_000_000

_, _TRAFFIC = entities_of("valid", "traffic")
_, _INSTALL = entities_of("valid-install", "app_install")
_, _VIDEO = entities_of("valid-video", "video_awareness")
_, _BRITISH = entities_of(
    "valid-gb", "awareness", account={"country": "GB", "currency": "GBP", "time_zone": "UTC"}
)
ACCOUNT, CAMPAIGN, GROUP, PIN = _TRAFFIC
VALID = [
    *_TRAFFIC,
    *_INSTALL,
    *_VIDEO,
    *_BRITISH,
    {"account_id": "valid-2", "country": "US", "currency": "USD"},
    {"campaign_id": "valid-2", "account_id": "valid-2", "objective": "traffic"},
]

REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "wrong type": (GROUP | {"bid_micros": "5"}, "malformed", "bid_micros"),
    "no objective": ({"campaign_id": "x", "account_id": "valid-2"}, "malformed", "objective"),
    "unknown status": (PIN | {"status": "resting"}, "malformed", "status"),
    "negative budget": (GROUP | {"budget_micros": -1}, "amount_out_of_range", "budget_micros"),
    "no budget": (GROUP | {"budget_micros": 0}, "amount_out_of_range", "budget_micros"),
    "absurd budget": (
        GROUP | {"budget_micros": 10**15 + 1},
        "amount_out_of_range",
        "budget_micros",
    ),
    "negative limit": (
        CAMPAIGN | {"daily_spend_limit_micros": -1},
        "amount_out_of_range",
        "daily_spend_limit_micros",
    ),
    "another country's currency": (
        {"account_id": "new", "country": "US", "currency": "GBP"},
        "currency_mismatch",
        "currency",
    ),
    "no such zone": (ACCOUNT | {"time_zone": "Mars/Olympus"}, "unknown_time_zone", "time_zone"),
    "no such account": (
        {"campaign_id": "new", "account_id": "nobody", "objective": "traffic"},
        "missing_parent",
        "account_id",
    ),
    "no such campaign": (
        GROUP | {"ad_group_id": "new", "campaign_id": "none"},
        "missing_parent",
        "campaign_id",
    ),
    "no such ad group": (
        PIN | {"promoted_pin_id": "new", "ad_group_id": "none"},
        "missing_parent",
        "ad_group_id",
    ),
    "moved to another account": (
        CAMPAIGN | {"account_id": "valid-2"},
        "parent_changed",
        "account_id",
    ),
    "moved to another campaign": (
        GROUP | {"campaign_id": "valid-2"},
        "parent_changed",
        "campaign_id",
    ),
    "currency changed": (
        ACCOUNT | {"country": "NZ", "currency": "NZD"},
        "currency_changed",
        "country",
    ),
    "budget type changed": (
        GROUP | {"budget_type": "lifetime", "end_ms": at("2027-01-01")},
        "budget_type_changed",
        "budget_type",
    ),
    "target CPI for clicks": (
        GROUP | {"bid_strategy": "target_cpi"},
        "strategy_not_allowed",
        "bid_strategy",
    ),
    "lifetime without end": (
        GROUP | {"ad_group_id": "new", "budget_type": "lifetime"},
        "missing_end",
        "end_ms",
    ),
    "end before start": (
        GROUP | {"start_ms": CREATED_MS, "end_ms": CREATED_MS},
        "bad_dates",
        "end_ms",
    ),
    "bid under the minimum": (GROUP | {"bid_micros": 99_999}, "bid_too_low", "bid_micros"),
    "keyword bid under the minimum": (
        GROUP | {"keyword_bids_micros": {"shoes": 99_999}},
        "bid_too_low",
        "keyword_bids_micros",
    ),
    "install bid under the minimum": (
        _INSTALL[2] | {"bid_strategy": "target_cpi", "bid_micros": 99_999},
        "bid_too_low",
        "bid_micros",
    ),
    "video bid under the minimum": (
        _VIDEO[2] | {"bid_micros": 5_999_999},
        "bid_too_low",
        "bid_micros",
    ),
}

_MALFORMED: list[tuple[bytes, bytes]] = [
    (b"ad_group:valid-group", b"not JSON"),
    (b"ad_group:another", json.dumps(GROUP).encode()),
    (b"ad_group", json.dumps(GROUP).encode()),
    (b"advert:1", b"{}"),
    (b"\xff:1", b"{}"),
    (b"fx:2026-13-01", b'{"fx_day": "2026-13-01", "usd_per_unit": {"GBP": "1.25"}}'),
    (b"fx:2026-03-01", b'{"fx_day": "2026-03-01", "usd_per_unit": {"GBP": "-1"}}'),
    (b"fx:2026-03-01", b'{"fx_day": "2026-03-01", "usd_per_unit": {"GBP": 1.25}}'),
]


@pytest.fixture(scope="module")
def refused(product: Product) -> dict[str, Place]:
    """What is refused, published after what is valid; name -> where it is."""
    product.publish_catalog(*VALID, timestamp_ms=CREATED_MS)
    places = product.publish_catalog(
        *(entity for entity, _, _ in REFUSED.values()), timestamp_ms=NOON_MS
    )
    malformed = product.kafka.publish(
        Message(CATALOG, value, NOON_MS, key) for key, value in _MALFORMED
    )
    names = [*REFUSED, *(f"malformed {n}" for n in range(len(_MALFORMED)))]
    found = dict(zip(names, places + malformed, strict=True))
    until(
        lambda: {p.offset for p in found.values()} <= set(catalog_rejects(product)),
        "a reject for each refused entity",
    )
    return found


def catalog_rejects(product: Product) -> dict[int, dict[str, Any]]:
    return {r["offset"]: r for r in product.rejects() if r["source"] == CATALOG}


@pytest.mark.parametrize("name", REFUSED)
def test_an_invalid_entity_is_refused_with_its_reason(
    product: Product, refused: dict[str, Place], name: str
) -> None:
    entity, reason, field = REFUSED[name]
    reject = catalog_rejects(product)[refused[name].offset]
    assert (reject["reason"], reject["field"]) == (reason, field)
    assert reject["message_key"] == f"{CATALOG}-0-{refused[name].offset}"
    assert reject["timestamp_ms"] == NOON_MS
    assert json.loads(base64.b64decode(reject["original"])) == entity
    assert base64.b64decode(reject["key"]) == key_of(entity)
    assert reject["detail"]


def test_a_malformed_record_is_refused_byte_for_byte(
    product: Product, refused: dict[str, Place]
) -> None:
    rejects = catalog_rejects(product)
    for number, (key, value) in enumerate(_MALFORMED):
        reject = rejects[refused[f"malformed {number}"].offset]
        assert reject["reason"] == "malformed", (key, value)
        assert base64.b64decode(reject["original"]) == value
        assert base64.b64decode(reject["key"]) == key


def test_nothing_that_is_valid_was_refused(product: Product, refused: dict[str, Place]) -> None:
    keys = {reject["key"] for reject in catalog_rejects(product).values()}
    assert base64.b64encode(b"account:valid-2").decode() not in keys
    assert set(catalog_rejects(product)) >= {place.offset for place in refused.values()}
    shown = json.loads(product.run("catalog", "show", "ad_group:valid-group", "--json").stdout)
    assert shown == [{"entity": "ad_group:valid-group", "versions": 1, "value": GROUP | DEFAULTS}]


DEFAULTS = {"bid_strategy": "max_bid", "pacing": "asap", "status": "active"}


def test_the_last_valid_version_stays_in_force(product: Product) -> None:
    ad = product.ad("kept", "traffic", CREATED_MS, ad_group={"bid_micros": 2_000_000})
    _, entities = entities_of("kept", "traffic", ad_group={"bid_micros": 50_000})
    product.publish_catalog(entities[2], timestamp_ms=CREATED_MS + 1)
    product.publish(ad.click("kept-1", NOON_MS, price_micros=9_000_000))
    assert product.judged(ad, "disposition", "amount_nanos") == [("charged", 2 * UNIT)]


def test_pegged_minimum_bids_follow_the_days_exchange_rate(product: Product) -> None:
    # USD 2.00 at 1.25 USD a pound is GBP 1.60; at no rate of the day, the latest before it.
    ad, entities = entities_of("pegged", "awareness", account={"country": "GB", "currency": "GBP"})
    group = entities[2]
    product.publish_catalog(
        {"fx_day": "2026-02-01", "usd_per_unit": {"GBP": "1.25"}},
        {"fx_day": "2026-02-20", "usd_per_unit": {"GBP": "1.00"}},
        *entities,
        timestamp_ms=CREATED_MS,
    )
    low = group | {"bid_micros": 1_599_999, "effective_ms": CREATED_MS + 1}
    enough = group | {"bid_micros": 1_600_000, "effective_ms": CREATED_MS + 2}
    later = group | {"bid_micros": 1_999_999, "effective_ms": at("2026-02-20")}
    places = product.publish_catalog(low, enough, later, timestamp_ms=CREATED_MS)
    product.publish(ad.impression("pegged-1", NOON_MS, price_micros=9_000_000))
    assert product.judged(ad, "disposition", "amount_nanos", "currency") == [
        ("charged", 1_600_000, "GBP")
    ]
    until(lambda: places[2].offset in catalog_rejects(product), "the reject of a low bid")
    rejects = catalog_rejects(product)
    assert [rejects.get(p.offset, {}).get("reason") for p in places] == [
        "bid_too_low",
        None,
        "bid_too_low",
    ]


def test_a_deleted_ad_is_unknown_and_what_was_fixed_stays_fixed(product: Product) -> None:
    ad = product.ad("deleted", "traffic", CREATED_MS)
    product.publish(ad.click("deleted-1", NOON_MS))
    product.settle()
    _, entities = entities_of("deleted", "traffic")
    group_key = key_of(entities[2])
    product.kafka.publish([Message(CATALOG, None, NOON_MS, group_key)])
    product.publish(ad.click("deleted-2", NOON_MS))
    product.settle()
    other_type = entities[2] | {"budget_type": "lifetime", "end_ms": at("2027-01-01")}
    [place] = product.publish_catalog(other_type, timestamp_ms=NOON_MS)
    product.publish_catalog(entities[2], timestamp_ms=CREATED_MS)
    product.publish(ad.click("deleted-3", NOON_MS))
    assert product.judged(ad, "event_id", "disposition") == [
        ("deleted-1", "charged"),
        ("deleted-2", "unknown"),
        ("deleted-3", "charged"),
    ]
    until(lambda: place.offset in catalog_rejects(product), "the reject of a changed budget type")
    assert catalog_rejects(product)[place.offset]["reason"] == "budget_type_changed"


def test_every_change_is_on_record_with_who_and_when(product: Product) -> None:
    ad = product.ad("changes", "traffic", CREATED_MS)
    _, entities = entities_of("changes", "traffic", ad_group={"bid_micros": 2_000_000})
    product.publish_catalog(
        entities[2] | {"changed_by": "ann", "effective_ms": NOON_MS, "status": "paused"},
        timestamp_ms=NOON_MS + 5,
    )
    sql = (
        "SELECT field, old, new, changed_by, effective_ms FROM reporting.changes "
        "WHERE entity = {entity:String} AND effective_ms = {ms:Int64} ORDER BY field"
    )
    entity = f"ad_group:{ad.ad_group_id}"
    until(lambda: product.query(sql, entity=entity, ms=NOON_MS), "the changes in the table")
    common = {"changed_by": "ann", "effective_ms": NOON_MS}
    assert product.query(sql, entity=entity, ms=NOON_MS) == [
        {"field": "bid_micros", "old": "10000000", "new": "2000000"} | common,
        {"field": "status", "old": '"active"', "new": '"paused"'} | common,
    ]
    first = {row["field"]: row for row in product.query(sql, entity=entity, ms=CREATED_MS)}
    assert (first["bid_micros"]["old"], first["bid_micros"]["new"]) == ("", "10000000")
    assert first["bid_micros"]["changed_by"] == ""
