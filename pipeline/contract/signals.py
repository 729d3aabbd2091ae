"""Signals to the ad servers: levels, not edges, versioned for each entity."""

from __future__ import annotations

from typing import Literal

import msgspec

from pipeline.contract.vocabulary import LimitName

Action = Literal["pause", "resume", "throttle", "bid"]


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """What the ad servers are to do about one entity from now on.

    `entity` is the message key (`ad_group:ID` or `campaign:ID`). A consumer keeps the highest
    `version` that it has seen for an entity and ignores lower ones.
    """

    entity: str
    action: Action
    reason: str
    """`limit_reached`, `limit_free` (headroom again), or a pacing policy's own word."""
    serve_probability: float
    """0 (stopped) to 1 (serve always); a probability, so no money is in this float."""
    bid_micros: int | None = None
    limit: LimitName
    limit_nanos: int
    spend_nanos: int
    inflight_nanos: int
    billing_day: str
    """ISO date of the account's billing day that the figures belong to."""
    decided_at_ms: int
    resume_at_ms: int | None = None
    """When a daily limit frees up (the account's next midnight); absent for lifetime limits."""
    version: int


def encode_signal(signal: Signal) -> bytes:
    """The message value on `pacing.signals`: absent fields are left out."""
    fields = {k: v for k, v in msgspec.structs.asdict(signal).items() if v is not None}
    return msgspec.json.encode(fields)


def decode_signal(value: bytes) -> Signal:
    """The signal in a message value. Raises `msgspec.ValidationError` on anything else."""
    return msgspec.json.decode(value, type=Signal)
