"""Predictions in the journal: records of versions without them still hold."""

from __future__ import annotations

from typing import Any

import msgspec

from pipeline.billing.journal import EMPTY_DIGEST, Header, decode_header, digest_holds, seal
from pipeline.contract.pacing_notes import PacingNote


def header(**parts: Any) -> Header:
    empty: dict[str, Any] = {
        "previous": -1,
        "sources": {},
        "seq": 0,
        "events": 0,
        "now_ms": 0,
        "log_time_ms": 0,
        "catalog_end": 0,
        "ads": [],
        "accounts": {},
        "signals": [],
        "blocks": [],
        "closed": {},
        "outbox_through": -1,
    }
    return Header(shard=0, **(empty | parts))


def test_a_record_without_predictions_has_no_trace_of_them() -> None:
    sealed, value = seal(header(), b"", EMPTY_DIGEST)
    assert b"pacing" not in value
    decoded, body = decode_header(value)
    assert decoded == sealed
    assert digest_holds(decoded, body, EMPTY_DIGEST)


def test_predictions_come_back_as_they_were() -> None:
    note = PacingNote("ad_group:g", "inflight", "2026-03-02", 5, 100, 50, 150, 90, 9)
    _, value = seal(header(pacing=[note]), b"", EMPTY_DIGEST)
    decoded, body = decode_header(value)
    assert decoded.pacing == [note]
    assert digest_holds(decoded, body, EMPTY_DIGEST)
    assert decoded.pacing is not msgspec.UNSET
