"""A batch holds what its chunks hold, in the order of judgement, however it is decoded and cut."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing.batch import Assembler, Batch, Chunk, in_steps
from pipeline.billing.decode import EVENT_TEXTS, Columns, decode_plain
from pipeline.billing.texts import Packed, lines_of
from pipeline.contract.vocabulary import ENGAGEMENTS, EVENT_TOPICS
from tests.property.test_decode import EVENT

START_MS = 1_772_323_200_000


def message(number: int, topic: str, *, plain: bool) -> bytes:
    """An event; one that is not plain has an escape in it."""
    event: dict[str, Any] = EVENT | {"event_id": f"e-{number}", "event_time_ms": START_MS + number}
    if topic == ENGAGEMENTS:
        event["kind"] = "save"
    if number % 3:
        event["country"] = "US"
    value = json.dumps(event).encode()
    return value if plain else value.replace(b"e-", b"\\u0065-", 1)


@st.composite
def chunks(draw: st.DrawFn, *, all_plain: bool) -> list[Chunk]:
    """Some partitions, each in one or several chunks, some of which hold transaction markers alone,
    in any order but their own."""
    found = []
    ends: dict[tuple[int, int], int] = {}
    number = 0
    for _ in range(draw(st.integers(0, 12))):
        source, shard = draw(st.integers(0, 2)), draw(st.integers(0, 3))
        start = ends.get((source, shard), 0)
        values, times = [], []
        for _ in range(draw(st.integers(0, 4))):
            plain = all_plain or draw(st.integers(0, 3)) > 0
            values.append(message(number, EVENT_TOPICS[source], plain=plain))
            times.append(START_MS + draw(st.integers(0, 50)))
            number += 1
        end = start + len(values) + 1  # the last offset is a marker's
        ends[source, shard] = end
        offsets = np.arange(start, start + len(values))
        headers = {int(offset): (("h", b"%d" % offset),) for offset in offsets[::2]}
        keys = [b"k%d" % at for at in range(len(values))]
        found.append(
            Chunk(
                source,
                shard,
                start,
                end,
                offsets,
                np.array(times, np.int64),
                Packed.of(values),
                Packed.of(keys),
                headers,
            )
        )
    return found


def in_order(given_chunks: list[Chunk]) -> list[tuple[int, int, int, bytes | None, Any]]:
    """(shard, source, offset, value, headers) of every record, as the contract has them judged."""
    rows = []
    greatest_ms: dict[tuple[int, int], int] = {}
    for at, chunk in enumerate(given_chunks):
        place = chunk.source, chunk.shard
        for row, offset in enumerate(chunk.offsets.tolist()):
            record_ms = int(chunk.timestamps_ms[row])
            greatest_ms[place] = max(record_ms, greatest_ms.get(place, 0))
            key = chunk.shard, greatest_ms[place], chunk.source, at, row
            headers = chunk.headers.get(offset, ())
            record = chunk.shard, chunk.source, offset, chunk.values[row], headers
            rows.append((key, record))
    return [record for _, record in sorted(rows, key=lambda one: one[0])]


def records_of(batch: Batch) -> list[tuple[int, int, int, bytes | None, Any]]:
    return [
        (
            int(batch.shard[row]),
            int(batch.source[row]),
            int(batch.offset[row]),
            *batch.original(row)[1:],
        )
        for row in range(len(batch))
    ]


def check_spans(batch: Batch) -> None:
    rows = [row for span in batch.spans.values() for row in range(span.start, span.stop)]
    assert rows == list(range(len(batch)))
    for shard, span in batch.spans.items():
        assert (batch.shard[span] == shard).all()
        assert span.stop > span.start
    assert list(batch.spans) == sorted(batch.spans)


@given(chunks(all_plain=False))
def test_a_batch_is_its_records_in_their_order(given_chunks: list[Chunk]) -> None:
    batch = Assembler().assemble(given_chunks)
    assert records_of(batch) == in_order(given_chunks)
    check_spans(batch)
    ids = batch.texts.column("event_id", np.arange(len(batch)))
    values = [json.loads(value or b"") for _, _, _, value, _ in records_of(batch)]
    assert ids == [value["event_id"] for value in values]
    assert batch.event_time_ms.tolist() == [value["event_time_ms"] for value in values]


@given(chunks(all_plain=False), st.integers(0, 12))
def test_running_maxima_go_on_from_batch_to_batch(given_chunks: list[Chunk], cut: int) -> None:
    assembler, found = Assembler(), dict[tuple[int, int, int], int]()
    for part in (given_chunks[:cut], given_chunks[cut:]):
        batch = assembler.assemble(part)
        places = zip(
            batch.shard.tolist(), batch.source.tolist(), batch.offset.tolist(), strict=True
        )
        found |= zip(places, batch.order_ms.tolist(), strict=True)
    expected, greatest_ms = {}, dict[tuple[int, int], int]()
    for chunk in given_chunks:
        place = chunk.shard, chunk.source
        for offset, record_ms in zip(chunk.offsets, chunk.timestamps_ms, strict=True):
            greatest_ms[place] = max(int(record_ms), greatest_ms.get(place, 0))
            expected[*place, int(offset)] = greatest_ms[place]
    assert found == expected
    assert {place: assembler.read_up_to_ms(*place) for place in greatest_ms} == greatest_ms
    assembler.forget(1)
    left = {place: 0 if place[0] == 1 else read_ms for place, read_ms in greatest_ms.items()}
    assert {place: assembler.read_up_to_ms(*place) for place in greatest_ms} == left


@given(chunks(all_plain=False), st.sets(st.integers(1, 60), max_size=4))
def test_parts_of_a_batch_keep_their_records(given_chunks: list[Chunk], cuts: set[int]) -> None:
    batch = Assembler().assemble(given_chunks)
    if len(batch) == 0:
        return
    boundaries_ms = [START_MS + cut for cut in sorted(cuts)]
    found = []
    for part, _ in in_steps(batch, START_MS - 1, boundaries_ms):
        check_spans(part)
        found += records_of(part)
        ids = part.texts.column("event_id", np.arange(len(part)))
        assert ids == [json.loads(value or b"")["event_id"] for *_, value, _ in records_of(part)]
    assert sorted(found) == sorted(records_of(batch))


@given(chunks(all_plain=True))
def test_both_ways_of_decoding_give_the_same_batch(given_chunks: list[Chunk]) -> None:
    """One message that is not plain sends all to the slower way."""
    odd = message(99_999, EVENT_TOPICS[0], plain=False)
    last = Chunk(
        0, 9, 0, 1, np.zeros(1, np.int64), np.full(1, START_MS), Packed.of([odd]), Packed.of([b""])
    )
    one, other = Assembler().assemble(given_chunks), Assembler().assemble([*given_chunks, last])
    size = len(one)
    for name in [field.name for field in fields(Columns)] + ["malformed", "order_ms", "came_as"]:
        assert getattr(one, name).tolist() == getattr(other, name)[:size].tolist()
    rows = np.arange(size)
    for name in EVENT_TEXTS:
        assert one.texts.column(name, rows) == other.texts.column(name, rows)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 700])
def test_many_messages_are_read_block_by_block(size: int) -> None:
    topics = [EVENT_TOPICS[number % 3] for number in range(size)]
    values = [message(number, topic, plain=True) for number, topic in enumerate(topics)]
    engaged = np.array([topic == ENGAGEMENTS for topic in topics])

    def read(given_values: list[bytes]) -> Any:
        lines = lines_of([Packed.of(given_values)])
        assert lines is not None
        return decode_plain(lines, engaged)

    decoded = read(values)
    assert decoded.texts.column("event_id", np.arange(size)) == [f"e-{n}" for n in range(size)]
    lines = [np.frombuffer(value + b"\n", np.uint8) for value in values]
    alone = [decode_plain(line, engaged[[at]]) for at, line in enumerate(lines)]
    for field in fields(Columns):
        together = getattr(decoded.columns, field.name).tolist()
        assert together == [getattr(one.columns, field.name)[0].tolist() for one in alone if one]
    for damaged in {0, size // 2, size - 1}:
        broken = values.copy()
        broken[damaged] = broken[damaged].replace(b'"placement"', b'"displacement"')
        assert read(broken) is None
    assert read([*values[:-1], values[-1] + b"\n" + values[-1]]) is None
