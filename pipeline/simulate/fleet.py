"""Ad servers: they serve the ads they believe to be running, and publish what Pinners do.

Each server has its own view of `pacing.signals` and takes a signal into account only its reaction
time later. Time is simulated: the caller moves it on step by step.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import msgspec

from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import CLICKS, ENGAGEMENTS, IMPRESSIONS
from pipeline.simulate.world import (
    ACTION_RATES,
    COUNTRIES,
    DEVICES,
    Ad,
    World,
    clearing_price_micros,
)

INGEST_DELAY_MS: Final = 300
"""From the event to its record in Kafka."""
LONGEST_ACTION_DELAY_S: Final = 900


@dataclass(frozen=True, slots=True)
class Message:
    """One message to publish."""

    topic: str
    key: bytes
    value: bytes
    timestamp_ms: int


@dataclass(slots=True)
class Belief:
    """What a server believes about one entity."""

    version: int = 0
    probability: float = 1.0


@dataclass(slots=True)
class Counts:
    """What a server did."""

    impressions: int = 0
    withheld: int = 0
    """Impressions not served because of a signal."""
    actions: int = 0
    resent: int = 0


@dataclass(slots=True)
class AdServer:
    """One server of the fleet."""

    number: int
    world: World
    seed: int
    reaction_ms: int
    resend_rate: float = 0.01
    beliefs: dict[str, Belief] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    _heard: list[tuple[int, int, Signal]] = field(default_factory=list)
    _actions: list[tuple[int, int, Message]] = field(default_factory=list)
    _serial: int = 0
    _random: Random = field(init=False)
    _weights: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._random = Random(f"server-{self.seed}-{self.number}")
        self._weights = [ad.weight for ad in self.world.ads]

    def hear(self, signal: Signal, now_ms: int) -> None:
        """A signal arrived; it is obeyed from the reaction time on."""
        self._serial += 1
        heapq.heappush(self._heard, (now_ms + self.reaction_ms, self._serial, signal))

    def step(self, from_ms: int, to_ms: int, impressions: int) -> Iterator[Message]:
        """Serve so many impressions in a stretch of time; the messages in order of publication."""
        self._obey(to_ms)
        random = self._random
        times = sorted(random.randrange(from_ms, to_ms) for _ in range(impressions))
        chosen = random.choices(self.world.ads, self._weights, k=impressions)
        for time_ms, ad in zip(times, chosen, strict=True):
            yield from self._due_actions(time_ms)
            if random.random() < self._probability(ad):
                yield from self._serve(ad, time_ms)
            else:
                self.counts.withheld += 1
        yield from self._due_actions(to_ms)

    def _obey(self, now_ms: int) -> None:
        while self._heard and self._heard[0][0] <= now_ms:
            _, _, signal = heapq.heappop(self._heard)
            belief = self.beliefs.setdefault(signal.entity, Belief())
            if signal.version > belief.version:
                belief.version = signal.version
                belief.probability = signal.serve_probability

    def _probability(self, ad: Ad) -> float:
        found = 1.0
        for entity in (f"ad_group:{ad.ad_group_id}", f"campaign:{ad.campaign_id}"):
            belief = self.beliefs.get(entity)
            if belief is not None:
                found *= belief.probability
        return found

    def _serve(self, ad: Ad, time_ms: int) -> Iterator[Message]:
        random = self._random
        self._serial += 1
        self.counts.impressions += 1
        impression_id = f"{self.seed}-{self.number}-{self._serial}"
        event = {
            "event_id": impression_id,
            "event_time_ms": time_ms,
            "campaign_id": ad.campaign_id,
            "ad_group_id": ad.ad_group_id,
            "promoted_pin_id": ad.promoted_pin_id,
            "user_id": f"pinner-{random.randrange(50_000)}",
            "impression_id": impression_id,
            "price_micros": clearing_price_micros(random, ad.bid_micros),
            "placement": "browse" if random.random() < 0.7 else "search",
            "country": random.choice(COUNTRIES),
            "device": random.choice(DEVICES),
        }
        message = _message(IMPRESSIONS, event)
        yield message
        if random.random() < self.resend_rate:
            self.counts.resent += 1
            yield message
        for kind, rate in ACTION_RATES.items():
            if random.random() < rate and (kind != "install" or ad.objective == "app_install"):
                self._plan_action(event, kind)

    def _plan_action(self, event: dict[str, Any], kind: str) -> None:
        delay_s = min(LONGEST_ACTION_DELAY_S, self._random.lognormvariate(2.5, 1.0))
        action = event | {
            "event_id": f"{event['event_id']}-{kind}",
            "event_time_ms": event["event_time_ms"] + int(delay_s * 1_000),
        }
        if kind != "click":
            action["kind"] = kind
        message = _message(CLICKS if kind == "click" else ENGAGEMENTS, action)
        self.counts.actions += 1
        self._serial += 1
        heapq.heappush(self._actions, (action["event_time_ms"], self._serial, message))

    def _due_actions(self, now_ms: int) -> Iterator[Message]:
        while self._actions and self._actions[0][0] <= now_ms:
            yield heapq.heappop(self._actions)[2]


def _message(topic: str, event: dict[str, Any]) -> Message:
    return Message(
        topic,
        event["campaign_id"].encode(),
        msgspec.json.encode(event),
        event["event_time_ms"] + INGEST_DELAY_MS,
    )
