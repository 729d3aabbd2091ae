"""Fetched bytes become the same records here and in aiokafka, and damage stops at an error."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.record.default_records import DefaultRecordBatchBuilder, _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing.texts import Packed, lines_of
from pipeline.contract.vocabulary import CLICKS
from pipeline.streams import transport
from pipeline.streams.record_batches import (
    PlainBatches,
    Records,
    _varint_at,
    batches_in,
    read,
)

CODECS = range(5)
LENGTH_AT, CRC_AT, ATTRIBUTES_AT, HEADER_BYTES = 8, 17, 21, 61

texts = st.none() | st.binary(max_size=300)
headers = st.lists(st.tuples(st.text(max_size=5), texts), max_size=3)
records = st.tuples(st.integers(-1, 2**62), texts, texts, st.just([]) | headers)
Row = tuple[int, int, bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]


def sealed(batch: bytearray) -> bytes:
    """The batch with the checksum of what is in it."""
    struct.pack_into(">I", batch, CRC_AT, crc32c(memoryview(batch)[ATTRIBUTES_AT:]))
    return bytes(batch)


def built(rows: list[Any], base_offset: int, codec: int = 0, append_time: bool = False) -> bytes:
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 20)
    for offset, (timestamp, key, value, of_record) in enumerate(rows):
        assert builder.append(offset, timestamp, key, value, of_record) is not None
    batch = builder.build()
    struct.pack_into(">q", batch, 0, base_offset)
    attributes = struct.unpack_from(">h", batch, ATTRIBUTES_AT)[0] | (8 if append_time else 0)
    struct.pack_into(">h", batch, ATTRIBUTES_AT, attributes)
    return sealed(batch)


def rows_here(data: bytes) -> list[Row]:
    """As they are read batch by batch; and all at once, where that is offered."""
    batches = list(batches_in(data, "events-0"))
    assert all(batch.is_whole() for batch in batches)
    found = rows_of(read(batches, "events-0"))
    plain = PlainBatches.in_fetch(data, check_crcs=True)
    assert (plain is None) == any(
        batch.is_compressed or batch.is_transactional or batch.is_control for batch in batches
    )
    if plain is not None:
        assert rows_of(plain.read("events-0")) == found
        parts = list(plain.parts(most_records=3, most_bytes=500))
        assert [row for part in parts for row in rows_of(part.read("events-0"))] == found
        assert [part.next_offset for part in parts[-1:]] == [b.next_offset for b in batches[-1:]]
    return found


def rows_of(found: Records) -> list[Row]:
    offsets, times = found.offsets.tolist(), found.timestamps_ms.tolist()
    of_records = [found.headers.get(offset, ()) for offset in offsets]
    return list(zip(offsets, times, found.keys, found.values, of_records, strict=True))


def rows_there(batches: list[Any]) -> list[Row]:
    return [(r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for b in batches for r in b]


def aiokafkas(data: bytes) -> list[Any]:
    fetched, batches = MemoryRecords(data), []
    while fetched.has_next():
        batches.append(fetched.next_batch())
    return batches


@pytest.mark.parametrize("number", CODECS)
@given(data=st.data())
def test_a_fetch_reads_as_aiokafka_reads_it(number: int, data: st.DataObject) -> None:
    """Compressed batches among plain ones, and a last one that the fetch cut off."""
    fetched, offset = b"", data.draw(st.integers(0, 2**40))
    for _ in range(data.draw(st.integers(0, 3))):
        rows = data.draw(st.lists(records, min_size=1, max_size=8))
        of_batch = data.draw(st.sampled_from([0, number]))
        fetched += built(rows, offset, of_batch, append_time=data.draw(st.booleans()))
        offset += len(rows) + data.draw(st.integers(0, 3))
    cut_off = built([(0, b"k", b"v", [])], offset)
    fetched += cut_off[: data.draw(st.integers(0, len(cut_off) - 1))]
    theirs = aiokafkas(fetched)
    assert [batch.next_offset for batch in batches_in(fetched, "")] == [
        batch.next_offset for batch in theirs
    ]
    assert rows_here(fetched) == rows_there(theirs)


def test_a_codec_that_nobody_knows_is_unsupported() -> None:
    batch = bytearray(built([(0, None, b"v", [])], 7))
    struct.pack_into(">h", batch, ATTRIBUTES_AT, 6)
    with pytest.raises(UnsupportedCodecError, match="codec 6"):
        rows_here(sealed(batch))


def attributes_of(batch: bytes) -> Iterator[int]:
    """The attributes of the records of a batch that is not compressed."""
    yield 0
    at = HEADER_BYTES
    while at < len(batch):
        length, at = _varint_at(batch, at)
        yield batch[at]
        at += length


@given(
    rows=st.lists(records, min_size=1, max_size=4),
    number=st.sampled_from([0, 0, 0, 1]),
    damage=st.lists(
        st.tuples(
            st.integers(0), st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)
        ),
        max_size=4,
    ),
    dropped=st.just(0) | st.integers(0, 30),
)
def test_damage_with_a_right_checksum_is_an_error_or_reads_alike(
    rows: list[Any], number: int, damage: list[tuple[int, int]], dropped: int
) -> None:
    """Compared with aiokafka's reader in Python: the one in C reads past the end itself.

    The two differ in what no client writes: aiokafka takes a record's attributes for a varint where
    the format has one byte, and refuses a header's name that is not UTF-8.
    """
    batch = bytearray(built(rows, 7, number))
    whole = len(batch)
    places = [*range(LENGTH_AT), *range(ATTRIBUTES_AT, whole)]
    for at, byte in damage:
        batch[places[at % len(places)]] = byte
    del batch[max(HEADER_BYTES, whole - dropped) :]
    struct.pack_into(">i", batch, LENGTH_AT, len(batch) - 12)
    data = sealed(batch)
    try:
        here = rows_here(data)
    except (CorruptRecordException, UnsupportedCodecError):
        return
    odd_names = any("\N{REPLACEMENT CHARACTER}" in name for row in here for name, _ in row[4])
    if number or (max(attributes_of(data)) < 0x80 and not odd_names):
        assert here == rows_there([_DefaultRecordBatchPy(data)])


@given(st.binary(max_size=200), st.integers(0, 2**31 - 1))
def test_a_body_of_any_bytes_is_read_within_its_bounds(body: bytes, count: int) -> None:
    """What is read of it does not depend on the bytes behind it."""
    head = bytearray(built([(0, None, b"v", [])], 7)[:HEADER_BYTES])
    struct.pack_into(">i", head, LENGTH_AT, len(head) + len(body) - 12)
    struct.pack_into(">i", head, HEADER_BYTES - 4, count % 9)
    data = sealed(head + body)

    def outcome(fetched: bytes) -> list[tuple[int, int, bytes | None, bytes | None]] | str:
        batch = next(batches_in(fetched, "events-0"))
        try:
            found = read([batch], "events-0")
        except CorruptRecordException as error:
            return str(error)
        columns = found.offsets, found.timestamps_ms, found.keys, found.values
        return list(zip(*columns, strict=True))

    assert outcome(data) == outcome(data + b"\0" * 64) == outcome(data + b"\xff" * 64)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("count", [-1, 2, 2**31 - 1])
def test_a_count_of_records_that_are_not_there_is_corrupt(number: int, count: int) -> None:
    batch = bytearray(built([(0, None, b"v", [])], 7, number))
    struct.pack_into(">i", batch, HEADER_BYTES - 4, count)
    with pytest.raises(CorruptRecordException, match="events-0, batch at offset 7"):
        rows_here(sealed(batch))


@pytest.mark.parametrize(
    ("magic", "length"), [(0, 30), (1, 30), (3, 60), (2, 48), (2, 4), (2, -20)]
)
def test_what_is_no_batch_of_this_format_is_corrupt(magic: int, length: int) -> None:
    batch = struct.pack(">qiib", 7, length, 0, magic) + b"\0" * 60
    with pytest.raises(CorruptRecordException, match="events-0, batch at offset 7"):
        list(batches_in(batch, "events-0"))


def test_a_changed_byte_does_not_have_the_checksum() -> None:
    batch = bytearray(built([(0, None, b"value", [])], 7))
    batch[-2] ^= 1
    assert [found.is_whole() for found in batches_in(bytes(batch), "")] == [False]


def test_a_header_name_that_is_no_utf_8_is_read_all_the_same() -> None:
    data = built([(0, None, b"v", [("name", b"1")])], 7)
    batch = bytearray(data.replace(b"name", b"n\xffme"))
    assert rows_here(sealed(batch)) == [
        (7, 0, None, b"v", (("n\N{REPLACEMENT CHARACTER}me", b"1"),))
    ]


@given(st.lists(st.lists(texts, max_size=5), max_size=3), st.slices(5))
def test_packed_values_are_a_sequence_of_them(parts: list[list[Any]], cut: slice) -> None:
    packed = [Packed.of(part) for part in parts]
    assert [list(part) for part in packed] == parts
    assert [list(part[cut]) for part in packed] == [part[cut] for part in parts]
    values = [value for part in parts for value in part[cut]]
    lines = lines_of([part[cut] for part in packed])
    if None in values:
        assert lines is None
    else:
        assert lines is not None
        assert lines.tobytes() == b"".join(value + b"\n" for value in values)


def chunks_of(data: bytes, start: int, one_by_one: bool) -> list[Any]:
    """What a fetch from this offset on is made into, with where the next fetch would begin."""
    fetched = transport._FetchedRecords(data)
    place = TopicPartition(CLICKS, 3)
    unpacked = transport._ChunkRecords(
        place, fetched, [], start, None, transport.as_chunks, True, 1
    )
    found: list[Any] = []
    each = unpacked._unpack_each() if one_by_one else unpacked._unpack_records()
    for record in each:
        chunk = record.value
        offsets = chunk.offsets.tolist()
        headers_of = [chunk.headers.get(offset, ()) for offset in offsets]
        columns = (offsets, chunk.timestamps_ms.tolist(), chunk.keys, chunk.values, headers_of)
        place = (record.offset, chunk.start, chunk.end, unpacked.next_fetch_offset)
        found.append((*place, list(zip(*columns, strict=True))))
    return found


def compacted_away(base_offset: int, last: int) -> bytes:
    """A batch that has kept its offsets and none of its records."""
    batch = bytearray(built([(0, None, b"v", [])], base_offset)[:HEADER_BYTES])
    struct.pack_into(">i", batch, LENGTH_AT, HEADER_BYTES - 12)
    struct.pack_into(">i", batch, ATTRIBUTES_AT + 2, last)
    struct.pack_into(">i", batch, HEADER_BYTES - 4, 0)
    return sealed(batch)


@given(data=st.data(), most=st.sampled_from([1, 2, 5, 4_096]), most_bytes=st.sampled_from([1, 300]))
def test_a_fetch_is_the_same_chunks_at_once_as_batch_by_batch(
    data: st.DataObject, most: int, most_bytes: int
) -> None:
    first = offset = data.draw(st.integers(0, 2**40))
    fetched = b""
    for size in data.draw(st.lists(st.integers(0, 4), max_size=6)):
        rows = data.draw(st.lists(records, min_size=size, max_size=size))
        fetched += built(rows, offset) if rows else compacted_away(offset, 0)
        offset += max(1, size) + data.draw(st.integers(0, 2))
    start = first + data.draw(st.integers(0, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transport, "MAX_CHUNK_RECORDS", most)
        patch.setattr(transport, "MAX_CHUNK_BYTES", most_bytes)
        assert PlainBatches.in_fetch(fetched, check_crcs=True) is not None
        at_once = chunks_of(fetched, start, one_by_one=False)
        assert at_once == chunks_of(fetched, start, one_by_one=True)
    for _, begin, end, *_ in at_once:
        assert begin < end


def test_a_wrong_checksum_is_seen_at_once_and_told_batch_by_batch() -> None:
    good, bad = built([(0, b"k", b"v", [])], 5), bytearray(built([(0, b"k", b"w", [])], 6))
    bad[-2] ^= 1
    assert PlainBatches.in_fetch(good + bytes(bad), check_crcs=True) is None
    assert PlainBatches.in_fetch(good + bytes(bad), check_crcs=False) is not None
    with pytest.raises(CorruptRecordException, match="batch at offset 6: invalid CRC"):
        chunks_of(good + bytes(bad), 5, one_by_one=False)
