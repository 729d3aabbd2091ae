"""The state that the journal folds to: balances, open CPM blocks, remembered ids, closed days.

Balances are columns over the rows of `Terms` (dense ad group and campaign numbers), shared by all
shards that a worker owns: a campaign belongs to one shard, so no two shards touch the same row.
Everything else is per shard. Live decisions and the fold of the journal change the books through
the same few methods, so a recovered state is the state that was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pipeline.billing.chain import Chain
from pipeline.billing.daylife import SHARD_DAY, DayEvent, shard_state, step
from pipeline.billing.ids import IdSet
from pipeline.contract.days import iso
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import (
    AD_GROUP_DAILY,
    AD_GROUP_LIFETIME,
    CAMPAIGN_DAILY,
    CAMPAIGN_LIFETIME,
    CPM_BLOCK,
    FUTURE_TOLERANCE_MS,
    LONGEST_DAY_MS,
    MS_PER_DAY,
)

Rows = npt.NDArray[np.int64]
Nanos = npt.NDArray[np.int64]

BlockKey = tuple[int, int, int]
"""(ad group row, billing day, posting day) of an open CPM block."""

Bids = list[tuple[int, int]]
"""(decided at ms, micros) of the last bids of an ad group, in the order of decision."""

_MIN_DAYS_KEPT = 32
_BIDS_KEPT = 64
"""Of an ad group, one a day: more than any event that is still accepted may ask for."""


@dataclass(frozen=True, slots=True)
class PostedBlock:
    """A CPM block that is to be charged: its key, its impressions and their exact sum."""

    key: BlockKey
    quantity: int
    amount_nanos: int


class Balance:
    """Nanos accrued in one kind of limit, by row."""

    def __init__(self) -> None:
        self._nanos = np.zeros(16, dtype=np.int64)

    def reserve(self, rows: int) -> None:
        if rows > len(self._nanos):
            grown = np.zeros(max(rows, 2 * len(self._nanos)), dtype=np.int64)
            grown[: len(self._nanos)] = self._nanos
            self._nanos = grown

    def of(self, rows: Rows) -> Nanos:
        """The accrued nanos of these rows (0 for a row never posted to)."""
        if len(rows) and int(rows.max()) >= len(self._nanos):
            self.reserve(int(rows.max()) + 1)
        return self._nanos[rows]

    def post(self, rows: Rows, nanos: Nanos) -> None:
        if len(rows) == 0:
            return
        self.reserve(int(rows.max()) + 1)
        np.add.at(self._nanos, rows, nanos)

    def clear(self, rows: Rows) -> None:
        self._nanos[rows[rows < len(self._nanos)]] = 0

    def nonzero(self) -> Rows:
        return np.flatnonzero(self._nanos)


class Balances:
    """All four kinds of balance: lifetime by row, daily by billing day and row."""

    def __init__(self, days_kept: int) -> None:
        self._days_kept = max(days_kept, _MIN_DAYS_KEPT)
        self._lifetime = {AD_GROUP_LIFETIME: Balance(), CAMPAIGN_LIFETIME: Balance()}
        self._daily: dict[int, dict[int, Balance]] = {AD_GROUP_DAILY: {}, CAMPAIGN_DAILY: {}}

    def get(self, limit: int, day: int) -> Balance:
        """The balances to read for a limit; `day` (days since the epoch) counts for daily ones."""
        if limit in self._lifetime:
            return self._lifetime[limit]
        return self._daily[limit].get(day) or Balance()

    def to_post(self, limit: int, day: int) -> Balance:
        """The same, kept: what is posted to it stays."""
        if limit in self._lifetime:
            return self._lifetime[limit]
        return self._daily[limit].setdefault(day, Balance())

    def post(self, groups: Rows, campaigns: Rows, days: Rows, nanos: Nanos) -> None:
        """Accrue charged amounts, one row an event."""
        self._lifetime[AD_GROUP_LIFETIME].post(groups, nanos)
        self._lifetime[CAMPAIGN_LIFETIME].post(campaigns, nanos)
        for day in np.unique(days).tolist():
            on_day = days == day
            self.to_post(AD_GROUP_DAILY, day).post(groups[on_day], nanos[on_day])
            self.to_post(CAMPAIGN_DAILY, day).post(campaigns[on_day], nanos[on_day])
        self._drop_old_days()

    def _drop_old_days(self) -> None:
        for days in self._daily.values():
            while len(days) > self._days_kept:
                del days[min(days)]

    def all(self) -> list[tuple[int, int, Balance]]:
        """Every balance as (limit, day or -1, balance)."""
        found = [(limit, -1, balance) for limit, balance in self._lifetime.items()]
        for limit, days in self._daily.items():
            found += [(limit, day, balance) for day, balance in days.items()]
        return found


class Blocks:
    """Open CPM blocks of one shard: charged impressions not yet posted as a charge."""

    def __init__(self) -> None:
        self.open: dict[BlockKey, tuple[int, int]] = {}
        """Key -> (impressions, nanos); never as many as CPM_BLOCK impressions."""

    def accrue(self, groups: Rows, days: Rows, postings: Rows, nanos: Nanos) -> list[PostedBlock]:
        """Add charged impressions in order of judgement; the blocks that they complete."""
        posted: list[PostedBlock] = []
        if len(groups) == 0:
            return posted
        order = np.lexsort((postings, days, groups))
        keys = np.column_stack((groups, days, postings))[order]
        changes = np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1
        in_order = nanos[order]
        for start, end in pairwise([0, *changes.tolist(), len(order)]):
            group, day, posting = keys[start].tolist()
            posted += self._accrue_one((group, day, posting), in_order[start:end])
        return posted

    def _accrue_one(self, key: BlockKey, nanos: Nanos) -> list[PostedBlock]:
        posted = []
        quantity, amount = self.open.get(key, (0, 0))
        taken = 0
        while quantity + len(nanos) - taken >= CPM_BLOCK:
            fill = CPM_BLOCK - quantity
            amount += int(nanos[taken : taken + fill].sum())
            posted.append(PostedBlock(key, CPM_BLOCK, amount))
            taken += fill
            quantity, amount = 0, 0
        quantity += len(nanos) - taken
        amount += int(nanos[taken:].sum())
        if quantity:
            self.open[key] = (quantity, amount)
        else:
            self.open.pop(key, None)
        return posted

    def take(self, key: BlockKey) -> PostedBlock:
        """Close an incomplete block, to be posted with its count."""
        quantity, amount = self.open.pop(key)
        return PostedBlock(key, quantity, amount)


@dataclass(slots=True)
class Shard:
    """The state of one shard, beside its rows of the balances."""

    shard: int
    chain: Chain
    ids: IdSet
    unique: IdSet
    """Rule 8: (pin, user, kind, day) charged, and impressions whose click was charged."""
    blocks: Blocks = field(default_factory=Blocks)
    closed: dict[str, int] = field(default_factory=dict)
    """Time zone -> the last closed billing day."""
    log_time_ms: int = 0
    catalog_end: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    """Entity -> version of its last signal."""
    standing: dict[str, Signal] = field(default_factory=dict)
    """Entity -> its last signal, where that is not plain serving."""
    bids: dict[str, Bids] = field(default_factory=dict)
    """Entity -> the bids decided for it: target CPI ad groups have some."""
    outbox_through: int = -1
    credited: set[bytes] = field(default_factory=set)
    """16-byte hashes of the event_ids whose charges have been given back."""
    learned: bytes = b""
    """What pacing had learned when the snapshot was written; opaque here, and never needed."""
    checkpointed_ms: int = 0
    """When its last checkpoint was written; 0: never."""

    @classmethod
    def new(cls, shard: int, horizon_days: int, keep_at_most_ids: int) -> Shard:
        # An event may come up to the tolerance before its own time, and again up to the horizon
        # after it; and what is unique in a billing day may come again until the day's last event
        # may come no more.
        again_ms = horizon_days * MS_PER_DAY + FUTURE_TOLERANCE_MS
        return cls(
            shard=shard,
            chain=Chain(shard),
            ids=IdSet(again_ms, keep_at_most_ids),
            unique=IdSet(again_ms + LONGEST_DAY_MS, keep_at_most_ids),
        )

    def same_generations(self, one_ms: int, other_ms: int) -> bool:
        """Whether ids added at these log times would age out together."""
        return self.ids.generation(one_ms) == self.ids.generation(
            other_ms
        ) and self.unique.generation(one_ms) == self.unique.generation(other_ms)

    def closed_through(self, zone: str) -> int:
        """The zone's last closed billing day; -1 before the first."""
        return self.closed.get(zone, -1)

    def close_through(self, zone: str, day: int, ended_through: int) -> None:
        """Close a zone's days up to this one, whose time is up through `ended_through`.

        Raises `IllegalTransitionError` where the day is closed already or not over yet.
        """
        state = shard_state(
            day, closed_through=self.closed_through(zone), ended_through=ended_through
        )
        step(SHARD_DAY, state, DayEvent.READ, f"shard {self.shard}: {iso(day)} of {zone}")
        self.closed[zone] = day

    def note_signal(self, signal: Signal) -> None:
        """Remember an entity's last word, its version, and the bid that it decides."""
        self.versions[signal.entity] = signal.version
        self.note_bid(signal)
        if signal.action == "resume":
            self.standing.pop(signal.entity, None)
        else:
            self.standing[signal.entity] = signal

    def note_bid(self, signal: Signal) -> None:
        """Remember the bid that a signal decides, if it does."""
        if signal.action == "bid" and signal.bid_micros is not None:
            decided = self.bids.setdefault(signal.entity, [])
            decided.append((signal.decided_at_ms, signal.bid_micros))
            del decided[:-_BIDS_KEPT]

    def bid_micros(self, entity: str) -> int | None:
        """The last bid decided for an entity."""
        decided = self.bids.get(entity)
        return decided[-1][1] if decided else None
