"""The records of a fetch as columns: Kafka's record batches, read without an object for each.

The format is that of https://kafka.apache.org/documentation/#recordbatch, version 2, the only one
that Kafka 4 writes. A batch's header is read here, its records in compiled code, which notes where
in the bytes each key and value lies.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from aiokafka import codec
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from crc32c import crc32c

from pipeline.billing.texts import Bytes, Int64s, Packed
from pipeline.native import compiled

Headers = tuple[tuple[str, bytes], ...]
Fetched = bytes | memoryview
"""Of a partition, as it came."""

# Base offset, length, partition leader epoch, magic; then what the CRC covers: attributes, last
# offset delta, first and max timestamp, producer id and epoch, base sequence, count of records.
_PREFIX: Final = struct.Struct(">qiibI")
_COVERED: Final = struct.Struct(">hiqqqhii")
_BEFORE_LENGTH_ENDS: Final = 12
_MAGIC_AT: Final = 16
_BODY_AT: Final = _PREFIX.size + _COVERED.size
_FORMAT: Final = 2

_CODEC: Final = 0x07
_LOG_APPEND_TIME: Final = 0x08
_TRANSACTIONAL: Final = 0x10
_CONTROL: Final = 0x20

_NOT_PLAIN: Final = _CODEC | _TRANSACTIONAL | _CONTROL

_NO_SIGN: Final = 0x7FFF_FFFF_FFFF_FFFF

_DESCRIBED: Final = 7
_COLUMNS: Final = 7
_Table = npt.NDArray[np.int64]

_LEAST_RECORD_BYTES: Final = 7
"""Length, attributes, timestamp, offset, key's and value's length, count of headers: one each."""

_CODECS: Final[dict[int, tuple[str, Callable[[Fetched], bytes]]]] = {
    1: ("gzip", codec.gzip_decode),
    2: ("snappy", codec.snappy_decode),
    3: ("lz4", codec.lz4_decode),
    4: ("zstd", codec.zstd_decode),
}


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """The header of a batch, and where in the fetched bytes its records are, maybe compressed."""

    data: Fetched
    start: int
    end: int
    base_offset: int
    crc: int
    attributes: int
    last_offset_delta: int
    first_timestamp_ms: int
    max_timestamp_ms: int
    producer_id: int
    count: int

    @property
    def next_offset(self) -> int:
        """The offset behind the batch, also where its last records were compacted away."""
        return self.base_offset + self.last_offset_delta + 1

    @property
    def size_bytes(self) -> int:
        return self.end - self.start

    @property
    def is_transactional(self) -> bool:
        return bool(self.attributes & _TRANSACTIONAL)

    @property
    def is_control(self) -> bool:
        return bool(self.attributes & _CONTROL)

    @property
    def is_compressed(self) -> bool:
        return bool(self.attributes & _CODEC)

    def is_whole(self) -> bool:
        """Whether the checksum is that of the bytes."""
        return int(crc32c(memoryview(self.data)[self.start + _PREFIX.size : self.end])) == self.crc

    def body(self, place: str) -> Fetched:
        """The records' bytes, not compressed any more.

        Raises UnsupportedCodecError where nobody knows the codec, and CorruptRecordException where
        it is no data of that codec.
        """
        body = self.data[self.start + _BODY_AT : self.end]
        if not self.is_compressed:
            return body
        number = self.attributes & _CODEC
        if number not in _CODECS:
            raise UnsupportedCodecError(f"{place}: codec {number} is none of Kafka's")
        name, decode = _CODECS[number]
        try:
            return decode(body)
        except Exception as error:  # every codec has exceptions of its own
            raise self.corrupt(place, f"no {name} data: {error}") from error

    def corrupt(self, place: str, what: str) -> CorruptRecordException:
        """The error that says what is wrong with this batch."""
        return CorruptRecordException(f"{place}, batch at offset {self.base_offset}: {what}")


@dataclass(frozen=True, slots=True)
class Records:
    """Records as columns, one entry a record."""

    offsets: Int64s
    timestamps_ms: Int64s
    keys: Packed
    values: Packed
    headers: Mapping[int, Headers]
    """Offset -> record headers, where a record has any."""

    def from_offset(self, offset: int) -> Records:
        """The records from this offset on."""
        if not len(self.offsets) or self.offsets[0] >= offset:
            return self
        wanted = self.offsets >= offset
        keys, values = self.keys, self.values
        return Records(
            self.offsets[wanted],
            self.timestamps_ms[wanted],
            Packed(keys.buffer, keys.starts[wanted], keys.sizes[wanted]),
            Packed(values.buffer, values.starts[wanted], values.sizes[wanted]),
            self.headers,
        )


def holds_batch(data: Fetched) -> bool:
    """Whether what was fetched of a partition holds a whole batch."""
    if len(data) < _BEFORE_LENGTH_ENDS:
        return False
    return _BEFORE_LENGTH_ENDS + int(struct.unpack_from(">i", data, 8)[0]) <= len(data)


def batches_in(data: Fetched, place: str) -> Iterator[RecordBatch]:
    """The batches of a fetched partition; the last one may be cut off, and is left out then.

    Raises CorruptRecordException, with the place in its text, where there is no batch.
    """
    start, size = 0, len(data)
    while size - start > _BEFORE_LENGTH_ENDS:
        base_offset, length = struct.unpack_from(">qi", data, start)
        end = start + _BEFORE_LENGTH_ENDS + length
        if end > size:
            return
        if end <= start + _MAGIC_AT:
            raise CorruptRecordException(f"{place}, batch at offset {base_offset}: {length} bytes")
        if (magic := data[start + _MAGIC_AT]) != _FORMAT:
            raise CorruptRecordException(
                f"{place}, batch at offset {base_offset}: message format {magic}, and only format "
                f"{_FORMAT} is read, the one of Kafka since 0.11"
            )
        if end < start + _BODY_AT:
            raise CorruptRecordException(f"{place}, batch at offset {base_offset}: {length} bytes")
        *_, crc = _PREFIX.unpack_from(data, start)
        attributes, last, first_ms, max_ms, producer_id, _, _, count = _COVERED.unpack_from(
            data, start + _PREFIX.size
        )
        if not 0 <= base_offset <= base_offset + last < _NO_SIGN:
            raise CorruptRecordException(f"{place}, batch at offset {base_offset}: up to +{last}")
        yield RecordBatch(
            *(data, start, end, base_offset, crc),
            *(attributes, last, first_ms, max_ms, producer_id, count),
        )
        start = end


def read(batches: Sequence[RecordBatch], place: str) -> Records:
    """The records of batches of one fetch, in their order.

    Raises CorruptRecordException, with the place in its text, where the bytes are no records.
    """
    data, spans = _bodies(batches, place)
    for batch, (start, end) in zip(batches, spans, strict=True):
        if not 0 <= batch.count <= (end - start) // _LEAST_RECORD_BYTES:
            raise batch.corrupt(place, f"{batch.count} records in {end - start} bytes")
    described = np.array(
        [
            (*span, batch.count, batch.base_offset, batch.next_offset, *_time(batch))
            for batch, span in zip(batches, spans, strict=True)
        ],
        np.int64,
    ).reshape(-1, _DESCRIBED)
    return _read(data, described, place)


@dataclass(frozen=True, slots=True)
class PlainBatches:
    """Whole batches of a fetch that need no second look: neither compressed nor transactional,
    and no control batches. Small ones, of many producers, come in their thousands."""

    data: Fetched
    described: _Table
    """A row each, as `_read_batches` takes them."""

    @classmethod
    def in_fetch(cls, data: Fetched, check_crcs: bool) -> PlainBatches | None:
        """The batches of a fetched partition, or None where `batches_in` must look at them: they
        are not all plain, or damaged."""
        buffer = np.frombuffer(data, np.uint8)
        described = np.empty((len(data) // _BODY_AT, _DESCRIBED), np.int64)
        crcs = np.empty(len(described), np.int64)
        number = _describe(buffer, described, crcs)
        if number < 0:
            return None
        found = cls(data, described[:number])
        return found if not check_crcs or found._are_whole(crcs[:number]) else None

    def _are_whole(self, crcs: Int64s) -> bool:
        covered = memoryview(self.data)
        starts, ends = self.described[:, 0] - _COVERED.size, self.described[:, 1]
        spans = zip(starts.tolist(), ends.tolist(), crcs.tolist(), strict=True)
        return all(crc32c(covered[start:end]) == crc for start, end, crc in spans)

    def parts(self, most_records: int, most_bytes: int) -> Iterator[PlainBatches]:
        """Those of a whole fetch in pieces of consecutive batches, each ended by the batch that
        makes it reach one of these bounds."""
        start, number = 0, len(self.described)
        sizes = np.cumsum(self.described[:, 2]), np.cumsum(np.diff(self.described[:, 1], prepend=0))
        while start < number:
            last = number - 1
            for size, most in zip(sizes, (most_records, most_bytes), strict=True):
                before = size[start - 1] if start else 0
                last = min(last, int(np.searchsorted(size, before + most)))
            yield PlainBatches(self.data, self.described[start : last + 1])
            start = last + 1

    @property
    def next_offset(self) -> int:
        """The offset behind the last one."""
        return int(self.described[-1, 4])

    def read(self, place: str) -> Records:
        """As the function `read`."""
        return _read(self.data, self.described, place)


def _read(data: Fetched, described: _Table, place: str) -> Records:
    buffer = np.frombuffer(data, np.uint8)
    columns = np.empty((_COLUMNS, int(described[:, 2].sum())), np.int64)
    read_to = _read_batches(buffer, described, columns)
    if read_to < len(described):
        raise CorruptRecordException(
            f"{place}, batch at offset {described[read_to, 3]}: its lengths or offsets contradict "
            "each other"
        )
    offsets, timestamps_ms, key_at, key_size, value_at, value_size, headers_at = columns
    return Records(
        offsets,
        timestamps_ms,
        Packed(buffer, key_at, key_size),
        Packed(buffer, value_at, value_size),
        _RecordHeaders(data, offsets, headers_at) if headers_at.any() else {},
    )


def warm_up() -> None:
    """Compile what reading needs, or load it, before the first fetch waits for it."""
    nothing = PlainBatches.in_fetch(b"", check_crcs=True)
    assert nothing is not None
    nothing.read("nowhere")


def _bodies(batches: Sequence[RecordBatch], place: str) -> tuple[Fetched, list[tuple[int, int]]]:
    """One buffer, and where in it the records of each batch are: the fetched bytes themselves
    where no batch is compressed."""
    if not batches:
        return b"", []
    if not any(batch.is_compressed for batch in batches):
        return batches[0].data, [(batch.start + _BODY_AT, batch.end) for batch in batches]
    bodies = [batch.body(place) for batch in batches]
    ends = np.cumsum([len(body) for body in bodies]).tolist()
    return b"".join(bodies), list(zip([0, *ends[:-1]], ends, strict=True))


def _time(batch: RecordBatch) -> tuple[int, bool]:
    """A time, and whether it is every record's own and not what theirs are told from."""
    if batch.attributes & _LOG_APPEND_TIME:
        return batch.max_timestamp_ms, True
    return batch.first_timestamp_ms, False


class _RecordHeaders(Mapping[int, Headers]):
    """The headers of records by offset, parsed when asked for: their lengths are proven."""

    def __init__(self, data: Fetched, offsets: Int64s, positions: Int64s) -> None:
        self._data = data
        rows = np.flatnonzero(positions)
        self._at = dict(zip(offsets[rows].tolist(), positions[rows].tolist(), strict=True))

    def __getitem__(self, offset: int) -> Headers:
        at = self._at[offset]
        count, at = _varint_at(self._data, at)
        found = []
        for _ in range(count):
            name, at = _bytes_at(self._data, at)
            value, at = _bytes_at(self._data, at)
            # Nobody checks that a name is UTF-8; one that is not must not stop the partition.
            found.append(((name or b"").decode(errors="replace"), value))
        return tuple(found)  # type: ignore[arg-type]  # a null value, as aiokafka gives it

    def __iter__(self) -> Iterator[int]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


def _varint_at(data: Fetched, at: int) -> tuple[int, int]:
    """A varint that is known to be whole, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at


def _bytes_at(data: Fetched, at: int) -> tuple[bytes | None, int]:
    size, at = _varint_at(data, at)
    return (None, at) if size < 0 else (bytes(data[at : at + size]), at + size)


# Compiled from here on. A position of -1 says that what was to be read is not all there.


@compiled
def _varint(buffer: Bytes, at: int, end: int) -> tuple[int, int]:
    """A zigzag varint of at most 64 bits, and where it ends: at most `end`."""
    value, shift = 0, 0
    while 0 <= at < end:
        byte = int(buffer[at])
        at += 1
        if shift == 63 and byte > 1:
            break
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return ((value >> 1) & _NO_SIGN) ^ -(value & 1), at
        shift += 7
    return 0, -1


@compiled
def _sized(buffer: Bytes, at: int, end: int) -> tuple[int, int, int]:
    """Start and size of bytes behind their length (-1: null), and where they end."""
    size, at = _varint(buffer, at, end)
    if at < 0 or size > end - at:
        return 0, 0, -1
    if size < 0:
        return at, -1, at
    return at, size, at + size


@compiled
def _headers_end(buffer: Bytes, at: int, end: int, count: int) -> int:
    """Where so many headers end."""
    for _ in range(count):
        _, size, at = _sized(buffer, at, end)
        if at < 0 or size < 0:
            return -1
        _, _, at = _sized(buffer, at, end)
        if at < 0:
            return -1
    return at


@compiled
def _read_record(buffer: Bytes, at: int, end: int, batch: Int64s, columns: _Table, row: int) -> int:
    """Read the record at this position into a row; where it ends."""
    length, at = _varint(buffer, at, end)
    if at < 0 or length < 1 or length > end - at:
        return -1
    end = at + length
    since_ms, at = _varint(buffer, at + 1, end)  # behind the attributes, of which none is used
    offset_delta, at = _varint(buffer, at, end)
    key_at, key_size, at = _sized(buffer, at, end)
    value_at, value_size, at = _sized(buffer, at, end)
    headers_at = at
    headers, at = _varint(buffer, at, end)
    if at < 0 or headers < 0 or _headers_end(buffer, at, end, headers) != end:
        return -1
    columns[0, row] = batch[3] + offset_delta
    columns[1, row] = batch[5] if batch[6] else batch[5] + since_ms
    columns[2, row] = key_at
    columns[3, row] = key_size
    columns[4, row] = value_at
    columns[5, row] = value_size
    columns[6, row] = headers_at if headers else 0
    return end


@compiled
def _read_batches(buffer: Bytes, batches: _Table, columns: _Table) -> int:
    """Read the records of batches into columns; how many batches are well-formed, at most all.

    A batch is: start and end in the buffer, count, base offset, next offset, time and whether it is
    each record's. Its offsets must rise and lie between the two. The columns: offset, timestamp,
    start and size of the key, of the value, and where the count of headers is, or 0 where there
    are none.
    """
    row = 0
    for number in range(len(batches)):
        batch = batches[number]
        at, end, from_offset = batch[0], batch[1], batch[3]
        for _ in range(batch[2]):
            at = _read_record(buffer, at, end, batch, columns, row)
            if at < 0 or not from_offset <= columns[0, row] < batch[4]:
                return number
            from_offset = columns[0, row] + 1
            row += 1
        if at != end:
            return number
    return len(batches)


@compiled
def _integer(buffer: Bytes, at: int, size: int) -> int:
    """A signed big-endian integer of so many bytes."""
    value = -1 if buffer[at] >= 0x80 else 0
    for byte in buffer[at : at + size]:
        value = value << 8 | byte
    return value


@compiled
def _describe(buffer: Bytes, described: _Table, crcs: Int64s) -> int:
    """Describe the whole batches of a fetch as `_read_batches` takes them, and note their
    checksums; how many there are, or -1 where one is not plain."""
    start = number = 0
    while len(buffer) - start > _BEFORE_LENGTH_ENDS:
        end = start + _BEFORE_LENGTH_ENDS + _integer(buffer, start + 8, 4)
        if end > len(buffer):
            break
        if end < start + _BODY_AT or buffer[start + _MAGIC_AT] != _FORMAT:
            return -1
        attributes = _integer(buffer, start + 21, 2)
        base, last = _integer(buffer, start, 8), _integer(buffer, start + 23, 4)
        count = _integer(buffer, start + 57, 4)
        body = end - start - _BODY_AT
        if attributes & _NOT_PLAIN or not 0 <= count <= body // _LEAST_RECORD_BYTES:
            return -1
        if base < 0 or last < 0 or base + last < 0 or base + last == _NO_SIGN:
            return -1
        by_append = attributes & _LOG_APPEND_TIME
        row = described[number]
        row[0], row[1], row[2] = start + _BODY_AT, end, count
        row[3], row[4] = base, base + last + 1
        row[5] = _integer(buffer, start + (35 if by_append else 27), 8)
        row[6] = 1 if by_append else 0
        crcs[number] = _integer(buffer, start + 17, 4) & 0xFFFFFFFF
        number += 1
        start = end
    return number
