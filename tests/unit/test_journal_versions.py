"""Two versions of the journal: what the older one wrote is read, and written, as it was."""

from __future__ import annotations

from base64 import b64decode
from hashlib import sha256
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from pipeline.billing.chain import BrokenChainError, Chain
from pipeline.billing.journal import (
    EMPTY_DIGEST,
    NEWEST,
    Ad,
    JournalError,
    LaterVersionError,
    decode,
    decode_events,
    decode_header,
    digest_holds,
    pack_ad,
    pack_ads,
    seal,
    version_of,
)
from pipeline.billing.journal_events import ARROW_SCHEMA, encode_events
from pipeline.contract.log import LogRecord
from pipeline.contract.vocabulary import CHARGED, JOURNAL, JOURNAL_VERSIONS
from pipeline.reporting.intake import Intake
from pipeline.reporting.plans import Plan, Position
from tests.headers import a_header

WRITTEN = Path(__file__).parent / "data" / "journal-version-1.txt"
"""Two records that a program wrote which knew version 1 alone: one with everything that a record
can hold, and a checkpoint after it."""
FIRST, CHECKPOINT = (b64decode(line) for line in WRITTEN.read_text().splitlines())
BEFORE_FIRST = bytes(range(32))
_STREAM_MAGIC = b"\xff\xff\xff\xff"
"""What an Arrow IPC stream begins with."""


def test_what_version_1_wrote_is_read() -> None:
    first = decode(FIRST)
    assert version_of(FIRST) == 1
    assert first.header.signals[0].entity == "ad_group:g"
    assert [credit.event_id for credit in first.header.credits or ()] == ["e0"]
    assert [note.realised for note in first.header.pacing or ()] == [90]
    [event] = first.events.to_dicts()
    assert (event["event_id"], event["disposition"]) == ("e1", CHARGED)
    assert event["amount_nanos"] == 500_000_000
    assert digest_holds(first.header, FIRST, BEFORE_FIRST)
    header, body = decode_header(CHECKPOINT)
    assert (header.checkpoint, body) == (b"state", b"")
    assert digest_holds(header, CHECKPOINT, first.header.digest)


def test_version_1_is_written_to_the_byte_as_it_was() -> None:
    """So that readers of version 1 take it, while an upgrade is under way."""
    digest = BEFORE_FIRST
    for value in (FIRST, CHECKPOINT):
        header, body = decode_header(value)
        sealed, again = seal(header, body, digest, version=1)
        assert (sealed, again) == (header, value)
        digest = sealed.digest


def test_a_chain_goes_on_from_either_version_in_the_other() -> None:
    chain = Chain(shard=0)
    digest = EMPTY_DIGEST
    for offset, version in enumerate((1, 2, 1, 1, 2, 2)):
        sealed, value = seal(a_header(previous=offset - 1), b"", digest, version=version)
        assert version_of(value) == version
        header, _ = decode_header(value)
        assert header == sealed
        assert chain.admit(offset, header, value)
        digest = sealed.digest


def test_a_changed_byte_anywhere_breaks_the_chain() -> None:
    """Not so in version 1: what its readers pass over when they encode a header again is in no
    digest, the name of a field that is null for one."""
    header, body = decode_header(FIRST)
    placed = msgspec.structs.replace(header, shard=0, previous=-1, seq=0)
    _, value = seal(placed, body, EMPTY_DIGEST)
    unnoticed = []
    for at in range(len(value)):
        changed = bytearray(value)
        changed[at] ^= 1
        try:
            altered, _ = decode_header(bytes(changed))
            admitted = Chain(shard=0).admit(0, altered, bytes(changed))
        except (JournalError, BrokenChainError):
            continue
        if admitted:
            unnoticed.append(at)
    assert unnoticed == []


def test_a_field_that_a_later_release_adds_can_be_passed_over_in_version_2() -> None:
    sealed, value = seal(a_header(), b"", EMPTY_DIGEST)
    length = int.from_bytes(value[4:8], "little")
    fields = msgspec.msgpack.decode(value[40 : 40 + length]) | {"added_later": [1, 2]}
    packed = msgspec.msgpack.encode(fields)
    prefix = b"PPJ2" + len(packed).to_bytes(4, "little")
    later_value = prefix + sha256(EMPTY_DIGEST + prefix + packed).digest() + packed
    later, _ = decode_header(later_value)
    assert later == msgspec.structs.replace(sealed, digest=later.digest)
    assert Chain(shard=0).admit(0, later, later_value)


def test_a_later_version_is_told_with_what_to_do() -> None:
    later = b"PPJ%d" % (NEWEST + 1) + FIRST[4:]
    with pytest.raises(LaterVersionError, match=r"version 3.*up to 2.*Upgrade this process"):
        decode_header(later)
    with pytest.raises(JournalError, match="begins with b'what'"):
        decode_header(b"whatever")


def test_the_reporter_holds_the_partition_and_says_so() -> None:
    intake = Intake(Plan(0, {0: Position.of(0, Chain(shard=0))}, 0))
    later = b"PPJ%d" % (NEWEST + 1) + seal(a_header(), b"", EMPTY_DIGEST)[1][4:]
    intake.take([LogRecord(JOURNAL, 0, 0, 0, None, later)])
    assert "Upgrade this process" in intake.stopped[0]
    assert intake.is_empty


def test_events_are_packed_as_a_whole_and_not_so_in_version_1() -> None:
    """Readers of version 1 know the plain stream only."""
    plain = decode(FIRST).body
    [batch] = pa.ipc.open_stream(plain).read_all().cast(ARROW_SCHEMA).to_batches()
    packed = encode_events(batch)
    assert not packed.startswith(_STREAM_MAGIC)
    header = a_header(events=1)
    for version in JOURNAL_VERSIONS:
        _, value = seal(header, packed, EMPTY_DIGEST, version)
        record = decode(value)
        assert record.body.startswith(_STREAM_MAGIC) is (version == 1)
        assert record.events.equals(decode(FIRST).events)
        assert digest_holds(record.header, value, EMPTY_DIGEST)


def test_version_1_is_compressed_too() -> None:
    [batch] = pa.ipc.open_stream(decode(FIRST).body)
    many = pa.concat_batches([batch.cast(ARROW_SCHEMA)] * 1_000)
    packed = encode_events(many)
    _, value = seal(a_header(events=len(many)), packed, EMPTY_DIGEST, 1)
    assert len(value) < many.nbytes / 5
    assert decode(value).events.height == len(many)


def test_damaged_events_are_a_journal_error_whatever_the_decoder_does() -> None:
    """The chain's digest notices first where it is checked; a decoder must not end a program."""
    header, body = decode_header(FIRST)
    errors = 0
    for at in range(len(body)):
        for mask in (0xFF, 0x01, 0x80):
            damaged = body[:at] + bytes([body[at] ^ mask]) + body[at + 1 :]
            try:
                decode_events(header, damaged)
            except JournalError:
                errors += 1
    assert errors > len(body)


@pytest.mark.parametrize("version", JOURNAL_VERSIONS)
@pytest.mark.parametrize("number", [0, 1, 15, 16, 65_535, 65_536])
def test_ads_that_are_packed_already_are_written_as_their_list_is(
    version: int, number: int
) -> None:
    ads = [Ad("a", "c", "g", f"p{n}") for n in range(number)]
    packed = pack_ads(b"".join(map(pack_ad, ads)), number)
    listed = msgspec.structs.replace(a_header(), ads=ads)
    _, written = seal(listed, b"", EMPTY_DIGEST, version)
    _, from_packed = seal(msgspec.structs.replace(listed, ads=packed), b"", EMPTY_DIGEST, version)
    assert from_packed == written
    header, _ = decode_header(written)
    assert header.ads == ads
    assert digest_holds(header, written, EMPTY_DIGEST)
