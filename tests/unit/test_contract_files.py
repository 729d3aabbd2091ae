"""The machine-readable contract is generated, and says the same as the code that judges."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing.decode import Decoder, Fault
from pipeline.cli.contract_files import contract_files
from pipeline.contract.catalog_entities import (
    KINDS,
    Refused,
    parse_entity,
    parse_key,
)
from pipeline.contract.days import from_iso
from pipeline.contract.events import Event
from pipeline.contract.schemas import message_schemas
from pipeline.contract.signals import Signal, encode_signal
from pipeline.contract.vocabulary import (
    CLICKS,
    ENGAGEMENTS,
    EVENT_TOPICS,
    FUTURE,
    IMPRESSIONS,
    MALFORMED,
    MS_PER_DAY,
    UNKNOWN,
)
from pipeline.pacing.serving import LimitUse, PlainLimits, Standing
from pipeline.simulate.world import build_world
from pipeline.streams.outbox import Original, reject_of

DOCS = Path(__file__).parents[2] / "docs"
VALIDATORS = {
    name: jsonschema.Draft7Validator(schema) for name, schema in message_schemas().items()
}
EVENT_SCHEMA_OF = {IMPRESSIONS: "event", CLICKS: "event", ENGAGEMENTS: "engagement_event"}
DAY = from_iso("2026-03-02")

EVENT = {
    "event_id": "e1",
    "event_time_ms": DAY * MS_PER_DAY,
    "campaign_id": "c1",
    "ad_group_id": "g1",
    "promoted_pin_id": "p1",
    "user_id": "u1",
    "impression_id": "i1",
    "price_micros": 2_000_000,
    "placement": "search",
    "country": "US",
    "device": "ios",
    "keyword": "boots",
    "kind": "save",
}


def validates(name: str, value: bytes) -> bool:
    """Whether a message value fits its schema."""
    return bool(VALIDATORS[name].is_valid(json.loads(value)))


def decode(topic: str, value: bytes | None) -> Event | Fault:
    """What judging makes of a message value."""
    return Decoder(topic).decode_one(value)


# -- the files --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(contract_files()))
def test_a_committed_file_is_what_the_code_generates(path: str) -> None:
    assert (DOCS / path).read_text(encoding="utf-8") == contract_files()[path], "run `make schemas`"


def test_no_schema_is_left_of_a_message_that_is_gone() -> None:
    committed = {f"schemas/{file.name}" for file in (DOCS / "schemas").iterdir()}
    assert committed <= set(contract_files())


def test_every_reference_of_the_topics_document_leads_somewhere() -> None:
    document = json.loads((DOCS / "asyncapi.yaml").read_text())
    for reference in _references(document):
        if reference.startswith("#/"):
            found = document
            for step in reference.removeprefix("#/").split("/"):
                found = found[step]
        else:
            assert (DOCS / reference).is_file()


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)


def test_a_key_pattern_of_the_topics_document_takes_the_keys_that_the_catalog_takes() -> None:
    messages = json.loads((DOCS / "asyncapi.yaml").read_text())["components"]["messages"]
    for kind in KINDS:
        key = jsonschema.Draft7Validator(messages[kind.name]["bindings"]["kafka"]["key"])
        for text in (f"{kind.prefix}:1", f"{kind.prefix}:a:b", f"{kind.prefix}:", "1", "x:1"):
            parsed = parse_key(text.encode())
            is_of_kind = not isinstance(parsed, Refused) and parsed[0] is kind
            assert key.is_valid(text) == is_of_kind, text


# -- events: the schema and the decoder agree -------------------------------------------------

_INTS = st.sampled_from([-(2**63) - 1, -(2**63), -1, 0, 1, 2**63 - 1, 2**63]) | st.integers()
_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=300)
_ODD_TEXTS = st.sampled_from(["", "x" * 128, "x" * 129, "x" * 256, "x" * 257, "é" * 128])
# A float without a fraction is an integer to JSON Schema, and malformed to the contract.
_FRACTIONS = st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: not x.is_integer())
_SCALARS = st.none() | st.booleans() | _INTS | _FRACTIONS | _TEXTS | _ODD_TEXTS
_ANYTHING = (
    _SCALARS | st.lists(_SCALARS, max_size=2) | st.dictionaries(_TEXTS, _SCALARS, max_size=2)
)


@st.composite
def events_gone_wrong(draw: st.DrawFn) -> dict[str, Any]:
    """An event of which some fields are missing or hold anything, and with fields of others."""
    event: dict[str, Any] = dict(EVENT)
    names = st.sampled_from([*EVENT, "unheard_of"])
    for name in draw(st.lists(names, max_size=2)):
        event[name] = draw(_ANYTHING)
    for name in draw(st.lists(names, max_size=1)):
        event.pop(name, None)
    return event


@given(event=events_gone_wrong(), topic=st.sampled_from(EVENT_TOPICS))
def test_a_message_fits_the_schema_exactly_where_it_is_not_malformed(
    event: dict[str, Any], topic: str
) -> None:
    value = json.dumps(event, ensure_ascii=False).encode()
    decoded = decode(topic, value)
    assert validates(EVENT_SCHEMA_OF[topic], value) != isinstance(decoded, Fault), decoded


@pytest.mark.parametrize("value", [b"null", b"[]", b'"event"', b"7"])
def test_what_is_no_object_does_not_fit(value: bytes) -> None:
    assert not validates("event", value)


# -- the catalog ------------------------------------------------------------------------------


CREDIT = {
    "event_id": "e1",
    "account_id": "a",
    "campaign_id": "c",
    "ad_group_id": "g",
    "promoted_pin_id": "p",
    "placement": "browse",
    "country": "US",
    "device": "",
    "basis": "cpc",
    "currency": "USD",
    "billing_day": "2026-03-02",
    "charged_day": "2026-03-03",
    "amount_nanos": 500_000_000,
    "reason": "invalid traffic",
}


def _entities() -> list[tuple[str, dict[str, Any]]]:
    """Key and value of one entity of each kind, as they are published."""
    world = build_world(seed=1, campaigns=3, day_start_ms=DAY * MS_PER_DAY, impressions=100)
    by_prefix = {key.partition(":")[0]: (key, value) for key, value in world.entities}
    rates = {"fx_day": "2026-03-02", "usd_per_unit": {"GBP": "1.25"}}
    return [
        *by_prefix.values(),
        ("fx:2026-03-02", rates),
        ("close:2026-03-02", {"day": "2026-03-02"}),
        ("credit:e1", CREDIT),
    ]


def test_there_is_a_real_entity_of_every_kind_to_try() -> None:
    assert {key.partition(":")[0] for key, _ in _entities()} == {kind.prefix for kind in KINDS}


@pytest.mark.parametrize(("key", "entity"), _entities())
def test_an_entity_in_use_fits_its_schema(key: str, entity: dict[str, Any]) -> None:
    parsed = parse_key(key.encode())
    assert not isinstance(parsed, Refused)
    value = msgspec.json.encode(entity)
    assert not isinstance(parse_entity(*parsed, value), Refused)
    assert validates(parsed[0].name, value)


@pytest.mark.parametrize(("key", "entity"), _entities())
@given(data=st.data())
def test_an_entity_that_the_catalog_can_read_fits_its_schema(
    key: str, entity: dict[str, Any], data: st.DataObject
) -> None:
    parsed = parse_key(key.encode())
    assert not isinstance(parsed, Refused)
    kind, entity_id = parsed
    name = data.draw(st.sampled_from(sorted(entity)))
    changed = entity | {name: data.draw(_ANYTHING)}
    value = json.dumps(changed, ensure_ascii=False).encode()
    refused = parse_entity(kind, entity_id, value)
    malformed = isinstance(refused, Refused) and refused.reason == "malformed"
    fits = validates(kind.name, value)
    if name in (kind.id_field, "usd_per_unit"):
        # That it is the key's id, and what a rate is, no schema says.
        assert fits or malformed
    else:
        assert fits != malformed


# -- what the product sends -------------------------------------------------------------------


def _standing(spend_nanos: int, last: Signal | None) -> Standing:
    uses = (LimitUse("campaign_lifetime", 10**12, 0), LimitUse("campaign_daily", 10, spend_nanos))
    version = 0 if last is None else last.version
    return Standing("campaign:c1", uses, DAY, (DAY + 1) * MS_PER_DAY, last, version)


def test_signals_fit_their_schema() -> None:
    pause = PlainLimits().review(_standing(10, None), DAY * MS_PER_DAY)
    assert pause is not None
    resume = PlainLimits().review(_standing(0, pause), (DAY + 1) * MS_PER_DAY)
    assert resume is not None
    bid = msgspec.structs.replace(resume, action="bid", bid_micros=150_000, version=3)
    for signal in (pause, resume, bid):
        VALIDATORS["signal"].validate(json.loads(encode_signal(signal)))
    assert not validates("signal", encode_signal(pause).replace(b'"pause"', b'"halt"'))


@pytest.mark.parametrize(
    ("disposition", "key", "value"),
    [
        (MALFORMED, b"c1", b"{"),
        (MALFORMED, None, None),
        (FUTURE, b"c1", msgspec.json.encode(EVENT)),
        (UNKNOWN, b"c1", msgspec.json.encode(EVENT)),
    ],
)
def test_rejects_fit_their_schema(disposition: int, key: bytes | None, value: bytes | None) -> None:
    decoded = decode(IMPRESSIONS, value)
    original = Original(IMPRESSIONS, 3, 17, 1_000, key, value, (), disposition, decoded)
    VALIDATORS["reject"].validate(json.loads(msgspec.json.encode(reject_of(original))))
