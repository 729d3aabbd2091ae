"""The events of a journal record as columns, and the forms in which they are written.

Texts take most of their bytes, so these are written as less where what they are allows it: user
hashes with a fixed size, ids that are UUIDs as 16 bytes, countries and devices as positions in a
list of the record's header. Readers are given the same columns whatever was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

import cramjam
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipeline.contract.vocabulary import (
    BASES,
    DISPOSITIONS,
    EVENT_TOPICS,
    KINDS,
    LIMITS,
    PLACEMENTS,
)

Bytes = npt.NDArray[np.uint8]
IdForm = Literal["text", "hex", "uuid"]

EVENT_SCHEMA: dict[str, pl.DataType] = {
    "source": pl.UInt8(),
    "source_offset": pl.Int64(),
    "disposition": pl.UInt8(),
    "kind": pl.UInt8(),
    "placement": pl.UInt8(),
    "limit": pl.UInt8(),
    "basis": pl.UInt8(),
    "event_id": pl.String(),
    "event_time_ms": pl.Int64(),
    "billing_day": pl.Date(),
    "posting_day": pl.Date(),
    "ad": pl.UInt32(),
    "user_hash": pl.Binary(),
    "country": pl.String(),
    "device": pl.String(),
    "price_micros": pl.Int64(),
    "amount_nanos": pl.Int64(),
    "free_nanos": pl.Int64(),
    "unique_low": pl.UInt64(),
    "unique_high": pl.UInt64(),
}
"""Columns of a record's events.

`source`, `disposition`, `kind`, `placement`, `limit` and `basis` are positions in the tuples of
`pipeline.contract.vocabulary` (EVENT_TOPICS, DISPOSITIONS, KINDS, PLACEMENTS, LIMITS, BASES). `ad`
is a position in the header's `ads`. `user_hash` is 16 bytes, or empty. `unique_low` and
`unique_high` are the 128 bits that rule 8 remembers of a charged click or engagement, else 0. No
column holds nulls.
"""

CODE_NAMES: dict[str, tuple[str, ...]] = {
    "source": EVENT_TOPICS,
    "disposition": DISPOSITIONS,
    "kind": KINDS,
    "placement": PLACEMENTS,
    "limit": LIMITS,
    "basis": BASES,
}

BRIEF_TEXTS: Final = ("country", "device")
"""Those that few are different of."""
ID_SIZES: Final[dict[IdForm, int]] = {"hex": 32, "uuid": 36}
"""Of the texts that 16 bytes stand for: lower-case hexadecimal digits, without the dashes of a UUID
and with them."""
_ID_FORM: Final = "form"
"""What the column of ids says of itself, as metadata of its field."""
_TWO_DIGITS: Final = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), np.uint16)
_DASH: Final = ord("-")

ARROW_SCHEMA = (
    pl.DataFrame(schema=EVENT_SCHEMA).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
)
"""The same as written. Texts one after the other compress better than texts behind views: 49 bytes
an event for 57."""


@dataclass(frozen=True, slots=True)
class EventForm:
    """How the events of a record are written, beside the plain columns of ARROW_SCHEMA. A reader
    of Arrow's tells by the columns' types, and of ids by what their column says of itself."""

    has_user_hashes: bool = False
    """Every event has one: they are written with a fixed size."""
    has_positions: bool = False
    """Countries and devices are positions in the header's `texts`."""
    id_form: IdForm = "text"

    @property
    def incompressible_bytes(self) -> int:
        """Of an event: what no compression makes any less, in the last column. (User hashes are no
        less by chance, but a Pinner's come again.)"""
        return 16 if self.id_form != "text" else 0


PLAIN: Final = EventForm()


@cache
def schema_of(form: EventForm) -> pa.Schema:
    """The columns as they are written."""
    schema = ARROW_SCHEMA
    if form.has_user_hashes:
        schema = _with(schema, pa.field("user_hash", pa.binary(16)))
    if form.has_positions:
        for name in BRIEF_TEXTS:
            schema = _with(schema, pa.field(name, pa.uint16()))
    if form.id_form != "text":
        said = {_ID_FORM: form.id_form}
        schema = _with(schema, pa.field("event_id", pa.binary(16), metadata=said))
    # Ids that are packed come last: see `encode_events`.
    return pa.schema(sorted(schema, key=lambda field: bool(field.metadata)))


def _with(schema: pa.Schema, field: pa.Field) -> pa.Schema:
    return schema.set(schema.get_field_index(field.name), field)


_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""Around the columns they make an IPC stream:
https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format"""
_IPC_1 = pa.ipc.IpcWriteOptions(use_threads=False, compression="zstd")
_ZSTD = pa.Codec("zstd", compression_level=-1)
"""Of a frame or two around all columns. Arrow's own compression makes one for each buffer of each
column, which costs a record of few events ten times as much. Level 1 takes a fifth more time, for
2 % less bytes."""
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_LARGEST_BLOCK: Final = 128 * 1024
_WORTH_A_FRAME: Final = 1024
"""So many bytes that cannot be compressed are not looked through for it, which would take a quarter
of the time: they get a frame of their own."""


def encode_events(events: pa.RecordBatch, form: EventForm = PLAIN) -> bytes:
    """The events' part of a record, of columns in this form; empty bytes where there are none."""
    if len(events) == 0:
        return b""
    stream = memoryview(b"".join((_schema_message(form), events.serialize(), _END_OF_STREAM)))
    incompressible = form.incompressible_bytes * len(events)
    if incompressible < _WORTH_A_FRAME:
        return bytes(_ZSTD.compress(stream, asbytes=True))
    packed, as_it_is = stream[:-incompressible], stream[-incompressible:]
    return bytes(_ZSTD.compress(packed, asbytes=True)) + _frame_of(as_it_is)


def _frame_of(data: memoryview) -> bytes:
    """A zstd frame of bytes as they are. Source: RFC 8878, 3.1.1: a frame of one segment whose size
    takes 4 bytes, and its blocks, each behind 3 bytes: whether it is the last one, its type (raw,
    0), its size."""
    parts: list[bytes | memoryview] = [_ZSTD_MAGIC, b"\xa0", len(data).to_bytes(4, "little")]
    for start in range(0, len(data), _LARGEST_BLOCK):
        block = data[start : start + _LARGEST_BLOCK]
        is_last = start + len(block) == len(data)
        parts += ((len(block) << 3 | is_last).to_bytes(3, "little"), block)
    return b"".join(parts)


@cache
def _schema_message(form: EventForm) -> bytes:
    return bytes(schema_of(form).serialize())


def read_events(body: bytes, texts: Sequence[str]) -> pa.Table:
    """The events of a record that is not empty, with the columns of ARROW_SCHEMA; `texts` are its
    header's. Raises pyarrow's errors, or others, where they cannot be had of these bytes."""
    with pa.ipc.open_stream(_unpacked(body)) as stream:
        events = stream.read_all()
    events.validate(full=True)  # polars would panic, or abort, on damaged ones
    known = None
    for name in BRIEF_TEXTS:
        if pa.types.is_integer(events.schema.field(name).type):
            known = pa.array(texts, pa.large_string()) if known is None else known
            events = _with_column(events, name, known.take(events[name]))
    of_ids = events.schema.field("event_id")
    if pa.types.is_fixed_size_binary(of_ids.type):
        form = (of_ids.metadata or {}).get(_ID_FORM.encode(), b"").decode()
        events = _with_column(events, "event_id", _ids_of(events["event_id"], form))
    return events.select(ARROW_SCHEMA.names).cast(ARROW_SCHEMA)


def events_of_version_1(body: bytes, texts: Sequence[str]) -> bytes:
    """Events as version 1 has them: Arrow's own compression is all that it reads."""
    if not body.startswith(_ZSTD_MAGIC):
        return body
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, ARROW_SCHEMA, options=_IPC_1) as stream:
        stream.write_table(read_events(body, texts))
    return bytes(sink.getvalue())


def _unpacked(body: bytes) -> bytes:
    """The Arrow IPC stream of a record's events."""
    return bytes(cramjam.zstd.decompress(body)) if body.startswith(_ZSTD_MAGIC) else body


def _ids_of(packed: pa.ChunkedArray, form: str) -> pa.Array:
    """Packed ids as the texts that they stand for."""
    size = {str(known): size for known, size in ID_SIZES.items()}[form]
    ids = packed.combine_chunks()
    held = np.frombuffer(ids.buffers()[1] or b"", np.uint8)[16 * ids.offset :][: 16 * len(ids)]
    digits = _TWO_DIGITS[held].view(np.uint8).reshape(len(ids), 32)
    if form == "uuid":
        dashed = np.full((len(ids), size), _DASH, np.uint8)
        for start, end, at in ((0, 8, 0), (8, 12, 9), (12, 16, 14), (16, 20, 19), (20, 32, 24)):
            dashed[:, at : at + end - start] = digits[:, start:end]
        digits = dashed
    edges = np.arange(len(ids) + 1, dtype=np.int64) * size
    buffers = [None, pa.py_buffer(edges), pa.py_buffer(digits)]
    return pa.Array.from_buffers(pa.large_string(), len(ids), buffers)


def _with_column(events: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return events.set_column(events.schema.get_field_index(name), name, column)
