"""The simple job that every peer does: decode, dedupe by id, price, sum by ad group.

Much less than the product does: no limits, no catalog history, no days, no journal of events, and
what has been seen is a plain set, lost with the process. Whatever is missing makes a peer faster.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson

EVENT_TOPICS = ("ads.impressions", "ads.clicks", "ads.engagements")
TRANSACTION_S = 0.1
"""How often a peer with transactions commits one."""


class SimpleJob:
    """The sums since the last output."""

    def __init__(self, prices: Path) -> None:
        self._prices: dict[str, tuple[str, int]] = json.loads(prices.read_text())
        self._seen: set[str] = set()
        self._spend_nanos: dict[str, int] = {}
        self.events = 0
        """Events taken since the last output."""

    def take_bytes(self, topic: str, value: bytes) -> None:
        """Take an event in as it came."""
        self.take(topic, orjson.loads(value))

    def take(self, topic: str, event: dict[str, Any]) -> None:
        """Take a decoded event in."""
        self.events += 1
        event_id = event["event_id"]
        if event_id in self._seen:
            return
        self._seen.add(event_id)
        group = event["ad_group_id"]
        basis, bid_micros = self._prices[group]
        if not _is_billable(basis, topic, event.get("kind")):
            return
        micros = min(event["price_micros"], bid_micros)
        nanos = micros if basis == "cpm" else micros * 1_000
        self._spend_nanos[group] = self._spend_nanos.get(group, 0) + nanos

    def output(self) -> bytes:
        """The sums since the last output, as JSON."""
        packed: bytes = orjson.dumps({"events": self.events, "spend_nanos": self._spend_nanos})
        self._spend_nanos = {}
        self.events = 0
        return packed


def _is_billable(basis: str, topic: str, kind: str | None) -> bool:
    if basis == "cpm":
        return topic == "ads.impressions"
    if topic == "ads.clicks":
        return True
    return basis == "cpe" and topic == "ads.engagements" and kind != "install"
