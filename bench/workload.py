"""The events of the benchmarks: seeded, of realistic make and size.

Campaigns (200 as a rule) of all five objectives, 4 ad groups each with 5 promoted pins; 80%
impressions, 10% clicks, 10% engagements; 1% of the events are sent twice; every tenth campaign
reaches a limit; JSON of some 300 bytes. Record timestamps are 10,000 events a second apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from pipeline.contract.vocabulary import (
    BASES,
    CLICKS,
    ENGAGEMENTS,
    IMPRESSIONS,
    OBJECTIVE_BASIS,
    OBJECTIVES,
)

GROUPS_A_CAMPAIGN = 4
PINS_A_GROUP = 5
CAMPAIGNS = 200
BID_MICROS = 7_000_000
AMPLE_MICROS = 10**12
SCARCE_MICROS = 3_000_000
EVENTS_A_MS = 10
DUPLICATE_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Message:
    """One message to publish."""

    topic: str
    key: bytes
    value: bytes
    timestamp_ms: int


def catalog(
    campaigns: int, created_ms: int, pins_a_group: int = PINS_A_GROUP, *, scarce: bool = True
) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the catalog's records, parents first; `scarce`: whether some budgets are
    so small that they run out."""

    def record(key: str, **fields: Any) -> tuple[bytes, bytes]:
        return key.encode(), json.dumps(fields | {"effective_ms": created_ms}).encode()

    yield record("account:a", account_id="a", country="US", currency="USD")
    for c in range(campaigns):
        objective = OBJECTIVES[c % len(OBJECTIVES)]
        yield record(f"campaign:c{c}", campaign_id=f"c{c}", account_id="a", objective=objective)
        for g in range(GROUPS_A_CAMPAIGN):
            group = f"c{c}-g{g}"
            yield record(
                f"ad_group:{group}",
                ad_group_id=group,
                campaign_id=f"c{c}",
                budget_type="daily",
                budget_micros=SCARCE_MICROS if scarce and c % 10 == 0 else AMPLE_MICROS,
                bid_micros=BID_MICROS,
                start_ms=0,
            )
            for p in range(pins_a_group):
                yield record(
                    f"promoted_pin:{group}-p{p}",
                    promoted_pin_id=f"{group}-p{p}",
                    ad_group_id=group,
                    review="approved",
                )


def prices(campaigns: int) -> dict[str, tuple[str, int]]:
    """Ad group -> basis (`cpc`, `cpe`, `cpm`) and bid in micros: all that the peers' job needs."""
    return {
        f"c{c}-g{g}": (BASES[OBJECTIVE_BASIS[OBJECTIVES[c % len(OBJECTIVES)]]], BID_MICROS)
        for c in range(campaigns)
        for g in range(GROUPS_A_CAMPAIGN)
    }


def messages(
    count: int,
    campaigns: int,
    start_ms: int,
    seed: int = 1,
    *,
    pins_a_group: int = PINS_A_GROUP,
    events_a_ms: int = EVENTS_A_MS,
) -> Iterator[Message]:
    """So many messages, in the order of their timestamps.

    The same arguments give the same messages, byte for byte.
    """
    random = Random(seed)
    last: Message | None = None
    for number in range(count):
        timestamp_ms = start_ms + number // events_a_ms
        if last is not None and random.random() < DUPLICATE_SHARE:
            yield Message(last.topic, last.key, last.value, timestamp_ms)
            continue
        last = _message(random, campaigns, pins_a_group, timestamp_ms)
        yield last


def _message(random: Random, campaigns: int, pins_a_group: int, timestamp_ms: int) -> Message:
    campaign = f"c{random.randrange(campaigns)}"
    group = f"{campaign}-g{random.randrange(GROUPS_A_CAMPAIGN)}"
    event = {
        "event_id": f"{random.getrandbits(128):032x}",
        "event_time_ms": timestamp_ms,
        "campaign_id": campaign,
        "ad_group_id": group,
        "promoted_pin_id": f"{group}-p{random.randrange(pins_a_group)}",
        "user_id": f"user-{random.randrange(10**6)}",
        "impression_id": f"{random.getrandbits(64):016x}",
        "price_micros": random.randrange(1, BID_MICROS + 1_000_000),
        "placement": "browse" if random.random() < 0.7 else "search",
        "country": random.choice(("US", "CA", "GB")),
        "device": random.choice(("ios", "android", "web")),
    }
    draw = random.random()
    topic = IMPRESSIONS if draw < 0.8 else CLICKS if draw < 0.9 else ENGAGEMENTS
    if topic == ENGAGEMENTS:
        event["kind"] = random.choice(("closeup", "save", "install"))
    return Message(topic, campaign.encode(), json.dumps(event).encode(), timestamp_ms)
