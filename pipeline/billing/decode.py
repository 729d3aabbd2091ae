"""From message values to columns, strictly: what is not the contract's form is a fault.

Two decoders that must agree. The reference looks at one message at a time: msgspec's typed decoder,
and what that lets through (UTF-8 of skipped parts, NUL characters, duplicate keys). The fast one
scans many messages at once into columns and accepts only what is plainly the contract's form
(`pipeline/billing/scan.py`); anything else goes to the reference. A message never sees its
neighbours, so none can spoil another: each ends at its own newline, and one with a newline inside
makes more lines than messages.

Escapes, nested or many unknown fields and negative numbers in known ones only make the scanner say
no: they cost time, of all messages that came with them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.billing import ids
from pipeline.billing.brief import Brief, BriefMaker, Numbers, number_texts, pack_ids
from pipeline.billing.journal_events import BRIEF_TEXTS
from pipeline.billing.scan import (
    MAX_TEXT,
    MAX_UNKNOWN,
    NEWLINE,
    NOWHERE,
    Uint64s,
    names_of,
    scan_rows,
)
from pipeline.billing.terms import AD_COLUMNS
from pipeline.billing.texts import (
    ByteRows,
    Bytes,
    Int64s,
    Packed,
    Positions,
    Texts,
    fill_codes,
    lines_of,
    padded,
)
from pipeline.billing.xxh3 import Room, fill_keys, hash_rows, room_for
from pipeline.contract.events import EVENT_ID_MAX_LENGTH, EngagementEvent, Event
from pipeline.contract.vocabulary import (
    ENGAGEMENT_KINDS,
    ENGAGEMENTS,
    EVENT_TOPICS,
    KINDS,
    PLACEMENTS,
)
from pipeline.native import compiled

_STRINGS: Final = (
    "event_id",
    "campaign_id",
    "ad_group_id",
    "promoted_pin_id",
    "user_id",
    "impression_id",
    "placement",
)
_INTEGERS: Final = ("event_time_ms", "price_micros")
_OPTIONAL: Final = ("country", "device", "keyword")
EVENT_TEXTS: Final = (*_STRINGS, *_OPTIONAL, "kind")
"""The texts of decoded events. An optional one that a message lacks is null, as is `kind`, which
only engagements need; the row of a message that is no event holds empty texts and nulls."""

_BLANK: Final = dict.fromkeys(_STRINGS, "") | dict.fromkeys(_INTEGERS, 0)
_FIELD_IN_ERROR: Final = re.compile(r"at `\$\.?([^`]*)`|field `([^`]*)`")

_NAMES: Final = names_of((*EVENT_TEXTS, *_INTEGERS))
_REQUIRED: Final = np.array(
    [(*EVENT_TEXTS, *_INTEGERS).index(name) for name in (*_STRINGS, *_INTEGERS)]
)
_IDENTITIES: Final = tuple(
    np.array([EVENT_TEXTS.index(name) for name in names])
    for names in (("event_id",), AD_COLUMNS, ("user_id",), ("impression_id",))
)
"""The texts that make the keys of `Columns`, in their order."""
_CODED: Final = (padded(KINDS), padded(PLACEMENTS))
_NUMBERED: Final = np.array([EVENT_TEXTS.index(name) for name in BRIEF_TEXTS])
_EVENT_ID, _KIND, _PLACEMENT = (
    EVENT_TEXTS.index(name) for name in ("event_id", "kind", "placement")
)
_BLOCK: Final = 256
"""Messages that fit the inner caches while all is made of them that they hold."""

Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.uint8]

_ENGAGEMENT_CODES: Final = np.zeros(256, dtype=np.bool_)
_ENGAGEMENT_CODES[[KINDS.index(kind) for kind in ENGAGEMENT_KINDS]] = True


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a message is not an event: the field at fault (or empty) and what is wrong with it."""

    field: str
    detail: str


@dataclass(frozen=True, slots=True)
class Columns:
    """What judging computes with, one entry a message; of one that is no event, what blank texts
    and zeros give."""

    kind: Codes
    """As decoded 0 but for engagements: of other events the topic says it, in a batch."""
    placement: Codes
    event_time_ms: Int64s
    price_micros: Int64s
    event_keys: ids.Keys
    ad_keys: ids.Keys
    """Of the campaign, ad group and pin together, as `Terms.find_ads` takes them."""
    user_keys: ids.Keys
    impression_keys: ids.Keys

    @classmethod
    def of(cls, texts: Texts, event_time_ms: Int64s, price_micros: Int64s) -> Columns:
        """Of texts with the names of EVENT_TEXTS, and the numbers beside them."""
        size = len(event_time_ms)
        keys, codes = _no_keys(size), _no_codes(size)
        engaged = np.ones(size, np.bool_)
        room = room_for(len(texts.buffer), len(EVENT_TEXTS))
        _make(texts.buffer, texts.starts, texts.ends, engaged, 0, size, keys, codes, room)
        return cls.made(event_time_ms, price_micros, keys, codes)

    @classmethod
    def made(
        cls, event_time_ms: Int64s, price_micros: Int64s, keys: npt.NDArray[np.uint64], codes: Bytes
    ) -> Columns:
        """Of what `_make` has filled in."""
        return cls(codes[0], codes[1], event_time_ms, price_micros, *keys)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A chunk's messages, one row each in their order."""

    texts: Texts
    """With the names of EVENT_TEXTS."""
    malformed: Mask
    columns: Columns
    brief: Brief | None = None
    """Where all are plainly events and were read at once."""

    @classmethod
    def of(cls, events: pl.DataFrame, malformed: Mask) -> Decoded:
        """Of events that were read one by one, or made: a column for each field."""
        texts = Texts.of(events.select(EVENT_TEXTS))
        # Compiled code is made for arrays that can be written to, as all others are.
        numbers = [events[name].to_numpy(writable=True) for name in _INTEGERS]
        return cls(texts, malformed, Columns.of(texts, *numbers))

    @classmethod
    def joined(cls, parts: Sequence[Decoded]) -> Decoded:
        """All of them, one after the other."""
        if len(parts) <= 1:
            return parts[0] if parts else _nothing()
        columns = {
            field.name: np.concatenate([getattr(part.columns, field.name) for part in parts])
            for field in fields(Columns)
        }
        return cls(
            Texts.joined([part.texts for part in parts]),
            np.concatenate([part.malformed for part in parts]),
            Columns(**columns),
        )

    def in_order(self, rows: Int64s) -> Decoded:
        """These rows, in this order."""
        columns = {field.name: getattr(self.columns, field.name)[rows] for field in fields(Columns)}
        brief = None if self.brief is None else self.brief.of_rows(rows)
        return Decoded(self.texts.of_rows(rows), self.malformed[rows], Columns(**columns), brief)


_SCHEMA: Final = dict.fromkeys(EVENT_TEXTS, pl.String()) | dict.fromkeys(_INTEGERS, pl.Int64())


@cache
def _nothing() -> Decoded:
    """What an idle worker decodes, several times a second."""
    return Decoded.of(pl.DataFrame(schema=_SCHEMA), np.empty(0, np.bool_))


class Decoder:
    """Decodes the values of one event topic."""

    def __init__(self, topic: str) -> None:
        if topic not in EVENT_TOPICS:
            raise ValueError(f"{topic} is not an event topic")
        self._has_kind = topic == ENGAGEMENTS
        event_type: type[Event] = EngagementEvent if self._has_kind else Event
        self._decode = msgspec.json.Decoder(event_type).decode

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """The events of a chunk. Never raises on bad input."""
        lines = lines_of([Packed.of(values)])
        engaged = np.full(len(values), self._has_kind)
        plain = None if lines is None else decode_plain(lines, engaged)
        return plain or self._decode_each(values)

    def decode_one(self, value: bytes | None) -> Event | Fault:
        """The reference: one message, an event or what is wrong with it."""
        if value is None:
            return Fault("", "the message has no value")
        try:
            event: Event = self._decode(value)
        except msgspec.ValidationError as error:
            return Fault(_field_of(error), str(error))
        except UnicodeDecodeError as error:
            return Fault("", f"not UTF-8: {error.reason} at byte {error.start}")
        except RecursionError:
            return Fault("", "nested too deeply")
        except (msgspec.MsgspecError, ValueError) as error:
            return Fault("", f"not a JSON object: {error}")
        return _let_through(value, event) or event

    def _decode_each(self, values: Sequence[bytes | None]) -> Decoded:
        malformed = np.zeros(len(values), dtype=np.bool_)
        rows: list[dict[str, Any]] = []
        for row, value in enumerate(values):
            event = self.decode_one(value)
            malformed[row] = isinstance(event, Fault)
            rows.append(_BLANK if isinstance(event, Fault) else msgspec.to_builtins(event))
        columns = {name: [row.get(name) for row in rows] for name in _SCHEMA}
        return Decoded.of(pl.DataFrame(columns, schema=_SCHEMA), malformed)


def decode_plain(lines: Bytes, engaged: Mask) -> Decoded | None:
    """All messages as columns, or None where not all are plainly events.

    `lines` are the messages, each with a newline behind it; `engaged` says of each whether it is an
    engagement: in other topics a `kind` means nothing.
    """
    size = len(engaged)
    if not size or len(lines) >= MAX_TEXT or lines[-1] != NEWLINE:
        return None
    starts = np.zeros((len(EVENT_TEXTS), size), dtype=np.int32)
    ends = np.zeros_like(starts)
    numbers = np.zeros((len(_INTEGERS), size), dtype=np.int64)
    keys, codes = _no_keys(size), _no_codes(size)
    usual = np.zeros((len(starts) + len(numbers) + 2, 3), dtype=np.int64)
    there = np.zeros((len(starts) + len(numbers), size), dtype=np.uint8)
    unknown = np.zeros((MAX_UNKNOWN, 2), dtype=np.uint64)
    # No message's texts share a byte, so all of them have this room.
    room = room_for(len(lines), len(EVENT_TEXTS))
    brief = BriefMaker(len(BRIEF_TEXTS), size)
    found = _read(
        lines,
        engaged,
        starts,
        ends,
        numbers,
        keys,
        codes,
        (usual, there, unknown),
        room,
        (brief.table, brief.numbers, brief.ids, brief.seen),
    )
    if found == _NO or (found == _NOT_ASCII and not _is_utf8(lines)):
        return None
    texts = Texts(lines, EVENT_TEXTS, starts, ends)
    columns = Columns.made(numbers[0], numbers[1], keys, codes)
    return Decoded(texts, np.zeros(size, dtype=np.bool_), columns, brief.made(lines))


def _no_keys(size: int) -> npt.NDArray[np.uint64]:
    return np.zeros((len(_IDENTITIES), size, 2), dtype=np.uint64)


def _no_codes(size: int) -> Bytes:
    return np.empty((len(_CODED), size), dtype=np.uint8)


def _is_utf8(lines: Bytes) -> bool:
    try:
        lines.tobytes().decode()
    except UnicodeDecodeError:
        return False
    return True


_NO, _ASCII, _NOT_ASCII = 0, 1, 2


@compiled
def _read(
    lines: Bytes,
    engaged: Mask,
    starts: npt.NDArray[np.int32],
    ends: npt.NDArray[np.int32],
    numbers: Int64s,
    keys: npt.NDArray[np.uint64],
    codes: Bytes,
    scanned: tuple[Int64s, Bytes, Uint64s],
    room: Room,
    brief: tuple[tuple[Int64s, Uint64s, Int64s], Numbers, Uint64s, Int64s],
) -> int:
    """Fill in all columns, a block of messages at a time, so that each is read from memory once.

    `scanned` is what `scan_rows` remembers from block to block, zeros as given; `brief` is of a
    `BriefMaker`.
    """
    names, sizes = _NAMES
    table, numbered, packed, briefly = brief
    usual, there, unknown = scanned
    at, high = np.int64(0), 0
    for first in range(0, len(engaged), _BLOCK):
        last = min(first + _BLOCK, len(engaged))
        at, seen = scan_rows(
            lines, at, first, last, names, sizes, usual, starts, ends, numbers, there, unknown
        )
        if at == NOWHERE:
            return _NO
        high |= seen
        for key in _REQUIRED:
            for row in range(first, last):
                if not there[key, row]:
                    return _NO
        _make(lines, starts, ends, engaged, first, last, keys, codes, room)
        number_texts(lines, starts, ends, _NUMBERED, first, last, table, numbered, briefly)
        pack_ids(lines, starts[_EVENT_ID], ends[_EVENT_ID], first, last, packed, briefly)
        # What the contract bounds beyond types. An id has no more characters than bytes.
        for row in range(first, last):
            size = ends[_EVENT_ID, row] - starts[_EVENT_ID, row]
            if not 1 <= size <= EVENT_ID_MAX_LENGTH or not 1 <= codes[1, row] < len(PLACEMENTS):
                return _NO
            if engaged[row] and not _ENGAGEMENT_CODES[codes[0, row]]:
                return _NO
    if at != len(lines):
        return _NO
    return _NOT_ASCII if high else _ASCII


@compiled
def _make(
    buffer: Bytes,
    starts: Positions,
    ends: Positions,
    engaged: Mask,
    first: int,
    last: int,
    keys: npt.NDArray[np.uint64],
    codes: Bytes,
    room: Room,
) -> None:
    """Fill in the keys and codes of `Columns` for the messages in these rows."""
    event, ad, user, impression = _IDENTITIES
    fill_keys(buffer, starts, ends, event, first, last, keys[0], room)
    fill_keys(buffer, starts, ends, ad, first, last, keys[1], room)
    fill_keys(buffer, starts, ends, user, first, last, keys[2], room)
    fill_keys(buffer, starts, ends, impression, first, last, keys[3], room)
    (kinds, kind_sizes), (placements, placement_sizes) = _CODED
    fill_codes(buffer, starts[_KIND], ends[_KIND], first, last, kinds, kind_sizes, codes[0])
    for row in range(first, last):
        codes[0, row] *= engaged[row]
    start, end = starts[_PLACEMENT], ends[_PLACEMENT]
    fill_codes(buffer, start, end, first, last, placements, placement_sizes, codes[1])


def warm_up() -> None:
    """Compile what decoding and judging need, or load it, before the first message waits for it."""
    message = json.dumps(dict.fromkeys(_STRINGS, "browse") | dict.fromkeys(_INTEGERS, 0)).encode()
    decoder = Decoder(EVENT_TOPICS[0])
    # The one the fast way, the other message by message.
    for values in ([message], [message, b""]):
        decoded = decoder.decode(values)
        decoded.texts.packed("event_id", "country")
        if decoded.brief is not None:
            decoded.brief.by_part(np.arange(2))
    packed = ByteRows()
    packed.append(message)
    packed.joined(np.zeros(1, np.int64))
    hash_rows(np.zeros((1, 1), dtype=np.uint64))


def _let_through(value: bytes, event: Event) -> Fault | None:
    """What msgspec lets through that the contract does not."""
    try:
        value.decode("utf-8")
    except UnicodeDecodeError as error:
        return Fault("", f"not UTF-8: {error.reason} at byte {error.start}")
    if b"\\u0000" in value:
        for name in (*_STRINGS, *_OPTIONAL):
            text = getattr(event, name)
            if text is not msgspec.UNSET and "\0" in text:
                return Fault(name, "holds a NUL character")
    keys = sum(field is not msgspec.UNSET for field in msgspec.structs.astuple(event))
    # As many colons as known keys: there is no other key, so none twice.
    return None if value.count(b":") == keys else _duplicate_key(value)


def _field_of(error: msgspec.ValidationError) -> str:
    found = _FIELD_IN_ERROR.search(str(error))
    return (found.group(1) or found.group(2) or "") if found else ""


class _Pairs(list[tuple[str, Any]]):
    """The members of one JSON object, duplicates kept."""


def _ignore(_: str) -> None:
    """Numbers of unknown fields are not looked at."""


def _duplicate_key(value: bytes) -> Fault | None:
    """A fault naming a key that stands twice at the top level, if one does."""
    try:
        pairs = json.loads(
            value,
            object_pairs_hook=_Pairs,
            parse_int=_ignore,
            parse_float=_ignore,
            parse_constant=_ignore,
        )
    except RecursionError:
        return Fault("", "nested too deeply")
    except ValueError as error:
        return Fault("", f"not a JSON object: {error}")
    seen = set()
    for key, _ in pairs:
        if key in seen:
            return Fault(key, "the key stands twice")
        seen.add(key)
    return None
