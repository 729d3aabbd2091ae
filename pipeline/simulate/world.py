"""The simulated world: advertisers with campaigns, prices of auctions, and what Pinners do.

Pure and seeded. Figures are made up to be plausible, not measured: a traffic curve with a quiet
night and a busy evening, second prices that scatter below the bid, click-through around 1.5%.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any, Final

from pipeline.contract.money import minimum_bid_micros
from pipeline.contract.vocabulary import MS_PER_DAY

HOURLY_TRAFFIC: Final = (
    14, 9, 6, 5, 5, 8, 16, 28, 38, 44, 47, 50, 54, 52, 50, 51, 54, 60, 68, 78, 84, 76, 52, 28,
)  # fmt: skip
"""Relative volume by hour of the day, UTC."""

ACCOUNTS: Final = (
    ("sim-us", "US", "USD", "America/New_York"),
    ("sim-gb", "GB", "GBP", "Europe/London"),
    ("sim-ie", "IE", "EUR", "UTC"),
)
OBJECTIVES: Final = ("traffic", "engagement", "awareness", "video_awareness", "app_install")
COUNTRIES: Final = ("US", "GB", "IE", "CA")
DEVICES: Final = ("ios", "android", "web")
ACTION_RATES: Final = {"click": 0.015, "closeup": 0.03, "save": 0.01, "install": 0.004}
"""How often an impression leads to the action."""


@dataclass(frozen=True, slots=True)
class Ad:
    """One promoted pin with what the fleet needs of its ad group and campaign."""

    campaign_id: str
    ad_group_id: str
    promoted_pin_id: str
    objective: str
    bid_micros: int
    weight: int
    """Its share of the traffic it wins, relative to the others'."""


@dataclass(frozen=True, slots=True)
class World:
    """The catalog of a simulation, and the ads in it."""

    entities: list[tuple[str, dict[str, Any]]]
    """(record key, entity) in the order of publication."""
    ads: list[Ad]
    budgets_micros: dict[str, int]
    """Ad group -> its budget."""


def build_world(seed: int, campaigns: int, day_start_ms: int, impressions: int) -> World:
    """A world whose budgets last for a part of the day's demand: many limits are reached."""
    random = Random(f"world-{seed}")
    created_ms = day_start_ms - 2 * MS_PER_DAY
    entities: list[tuple[str, dict[str, Any]]] = [
        (f"account:{name}", _account(name, country, currency, zone, created_ms))
        for name, country, currency, zone in ACCOUNTS
    ]
    ads: list[Ad] = []
    budgets: dict[str, int] = {}
    for number in range(campaigns):
        account, _, currency, _ = ACCOUNTS[number % len(ACCOUNTS)]
        objective = OBJECTIVES[number % len(OBJECTIVES)]
        campaign_id = f"sim-c{number}"
        minimum = minimum_bid_micros(currency, objective, None)
        groups: list[tuple[str, dict[str, Any]]] = []
        total = 0
        for group_number in range(2):
            group_id = f"{campaign_id}-g{group_number}"
            bid = minimum * random.randint(12, 40) // 10
            weight = random.randint(1, 9)
            demand = _demand_micros(objective, bid, impressions * weight // (campaigns * 10))
            budget = max(minimum, int(demand * random.choice((0.15, 0.4, 0.8, 3.0))))
            total += budget
            budgets[group_id] = budget
            groups.append(
                (f"ad_group:{group_id}", _group(group_id, campaign_id, budget, bid, day_start_ms))
            )
            for pin_number in range(2):
                pin_id = f"{group_id}-p{pin_number}"
                groups.append((f"promoted_pin:{pin_id}", _pin(pin_id, group_id, created_ms)))
                ads.append(Ad(campaign_id, group_id, pin_id, objective, bid, weight))
        campaign: dict[str, Any] = {
            "campaign_id": campaign_id,
            "account_id": account,
            "objective": objective,
            "effective_ms": created_ms,
        }
        if number % 4 == 0:
            campaign["daily_spend_limit_micros"] = total * 7 // 10
        entities += [(f"campaign:{campaign_id}", campaign), *groups]
    return World(entities, ads, budgets)


def _account(name: str, country: str, currency: str, zone: str, created_ms: int) -> dict[str, Any]:
    return {
        "account_id": name,
        "country": country,
        "currency": currency,
        "time_zone": zone,
        "effective_ms": created_ms,
    }


def _group(
    group_id: str, campaign_id: str, budget: int, bid: int, day_start_ms: int
) -> dict[str, Any]:
    return {
        "ad_group_id": group_id,
        "campaign_id": campaign_id,
        "budget_type": "daily",
        "budget_micros": budget,
        "bid_micros": bid,
        "start_ms": day_start_ms - MS_PER_DAY,
        "effective_ms": day_start_ms - 2 * MS_PER_DAY,
    }


def _pin(pin_id: str, group_id: str, created_ms: int) -> dict[str, Any]:
    return {
        "promoted_pin_id": pin_id,
        "ad_group_id": group_id,
        "review": "approved",
        "effective_ms": created_ms,
    }


def _demand_micros(objective: str, bid: int, impressions: int) -> int:
    """Roughly what so many impressions would cost."""
    if objective in ("awareness", "video_awareness"):
        return bid * impressions * 7 // 10_000
    rate = ACTION_RATES["click"]
    if objective == "engagement":
        rate += ACTION_RATES["closeup"] + ACTION_RATES["save"]
    return int(bid * 7 // 10 * impressions * rate)


def share_of_day(from_ms: int, to_ms: int) -> float:
    """The share of a day's traffic between two times within it (ms after midnight UTC)."""
    hour_ms = MS_PER_DAY // 24
    share = 0.0
    for hour, volume in enumerate(HOURLY_TRAFFIC):
        overlap = min(to_ms, (hour + 1) * hour_ms) - max(from_ms, hour * hour_ms)
        share += max(0, overlap) / hour_ms * volume
    return share / sum(HOURLY_TRAFFIC)


def clearing_price_micros(random: Random, bid_micros: int) -> int:
    """A second price: scattered, never above the bid."""
    return max(1, int(bid_micros * min(1.0, random.lognormvariate(-0.4, 0.25))))
