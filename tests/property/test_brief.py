"""Texts that a record holds in fewer bytes are read as they were published, in both versions."""

from __future__ import annotations

import json
from typing import Any

import cramjam
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.billing.batch import Assembler, Batch, Chunk, in_steps
from pipeline.billing.brief import LONGEST_TEXT, MOST_TEXTS
from pipeline.billing.journal import EMPTY_DIGEST, JournalError, decode, decode_events, seal
from pipeline.billing.texts import Packed
from pipeline.contract.vocabulary import JOURNAL_VERSIONS
from pipeline.streams.writer import Entry, prepare
from tests.headers import a_header
from tests.property.test_decode import EVENT
from tests.property.worlds import make_engine

START_MS = 1_772_323_200_000

HEX = st.text("0123456789abcdef", min_size=32, max_size=32)
UUID = st.uuids().map(str)
OTHERS = st.one_of(
    HEX.map(str.upper),
    UUID.map(str.upper),
    st.text("0123456789abcdefg-`:@/Gé", min_size=32, max_size=32),
    st.text("0123456789abcdef-", min_size=36, max_size=36),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
)
IDS = st.one_of(
    st.lists(HEX, min_size=1, max_size=30),
    st.lists(UUID, min_size=1, max_size=30),
    st.lists(st.one_of(HEX, UUID, OTHERS), min_size=1, max_size=30),
)
TEXT = st.none() | st.one_of(
    st.sampled_from(("US", "CA", "GB", "", "ios", "web", "smart-tv-1", "smart-tv-2", "smart-tv")),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
)
Published = list[tuple[str, str | None, str | None]]


def message(event_id: str, country: str | None, device: str | None) -> bytes:
    event: dict[str, Any] = EVENT | {"event_id": event_id[:64], "event_time_ms": START_MS}
    given_texts = {"country": country, "device": device}
    event |= {name: text for name, text in given_texts.items() if text is not None}
    return json.dumps(event, ensure_ascii=False).encode()


def batch_of(values: list[bytes]) -> Batch:
    """Impressions of two shards, the later messages in the second."""
    sizes = (len(values) + 1) // 2, len(values) // 2
    parts = (values[: sizes[0]], values[sizes[0] :])
    chunks = [
        Chunk(
            source=0,
            shard=shard,
            start=0,
            end=size,
            offsets=np.arange(size),
            timestamps_ms=np.arange(START_MS, START_MS + size),
            values=Packed.of(part),
            keys=Packed.of([b"k"] * size),
        )
        for shard, (size, part) in enumerate(zip(sizes, parts, strict=True))
        if size
    ]
    return Assembler().assemble(chunks)


def recorded(*batches: Batch) -> list[Entry]:
    engine = make_engine()
    return [
        entry
        for batch in batches
        for entry in prepare(engine, engine.turn(batch, START_MS, {}))
        if entry.header.events
    ]


def read(entries: list[Entry], version: int) -> Published:
    found = []
    for entry in entries:
        # What is packed for writing is no list yet.
        header = a_header(events=entry.header.events, texts=entry.header.texts)
        _, value = seal(header, entry.body, EMPTY_DIGEST, version)
        found += decode(value).events.select("event_id", "country", "device").rows()
    return found


def as_read(published: Published) -> Published:
    """Beside ids, a text that was left out is an empty one."""
    return [(one[:64], country or "", device or "") for one, country, device in published]


@given(IDS, st.data())
@example(["0" * 32, "f" * 32], None)
@example(["0" * 31 + "g"], None)
@example(["00000000-0000-0000-0000-00000000000f", "00000000-0000-0000-0000_00000000000f"], None)
def test_what_was_published_is_read(ids: list[str], data: st.DataObject | None) -> None:
    def text() -> str | None:
        return data.draw(TEXT) if data else "US"

    published = [(one, text(), text()) for one in ids]
    batch = batch_of([message(*one) for one in published])
    # Cut at a time, which takes some rows of the whole.
    parts = [part for part, _ in in_steps(batch, START_MS, [START_MS + len(ids) // 4])]
    for entries in (recorded(batch), recorded(*parts)):
        for version in JOURNAL_VERSIONS:
            assert sorted(read(entries, version)) == sorted(as_read(published))


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        (("00112233445566778899aabbccddeeff",) * 2, pa.binary(16)),
        (("00112233-4455-6677-8899-aabbccddeeff",) * 2, pa.binary(16)),
        (("00112233445566778899aabbccddeeff", "e-1"), pa.large_string()),
        (("e-1", "00112233445566778899aabbccddeeff"), pa.large_string()),
        (("00112233445566778899AABBCCDDEEFF",) * 2, pa.large_string()),
    ],
)
def test_ids_are_packed_where_all_are_of_one_form(ids: tuple[str, str], kind: pa.DataType) -> None:
    batch = batch_of([message(one, "US", "ios") for one in ids])
    engine = make_engine()
    turn = engine.turn(batch, START_MS, {})
    for events in engine.shard_events(turn, turn.drafts):
        if len(events.columns):
            assert events.columns.schema.field("event_id").type == kind
            assert events.columns.schema.field("country").type == pa.uint16()
            assert events.texts == ["US", "ios"]


def test_a_record_names_the_texts_of_its_own_events_only() -> None:
    published: Published = [(f"{n:032x}", f"c{n}", "ios") for n in range(10)]
    first, second = recorded(batch_of([message(*one) for one in published]))
    assert first.header.texts == ["c0", "ios", "c1", "c2", "c3", "c4"]
    assert second.header.texts == ["c5", "ios", "c6", "c7", "c8", "c9"]


@pytest.mark.parametrize(("size", "briefly"), [(LONGEST_TEXT, True), (LONGEST_TEXT + 1, False)])
def test_a_long_text_is_not_named_in_a_header(size: int, *, briefly: bool) -> None:
    published: Published = [("0" * 32, "US", "d" * size)]
    [entry] = recorded(batch_of([message(*one) for one in published]))
    assert bool(entry.header.texts) is briefly
    assert read([entry], JOURNAL_VERSIONS[-1]) == as_read(published)


@pytest.mark.parametrize("device", ["smart-tv-{:04}-of-a-maker", "{:04}-of-a-maker", "d{:07}"])
def test_texts_that_begin_or_end_alike_are_told_apart(device: str) -> None:
    published: Published = [(f"{n:032x}", None, device.format(n)) for n in range(1_000)]
    entries = recorded(batch_of([message(*one) for one in published]))
    named = [text for entry in entries for text in entry.header.texts or ()]
    assert len(named) == 1_002  # with "" of the countries, of two shards
    assert sorted(read(entries, JOURNAL_VERSIONS[-1])) == sorted(as_read(published))


@pytest.mark.parametrize(("different", "briefly"), [(MOST_TEXTS, True), (MOST_TEXTS + 1, False)])
def test_many_different_texts_are_written_as_they_are(different: int, *, briefly: bool) -> None:
    published: Published = [(f"{n:032x}", f"c{n}", f"c{n - 1}") for n in range(1, different)]
    entries = recorded(batch_of([message(*one) for one in published]))
    for entry in entries:
        assert bool(entry.header.texts) is briefly
    assert sorted(read(entries, JOURNAL_VERSIONS[-1])) == sorted(as_read(published))


def test_a_record_of_many_events_is_read() -> None:
    """Its ids are in a frame of their own, of several blocks."""
    published: Published = [(f"{n * 2**64 + n:032x}", "US", "ios") for n in range(1, 10_000)]
    entries = recorded(batch_of([message(*one) for one in published]))
    for version in JOURNAL_VERSIONS:
        assert sorted(read(entries, version)) == sorted(as_read(published))
    header = a_header(events=entries[0].header.events, texts=entries[0].header.texts)
    for cut in (1, 1_000, 100_000, len(entries[0].body) - 1):
        with pytest.raises(JournalError):
            decode_events(header, entries[0].body[:-cut])


def test_a_malformed_message_leaves_the_others_as_they_are() -> None:
    published: Published = [(f"{n:032x}", "US", None) for n in range(9)]
    entries = recorded(batch_of([*(message(*one) for one in published), b"{"]))
    found = read(entries, JOURNAL_VERSIONS[-1])
    assert sorted(found) == sorted([*as_read(published), ("", "", "")])


def test_a_position_beyond_the_headers_texts_is_a_journal_error() -> None:
    [entry, *_] = recorded(batch_of([message("0" * 32, "US", "ios")]))
    with pytest.raises(JournalError, match="do not decode"):
        decode_events(a_header(events=1, texts=["US"]), entry.body)


def test_ids_of_a_form_that_nobody_knows_are_a_journal_error() -> None:
    [entry, *_] = recorded(batch_of([message("0" * 32, "US", "ios")]))
    stream = cramjam.zstd.decompress(entry.body)
    told = bytes(stream).replace(b"hex", b"b32")
    header = a_header(events=1, texts=entry.header.texts)
    assert decode_events(header, bytes(stream))["event_id"].to_list() == ["0" * 32]
    with pytest.raises(JournalError, match="do not decode"):
        decode_events(header, told)
