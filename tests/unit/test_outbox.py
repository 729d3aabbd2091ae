"""A reject that is cut so that it fits into any topic."""

from __future__ import annotations

import json

import msgspec

from pipeline.billing.decode import Decoder
from pipeline.contract.vocabulary import CLICKS, MALFORMED, REJECTS, UNKNOWN
from pipeline.streams.outbox import Original, _without_original, reject_of
from pipeline.streams.topics import JOURNAL_MAX_BYTES, topic_specs

LONG = "x" * 600_000


def original(value: bytes, key: bytes, disposition: int) -> Original:
    decoded = Decoder(CLICKS).decode_one(value)
    return Original(CLICKS, 3, 17, 1, key, value, (), disposition, decoded)


def test_the_rejects_take_what_the_event_topics_take() -> None:
    [rejects] = [spec for spec in topic_specs(4, 7, keep_all=False) if spec.name == REJECTS]
    assert rejects.config["max.message.bytes"] == str(JOURNAL_MAX_BYTES)


def test_a_cut_reject_names_its_place_and_what_is_left_out() -> None:
    reject = reject_of(original(b"\xff" * 800_000, b"campaign", MALFORMED))
    cut = _without_original(reject)
    assert (cut.message_key, cut.reason, cut.key_bytes) == (
        f"{CLICKS}-3-17",
        "malformed",
        b"campaign",
    )
    assert cut.original is None
    assert cut.detail.startswith(reject.detail)
    assert "the original of 800000 bytes is left out" in cut.detail


def test_a_cut_reject_is_small_however_long_its_texts() -> None:
    names = ("event_id", "campaign_id", "ad_group_id", "promoted_pin_id", "user_id")
    event = dict.fromkeys(names, LONG) | {
        "event_id": "long",
        "impression_id": "i",
        "event_time_ms": 1,
        "price_micros": 1,
        "placement": "browse",
    }
    twice = f'{{"{LONG}": 1, "{LONG}": 1, {json.dumps(event)[1:]}'
    for value, disposition in ((json.dumps(event), UNKNOWN), (twice, MALFORMED)):
        reject = reject_of(original(value.encode(), LONG.encode(), disposition))
        assert len(msgspec.json.encode(reject)) > 1_000_000
        assert len(msgspec.json.encode(_without_original(reject))) < 5_000
