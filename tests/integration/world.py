"""A random catalog, and random events over all rules of the contract, from one seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

from tests.auditor import partition_of
from tests.integration.product import (
    ENGAGEMENTS,
    EVENT_TOPICS,
    HOUR_MS,
    MINUTE_MS,
    Ad,
    Message,
    at,
)

START_MS = at("2026-03-07T18:00")
"""Two days and a bit follow; in New York the clocks change in the middle of them."""
OBJECTIVES = ("traffic", "engagement", "awareness", "video_awareness", "app_install")
GARBAGE = (b"", None, b"{", b"[]", b"\xff\xfe", b'{"event_id": 1}', b'{"a": 1, "a": 2}')
LAGS_MS = (*[0] * 6, 5, MINUTE_MS, 2 * HOUR_MS, 30 * HOUR_MS, 8 * 24 * HOUR_MS, -6 * MINUTE_MS)


class World:
    """A catalog and events, all from one seed."""

    def __init__(self, seed: int, partitions: int) -> None:
        self.random = random.Random(seed)
        self._partitions = partitions
        self.ads: list[Ad] = []
        self.catalog: list[dict[str, Any]] = [
            {"account_id": "east", "country": "US", "currency": "USD"}
            | {"time_zone": "America/New_York"},
            {"account_id": "nepal", "country": "GB", "currency": "GBP"}
            | {"time_zone": "Asia/Kathmandu"},
        ]
        for number in range(10):
            self._add_campaign(number)
        self.changes = [self._change() for _ in range(12)]

    def _add_campaign(self, number: int) -> None:
        choose = self.random
        campaign = f"c{number}"
        entity: dict[str, Any] = {
            "campaign_id": campaign,
            "account_id": choose.choice(("east", "nepal")),
            "objective": OBJECTIVES[number % len(OBJECTIVES)],
        }
        if choose.random() < 0.5:
            entity["daily_spend_limit_micros"] = choose.randrange(40) * 1_000_000
        if choose.random() < 0.3:
            entity["lifetime_spend_limit_micros"] = choose.randrange(90) * 1_000_001
        self.catalog.append(entity)
        for group_number in range(2):
            group = f"{campaign}-g{group_number}"
            self.catalog.append(self._ad_group(campaign, group))
            for pin_number in range(2):
                pin = f"{group}-p{pin_number}"
                review = "approved" if choose.random() < 0.9 else "pending"
                self.catalog.append(
                    {"promoted_pin_id": pin, "ad_group_id": group, "review": review}
                )
                self.ads.append(Ad("", campaign, group, pin))

    def _ad_group(self, campaign: str, group: str) -> dict[str, Any]:
        choose = self.random
        entity: dict[str, Any] = {
            "ad_group_id": group,
            "campaign_id": campaign,
            "budget_type": choose.choice(("daily", "lifetime")),
            "budget_micros": choose.choice((1, 50_000, 15_000_001, 60_000_000, 10**12)),
            "bid_micros": choose.choice((6_000_000, 7_000_001, 10_000_000)),
            "keyword_bids_micros": {"shoes": 6_500_000, "hats": 9_000_000},
        }
        if choose.random() < 0.8:
            entity["start_ms"] = START_MS + choose.randrange(3) * 9 * HOUR_MS
        if entity["budget_type"] == "lifetime":
            entity["end_ms"] = START_MS + choose.randrange(40, 200) * HOUR_MS
        return entity

    def _change(self) -> dict[str, Any]:
        """A later version of an entity that takes effect in the middle; some are not valid."""
        choose = self.random
        entities = [entity for entity in self.catalog if "campaign_id" in entity]
        changed = dict(choose.choice(entities))
        what = choose.choice(("pause", "bid", "low bid", "budget", "limit"))
        if what == "pause":
            changed["status"] = "paused"
        elif "ad_group_id" in changed and what in ("bid", "low bid"):
            changed["bid_micros"] = 8_000_000 if what == "bid" else 1_000
        elif "ad_group_id" in changed:
            changed["budget_micros"] = choose.choice((1, 20_000_000, 10**13))
        else:
            changed["daily_spend_limit_micros"] = choose.randrange(60) * 1_000_000
        return changed | {"effective_ms": START_MS + choose.randrange(50) * HOUR_MS}

    def messages(self) -> Iterator[Message]:
        """Events without end, 38 s apart on average: some of them resent, strayed, spoiled, early
        or late."""
        record_ms = START_MS
        for number in itertools.count():
            record_ms += self.random.choice((0, 0, 1, MINUTE_MS, 2 * MINUTE_MS))
            yield self._message(number, record_ms)

    def _message(self, number: int, record_ms: int) -> Message:
        choose = self.random
        ad = choose.choice(self.ads)
        if choose.random() < 0.03:
            ad = Ad("", ad.campaign_id, choose.choice(self.ads).ad_group_id, "nobody's pin")
        event = ad.event(
            f"e{number if choose.random() < 0.9 else choose.randrange(number + 1)}",
            record_ms - choose.choice(LAGS_MS),
            user_id=f"u{choose.randrange(4)}",
            impression_id=f"{ad.campaign_id}-i{choose.randrange(120)}",
            price_micros=choose.choice((0, 1, 100_000, 3_333_333, 6_200_000, 2**62)),
        )
        topic = choose.choice(EVENT_TOPICS)
        if topic == ENGAGEMENTS:
            event["kind"] = choose.choice(("closeup", "save", "install"))
        if choose.random() < 0.5:
            event["keyword"] = choose.choice(("shoes", "hats", "socks"))
        value: Any = event if choose.random() < 0.98 else choose.choice(GARBAGE)
        home = partition_of(ad.campaign_id, self._partitions)
        partition = home if choose.random() < 0.97 else (home + 1) % self._partitions
        return Message(topic, value, record_ms, ad.campaign_id.encode(), partition)
