"""The journal record: what one decision of a shard did, as bytes in `billing.journal`.

Layout, little-endian (documented for readers outside in docs/journal.md):

    magic "PPJ2" | header length u32 | digest | header (MessagePack) | events (zstd of Arrow IPC)

The digest is SHA-256 over the previous counted record's digest and all of the record but its
digest: a hash chain over everything the shard ever did. Events are in the order of judgement; the
n-th event of a record has shard_seq `header.seq + n`.

Version 1 has its digest as the header's last field, made over the header *as its reader encodes it
again*; so a reader had to know every field, and none could be added. Its events are not packed as
a whole. This module is the one place that knows of two versions: what it returns is the same for
both.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

import msgspec
import polars as pl
from msgspec import UNSET, UnsetType

from pipeline.billing.journal_events import EVENT_SCHEMA, events_of_version_1, read_events
from pipeline.contract.pacing_notes import PacingNote
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import (
    JOURNAL_VERSIONS,
)

NEWEST: Final = JOURNAL_VERSIONS[-1]
_MAGIC = {version: b"PPJ%d" % version for version in JOURNAL_VERSIONS}
_PREFIX = struct.Struct("<4sI")
_DIGEST_BYTES = 32
EMPTY_DIGEST = bytes(_DIGEST_BYTES)


class JournalError(Exception):
    """Bytes that are not a journal record of a version this reader knows."""


class LaterVersionError(JournalError):
    """A journal record of a later version than this reader knows."""


class Ad(msgspec.Struct, frozen=True, array_like=True):
    """The ad that events of a record belong to. Where no account is known, account_id is empty."""

    account_id: str
    campaign_id: str
    ad_group_id: str
    promoted_pin_id: str


class AccountTerms(msgspec.Struct, frozen=True, array_like=True):
    """What the tables need to know of an account named in a record."""

    currency: str
    time_zone: str


class Block(msgspec.Struct, frozen=True, array_like=True):
    """One posted CPM charge: the exact sum of up to 1,000 charged impressions of an ad group.

    Days are ISO dates. `is_adjustment` where posting_day is not billing_day.
    """

    account_id: str
    campaign_id: str
    ad_group_id: str
    currency: str
    billing_day: str
    posting_day: str
    quantity: int
    amount_nanos: int


class CreditPosting(msgspec.Struct, frozen=True, array_like=True):
    """One credit: what an event was charged is given back in `posting_day`. Days are ISO dates."""

    event_id: str
    account_id: str
    campaign_id: str
    ad_group_id: str
    promoted_pin_id: str
    placement: str
    country: str
    device: str
    basis: str
    currency: str
    billing_day: str
    """The event's own day."""
    charged_day: str
    """The day that its charge was posted in."""
    posting_day: str
    amount_nanos: int
    """Positive: what was charged. Counts only where billing.events says the same."""
    reason: str
    by: str


class Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything of a decision but its events. Times are ms since the epoch, UTC.

    A field that readers may ignore is added with a default, and needs no new version of the format;
    one that they must know needs one.
    """

    shard: int
    previous: int
    """Journal offset of the previous record that counted; -1 for the shard's first."""
    sources: dict[str, tuple[int, int]]
    """Per event topic consumed here: first offset taken and the offset after the last."""
    seq: int
    """shard_seq of the first event: the number of events judged before."""
    events: int
    now_ms: int
    log_time_ms: int
    """Largest Kafka record timestamp that the shard has consumed, this record included."""
    catalog_end: int
    """The catalog was used up to, not including, this offset."""
    ads: list[Ad]
    """Where a header is only to be written: what `pack_ads` gives, which nobody can read."""
    accounts: dict[str, AccountTerms]
    signals: list[Signal]
    blocks: list[Block]
    closed: dict[str, str]
    """Time zone -> ISO date: in this zone the shard closes all days up to and including it."""
    outbox_through: int
    """Every record up to this journal offset has had its signals, rejects and strays sent."""
    pacing: list[PacingNote] | UnsetType = UNSET
    """Predictions of pacing and how right they were. Left out where there are none."""
    checkpoint: bytes = b""
    """State carried over retention (a checkpoint record has no events), else empty."""
    credits: list[CreditPosting] | UnsetType = UNSET
    """Credits that the shard posts. Left out where there are none."""
    texts: list[str] | UnsetType = UNSET
    """What the events name by position: countries and devices. Not in version 1."""
    digest: bytes = EMPTY_DIGEST
    """Of the record. Beside the header in its bytes; in version 1 in it, as its last field."""


@dataclass(frozen=True, slots=True)
class Record:
    """A decoded journal record; `events` has the columns of EVENT_SCHEMA."""

    header: Header
    events: pl.DataFrame
    body: bytes


_FIELDS_OF_VERSION_1: Final = (
    "shard",
    "previous",
    "sources",
    "seq",
    "events",
    "now_ms",
    "log_time_ms",
    "catalog_end",
    "ads",
    "accounts",
    "signals",
    "blocks",
    "closed",
    "outbox_through",
    "pacing",
    "checkpoint",
    "credits",
    "digest",
)
"""In their order. What was added since is left out of a record of version 1: its readers would take
the record for a forged one."""

_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(Header)


def pack_ad(ad: Ad) -> bytes:
    """An ad as the header has it."""
    return _encoder.encode(ad)


def pack_ads(packed: bytes, number: int) -> msgspec.Raw:
    """So many ads, packed one after the other, as what a header that is only to be written takes
    for its `ads`: a MessagePack array, with the shortest of its three heads as everybody's encoder
    has it (a reader of version 1 encodes a header again). Source:
    https://github.com/msgpack/msgpack/blob/master/spec.md#array-format-family"""
    if number < 16:
        head = bytes([0x90 | number])
    elif number < 1 << 16:
        head = b"\xdc" + number.to_bytes(2, "big")
    else:
        head = b"\xdd" + number.to_bytes(4, "big")
    return msgspec.Raw(head + packed)


def seal(
    header: Header, body: bytes, previous_digest: bytes, version: int = NEWEST
) -> tuple[Header, bytes]:
    """Chain a header to what came before it.

    Returns the header with its digest, and the record's bytes in a version of the format.
    """
    if version == 1:
        events = events_of_version_1(body, header.texts or ())
        digest = _digest_1(header, events, previous_digest)
        sealed = msgspec.structs.replace(header, texts=UNSET, digest=digest)
        packed = _encode_1(sealed)
        return sealed, _PREFIX.pack(_MAGIC[1], len(packed)) + packed + events
    packed = _encoder.encode(msgspec.structs.replace(header, digest=EMPTY_DIGEST))
    prefix = _PREFIX.pack(_MAGIC[2], len(packed))
    digest = _digest(previous_digest, prefix, packed, body)
    return msgspec.structs.replace(header, digest=digest), prefix + digest + packed + body


def version_of(value: bytes) -> int:
    """The version of the format that a record is written in.

    Raises `LaterVersionError`, or `JournalError` where it is no journal record.
    """
    magic = value[:4]
    for version, known in _MAGIC.items():
        if magic == known:
            return version
    number = magic[3:].decode("ascii", "replace")
    if magic.startswith(b"PPJ") and number.isdecimal() and int(number) > NEWEST:
        raise LaterVersionError(
            f"journal record of format version {number}, this program reads up to {NEWEST}: a "
            "later version has written here. Upgrade this process; nothing is lost meanwhile. "
            "(Upgrade all before any writes the new format: docs/operations.md, Upgrade)"
        )
    raise JournalError(
        f"journal record begins with {magic!r}, this program reads versions "
        f"{', '.join(known.decode() for known in _MAGIC.values())}"
    )


def decode_header(value: bytes) -> tuple[Header, bytes]:
    """Header and events' bytes of a record. Raises `JournalError` on anything else."""
    version = version_of(value)
    if len(value) < _PREFIX.size:
        raise JournalError(f"journal record of {len(value)} bytes is too short for a header")
    _, length = _PREFIX.unpack_from(value)
    start = _PREFIX.size + (0 if version == 1 else _DIGEST_BYTES)
    end = start + length
    if len(value) < end:
        raise JournalError(f"journal record is cut off: {len(value)} bytes, header ends at {end}")
    try:
        header = _header_decoder.decode(value[start:end])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise JournalError(f"journal record's header does not decode: {error}") from error
    if version != 1:
        header = msgspec.structs.replace(header, digest=value[_PREFIX.size : start])
    return header, value[end:]


def decode_events(header: Header, body: bytes) -> pl.DataFrame:
    """The events of a record. Raises `JournalError` where they are not what the header says."""
    if not body:
        events = pl.DataFrame(schema=EVENT_SCHEMA)
    else:
        try:
            events = pl.DataFrame(read_events(body, header.texts or ()).to_reader())
        except Exception as error:
            raise JournalError(f"journal record's events do not decode: {error}") from error
    if events.height != header.events:
        raise JournalError(
            f"journal record holds {events.height} events, header says {header.events}"
        )
    return events


def decode(value: bytes) -> Record:
    """A whole record. Raises `JournalError` on anything else."""
    header, body = decode_header(value)
    return Record(header, decode_events(header, body), body)


def digest_holds(header: Header, value: bytes, previous_digest: bytes) -> bool:
    """Whether the record, given as its header and all its bytes, is the one that was appended
    after the record with that digest."""
    if version_of(value) == 1:
        body = memoryview(value)[_PREFIX.size + _PREFIX.unpack_from(value)[1] :]
        return header.digest == _digest_1(header, body, previous_digest)
    whole = memoryview(value)
    after = _PREFIX.size + _DIGEST_BYTES
    return header.digest == _digest(previous_digest, whole[: _PREFIX.size], whole[after:])


def _digest(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def _encode_1(header: Header) -> bytes:
    fields = {name: getattr(header, name) for name in _FIELDS_OF_VERSION_1}
    return _encoder.encode({name: field for name, field in fields.items() if field is not UNSET})


def _digest_1(header: Header, body: bytes | memoryview, previous_digest: bytes) -> bytes:
    unsealed = msgspec.structs.replace(header, digest=EMPTY_DIGEST)
    return _digest(previous_digest, _encode_1(unsealed), body)
