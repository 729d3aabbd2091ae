"""From message values to columns, strictly: what is not the contract's form is a fault.

Two decoders that must agree. The reference looks at one message at a time: msgspec's typed decoder,
and what that lets through (UTF-8 of skipped parts, NUL characters, duplicate keys). The fast one
reads a whole chunk into columns with polars, which is lenient, and then proves by counting that
there was nothing to be lenient about; where the proof fails, the chunk goes to the reference. A
message never sees its neighbours, so none can spoil another.

The proof. polars raises on text that is not JSON, on a line that is not an object, and on anything
but an int64 in an integer column. It is lenient in four ways, each of which leaves a trace in the
bytes of the chunk:

- a key that is unknown, twice there, or null: every key has a colon, so a chunk with as many
  colons as cells holds none;
- a number or a boolean where a string belongs: it lacks two quotes, and given the colons no
  message has quotes to spare, so as many quotes as keys and strings have means there is none;
- an object or array where a string belongs: one brace a message, and no bracket;
- two messages in a line, or one over two: one newline between messages and none inside, and a
  row for each message.

Colons, quotes and braces inside strings, and escapes, only make the proof fail: they cost time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.billing.texts import Packed, lines_of
from pipeline.contract.events import EVENT_ID_MAX_LENGTH, EngagementEvent, Event
from pipeline.contract.vocabulary import ENGAGEMENT_KINDS, ENGAGEMENTS, EVENT_TOPICS, PLACEMENTS

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
EVENT_COLUMNS: Final[dict[str, pl.DataType]] = {
    **dict.fromkeys(_STRINGS, pl.String()),
    **dict.fromkeys(_INTEGERS, pl.Int64()),
    **dict.fromkeys(_OPTIONAL, pl.String()),
    "kind": pl.String(),
}
"""The columns of decoded events. `kind` is null but for engagements, an optional one that a message
lacks is null; the row of a message that is no event holds empty strings and zeros."""

_BLANK: Final = {
    **dict.fromkeys(_STRINGS, ""),
    **dict.fromkeys(_INTEGERS, 0),
    **dict.fromkeys((*_OPTIONAL, "kind"), None),
}
_FIELD_IN_ERROR: Final = re.compile(r"at `\$\.?([^`]*)`|field `([^`]*)`")

Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a message is not an event: the field at fault (or empty) and what is wrong with it."""

    field: str
    detail: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """A chunk's messages as columns, one row each in their order."""

    events: pl.DataFrame
    """Columns of EVENT_COLUMNS."""
    malformed: Mask


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
        without_kind = 0 if self._has_kind else len(values)
        lines = lines_of([Packed.of(values)])
        proven = None if lines is None else decode_proven(lines, len(values), without_kind)
        return proven or self._decode_each(values)

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
        columns = {
            name: pl.Series(name, [row.get(name) for row in rows], dtype=kind)
            for name, kind in EVENT_COLUMNS.items()
        }
        return Decoded(pl.DataFrame(columns), malformed)


def decode_proven(joined: bytes, size: int, without_kind: int) -> Decoded | None:
    """All messages as columns, or None where it is not proven that all are events.

    `joined` is `size` messages, with a newline between each two. The first `without_kind` of them
    are of topics without a `kind`, the others are engagements.
    """
    if size == 0:
        return None
    text = np.frombuffer(joined, dtype=np.uint8)
    if b"\\" in joined or _count(text, "\n") != size - 1:
        return None
    # Before anything is parsed: nesting is what a parser can be made to fall over by.
    if b"[" in joined or _count(text, "{") != size:
        return None
    try:
        events = pl.read_ndjson(joined, schema=EVENT_COLUMNS)
    except pl.exceptions.PolarsError:
        return None
    if events.height != size or not _all_explained(text, events, without_kind):
        return None
    if events["kind"][:without_kind].null_count() != without_kind:
        # A field of another topic: unknown here, and ignored.
        foreign = pl.int_range(pl.len()) < without_kind
        events = events.with_columns(kind=pl.when(~foreign).then("kind"))
    return Decoded(events, np.zeros(size, dtype=np.bool_))


def _count(text: Bytes, character: str) -> int:
    # Many times faster than bytes.count where there is much to be found.
    return int(np.count_nonzero(text == ord(character)))


def _all_explained(text: Bytes, events: pl.DataFrame, without_kind: int) -> bool:
    """Whether the cells found account for every key and string of the text, within bounds."""
    size = events.height
    if any(events[name].null_count() for name in (*_STRINGS, *_INTEGERS)):
        return False
    if events["kind"][without_kind:].null_count():
        return False
    optional = sum(size - events[name].null_count() for name in (*_OPTIONAL, "kind"))
    keys = size * (len(_STRINGS) + len(_INTEGERS)) + optional
    strings = keys - size * len(_INTEGERS)
    if _count(text, ":") != keys or _count(text, '"') != 2 * (keys + strings):
        return False
    return bool(events.select(_within_bounds(without_kind)).item())


def _within_bounds(without_kind: int) -> pl.Expr:
    """Whether all values are within the bounds that the contract sets beyond types."""
    length = pl.col("event_id").str.len_chars()
    return pl.all_horizontal(
        length.min() >= 1,
        length.max() <= EVENT_ID_MAX_LENGTH,
        pl.col("price_micros").min() >= 0,
        pl.col("placement").is_in(PLACEMENTS[1:]).all(),
        pl.col("kind").slice(without_kind).is_in(ENGAGEMENT_KINDS).all(),
    )


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
