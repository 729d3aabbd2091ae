"""Headers of journal records for tests: empty but for what a test says."""

from __future__ import annotations

from typing import Any

from pipeline.billing.journal import Header


def a_header(previous: int = -1, **parts: Any) -> Header:
    """The header of a record of shard 0 that did nothing."""
    empty: dict[str, Any] = {
        "shard": 0,
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
    return Header(previous=previous, **(empty | parts))
