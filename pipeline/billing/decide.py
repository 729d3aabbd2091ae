"""Judging: the contract's ten rules over a batch of events, in columns.

`decide` is a pure function of the books, the batch, the catalog's terms and `now`; it changes
nothing. Each rule is one pass over the rows that no earlier rule has decided. Limits are exact:
where all demand on a limit fits under it the rows are accepted as they are, and only rows whose
ad group or campaign would touch a limit within this batch go through a sequential loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.billing import ids
from pipeline.billing.batch import Batch
from pipeline.billing.books import Balances, Shard
from pipeline.billing.in_force import InForce, in_force
from pipeline.billing.limits import limits_on
from pipeline.billing.terms import Terms
from pipeline.billing.xxh3 import hash_rows
from pipeline.contract.catalog import Catalog
from pipeline.contract.days import LAST_DAY
from pipeline.contract.partitioning import partition_of
from pipeline.contract.vocabulary import (
    AD_GROUP_DAILY,
    AD_GROUP_LIFETIME,
    CAMPAIGN_DAILY,
    CAMPAIGN_LIFETIME,
    CHARGED,
    CLICK,
    CLOSEUP,
    COUNTED,
    CPC,
    CPE,
    CPM,
    DUPLICATE,
    EXPIRED,
    FUTURE,
    FUTURE_TOLERANCE_MS,
    IMPRESSION,
    KINDS,
    MALFORMED,
    MISROUTED,
    MS_PER_DAY,
    NANOS_PER_MICRO,
    NO_LIMIT,
    NOT_SERVING,
    OVER_BUDGET,
    REPEAT,
    SAVE,
    UNKNOWN,
)
from pipeline.dense import distinct, numbered
from pipeline.native import compiled

Int64s = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

UNDECIDED = 255
_SAFE_SUM = 2**62
_DENSE = 1 << 18
"""Of fewer numbers a sum each costs less than sorting them."""
NO_BID_MS, NO_BID_MICROS = -(2**62), 2**62
"""Before the first decided bid, the catalog's alone is in force."""
_LIMIT_ORDER = (AD_GROUP_DAILY, AD_GROUP_LIFETIME, CAMPAIGN_DAILY, CAMPAIGN_LIFETIME)
BILLABLE = np.zeros((4, len(KINDS)), dtype=np.bool_)
"""Rule 7 by basis and kind: what an objective pays for."""
BILLABLE[CPC, CLICK] = True
BILLABLE[CPE, [CLICK, CLOSEUP, SAVE]] = True
BILLABLE[CPM, IMPRESSION] = True


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that judging depends on."""

    acceptance_horizon_days: int
    user_hash_key: bytes

    @property
    def horizon_ms(self) -> int:
        return self.acceptance_horizon_days * MS_PER_DAY


@dataclass(slots=True)
class Outcome:
    """What a batch came to: one entry for each of its rows in every column.

    Days are days since the epoch. `pin`, `group` and `campaign` are rows of the terms, -1 where
    the ad is not known or rules before 5 decided.
    """

    batch: Batch
    now_ms: int
    user_keys: ids.Keys
    """The Pinners' pseudonyms."""
    pin: Rows
    group: Rows
    campaign: Rows
    disposition: Codes
    basis: Codes
    limit: Codes
    amount_nanos: Int64s
    free_nanos: Int64s
    billing_day: Int64s
    posting_day: Int64s
    unique_keys: ids.Keys
    """Rule 8's key of a charged click or engagement, else zeros."""


def decide(
    shards: Mapping[int, Shard],
    balances: Balances,
    batch: Batch,
    terms: Terms,
    now_ms: int,
    policy: Policy,
) -> Outcome:
    """Judge every event of a batch; the shards named in it must be there. Changes nothing."""
    pin = terms.find_ads(batch.ad_keys)
    ads = in_force(pin, batch.event_time_ms, terms)
    outcome = _columns(batch, pin, ads, now_ms, policy)
    _rule_misrouted(outcome, ads, terms)
    _rule_time(outcome, policy)
    _rule_unknown(outcome, ads)
    _rule_duplicate(outcome, shards)
    bids = _rule_serving(outcome, ads, shards, terms)
    _assign_days(outcome, ads, shards, terms)
    _rule_counted(outcome)
    candidates = _rule_repeat(outcome, shards)
    _rule_limits(outcome, candidates, bids, balances, terms)
    return outcome


# -- columns ----------------------------------------------------------------------------------


def _columns(batch: Batch, pin: Rows, ads: InForce, now_ms: int, policy: Policy) -> Outcome:
    """Rule 1: what did not decode is malformed; everything else becomes columns."""
    size = len(batch)
    # A record's timestamp is its producer's word: an absurd one must not stop the shard.
    record_day = np.clip(batch.record_ms // MS_PER_DAY, 0, LAST_DAY)
    nothing = np.zeros(size, dtype=np.int64)
    return Outcome(
        batch=batch,
        now_ms=now_ms,
        user_keys=ids.user_hasher(policy.user_hash_key).hash(batch.user_keys),
        pin=pin,
        group=ads.group,
        campaign=ads.campaign,
        disposition=np.where(batch.malformed, MALFORMED, UNDECIDED).astype(np.uint8),
        basis=np.zeros(size, dtype=np.uint8),
        limit=np.full(size, NO_LIMIT, dtype=np.uint8),
        amount_nanos=nothing,
        free_nanos=nothing.copy(),
        billing_day=record_day,
        posting_day=record_day.copy(),
        unique_keys=np.zeros((size, 2), dtype=np.uint64),
    )


# -- rules 2 to 6 -----------------------------------------------------------------------------


def _undecided(outcome: Outcome) -> Rows:
    return np.flatnonzero(outcome.disposition == UNDECIDED)


def _rule_misrouted(outcome: Outcome, ads: InForce, terms: Terms) -> None:
    """Rule 2: the campaign's partition is another one."""
    rows = _undecided(outcome)
    home = ads.shard[rows]
    unknown = np.flatnonzero(home < 0)
    if len(unknown):
        strangers = outcome.batch.texts.column("campaign_id", rows[unknown])
        home[unknown] = [partition_of(name or "", terms.partitions) for name in strangers]
    outcome.disposition[rows[home != outcome.batch.shard[rows]]] = MISROUTED


def _rule_time(outcome: Outcome, policy: Policy) -> None:
    """Rule 3: told by the record's own timestamp, so a replay or a backlog judges the same."""
    rows = _undecided(outcome)
    times, records = outcome.batch.event_time_ms[rows], outcome.batch.record_ms[rows]
    outcome.disposition[rows[times - FUTURE_TOLERANCE_MS > records]] = FUTURE
    outcome.disposition[rows[times < records - policy.horizon_ms]] = EXPIRED


def _rule_unknown(outcome: Outcome, ads: InForce) -> None:
    """Rule 4: the ad group, campaign or pin is not in the catalog, or not each other's."""
    outcome.disposition[(outcome.disposition == UNDECIDED) & ~ads.alive] = UNKNOWN


def _rule_duplicate(outcome: Outcome, shards: Mapping[int, Shard]) -> None:
    """Rule 5: seen before, or earlier in this batch by the same shard."""
    rows = _undecided(outcome)
    keys = outcome.batch.event_keys.take(rows, axis=0)
    _, first = ids.first_occurrences(_within_shards(keys, outcome.batch.shard[rows]))
    outcome.disposition[rows[~first]] = DUPLICATE
    for shard, here in outcome.batch.by_shard(rows):
        seen = shards[shard].ids.contains(keys[here])
        outcome.disposition[rows[here][seen]] = DUPLICATE


def _within_shards(keys: ids.Keys, shards: npt.NDArray[np.int32]) -> ids.Keys:
    """Keys that are equal where both the key and the shard are."""
    return ids.join_keys(keys[:, 0] ^ shards.astype(np.uint64), keys[:, 1])


def _rule_serving(
    outcome: Outcome, ads: InForce, shards: Mapping[int, Shard], terms: Terms
) -> Int64s:
    """Rule 6: what was in force at event_time_ms. Returns the bids in micros, a row each,
    those of rows that earlier rules decided too."""
    bids = ads.bid_micros.copy()
    rows = _undecided(outcome)
    serves, target_cpi = ads.serves[rows], ads.target_cpi[rows]
    outcome.basis[rows] = ads.basis[rows]
    single = np.flatnonzero(ads.one_by_one[rows])
    if len(single):
        times = outcome.batch.event_time_ms[rows[single]].tolist()
        keywords = outcome.batch.texts.column("keyword", rows[single])
        for at, time_ms, keyword in zip(single.tolist(), times, keywords, strict=True):
            row = int(rows[at])
            ad = terms.ad_at(int(outcome.pin[row]), time_ms, keyword)
            serves[at], outcome.basis[row], bids[row] = ad.serves, ad.basis, ad.bid_micros
            target_cpi[at] = ad.target_cpi
    outcome.disposition[rows[~serves]] = NOT_SERVING
    if target_cpi.any():
        _cap_by_decided_bids(outcome, rows[target_cpi & serves], bids, shards, terms)
    return bids


def _cap_by_decided_bids(
    outcome: Outcome, rows: Rows, bids: Int64s, shards: Mapping[int, Shard], terms: Terms
) -> None:
    """Target CPI: the bid is no more than the last one decided by the event's own time."""
    groups = outcome.group[rows]
    for group in np.unique(groups).tolist():
        here = rows[groups == group]
        shard = shards[int(outcome.batch.shard[here[0]])]
        decided = shard.bids.get(f"ad_group:{terms.group_ids.text(group)}")
        if decided:
            from_ms, micros = np.array([(NO_BID_MS, NO_BID_MICROS), *decided]).T
            at = np.searchsorted(from_ms, outcome.batch.event_time_ms[here], side="right") - 1
            bids[here] = np.minimum(bids[here], micros[at])


def _assign_days(outcome: Outcome, ads: InForce, shards: Mapping[int, Shard], terms: Terms) -> None:
    """Billing and posting day of every event that reached rule 6, in its account's calendar."""
    rows = np.flatnonzero((outcome.disposition == UNDECIDED) | (outcome.disposition == NOT_SERVING))
    if len(rows) == 0:
        return
    zones = ads.zone[rows]
    days = np.empty(len(rows), dtype=np.int64)
    closed = np.full((max(shards) + 1, len(terms.zones)), -1, dtype=np.int64)
    today = np.zeros(len(terms.zones), dtype=np.int64)
    for zone in distinct(zones).tolist():
        calendar = terms.zones[zone]
        here = zones == zone
        days[here] = calendar.days_of(outcome.batch.event_time_ms[rows[here]])
        today[zone] = calendar.day_of(outcome.now_ms)
        for shard, state in shards.items():
            closed[shard, zone] = calendar.closed_through(state.closed)
    last_closed = closed[outcome.batch.shard[rows], zones]
    open_day = np.maximum(today[zones], last_closed + 1)
    outcome.billing_day[rows] = days
    outcome.posting_day[rows] = np.where(days <= last_closed, open_day, days)


# -- rules 7 to 10 ----------------------------------------------------------------------------


def _rule_counted(outcome: Outcome) -> None:
    """Rule 7: not what this objective pays for."""
    rows = _undecided(outcome)
    billable = BILLABLE[outcome.basis[rows], outcome.batch.kind[rows]]
    outcome.disposition[rows[~billable]] = COUNTED


def _rule_repeat(outcome: Outcome, shards: Mapping[int, Shard]) -> Rows:
    """Rule 8 as far as earlier batches tell. Returns the rows still to be judged.

    Fills in the key of every candidate, charged or not; the limits' rule clears those that are
    not charged.
    """
    rows = _undecided(outcome)
    keyed = rows[outcome.basis[rows] != CPM]
    if len(keyed) == 0:
        return rows
    _fill_unique_keys(outcome, keyed)
    keys = outcome.unique_keys.take(keyed, axis=0)
    for shard, here in outcome.batch.by_shard(keyed):
        seen = shards[shard].unique.contains(keys[here])
        _mark_repeat(outcome, keyed[here][seen])
    return _undecided(outcome)


def _fill_unique_keys(outcome: Outcome, rows: Rows) -> None:
    """What must not be charged again: the clicked impression, or the engagement in its day."""
    outcome.unique_keys[rows] = outcome.batch.impression_keys.take(rows, axis=0)
    engaged = rows[outcome.basis[rows] == CPE]
    if len(engaged):
        words = (
            outcome.batch.ad_keys.take(engaged, axis=0),
            outcome.user_keys.take(engaged, axis=0),
            outcome.batch.kind[engaged].astype(np.uint64),
            outcome.billing_day[engaged].astype(np.uint64),
        )
        outcome.unique_keys[engaged] = hash_rows(np.column_stack(words))


@dataclass(frozen=True, slots=True)
class _Demand:
    """The candidates for a charge, with what each limit has left for them before the batch."""

    rows: Rows
    price_nanos: Int64s
    remaining: Int64s
    """Shape (4, n), in the order of _LIMIT_ORDER."""
    repeat_group: Int64s
    """Same number, same rule 8 key (within a shard); -1 for rows without one."""


def _rule_limits(
    outcome: Outcome, candidates: Rows, bids: Int64s, balances: Balances, terms: Terms
) -> None:
    """Rules 9 and 10, and rule 8 within the batch."""
    if len(candidates) == 0:
        return
    unit = np.where(outcome.basis[candidates] == CPM, 1, NANOS_PER_MICRO)
    price = np.minimum(outcome.batch.price_micros[candidates], bids[candidates]) * unit
    remaining = _remaining(outcome, candidates, balances, terms)
    groups, first = _repeat_groups(outcome, candidates)
    tightest = remaining.argmin(axis=0)
    exhausted = remaining[tightest, np.arange(len(candidates))] <= 0
    # A row at an exhausted limit is over budget, unless its rule 8 key may be charged before it
    # elsewhere in the batch: then it may be a repeat, and takes its turn.
    over = exhausted & ~_has_row(groups, ~exhausted)
    spent_out = candidates[over]
    outcome.disposition[spent_out] = OVER_BUDGET
    outcome.limit[spent_out] = np.array(_LIMIT_ORDER, dtype=np.uint8)[tightest[over]]
    outcome.free_nanos[spent_out] = price[over]
    _clear_keys(outcome, spent_out)

    rows = candidates[~over]
    demand = _Demand(rows, price[~over], np.compress(~over, remaining, axis=1), groups[~over])
    near = _near_a_limit(outcome, demand)
    first = first[~over]
    far = rows[~near & first]
    outcome.disposition[far] = CHARGED
    outcome.amount_nanos[far] = demand.price_nanos[~near & first]
    _mark_repeat(outcome, rows[~near & ~first])
    _charge_in_turn(outcome, demand, np.flatnonzero(near))


def _has_row(groups: Int64s, mask: Mask) -> Mask:
    """For each row, whether its group has a row of the mask; rows without a group have none."""
    grouped = groups >= 0
    found = np.zeros(len(groups), dtype=np.bool_)
    if grouped.any():
        has = np.zeros(int(groups.max()) + 1, dtype=np.bool_)
        has[groups[grouped & mask]] = True
        found[grouped] = has[groups[grouped]]
    return found


def _remaining(outcome: Outcome, rows: Rows, balances: Balances, terms: Terms) -> Int64s:
    """What is left of each of the four limits for each row, before the batch."""
    days, found = outcome.billing_day[rows], []
    for level, entities in (
        ("ad_group", outcome.group[rows]),
        ("campaign", outcome.campaign[rows]),
    ):
        limits = limits_on(level, entities, days, terms, balances)
        found.append(limits.bounds - limits.spent)
    return np.concatenate(found)


def _repeat_groups(outcome: Outcome, rows: Rows) -> tuple[Int64s, Mask]:
    """Number rows by rule 8 key (-1 without one), and tell the first row of each number."""
    groups = np.full(len(rows), -1, dtype=np.int64)
    first = np.ones(len(rows), dtype=np.bool_)
    keyed = np.flatnonzero(outcome.basis[rows] != CPM)
    if len(keyed):
        at = rows[keyed]
        keys = _within_shards(outcome.unique_keys.take(at, axis=0), outcome.batch.shard[at])
        groups[keyed], first[keyed] = ids.first_occurrences(keys)
    return groups, first


def _near_a_limit(outcome: Outcome, demand: _Demand) -> Mask:
    """Rows that must be judged one after the other.

    A limit is out of reach where all demand on it is under what it has left. A row is near a
    limit where one of its four is not out of reach, or where its rule 8 key has such a row.
    """
    size = len(demand.rows)
    if size and int(demand.price_nanos.max()) > _SAFE_SUM // size:
        return np.ones(size, dtype=np.bool_)
    near = np.zeros(size, dtype=np.bool_)
    day = outcome.billing_day[demand.rows]
    lowest = int(day.min()) if size else 0
    span = int(day.max()) - lowest + 1 if size else 1
    groups, campaigns = outcome.group[demand.rows], outcome.campaign[demand.rows]
    buckets = (groups * span + day - lowest, groups, campaigns * span + day - lowest, campaigns)
    total = int(demand.price_nanos.sum())
    for bucket, remaining in zip(buckets, demand.remaining, strict=True):
        if size and total < int(remaining.min()):
            continue  # all of it together is under each one's
        largest = int(bucket.max(initial=-1))
        if largest >= _DENSE:
            unique, bucket = numbered(bucket)
            largest = len(unique) - 1
        totals = np.zeros(largest + 1, dtype=np.int64)
        _mark_near(bucket, demand.price_nanos, remaining, totals, near)
    return near | _has_row(demand.repeat_group, near) if near.any() else near


@compiled
def _mark_near(
    bucket: Int64s, price_nanos: Int64s, remaining: Int64s, totals: Int64s, near: Mask
) -> None:
    """Mark the rows whose limit has no more left than all demand on it comes to; a limit is known
    by its bucket."""
    for row in range(len(bucket)):
        totals[bucket[row]] += price_nanos[row]
    for row in range(len(bucket)):
        near[row] |= totals[bucket[row]] >= remaining[row]


def _charge_in_turn(outcome: Outcome, demand: _Demand, near: Rows) -> None:
    """The exact loop: in the order of judgement, each row against what the ones before left."""
    taken: dict[tuple[int, int, int], int] = {}
    charged_groups: set[int] = set()
    for at in near.tolist():
        row = int(demand.rows[at])
        repeat_group = int(demand.repeat_group[at])
        if repeat_group in charged_groups:
            _mark_repeat(outcome, np.array([row]))
            continue
        group, campaign = int(outcome.group[row]), int(outcome.campaign[row])
        day = int(outcome.billing_day[row])
        buckets = ((0, group, day), (1, group, 0), (2, campaign, day), (3, campaign, 0))
        left, tightest = min(
            (int(demand.remaining[key[0], at]) - taken.get(key, 0), key[0]) for key in buckets
        )
        price = int(demand.price_nanos[at])
        amount = max(0, min(price, left))
        if left <= 0:
            outcome.disposition[row] = OVER_BUDGET
            outcome.unique_keys[row] = 0
        else:
            outcome.disposition[row] = CHARGED
            outcome.amount_nanos[row] = amount
            if repeat_group >= 0:
                charged_groups.add(repeat_group)
            for key in buckets:
                taken[key] = taken.get(key, 0) + amount
        outcome.free_nanos[row] = price - amount
        if left <= 0 or amount < price:
            outcome.limit[row] = _LIMIT_ORDER[tightest]


def _mark_repeat(outcome: Outcome, rows: Rows) -> None:
    outcome.disposition[rows] = REPEAT
    _clear_keys(outcome, rows)


def _clear_keys(outcome: Outcome, rows: Rows) -> None:
    """Only what is charged is remembered by its rule 8 key."""
    outcome.unique_keys[rows] = 0


def warm_up() -> None:
    """Compile what judging needs, or load it, before the first event waits for it."""
    nothing = np.empty(0, np.int64)
    _mark_near(nothing, nothing, nothing, nothing, np.empty(0, np.bool_))
    in_force(nothing, nothing, Terms(Catalog(), 1))
