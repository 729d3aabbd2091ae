"""The state that the journal folds to: balances, open CPM blocks, remembered ids, closed days.

Balances and blocks are columns over the rows of `Terms` (dense ad group and campaign numbers),
shared by all shards that a worker owns: a campaign belongs to one shard, so no two shards touch the
same row.
Everything else is per shard. Live decisions and the fold of the journal change the books through
the same few methods, so a recovered state is the state that was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from pipeline.billing.chain import Chain
from pipeline.billing.daylife import SHARD_DAY, DayEvent, shard_state, step
from pipeline.billing.id_runs import Shelf
from pipeline.billing.ids import IdSet, Keys
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
from pipeline.dense import few

Rows = npt.NDArray[np.int64]
Nanos = npt.NDArray[np.int64]

BlockKey = tuple[int, int, int]
"""(ad group row, billing day, posting day) of an open CPM block."""

Bids = list[tuple[int, int]]
"""(decided at ms, micros) of the last bids of an ad group, in the order of decision. One that was
taken back stands twice: events of its own time are judged by it all the same (rule 9)."""

_MIN_DAYS_KEPT = 32
_MOST_ROWS_KEPT = 1 << 16
"""Of all days beyond those: a backfill of old days meets what was charged of them before."""
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

    def up_to(self, rows: int) -> Nanos:
        """The accrued nanos of rows 0 .. rows-1, and of some more; not to be changed."""
        self.reserve(rows)
        return self._nanos

    def post(self, rows: Rows, nanos: Nanos) -> None:
        if len(rows) == 0:
            return
        self.reserve(int(rows.max()) + 1)
        np.add.at(self._nanos, rows, nanos)

    def put(self, row: int, nanos: int) -> None:
        self.reserve(row + 1)
        self._nanos[row] = nanos

    def clear(self, rows: Rows) -> None:
        self._nanos[rows[rows < len(self._nanos)]] = 0

    def nonzero(self) -> Rows:
        return np.flatnonzero(self._nanos)

    def __len__(self) -> int:
        return len(self._nanos)


class Balances:
    """All four kinds of balance: lifetime by row, daily by billing day and row; and CPM blocks."""

    def __init__(self, days_kept: int) -> None:
        self._days_kept = max(days_kept, _MIN_DAYS_KEPT)
        self._lifetime = {AD_GROUP_LIFETIME: Balance(), CAMPAIGN_LIFETIME: Balance()}
        self._daily: dict[int, dict[int, Balance]] = {AD_GROUP_DAILY: {}, CAMPAIGN_DAILY: {}}
        self.blocks = Blocks()

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
        for day in few(days):
            on_day = days == day
            self.to_post(AD_GROUP_DAILY, day).post(groups[on_day], nanos[on_day])
            self.to_post(CAMPAIGN_DAILY, day).post(campaigns[on_day], nanos[on_day])
        self._drop_old_days()

    def _drop_old_days(self) -> None:
        """The oldest ones, where there are many days and they take much memory: what is charged of
        a day that was dropped no longer counts against its limits."""
        for days in self._daily.values():
            while len(days) > self._days_kept and sum(map(len, days.values())) > _MOST_ROWS_KEPT:
                del days[min(days)]

    def all(self) -> list[tuple[int, int, Balance]]:
        """Every balance as (limit, day or -1, balance)."""
        found = [(limit, -1, balance) for limit, balance in self._lifetime.items()]
        for limit, days in self._daily.items():
            found += [(limit, day, balance) for day, balance in days.items()]
        return found


class Blocks:
    """Open CPM blocks: charged impressions not yet posted as a charge, never CPM_BLOCK of them."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, int], _OpenDay] = {}
        """(billing day, posting day) -> what is open, by ad group row."""

    def accrue(self, groups: Rows, days: Rows, postings: Rows, nanos: Nanos) -> list[PostedBlock]:
        """Add charged impressions in order of judgement; the blocks that they complete, by key."""
        posted: list[PostedBlock] = []
        rest = np.arange(len(groups))
        while len(rest):
            day, posting = int(days[rest[0]]), int(postings[rest[0]])
            same = (days[rest] == day) & (postings[rest] == posting)
            here, rest = rest[same], rest[~same]
            for group, quantity, amount in self._of(day, posting).add(groups[here], nanos[here]):
                posted.append(PostedBlock((group, day, posting), quantity, amount))
        return sorted(posted, key=attrgetter("key"))

    def put(self, key: BlockKey, quantity: int, amount_nanos: int) -> None:
        """An open block as it was."""
        group, day, posting = key
        self._of(day, posting).put(group, quantity, amount_nanos)

    def open_in(self, groups: Rows) -> list[PostedBlock]:
        """What is open of these ad groups, by key."""
        found = []
        for (day, posting), open_day in self._open.items():
            for group, quantity, amount in open_day.of(groups):
                found.append(PostedBlock((group, day, posting), quantity, amount))
        return sorted(found, key=attrgetter("key"))

    def take(self, key: BlockKey) -> PostedBlock:
        """Close an incomplete block, to be posted with its count. Raises `KeyError` on none."""
        group, day, posting = key
        found = self._open[day, posting].of(np.array([group]))
        if not found:
            raise KeyError(key)
        self._open[day, posting].put(group, 0, 0)
        self._drop_empty(day, posting)
        return PostedBlock(key, found[0][1], found[0][2])

    def clear(self, groups: Rows) -> None:
        """Forget what is open of these ad groups."""
        for day, posting in list(self._open):
            for group, _, _ in self._open[day, posting].of(groups):
                self._open[day, posting].put(group, 0, 0)
            self._drop_empty(day, posting)

    def _of(self, day: int, posting: int) -> _OpenDay:
        return self._open.setdefault((day, posting), _OpenDay())

    def _drop_empty(self, day: int, posting: int) -> None:
        if self._open[day, posting].is_empty():
            del self._open[day, posting]


class _OpenDay:
    """The open blocks of one billing and posting day, as columns over the ad group rows."""

    def __init__(self) -> None:
        self._quantity = Balance()
        self._nanos = Balance()

    def add(self, groups: Rows, nanos: Nanos) -> list[tuple[int, int, int]]:
        """Add impressions; (ad group, quantity, nanos) of each block that becomes complete."""
        before = self._quantity.of(groups)
        self._quantity.post(groups, np.ones(len(groups), dtype=np.int64))
        full = self._quantity.of(groups) >= CPM_BLOCK
        self._nanos.post(groups[~full], nanos[~full])
        posted = []
        for group in np.unique(groups[full]).tolist():
            here = np.flatnonzero(groups == group)
            quantity, amount = int(before[here[0]]), int(self._nanos.of(groups[here[:1]])[0])
            taken = 0
            while quantity + len(here) - taken >= CPM_BLOCK:
                until = taken + CPM_BLOCK - quantity
                posted.append((group, CPM_BLOCK, amount + int(nanos[here[taken:until]].sum())))
                taken, quantity, amount = until, 0, 0
            left = nanos[here[taken:]]
            self.put(group, quantity + len(left), amount + int(left.sum()))
        return posted

    def put(self, group: int, quantity: int, amount_nanos: int) -> None:
        self._quantity.put(group, quantity)
        self._nanos.put(group, amount_nanos)

    def of(self, groups: Rows) -> list[tuple[int, int, int]]:
        """(ad group, quantity, nanos) of those of the ad groups that have an open block."""
        quantity = self._quantity.of(groups)
        rows = np.flatnonzero(quantity)
        found = (groups[rows], quantity[rows], self._nanos.of(groups[rows]))
        return list(zip(*(column.tolist() for column in found), strict=True))

    def is_empty(self) -> bool:
        return len(self._quantity.nonzero()) == 0


@dataclass(slots=True)
class Shard:
    """The state of one shard, beside its rows of the balances."""

    shard: int
    chain: Chain
    ids: IdSet
    unique: IdSet
    """Rule 8: (pin, user, kind, day) charged, and impressions whose click was charged."""
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
    """When its last checkpoint was written, or the shard was begun with no record; else 0."""

    @classmethod
    def new(
        cls, shard: int, horizon_days: int, keep_at_most_ids: int, shelf: Shelf | None = None
    ) -> Shard:
        """An empty one, whose ids the shelf keeps; without one they are kept in memory."""
        # An event may come up to the tolerance before its own time, and again up to the horizon
        # after it; and what is unique in a billing day may come again until the day's last event
        # may come no more.
        again_ms = horizon_days * MS_PER_DAY + FUTURE_TOLERANCE_MS
        return cls(
            shard=shard,
            chain=Chain(shard),
            ids=IdSet(again_ms, keep_at_most_ids, shelf),
            unique=IdSet(again_ms + LONGEST_DAY_MS, keep_at_most_ids, shelf),
        )

    def same_generations(self, one_ms: int, other_ms: int) -> bool:
        """Whether ids added at these log times would age out together."""
        return self.ids.generation(one_ms) == self.ids.generation(
            other_ms
        ) and self.unique.generation(one_ms) == self.unique.generation(other_ms)

    def remember(self, event_keys: Keys, unique_keys: Keys, log_time_ms: int) -> None:
        """Take over the ids that rule 5 must know, and the keys that rule 8 must (zeros: none)."""
        self.ids.add(event_keys, log_time_ms)
        self.unique.add(unique_keys[unique_keys[:, 0] | unique_keys[:, 1] != 0], log_time_ms)

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
        """Remember the bid that a signal decides, or takes back by not saying it."""
        if signal.action == "bid" and signal.bid_micros is not None:
            decided = self.bids.setdefault(signal.entity, [])
            decided.append((signal.decided_at_ms, signal.bid_micros))
            del decided[:-_BIDS_KEPT]
        elif signal.bid_micros is None and self.bid_micros(signal.entity) is not None:
            self.bids[signal.entity].append(self.bids[signal.entity][-1])

    def bid_micros(self, entity: str) -> int | None:
        """The last bid decided for an entity; None too where that was taken back."""
        decided = self.bids.get(entity)
        if not decided or decided[-2:-1] == decided[-1:]:
            return None
        return decided[-1][1]
