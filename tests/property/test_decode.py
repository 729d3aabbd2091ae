"""Three decoders agree: the product's fast one, its reference, and the auditor's."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing import ids
from pipeline.billing.decode import EVENT_TEXTS, Decoded, Decoder, Fault, decode_plain
from pipeline.billing.terms import AD_COLUMNS
from pipeline.billing.texts import Bytes, Packed, lines_of
from pipeline.contract.vocabulary import (
    CLICKS,
    ENGAGEMENTS,
    EVENT_TOPICS,
    IMPRESSIONS,
    KINDS,
    PLACEMENTS,
)
from tests.auditor import MalformedError, read_event
from tests.unit.test_auditor import MALFORMED, WELL_FORMED

EVENT: dict[str, Any] = {
    "event_id": "e-1",
    "event_time_ms": 1_772_323_200_000,
    "campaign_id": "c1",
    "ad_group_id": "g1",
    "promoted_pin_id": "p1",
    "user_id": "u1",
    "impression_id": "i1",
    "price_micros": 2_500_000,
    "placement": "search",
}
OPTIONAL = {"country": "US", "device": "ios", "keyword": "shoes"}

odd_values = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 1.0, 1e2, 0.1, 2**63, 2**63 - 1, -(2**63), 2**64),
        *("", "5", "é", "\ud800", "\0", 'a"b', "a\\b", "a:b", "{", "[", "\n", "x" * 128, "x" * 129),
        *("browse", "search", "all", "click", "save", "install", "closeup"),
        *([], ["a"], {}, {"a": 1}, {"a": {"b": [1, "x"]}}),
    ]
)
keys = st.sampled_from([*EVENT, *OPTIONAL, "kind", "extra", "e", "", "event\\u005fid"])


@st.composite
def messages(draw: st.DrawFn, topic: str) -> bytes | None:
    """A message of the contract's form, or one near to it, or bytes that were."""
    event = dict(EVENT, event_id=f"e-{draw(st.integers(0, 99))}")
    event |= {name: value for name, value in OPTIONAL.items() if draw(st.booleans())}
    if topic == ENGAGEMENTS or draw(st.integers(0, 5)) == 0:
        event["kind"] = draw(st.sampled_from(["save", "closeup", "install", "click"]))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2]))):
        event[draw(keys)] = draw(odd_values)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1]))):
        event.pop(draw(st.sampled_from(sorted(event))))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\r", ":\t ")]))
    value = json.dumps(event, separators=separators, ensure_ascii=draw(st.booleans()))
    encoded = value.encode("utf-8", "surrogatepass")
    damage = draw(st.sampled_from(["", "", "", "", "flip", "cut", "twice", "pad", "null", "line"]))
    at = draw(st.integers(0, len(encoded) - 1))
    if damage == "flip":
        return encoded[:at] + bytes([draw(st.integers(0, 255))]) + encoded[at + 1 :]
    if damage == "cut":
        return encoded[:at]
    if damage == "twice":
        return encoded + encoded
    if damage == "pad":
        return b" \t" + encoded + b"\r "
    if damage == "line":
        return encoded.replace(b",", b",\n", 1)
    return None if damage == "null" else encoded


def lines(values: list[bytes]) -> Bytes:
    found = lines_of([Packed.of(values)])
    assert found is not None
    return found


def auditors(topic: str, value: bytes | None) -> bool:
    """Whether the auditor takes it for an event."""
    try:
        read_event(topic, value)
    except MalformedError:
        return False
    return True


def events_of(decoded: Decoded) -> list[dict[str, Any]]:
    """Each row as the reference has it; a text on a topic that it means nothing on is left out."""
    rows = np.arange(len(decoded.malformed))
    columns: dict[str, list[Any]] = {
        name: decoded.texts.column(name, rows) for name in EVENT_TEXTS if name != "kind"
    }
    columns["kind"] = [KINDS[code] or None for code in decoded.columns.kind]
    columns["event_time_ms"] = decoded.columns.event_time_ms.tolist()
    columns["price_micros"] = decoded.columns.price_micros.tolist()
    lines = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return [{k: v for k, v in line.items() if v is not None} for line in lines]


def check_agreement(topic: str, values: list[bytes | None]) -> None:
    """The chunk's columns are what the reference says of each message by itself."""
    decoder = Decoder(topic)
    decoded = decoder.decode(values)
    assert decoded.texts.names == EVENT_TEXTS
    events = events_of(decoded)
    keys: dict[str, list[tuple[str, ...]]] = {
        "event_keys": [(event["event_id"],) for event in events],
        "ad_keys": [tuple(event[name] for name in AD_COLUMNS) for event in events],
        "user_keys": [(event["user_id"],) for event in events],
        "impression_keys": [(event["impression_id"],) for event in events],
    }
    for column, parts in keys.items():
        expected = [ids.hash_text(*of_row) for of_row in parts]
        assert getattr(decoded.columns, column).tolist() == [list(pair) for pair in expected]
    for row, value in enumerate(values):
        alone = decoder.decode_one(value)
        assert isinstance(alone, Fault) == bool(decoded.malformed[row]), value
        assert isinstance(alone, Fault) != auditors(topic, value), value
        if not isinstance(alone, Fault):
            assert events[row] == msgspec.to_builtins(alone), value
            assert PLACEMENTS[decoded.columns.placement[row]] == alone.placement


@pytest.mark.parametrize("topic", EVENT_TOPICS)
@given(data=st.data())
def test_a_chunk_decodes_as_its_messages_do_alone(topic: str, data: st.DataObject) -> None:
    check_agreement(topic, data.draw(st.lists(messages(topic), max_size=6)))


@pytest.mark.parametrize("value", [*MALFORMED.values(), *WELL_FORMED.values()])
def test_every_known_case_is_judged_alike_beside_good_neighbours(value: bytes | None) -> None:
    good = json.dumps(EVENT).encode()
    check_agreement(IMPRESSIONS, [good, value, good])


def test_good_messages_take_the_fast_way_whatever_their_layout() -> None:
    plain = [
        json.dumps(EVENT | OPTIONAL).encode(),
        json.dumps(EVENT, separators=(",", ":")).encode(),
    ]
    engaged = [json.dumps(dict(reversed(EVENT.items()), kind="save")).encode()]
    values = [*plain, *engaged]
    assert decode_plain(lines(values), np.arange(len(values)) >= len(plain)) is not None


@pytest.mark.parametrize("extra", ["x:y", "", "\u00e9", 5, -5, 0, 0.25, -10.5, True, False, None])
def test_unknown_fields_with_plain_values_are_passed_over_the_fast_way(extra: Any) -> None:
    texts = [
        json.dumps({"v": extra} | EVENT | {"w": extra, "event_idx": extra}, ensure_ascii=False),
        json.dumps(EVENT),
    ]
    values = [text.encode() for text in texts]
    decoded = decode_plain(lines(values), np.zeros(len(values), np.bool_))
    assert decoded is not None
    assert decoded.texts.column("event_id", np.arange(2)) == [EVENT["event_id"]] * 2
    check_agreement(CLICKS, list(values))


@pytest.mark.parametrize(
    "damage",
    [
        '"v":1,"v":2', '"v":"a","w":1,"v":"a"', '"v":01', '"v":.5', '"v":5.', '"v":--1', '"v":-',
        '"v":truer', '"v":tru', '"v":nul', '"v":+1', '"v":', '"v"', 'v:1', '"v":1 2', '"v":NaN',
        '"v":-a', '"v":1e5', '"v":1E400', '"v":"a\nb"', '"v":"a\\u0041"', '"v":{"v":1}', '"v":[1]',
        ",".join(f'"v{i}":{i}' for i in range(12)), '"v":"' + "1" * 300 + '"', '"v":' + "1" * 40,
    ],
)  # fmt: skip
def test_odd_unknown_fields_are_judged_alike_beside_good_neighbours(damage: str) -> None:
    good = json.dumps(EVENT).encode()
    for value in (good[:-1] + f",{damage}}}".encode(), b"{" + damage.encode() + b"," + good[1:]):
        check_agreement(IMPRESSIONS, [good, value, good])


def test_a_kind_on_a_topic_without_kinds_is_ignored_the_fast_way() -> None:
    values = [json.dumps(EVENT | {"kind": "click"}).encode()] * 2
    decoded = decode_plain(lines(values), np.zeros(len(values), np.bool_))
    assert decoded is not None
    assert decoded.columns.kind.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        ('{"event_id', '{, "event_id'),
        ('{"event_id', '{"extra": 1 "event_id'),
        ('{"event_id', '{"extra": 1, , "event_id'),
        (', "campaign_id', ' "campaign_id'),
        (', "placement', ', "campaign_id": "c1", "ad_group_id": "g1", "placement'),
        ('"search"', '"search", '),
        ('"search"', '"search", "event_id'),
        ('000, "campaign_id": "c1', '000, "campaign_id": "c1" , "ad_group_id": "g'),
    ],
)
def test_what_stood_between_two_values_before_means_the_same_in_no_other_place(
    there: str, instead: str
) -> None:
    """The scanner knows the bytes that led to a value the last time."""
    good = json.dumps(EVENT)
    unknown_first = good.replace("{", '{"extra": 1, ')
    bad = good.replace(there, instead)
    assert bad != good
    plain = [good.encode(), unknown_first.encode()] * 2
    check_agreement(CLICKS, [*plain, bad.encode(), *plain])
    assert decode_plain(lines([*plain, bad.encode()]), np.zeros(5, np.bool_)) is None
    assert decode_plain(lines(plain), np.zeros(4, np.bool_)) is not None


def test_more_space_before_a_number_than_the_last_time_is_plain_too() -> None:
    compact, spaced = (json.dumps(EVENT, separators=(", ", by)).encode() for by in (":", ":   "))
    values = [compact, spaced, compact, spaced]
    check_agreement(CLICKS, list(values))
    assert decode_plain(lines(values), np.zeros(4, np.bool_)) is not None


def test_lenience_that_would_cancel_out_over_two_messages_is_seen() -> None:
    """One message lacks the two quotes that another has too many."""
    lacking = json.dumps(EVENT | {"event_id": 5}).encode()
    surplus = json.dumps(EVENT | {"x": 1}).encode()
    check_agreement(CLICKS, [lacking, surplus, lacking.replace(b"5", b"5  ")])


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("field", [b"extra", b"event_id"])
def test_deep_nesting_is_a_fault_and_no_crash(opening: bytes, field: bytes) -> None:
    good = json.dumps(EVENT).encode()
    deep = good[:-1] + b', "' + field + b'": ' + opening * 200_000
    decoded = Decoder(CLICKS).decode([good, deep, good])
    assert decoded.malformed.tolist() == [False, True, False]


def mutated(generator: random.Random, value: bytes) -> bytes:
    """A few bytes changed, dropped, doubled or moved."""
    changed = bytearray(value)
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        at = generator.randrange(len(changed) + 1)
        action = generator.randrange(4)
        if action == 0:
            changed[at : at + 1] = bytes([generator.choice(b'"\\:,{}[]0 9e.-\n\x00\xff')])
        elif action == 1:
            del changed[at : at + generator.randrange(1, 9)]
        elif action == 2:
            changed[at:at] = changed[generator.randrange(len(changed) + 1) :][:12]
        else:
            changed[at:at] = generator.randbytes(2)
        changed = changed or bytearray(b" ")
    return bytes(changed)


def fuzz(messages_in_all: int, seed: int) -> int:
    """Mutated messages among good ones, each against the reference; how many were malformed."""
    generator = random.Random(seed)
    good = [json.dumps(EVENT | OPTIONAL | {"event_id": f"e{n}"}).encode() for n in range(50)]
    decoder = Decoder(CLICKS)
    malformed = 0
    for _ in range(messages_in_all // 8):
        values: list[bytes | None] = [generator.choice(good) for _ in range(8)]
        for at in generator.sample(range(8), generator.choice((1, 1, 2, 8))):
            values[at] = mutated(generator, values[at] or b"")
        decoded = decoder.decode(values)
        alone = [decoder.decode_one(value) for value in values]
        faults = np.array([isinstance(event, Fault) for event in alone])
        assert (decoded.malformed == faults).all(), values
        for event, row in zip(alone, events_of(decoded), strict=True):
            if not isinstance(event, Fault):
                assert row == msgspec.to_builtins(event)
        malformed += int(faults.sum())
    return malformed


def test_twenty_thousand_mutated_messages_are_judged_as_the_reference_judges_them() -> None:
    assert 1_000 < fuzz(20_000, seed=1) < 19_000


@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_a_million_mutated_messages_are_judged_as_the_reference_judges_them() -> None:
    assert fuzz(1_000_000, seed=2) > 50_000
