"""The journal record: what one decision of a shard did, as bytes in `billing.journal`.

Layout, version 1, little-endian (documented for readers outside in docs/journal.md):

    magic "PPJ1" | header length u32 | header (MessagePack) | events (Arrow IPC stream, zstd)

The header's `digest` is SHA-256 over the previous counted record's digest, the header with an
empty digest, and the events' bytes: a hash chain over everything the shard ever did. Events are
in the order of judgement; the n-th event of a record has shard_seq `header.seq + n`.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from io import BytesIO

import msgspec
import polars as pl
from msgspec import UNSET, UnsetType

from pipeline.contract.pacing_notes import PacingNote
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import (
    BASES,
    DISPOSITIONS,
    EVENT_TOPICS,
    KINDS,
    LIMITS,
    PLACEMENTS,
)

MAGIC = b"PPJ1"
_PREFIX = struct.Struct("<4sI")
EMPTY_DIGEST = bytes(32)

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


class JournalError(Exception):
    """Bytes that are not a journal record of a version this reader knows."""


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


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Everything of a decision but its events. Times are ms since the epoch, UTC."""

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
    accounts: dict[str, AccountTerms]
    signals: list[Signal]
    blocks: list[Block]
    closed: dict[str, str]
    """Time zone -> ISO date: in this zone the shard closes all days up to and including it."""
    outbox_through: int
    """Every record up to this journal offset has had its signals, rejects and strays sent."""
    pacing: list[PacingNote] | UnsetType = UNSET
    """Predictions of pacing and how right they were. Left out where there are none, so that a
    record of a version without them encodes to the same bytes, and its digest holds."""
    checkpoint: bytes = b""
    """State carried over retention (a checkpoint record has no events), else empty."""
    credits: list[CreditPosting] | UnsetType = UNSET
    """Credits that the shard posts. Left out where there are none: records of versions that knew
    no credits encode, and so digest, as they did."""
    digest: bytes = EMPTY_DIGEST


@dataclass(frozen=True, slots=True)
class Record:
    """A decoded journal record; `events` has the columns of EVENT_SCHEMA."""

    header: Header
    events: pl.DataFrame
    body: bytes


_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(Header)


def encode_events(events: pl.DataFrame) -> bytes:
    """The events' part of a record; empty bytes where there are none."""
    if events.height == 0:
        return b""
    buffer = BytesIO()
    events.write_ipc_stream(buffer, compression="zstd")
    return buffer.getvalue()


def seal(header: Header, body: bytes, previous_digest: bytes) -> tuple[Header, bytes]:
    """Chain a header to what came before it.

    Returns the header with its digest, and the record's bytes.
    """
    sealed = msgspec.structs.replace(header, digest=_digest(header, body, previous_digest))
    packed = _encoder.encode(sealed)
    return sealed, _PREFIX.pack(MAGIC, len(packed)) + packed + body


def decode_header(value: bytes) -> tuple[Header, bytes]:
    """Header and events' bytes of a record. Raises `JournalError` on anything else."""
    if len(value) < _PREFIX.size:
        raise JournalError(f"journal record of {len(value)} bytes is too short for a header")
    magic, length = _PREFIX.unpack_from(value)
    if magic != MAGIC:
        raise JournalError(
            f"journal record begins with {magic!r}, this version reads {MAGIC!r}: "
            "read it with the version that wrote it, or a later one"
        )
    end = _PREFIX.size + length
    if len(value) < end:
        raise JournalError(f"journal record is cut off: {len(value)} bytes, header ends at {end}")
    try:
        header = _header_decoder.decode(value[_PREFIX.size : end])
    except msgspec.MsgspecError as error:
        raise JournalError(f"journal record's header does not decode: {error}") from error
    return header, value[end:]


def decode_events(header: Header, body: bytes) -> pl.DataFrame:
    """The events of a record. Raises `JournalError` where they are not what the header says."""
    if not body:
        events = pl.DataFrame(schema=EVENT_SCHEMA)
    else:
        try:
            events = pl.read_ipc_stream(BytesIO(body))
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


def _digest(header: Header, body: bytes, previous_digest: bytes) -> bytes:
    unsealed = msgspec.structs.replace(header, digest=EMPTY_DIGEST)
    digest = hashlib.sha256(previous_digest)
    digest.update(_encoder.encode(unsealed))
    digest.update(body)
    return digest.digest()


def digest_holds(header: Header, body: bytes, previous_digest: bytes) -> bool:
    """Whether the record is the one that was appended after the record with that digest."""
    return header.digest == _digest(header, body, previous_digest)
