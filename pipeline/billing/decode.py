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
from pipeline.billing.scan import Scanner
from pipeline.billing.terms import AD_COLUMNS
from pipeline.billing.texts import ByteRows, Bytes, Int64s, Packed, Texts, lines_of
from pipeline.billing.xxh3 import hash_rows
from pipeline.contract.events import EVENT_ID_MAX_LENGTH, EngagementEvent, Event
from pipeline.contract.vocabulary import (
    ENGAGEMENT_KINDS,
    ENGAGEMENTS,
    EVENT_TOPICS,
    KINDS,
    PLACEMENTS,
)

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

_SCANNER: Final = Scanner(EVENT_TEXTS, _INTEGERS)

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
    def of(
        cls, texts: Texts, event_time_ms: Int64s, price_micros: Int64s, engaged: Mask | None = None
    ) -> Columns:
        """Of texts with the names of EVENT_TEXTS, and the numbers beside them; `engaged` are the
        engagements, where not all are: in other topics a `kind` means nothing."""
        kind = texts.codes("kind", KINDS)
        return cls(
            kind=kind if engaged is None else kind * engaged,
            placement=texts.codes("placement", PLACEMENTS),
            event_time_ms=event_time_ms,
            price_micros=price_micros,
            event_keys=ids.hash_columns(texts, "event_id"),
            ad_keys=ids.hash_columns(texts, *AD_COLUMNS),
            user_keys=ids.hash_columns(texts, "user_id"),
            impression_keys=ids.hash_columns(texts, "impression_id"),
        )


@dataclass(frozen=True, slots=True)
class Decoded:
    """A chunk's messages, one row each in their order."""

    texts: Texts
    """With the names of EVENT_TEXTS."""
    malformed: Mask
    columns: Columns

    @classmethod
    def of(cls, events: pl.DataFrame, malformed: Mask) -> Decoded:
        """Of events that were read one by one, or made: a column for each field."""
        texts = Texts.of(events.select(EVENT_TEXTS))
        event_time_ms, price_micros = (events[name].to_numpy() for name in _INTEGERS)
        return cls(texts, malformed, Columns.of(texts, event_time_ms, price_micros))

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
        return Decoded(self.texts.of_rows(rows), self.malformed[rows], Columns(**columns))


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
    engagement, which alone have a `kind`.
    """
    size = len(engaged)
    scanned = _SCANNER.scan(lines, size) if size else None
    if scanned is None or not scanned.has_all_keys(*_STRINGS, *_INTEGERS):
        return None
    texts = scanned.texts
    event_time_ms, price_micros = (scanned.number(name) for name in _INTEGERS)
    columns = Columns.of(texts, event_time_ms, price_micros, engaged)
    if not _within_bounds(texts, columns.kind[engaged], columns.placement):
        return None
    return Decoded(texts, np.zeros(size, dtype=np.bool_), columns)


def _within_bounds(texts: Texts, kinds: Codes, placements: Codes) -> bool:
    """Whether all values are surely within the bounds that the contract sets beyond types; `kinds`
    are those of engagements."""
    [starts], [ends] = texts.stretches("event_id")
    sizes = ends - starts
    return bool(
        sizes.min() >= 1
        and sizes.max() <= EVENT_ID_MAX_LENGTH  # bytes, so of characters there are no more
        and placements.min() >= 1
        and placements.max() < len(PLACEMENTS)
        and _ENGAGEMENT_CODES[kinds].all()
    )


def warm_up() -> None:
    """Compile what decoding and judging need, or load it, before the first message waits for it."""
    message = json.dumps(dict.fromkeys(_STRINGS, "browse") | dict.fromkeys(_INTEGERS, 0)).encode()
    decoder = Decoder(EVENT_TOPICS[0])
    # The one the fast way, the other message by message.
    for values in ([message], [message, b""]):
        decoder.decode(values).texts.packed("event_id")
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
