"""Poison messages: each is malformed and on billing.rejects, and spoils none of its neighbours."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest

from tests.integration.product import (
    CLICKS,
    ENGAGEMENTS,
    EVENT_TOPICS,
    Ad,
    Message,
    Place,
    Product,
    at,
    until,
)

NOON_MS = at("2026-03-02T12:00")
MISSING = object()

_TEMPLATE = Ad("", "poison-campaign", "poison-group", "poison-pin").event("poison", NOON_MS)


def event_with(**fields: Any) -> bytes:
    """A good event but for these fields; MISSING leaves one out."""
    together = _TEMPLATE | {"kind": "save"} | fields
    return json.dumps({k: v for k, v in together.items() if v is not MISSING}).encode()


def event_text(old: str, new: str) -> bytes:
    """A good event with a piece of its text replaced."""
    text = event_with().decode()
    assert old in text
    return text.replace(old, new, 1).encode()


DEEP = 100_000
POISON: dict[str, bytes | None] = {
    "null": None,
    "empty": b"",
    "blank": b"  \n",
    "not-json": b"event_id=1",
    "cut-off": event_with()[:-1],
    "followed-by-more": event_with() + b"{}",
    "two-events": event_with() + b"\n" + event_with(event_id="second"),
    "byte-order-mark": b"\xef\xbb\xbf" + event_with(),
    "utf-16": event_with().decode().encode("utf-16"),
    "array": b"[" + event_with() + b"]",
    "string": b'"event"',
    "number": b"1",
    "json-null": b"null",
    "megabyte-of-garbage": os.urandom(1_000_000),
    "megabyte-of-zeros": b"\0" * 1_000_000,
    "deep-array": b"[" * DEEP + b"]" * DEEP,
    "deep-object": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep-in-extra-field": event_text('"event_id"', f'"x": {"[" * DEEP}{"]" * DEEP}, "event_id"'),
    "invalid-utf-8-in-id": event_with().replace(b"poison-pin", b"poison-\xff\xfe"),
    "invalid-utf-8-in-extra": event_with().replace(b"{", b'{"x": "\xc3\x28", ', 1),
    "surrogate-utf-8": event_with().replace(b"poison-pin", b"poison-\xed\xa0\x80"),
    "nul-escaped-in-id": event_with(event_id="a\0b"),
    "nul-raw-in-id": event_with().replace(b"poison-pin", b"poison\0pin"),
    "nul-in-user": event_with(user_id="\0"),
    "time-past-int64": event_with(event_time_ms=2**63),
    "price-past-int64": event_with(price_micros=2**63),
    "price-of-300-digits": event_with(price_micros=10**300),
    "price-negative": event_with(price_micros=-1),
    "time-before-int64": event_with(event_time_ms=-(2**63) - 1),
    "price-fraction": event_with(price_micros=1.5),
    "price-whole-fraction": event_text('"price_micros": 1000000', '"price_micros": 1000000.0'),
    "price-exponent": event_text('"price_micros": 1000000', '"price_micros": 1e6'),
    "price-nan": event_text('"price_micros": 1000000', '"price_micros": NaN'),
    "price-text": event_with(price_micros="1000000"),
    "price-true": event_with(price_micros=True),
    "price-null": event_with(price_micros=None),
    "id-number": event_with(event_id=7),
    "id-empty": event_with(event_id=""),
    "id-too-long": event_with(event_id="x" * 129),
    "placement-other": event_with(placement="home"),
    "country-null": event_with(country=None),
    "country-number": event_with(country=1),
    "keyword-list": event_with(keyword=["shoes"]),
    "duplicate-key": event_text('"event_id"', '"event_id": "first", "event_id"'),
    "duplicate-key-escaped": event_text('"event_id"', '"\\u0065vent_id": "first", "event_id"'),
    "duplicate-extra-key": event_text('"event_id"', '"x": 1, "x": 1, "event_id"'),
    "kind-click": event_with(kind="click"),
    "kind-missing": event_with(kind=MISSING),
} | {f"without-{name}": event_with(**{name: MISSING}) for name in _TEMPLATE}
"""All sent to ads.engagements, which asks for most."""

GOOD: dict[str, dict[str, Any]] = {
    "largest-id": {"event_id": "ü" * 128},
    "extra-fields": {"extra": {"deep": [1, {"a": 1.5e300}]}, "price": -1, "ranks": [10**30]},
    "empty-dimensions": {"country": "", "device": "", "keyword": ""},
    "colons": {"user_id": 'a:b:"c":d', "device": "event_id:1"},
    "emoji": {"user_id": "📌", "country": "Österreich"},
    "escapes": {"user_id": 'quote " backslash \\ newline \n'},
}


@pytest.fixture(scope="module")
def ad(product: Product) -> Ad:
    return product.ad("poison", "engagement", at("2026-02-10"))


@pytest.fixture(scope="module")
def poisoned(product: Product, ad: Ad) -> dict[str, Place]:
    """All poison on one partition, a good event after each; name -> where the poison is."""
    key = ad.campaign_id.encode()
    [first] = product.publish(ad.engagement("save", "poison-0", NOON_MS))
    messages = []
    for number, value in enumerate(POISON.values(), 1):
        messages.append(Message(ENGAGEMENTS, value, NOON_MS, key, first.partition))
        messages.append(ad.engagement("save", f"poison-{number}", NOON_MS))
    places = product.publish(*messages)
    product.settle()
    return dict(zip(POISON, places[::2], strict=True))


def test_poison_is_malformed_and_costs_nothing(
    product: Product, poisoned: dict[str, Place]
) -> None:
    rows = {
        (row["source_topic"], row["source_partition"], row["source_offset"]): row
        for row in product.query(
            "SELECT * FROM billing.events WHERE disposition = 'malformed' AND posting_day = "
            "'2026-03-02'"
        )
    }
    for name, place in poisoned.items():
        row = rows.get((place.topic, place.partition, place.offset))
        assert row is not None, f"{name} was not found to be malformed"
        assert (row["amount_nanos"], row["free_nanos"], row["account_id"]) == (0, 0, ""), name
        assert (row["event_id"], row["event_time_ms"], row["user_hash"]) == ("", 0, ""), name
        assert (row["billing_day"], row["posting_day"]) == ("2026-03-02",) * 2, name


def test_the_neighbours_of_poison_are_judged(
    product: Product, ad: Ad, poisoned: dict[str, Place]
) -> None:
    rows = [
        row
        for row in product.judged(ad, "event_id", "disposition", "amount_nanos")
        if row[0].startswith("poison-")
    ]
    assert rows == [
        (f"poison-{number}", "charged", 1_000_000_000) for number in range(len(POISON) + 1)
    ]


def test_poison_is_rejected_with_its_place_its_reason_and_its_bytes(
    product: Product, ad: Ad, poisoned: dict[str, Place]
) -> None:
    keys = {f"{p.topic}-{p.partition}-{p.offset}": name for name, p in poisoned.items()}

    def rejects() -> dict[str, dict[str, Any]]:
        return {
            keys[reject["message_key"]]: reject
            for reject in product.rejects()
            if reject["message_key"] in keys
        }

    until(lambda: len(rejects()) == len(POISON), "a reject for each poison")
    for name, reject in rejects().items():
        place = poisoned[name]
        assert (reject["source"], reject["partition"], reject["offset"]) == (
            place.topic,
            place.partition,
            place.offset,
        )
        assert (reject["reason"], reject["timestamp_ms"]) == ("malformed", NOON_MS), name
        assert base64.b64decode(reject["key"]) == ad.campaign_id.encode()
        original = reject["original"]
        assert (None if original is None else base64.b64decode(original)) == POISON[name], name
        assert reject["detail"], name


def test_a_reject_names_the_field_at_fault(product: Product, poisoned: dict[str, Place]) -> None:
    fields = {
        "price-text": "price_micros",
        "price-past-int64": "price_micros",
        "time-before-int64": "event_time_ms",
        "placement-other": "placement",
        "id-too-long": "event_id",
        "nul-in-user": "user_id",
        "country-null": "country",
        "duplicate-key": "event_id",
        "kind-click": "kind",
        "without-impression_id": "impression_id",
    }
    found = {reject["message_key"]: reject["field"] for reject in product.rejects()}
    for name, field in fields.items():
        place = poisoned[name]
        assert found[f"{place.topic}-{place.partition}-{place.offset}"] == field, name


def test_what_only_looks_like_poison_is_judged(product: Product) -> None:
    ad = product.ad("not-poison", "engagement", at("2026-02-10"))
    product.publish(
        *(
            ad.engagement("save", time_ms=NOON_MS, **{"event_id": name, **fields})
            for name, fields in GOOD.items()
        )
    )
    rows = product.judged(ad, "event_id", "disposition", "country", "device")
    assert rows == [
        (
            fields.get("event_id", name),
            "charged",
            fields.get("country", ""),
            fields.get("device", ""),
        )
        for name, fields in GOOD.items()
    ]


@pytest.mark.parametrize("topic", EVENT_TOPICS)
def test_poison_without_a_key_is_judged_where_it_lies(product: Product, topic: str) -> None:
    [place] = product.publish(Message(topic, b"\xff", NOON_MS))
    product.settle()
    rows = product.query(
        "SELECT disposition, journal_partition FROM billing.events WHERE source_topic = "
        "{topic:String} AND source_partition = {p:UInt16} AND source_offset = {o:Int64}",
        topic=topic,
        p=place.partition,
        o=place.offset,
    )
    assert rows == [{"disposition": "malformed", "journal_partition": place.partition}]


def test_a_kind_on_the_other_topics_is_an_extra_field(product: Product) -> None:
    ad = product.ad("kind", "traffic", at("2026-02-10"))
    product.publish(ad.click("kind-click", NOON_MS, kind="save"))
    assert product.judged(ad, "source_topic", "kind", "disposition") == [
        (CLICKS, "click", "charged")
    ]
