"""Rejects: what could not be judged or was refused, with the reason and the original bytes."""

from __future__ import annotations

import base64

import msgspec


class Reject(msgspec.Struct, frozen=True, kw_only=True):
    """One rejected record of a source topic; its message key is `topic-partition-offset`."""

    source: str
    """The source topic."""
    partition: int
    offset: int
    timestamp_ms: int
    """The source record's own Kafka timestamp, which a redrive keeps."""
    reason: str
    """`malformed`, `future`, `unknown`, or a catalog refusal such as `bid_too_low`."""
    field: str
    """The field at fault, or the empty string where no single one is."""
    detail: str
    """What is wrong with it, in words."""
    key: str | None
    """The original key, base64; null where the record had none."""
    original: str | None
    """The original value, base64; null where the record had none."""

    @property
    def message_key(self) -> str:
        return f"{self.source}-{self.partition}-{self.offset}"

    @property
    def original_bytes(self) -> bytes | None:
        return None if self.original is None else base64.b64decode(self.original)

    @property
    def key_bytes(self) -> bytes | None:
        return None if self.key is None else base64.b64decode(self.key)


def to_base64(value: bytes | None) -> str | None:
    """Base64 text of bytes that may be missing."""
    return None if value is None else base64.b64encode(value).decode("ascii")
