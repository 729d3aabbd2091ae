"""The bench's world: ad groups of mixed objectives and sizes, and the traffic that they could win.

Pure and seeded. Demand is drawn a minute at a time from the seed and the minute alone, whatever
a policy lets be served of it: so policies are compared on the very same Pinners, and what an ad
group could have spent without limits is known exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.contract.money import minimum_bid_micros
from pipeline.contract.vocabulary import CLICK, CLOSEUP, IMPRESSION, INSTALL, MS_PER_DAY, SAVE
from pipeline.simulate.curves import Curves
from pipeline.simulate.world import OBJECTIVES

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

BLOCK_MS: Final = 60_000
HOUR_MS: Final = 3_600_000
LONGEST_DELAY_S: Final = 900.0
INSTALL_SHARE: Final = 0.1
"""Of the clicks of an app install campaign."""
ACTION_KINDS: Final = np.array([CLICK, CLOSEUP, SAVE], dtype=np.uint8)
_RATES: Final = {
    "traffic": (0.05, 0.0, 0.0),
    "app_install": (0.05, 0.0, 0.0),
    "engagement": (0.03, 0.07, 0.02),
    "awareness": (0.0, 0.0, 0.0),
    "video_awareness": (0.0, 0.0, 0.0),
}
"""Per impression: click, closeup, save. The bench leaves out what an objective does not pay for."""
_ZONES: Final = (
    ("bench-us", "US", "USD", "America/New_York", -5),
    ("bench-gb", "GB", "GBP", "Europe/London", 0),
    ("bench-ie", "IE", "EUR", "Europe/Dublin", 0),
)
_BUDGET_SHARES: Final = (0.15, 0.25, 0.4, 0.6, 0.8, 2.0)
"""A daily budget over what the ad group could spend in a day."""


@dataclass(frozen=True, slots=True)
class Market:
    """The ad groups, in columns of one row each; money is in micros or nanos of their currency."""

    seed: int
    curves: Curves
    start_ms: int
    entities: list[tuple[str, dict[str, Any]]]
    """(record key, entity) in the order of publication."""
    group_ids: list[str]
    campaign_ids: list[str]
    """One a campaign; `campaign` has its position for each ad group."""
    campaign: Int64s
    objective: list[str]
    daily_impressions: Floats
    """How many a mean day could bring."""
    bid_micros: Int64s
    budget_micros: Int64s
    is_lifetime: npt.NDArray[np.bool_]
    utc_offset_ms: Int64s
    traffic_curve: Int64s
    price_series: Int64s
    rates: Floats
    """Shape (groups, 3): click, closeup and save per impression."""

    def impressions_per_ms(self, time_ms: int) -> Floats:
        """Expected impressions a millisecond of each ad group, in its own local time."""
        local = time_ms + self.utc_offset_ms
        weekday = (local // MS_PER_DAY + 3) % 7
        hour = local % MS_PER_DAY // HOUR_MS
        relative = self.curves.traffic[self.traffic_curve, weekday, hour]
        return self.daily_impressions * relative / MS_PER_DAY

    def relative_price(self, time_ms: int) -> Floats:
        """Prices of this hour over the mean's."""
        series = self.curves.price
        hour = (time_ms - self.start_ms) // HOUR_MS % series.shape[1]
        return np.asarray(series[self.price_series, hour], dtype=np.float64)

    def nanos_per_billable(self) -> Floats:
        """Expected value of what each ad group pays for, at mean prices."""
        price = self.bid_micros * float(self.curves.price_to_bid.mean())
        return np.where(self.rates.sum(axis=1) > 0, price * 1_000, price)

    def nanos_per_impression_at(self, time_ms: int) -> Floats:
        """Expected value of an impression of each ad group at the prices of this hour."""
        relative = self.relative_price(time_ms)
        paid = np.minimum(1.0, relative[:, None] * self.curves.price_to_bid).mean(axis=1)
        actions = self.rates.sum(axis=1)
        return np.asarray(self.bid_micros * paid) * np.where(actions > 0, actions * 1_000, 1.0)

    def nanos_per_impression(self) -> Floats:
        """Expected value of an impression of each ad group, at mean prices."""
        actions = self.rates.sum(axis=1)
        return self.nanos_per_billable() * np.where(actions > 0, actions, 1.0)


@dataclass(frozen=True, slots=True)
class Demand:
    """Impressions that could be served in one minute, by time, with what would come of each."""

    time_ms: Int64s
    group: Int64s
    price_micros: Int64s
    server_draw: Floats
    """In [0, 1): which ad server."""
    serve_draw: Floats
    """In [0, 1): served where under the serve probability."""
    action: npt.NDArray[np.uint8]
    """Kind of the action that follows, 0 for none."""
    action_delay_ms: Int64s
    install_delay_ms: Int64s
    """From the impression; 0 for no install."""

    def between(self, from_ms: int, to_ms: int) -> slice:
        """The rows with from <= time < to."""
        first, last = np.searchsorted(self.time_ms, [from_ms, to_ms]).tolist()
        return slice(first, last)


def demand_of(market: Market, start_ms: int) -> Demand:
    """The demand of the minute from `start_ms` on: the same for the same seed and minute."""
    rng = np.random.default_rng([market.seed, start_ms // BLOCK_MS])
    counts = rng.poisson(market.impressions_per_ms(start_ms) * BLOCK_MS)
    group = np.repeat(np.arange(len(counts)), counts)
    size = len(group)
    time_ms = start_ms + rng.integers(0, BLOCK_MS, size)
    order = np.argsort(time_ms, kind="stable")
    group, time_ms = group[order], time_ms[order]
    ratio = rng.choice(market.curves.price_to_bid, size)
    price = market.bid_micros[group] * ratio * market.relative_price(start_ms)[group]
    bid = market.bid_micros[group]
    which = rng.random(size)
    cumulative = np.cumsum(market.rates, axis=1)[group]
    at = (which[:, None] >= cumulative).sum(axis=1)
    action = np.append(ACTION_KINDS, 0)[at].astype(np.uint8)
    delay_s = np.minimum(LONGEST_DELAY_S, rng.lognormal(2.5, 1.0, size))
    installs = (rng.random(size) < INSTALL_SHARE) & (action == CLICK)
    installs &= np.array([name == "app_install" for name in market.objective])[group]
    install_delay_s = delay_s + rng.exponential(1_800, size)
    return Demand(
        time_ms=time_ms,
        group=group,
        price_micros=np.clip(price, 1, bid).astype(np.int64),
        server_draw=rng.random(size),
        serve_draw=rng.random(size),
        action=action,
        action_delay_ms=(delay_s * 1_000).astype(np.int64),
        install_delay_ms=np.where(installs, install_delay_s * 1_000, 0).astype(np.int64),
    )


def blocks(market: Market, start_ms: int, end_ms: int) -> Iterator[tuple[int, Demand]]:
    """Every minute of a stretch of time with its demand."""
    for block_ms in range(start_ms, end_ms, BLOCK_MS):
        yield block_ms, demand_of(market, block_ms)


BILLED_KINDS: Final = {
    "traffic": (CLICK,),
    "app_install": (CLICK,),
    "engagement": (CLICK, CLOSEUP, SAVE),
    "awareness": (IMPRESSION,),
    "video_awareness": (IMPRESSION,),
}
COUNTED_KINDS: Final = (INSTALL,)


@dataclass(slots=True)
class _Draft:
    """Columns of a market while it is drawn."""

    entities: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    campaign_ids: list[str] = field(default_factory=list)


def build_market(
    seed: int, groups: int, impressions_per_day: int, curves: Curves, start_ms: int, *, even: bool
) -> Market:
    """A market whose budgets mostly run out within the day; two ad groups a campaign."""
    rng = np.random.default_rng([seed, 1])
    sizes = rng.lognormal(0.0, 0.8, groups)
    daily = sizes / sizes.sum() * impressions_per_day
    draft = _Draft()
    for name, country, currency, zone, _ in _ZONES:
        account = {"account_id": name, "country": country, "currency": currency, "time_zone": zone}
        draft.entities.append((f"account:{name}", _dated(account, start_ms)))
    for number in range((groups + 1) // 2):
        _draw_campaign(draft, rng, number, daily[2 * number : 2 * number + 2], start_ms, even)
    columns = list(zip(*draft.rows, strict=True))
    return Market(
        seed=seed,
        curves=curves,
        start_ms=start_ms,
        entities=draft.entities,
        group_ids=list(columns[0]),
        campaign_ids=draft.campaign_ids,
        campaign=np.array(columns[1], dtype=np.int64),
        objective=list(columns[2]),
        daily_impressions=daily,
        bid_micros=np.array(columns[3], dtype=np.int64),
        budget_micros=np.array(columns[4], dtype=np.int64),
        is_lifetime=np.array(columns[5], dtype=np.bool_),
        utc_offset_ms=np.array(columns[6], dtype=np.int64) * HOUR_MS,
        traffic_curve=rng.integers(0, len(curves.traffic), groups),
        price_series=rng.integers(0, len(curves.price), groups),
        rates=np.array([_RATES[name] for name in columns[2]]),
    )


def _draw_campaign(
    draft: _Draft,
    rng: np.random.Generator,
    number: int,
    daily: Floats,
    start_ms: int,
    even: bool,
) -> None:
    account, _, currency, _, offset = _ZONES[number % len(_ZONES)]
    objective = OBJECTIVES[number % len(OBJECTIVES)]
    minimum = minimum_bid_micros(currency, objective, None)
    campaign_id = f"bench-c{number}"
    total = 0
    groups: list[tuple[str, dict[str, Any]]] = []
    for position, impressions in enumerate(daily.tolist()):
        group_id = f"{campaign_id}-g{position}"
        bid = minimum * int(rng.integers(12, 40)) // 10
        per_impression = sum(_RATES[objective]) or 0.001
        demand = impressions * per_impression * bid * 0.6
        lifetime = bool(rng.random() < 0.1)
        share = float(rng.choice(_BUDGET_SHARES)) * (3 if lifetime else 1)
        budget = max(int(10 * bid / (1_000 if per_impression == 0.001 else 1)), int(demand * share))
        total += budget // (3 if lifetime else 1)
        group = _group(group_id, campaign_id, budget, bid, start_ms, even)
        if lifetime:
            group |= {"budget_type": "lifetime", "end_ms": start_ms + 5 * MS_PER_DAY}
        pin = {"promoted_pin_id": f"{group_id}-p", "ad_group_id": group_id, "review": "approved"}
        groups.append((f"ad_group:{group_id}", group))
        groups.append((f"promoted_pin:{group_id}-p", _dated(pin, start_ms)))
        draft.rows.append((group_id, number, objective, bid, budget, lifetime, offset))
    campaign: dict[str, Any] = {
        "campaign_id": campaign_id,
        "account_id": account,
        "objective": objective,
    }
    if number % 10 == 3:
        campaign["daily_spend_limit_micros"] = total * 8 // 10
    draft.campaign_ids.append(campaign_id)
    draft.entities += [(f"campaign:{campaign_id}", _dated(campaign, start_ms)), *groups]


def _group(
    group_id: str, campaign_id: str, budget: int, bid: int, start_ms: int, even: bool
) -> dict[str, Any]:
    group = {
        "ad_group_id": group_id,
        "campaign_id": campaign_id,
        "budget_type": "daily",
        "budget_micros": budget,
        "bid_micros": bid,
        "start_ms": start_ms - MS_PER_DAY,
        "pacing": "even" if even else "asap",
    }
    return _dated(group, start_ms)


def _dated(entity: dict[str, Any], start_ms: int) -> dict[str, Any]:
    return entity | {"effective_ms": start_ms - 2 * MS_PER_DAY}
