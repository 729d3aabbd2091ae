"""Predictions in the journal: records of versions without them still hold."""

from __future__ import annotations

from pipeline.billing.journal import EMPTY_DIGEST, decode_header, digest_holds, seal
from pipeline.contract.pacing_notes import PacingNote
from tests.headers import a_header


def test_a_record_without_predictions_has_no_trace_of_them() -> None:
    sealed, value = seal(a_header(), b"", EMPTY_DIGEST)
    assert b"pacing" not in value
    decoded, _ = decode_header(value)
    assert decoded == sealed
    assert digest_holds(decoded, value, EMPTY_DIGEST)


def test_predictions_come_back_as_they_were() -> None:
    note = PacingNote("ad_group:g", "inflight", "2026-03-02", 5, 100, 50, 150, 90, 9)
    _, value = seal(a_header(pacing=[note]), b"", EMPTY_DIGEST)
    decoded, _ = decode_header(value)
    assert decoded.pacing == [note]
    assert digest_holds(decoded, value, EMPTY_DIGEST)
