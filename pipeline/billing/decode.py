"""From message values to typed events, strictly: what is not the contract's form is a fault.

msgspec's typed decoder does the work and decides alone on most events. What it does not check is
added here: UTF-8 in skipped parts, NUL characters, and duplicate keys. Each of the three has a
test over the whole chunk that proves it clean at memory speed; only where that proof fails are
messages looked at one by one. A message never sees its neighbours, so none can spoil another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from pipeline.contract.events import EngagementEvent, Event
from pipeline.contract.vocabulary import ENGAGEMENTS, EVENT_TOPICS

_REQUIRED_FIELDS = 9
_STRING_FIELDS = (
    "event_id",
    "campaign_id",
    "ad_group_id",
    "promoted_pin_id",
    "user_id",
    "impression_id",
    "placement",
)
_OPTIONAL_FIELDS = ("country", "device", "keyword")
_FIELD_IN_ERROR = re.compile(r"at `\$\.?([^`]*)`|field `([^`]*)`")


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a message is not an event: the field at fault (or empty) and what is wrong with it."""

    field: str
    detail: str


Decoded = Event | Fault


class Decoder:
    """Decodes the values of one event topic."""

    def __init__(self, topic: str) -> None:
        if topic not in EVENT_TOPICS:
            raise ValueError(f"{topic} is not an event topic")
        self._has_kind = topic == ENGAGEMENTS
        self._fields = _REQUIRED_FIELDS + (1 if self._has_kind else 0)
        event_type: type[Event] = EngagementEvent if self._has_kind else Event
        self._decode = msgspec.json.Decoder(event_type).decode

    def decode(self, values: Sequence[bytes | None]) -> list[Decoded]:
        """An event or a fault for each value, in their order. Never raises on bad input."""
        decode = self._decode
        try:
            events: list[Any] = [decode(value) for value in values]  # type: ignore[arg-type]
        except Exception:
            return [self._decode_one(value) for value in values]
        if self._proven_clean(values, events):  # type: ignore[arg-type]
            return events
        return [
            self._inspected(value, event)  # type: ignore[arg-type]
            for value, event in zip(values, events, strict=True)
        ]

    def _decode_one(self, value: bytes | None) -> Decoded:
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
        return self._inspected(value, event)

    def _proven_clean(self, values: Sequence[bytes], events: Sequence[Event]) -> bool:
        """Whether the whole chunk provably holds no fault that msgspec lets through.

        An object has one structural colon a key. The known fields found are distinct keys, so a
        message's colons are at least as many; where the chunk's sums are equal, no message has
        any further key, be it unknown or a duplicate.
        """
        joined = b"\n".join(values)
        if b"\\u0000" in joined or not _is_utf8(joined):
            return False
        unset = msgspec.UNSET
        keys = self._fields * len(events)
        for event in events:
            if event.country is not unset:
                keys += 1
            if event.device is not unset:
                keys += 1
            if event.keyword is not unset:
                keys += 1
        return joined.count(b":") == keys

    def _inspected(self, value: bytes, event: Event) -> Decoded:
        """The event, or what msgspec let through that the contract does not."""
        try:
            value.decode("utf-8")
        except UnicodeDecodeError as error:
            return Fault("", f"not UTF-8: {error.reason} at byte {error.start}")
        if b"\\u0000" in value:
            for name in (*_STRING_FIELDS, *_OPTIONAL_FIELDS):
                text = getattr(event, name)
                if text is not msgspec.UNSET and "\0" in text:
                    return Fault(name, "holds a NUL character")
        if not self._colons_explained(value, event):
            duplicate = _duplicate_key(value)
            if duplicate is not None:
                return duplicate
        return event

    def _colons_explained(self, value: bytes, event: Event) -> bool:
        """Whether every colon is a known field's own or inside a known field's string."""
        if b"\\" in value:
            return False
        colons = self._fields
        for name in _STRING_FIELDS:
            colons += getattr(event, name).count(":")
        for name in _OPTIONAL_FIELDS:
            text = getattr(event, name)
            if text is not msgspec.UNSET:
                colons += 1 + text.count(":")
        return value.count(b":") == colons


def _is_utf8(value: bytes) -> bool:
    if value.isascii():
        return True
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


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
