"""The sans-I/O heart of a worker: chunks in, drafts of journal records out.

The engine holds the books of the shards that its worker owns, and the catalog's terms. A turn
judges one batch, posts it, closes the days that are due and reviews serving states, in that
order; everything that a turn did in one shard is one draft. Time is what it is told.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from pipeline.billing import fold, posting
from pipeline.billing.batch import Batch
from pipeline.billing.books import Balances, Shard
from pipeline.billing.credits import CreditDesk
from pipeline.billing.decide import Outcome, Policy, decide
from pipeline.billing.id_runs import MemoryShelves, Shelves
from pipeline.billing.journal import AccountTerms
from pipeline.billing.limits import LIMITS_OF, NO_DAY, columns_of, limits_on, zones_of
from pipeline.billing.posting import Draft, ShardEvents
from pipeline.billing.terms import UNLIMITED, Terms, no_rows
from pipeline.contract.catalog import Accepted, Catalog, Refused
from pipeline.contract.days import Calendar, iso
from pipeline.contract.log import LogRecord
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import (
    LIMITS,
    NO_LIMIT,
    OVER_BUDGET,
)
from pipeline.dense import distinct
from pipeline.pacing.lag import LagWatch, resumes, throttles
from pipeline.pacing.serving import LIMIT_REACHED, LimitUse, PlainLimits, Standing
from pipeline.pacing.serving import Policy as PacingPolicy
from pipeline.streams.bidding import BidDesk
from pipeline.streams.observing import facts_of, seen_of, today_of

log = logging.getLogger(__name__)

READ_TO_THE_END = 2**62

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_REVIEWED_LIMITS = {level: (lifetime, daily) for level, (daily, lifetime) in LIMITS_OF.items()}
"""By level, in the order of review: the longer lasting limit first."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the engine's decisions depend on, beside its inputs."""

    partitions: int
    judging: Policy
    grace_ms: int
    keep_at_most_ids: int = 20_000_000
    decides_bids: bool = True
    """Whether target CPI bids are decided: a replay takes over those that were."""
    lag_bound_ms: int = 0
    """How old a shard's events may be when they are judged before its campaigns are throttled;
    0: never. Makes no sense of the stream's clock, whose now is the events'."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn came to: the outcome of its batch, and a draft for each shard it touched."""

    outcome: Outcome
    drafts: dict[int, Draft]


class Engine:
    """The books and the terms of one worker."""

    def __init__(
        self,
        settings: EngineSettings,
        pacing: PacingPolicy | None = None,
        shelves: Shelves | None = None,
    ) -> None:
        """`shelves` keep the ids of the shards that are not new; without them, memory does."""
        self.settings = settings
        self._shelves = shelves or MemoryShelves()
        self.catalog = Catalog()
        self.terms = Terms(self.catalog, settings.partitions)
        self.balances = Balances(settings.judging.acceptance_horizon_days + 3)
        self.shards: dict[int, Shard] = {}
        self._pacing: PacingPolicy = pacing or PlainLimits()
        self._stopped = _Stopped(self._pacing.predicts)
        self._bids = BidDesk(self.catalog, self.terms)
        self._credits = CreditDesk(settings.partitions)
        self._lag = LagWatch(settings.lag_bound_ms)
        self._next_close_ms: dict[int, int] = {}

    # -- ownership ----------------------------------------------------------------------------

    def new_shard(self, shard: int) -> Shard:
        """An empty shard with empty books, to be filled by a snapshot and the journal."""
        self.release(shard)
        policy = self.settings.judging
        state = Shard.new(
            shard,
            policy.acceptance_horizon_days,
            self.settings.keep_at_most_ids,
            self._shelves.open(shard),
        )
        self.shards[shard] = state
        return state

    def release(self, shard: int) -> None:
        """The shard is no longer this worker's."""
        if self.shards.pop(shard, None) is not None:
            self._shelves.close(shard)
            fold.release(shard, self.balances, self.terms)
            groups, campaigns = self.terms.rows_of_shard(shard)
            self._stopped.forget("ad_group", groups)
            self._stopped.forget("campaign", campaigns)
            self._pacing.forget(groups, campaigns)
        self._bids.look_again()
        self._credits.look_again(shard)
        self._lag.forget(shard)
        self._next_close_ms.pop(shard, None)

    def fold(self, shard: int, records: Sequence[fold.Counted]) -> None:
        """Take over journal records that count, in their order."""
        fold.fold_records(self.shards[shard], self.balances, self.terms, records)

    def adopt(self, shard: int) -> None:
        """The shard's state is complete: what stands in it counts from now on."""
        learned, terms = self.shards[shard].learned, self.terms
        if learned and not self._pacing.recall(learned, terms.group_row, terms.campaign_row):
            log.warning("shard %d: what pacing had learned cannot be read, relearning", shard)
        groups, _ = terms.rows_of_shard(shard)
        self._pacing.note_recalled(groups, facts_of(terms, groups))
        # What the catalog has changed while another worker had the shard is looked at anew.
        terms.limits_changed["ad_group"].update(groups.tolist())
        for entity, signal in self.shards[shard].standing.items():
            level, _, name = entity.partition(":")
            known = self.terms.group_row if level == "ad_group" else self.terms.campaign_row
            self._stopped.note(level, known(name), signal)
            self._pacing.note_standing(level, known(name), signal)
        self._lag.take_over(shard, self.shards[shard].standing.values())

    def note_learned(self, shard: int) -> None:
        """Put what pacing has learned of a shard into its state, for a snapshot."""
        groups, campaigns = self.terms.rows_of_shard(shard)
        self.shards[shard].learned = self._pacing.remember(
            (groups, [self.terms.group_ids.text(row) for row in groups.tolist()]),
            (campaigns, [self.terms.campaign_ids.text(row) for row in campaigns.tolist()]),
        )

    # -- the catalog --------------------------------------------------------------------------

    def apply_catalog(self, record: LogRecord, now_ms: int) -> Accepted | Refused:
        """Take over one record of the catalog, in the order of its topic."""
        result = self.catalog.apply(record)
        if isinstance(result, Accepted):
            for kind, entity_id in ((result.entity_kind, result.entity_id), *result.adopted):
                self.terms.update(kind, entity_id, now_ms)
                if kind == "credit":
                    self._credits.order(self.catalog.credits[entity_id])
                if kind in ("account", "day_close"):
                    self._next_close_ms.clear()
        return result

    # -- a turn -------------------------------------------------------------------------------

    def boundaries_ms(self, after_ms: int, up_to_ms: int) -> list[int]:
        """Times within (after, up to] that no decision may step over, each once, ascending.

        The turns of the billing days and their closes (end + grace), of every time zone in use,
        and the times at which known catalog changes take effect.
        """
        found = self.terms.effective_within(after_ms, up_to_ms)
        for calendar in self.terms.zones:
            found.update(_day_ends(calendar, after_ms, up_to_ms))
            grace_ms = self.settings.grace_ms
            ends = _day_ends(calendar, after_ms - grace_ms, up_to_ms - grace_ms)
            found.update(end_ms + grace_ms for end_ms in ends)
        return sorted(found)

    def turn(self, batch: Batch, now_ms: int, read_through_ms: Mapping[int, int]) -> Turn:
        """Judge a batch and settle all that is due at `now_ms`.

        `read_through_ms` tells for each shard how far its sources have been read: the least of
        their record timestamps, or READ_TO_THE_END; days close up to there.
        """
        self.terms.advance(now_ms)
        outcome = decide(
            self.shards, self.balances, batch, self.terms, now_ms, self.settings.judging
        )
        drafts = posting.post(self.shards, self.balances, self.terms, outcome)
        for number, shard in self.shards.items():
            drafts[number].credits = self._credits.post(shard, self.terms, now_ms)
            self._close_days(drafts[number], now_ms, read_through_ms.get(number, 0))
        if self._pacing.predicts:
            seen, today = seen_of(outcome, self.terms), today_of(self.terms, now_ms)
            self._pacing.observe(seen, facts_of(self.terms, seen.group), today)
        looked_at = self._review_serving(outcome, drafts, now_ms)
        self._pacing.end_reviews(now_ms)
        if self.settings.lag_bound_ms:
            self._review_lag(batch, looked_at, drafts, now_ms)
        if self._pacing.predicts:
            if self.settings.decides_bids:
                self._bids.decide(self.shards, self._pacing, drafts, now_ms)
            self._note_predictions(drafts, now_ms)
        return Turn(outcome, drafts)

    def is_due(self, now_ms: int, read_through_ms: Mapping[int, int]) -> bool:
        """Whether a turn without events would do anything."""
        if any(self.terms.limits_changed.values()) or self._credits.is_due(self.shards):
            return True
        effective_ms = self.terms.next_effective_ms()
        if effective_ms is not None and effective_ms <= now_ms:
            return True
        for number in self.shards:
            if self.close_is_due(number, min(now_ms, read_through_ms.get(number, 0))):
                return True
        dues = (self._stopped.is_due, self._pacing.is_due, self._lag.is_due)
        return any(is_due(now_ms) for is_due in dues)

    def shard_events(self, turn: Turn, drafts: Mapping[int, Draft]) -> list[ShardEvents]:
        """The events of these drafts of a turn as the journal holds them, in their order."""
        return posting.shard_events(turn.outcome, drafts, self.terms)

    def account_terms(self, account_id: str) -> AccountTerms:
        """What the tables need to know of an account."""
        return posting.account_terms(self.terms, account_id)

    # -- predictions --------------------------------------------------------------------------

    def predicted_exhaustion_ms(self, groups: Rows, now_ms: int) -> Rows:
        """When the tightest limit of each ad group will have been reached, as far as pacing can
        tell: shape (3, n), the likeliest time and an interval of 80 %; 0 where not in its day, or
        only after its dates have ended."""
        room = self.room_nanos(groups, now_ms, before_stop=True)
        found = self._pacing.exhaustion(groups, room, now_ms)
        ends_ms = self.terms.group.end_ms[groups]
        found[:2] = np.where(found[:2] < ends_ms, found[:2], 0)
        found[2] = np.where(found[0] > 0, np.minimum(found[2], ends_ms), 0)
        return found

    def room_nanos(self, groups: Rows, now_ms: int, *, before_stop: bool) -> Rows:
        """Shape (2, n): what is left of the tightest own limit of each ad group, and of its
        campaign's; `before_stop`: less what pacing holds back, so what is still served."""
        campaigns = self.terms.group.campaign[groups].astype(np.int64)
        room = np.full((2, len(groups)), UNLIMITED, dtype=np.int64)
        for at, (level, rows) in enumerate((("ad_group", groups), ("campaign", campaigns))):
            for bounds, spend in self._limits_of(level, rows, now_ms):
                held = self._pacing.reserve(level, rows, now_ms, bounds) if before_stop else 0
                room[at] = np.minimum(room[at], bounds - spend - held)
        return room

    def _note_predictions(self, drafts: dict[int, Draft], now_ms: int) -> None:
        """Put what pacing predicted, and what then came, into the records of the shards."""
        rows = self._pacing.forecasts_due(now_ms)
        if len(rows):
            names = [f"ad_group:{self.terms.group_ids.text(row)}" for row in rows.tolist()]
            self._pacing.record(rows, names, self.predicted_exhaustion_ms(rows, now_ms), now_ms)
        for row, note in self._pacing.take_notes():
            draft = drafts.get(int(self.terms.campaign.shard[self.terms.group.campaign[row]]))
            if draft is not None:
                draft.notes.append(note)

    # -- days ---------------------------------------------------------------------------------

    def close_is_due(self, shard: int, reached_ms: int) -> bool:
        """Whether a shard whose clock and sources have come so far has a day to close."""
        return reached_ms >= self._close_due_ms(self.shards[shard])

    def _close_due_ms(self, shard: Shard) -> int:
        due_ms = self._next_close_ms.get(shard.shard)
        if due_ms is None:
            due_ms = posting.next_close_ms(shard, self.terms, self.settings.grace_ms)
            if self.catalog.forced_close_day is not None:
                due_ms = min(due_ms, posting.next_close_ms(shard, self.terms, 0))
            self._next_close_ms[shard.shard] = due_ms
        return due_ms

    def _close_days(self, draft: Draft, now_ms: int, read_through_ms: int) -> None:
        shard = self.shards[draft.shard]
        if not self.close_is_due(draft.shard, min(now_ms, read_through_ms)):
            return
        self._next_close_ms.pop(shard.shard, None)
        closed, blocks = posting.close_days(
            shard,
            self.balances.blocks,
            self.terms,
            now_ms,
            read_through_ms,
            self.settings.grace_ms,
        )
        draft.closed = {zone: iso(day) for zone, day in closed.items()}
        draft.blocks += [posting.named_block(self.terms, block) for block in blocks]

    # -- serving ------------------------------------------------------------------------------

    def _review_serving(self, outcome: Outcome, drafts: dict[int, Draft], now_ms: int) -> Rows:
        """Review every entity whose spend, limits or billing day may have changed. Returns the
        rows of the campaigns among them, where a bound on the lag asks for them."""
        spent = np.flatnonzero(outcome.disposition >= OVER_BUDGET)
        rows = {"ad_group": outcome.group[spent], "campaign": outcome.campaign[spent]}
        changed, self.terms.limits_changed = self.terms.limits_changed, no_rows()
        if any(changed.values()) and self._pacing.predicts:
            self._note_statuses(changed, now_ms)
        due = self._stopped.resume_due(now_ms)
        looked_at: Rows = np.empty(0, dtype=np.int64)
        for level, touched in rows.items():
            more = distinct(np.concatenate((_as_rows(changed[level]), due[level])))
            concerned = distinct(np.concatenate((touched, more)))
            worth = self._worth_review(level, concerned, now_ms)
            asked = sorted({*worth, *self._pacing.due(level, now_ms).tolist()})
            for row, uses in zip(asked, self._uses(level, asked, now_ms), strict=True):
                self._review(level, row, uses, drafts, now_ms)
            if level == "ad_group" and self.settings.decides_bids:
                self._bids.take_back(more, self.shards, drafts, now_ms)
            if level == "campaign" and self.settings.lag_bound_ms:
                looked_at = np.union1d(concerned, np.array(asked, dtype=np.int64))
        return looked_at

    def _note_statuses(self, changed: Mapping[str, set[int]], now_ms: int) -> None:
        """Tell pacing which ad groups serve now, of those whose terms have changed."""
        terms = self.terms
        rows, above = (distinct(_as_rows(changed[level])) for level in ("ad_group", "campaign"))
        if len(above):
            parents = terms.group.campaign[: len(terms.group_ids)]
            rows = np.union1d(rows, np.flatnonzero(np.isin(parents, above)))
        rows = rows[terms.group.campaign[rows] >= 0]
        campaigns = terms.group.campaign[rows]
        active = terms.group.active[rows] & terms.campaign.active[campaigns]
        newest = (terms.group.since_ms[rows], terms.campaign.since_ms[campaigns])
        # The columns tell of the newest versions, which may be still to come.
        for at in np.flatnonzero(np.maximum(*newest) > now_ms).tolist():
            active[at] = terms.is_active(int(rows[at]), now_ms)
        self._pacing.note_active(rows, active)

    def _review_lag(
        self, batch: Batch, looked_at: Rows, drafts: dict[int, Draft], now_ms: int
    ) -> None:
        """Throttle the campaigns of shards whose events are judged too late; and end it.

        While a shard lags, of all campaigns only those that this turn looked at can have begun to
        serve: by a resume, or by the catalog.
        """
        for number, shard in self.shards.items():
            span = batch.spans.get(number)
            age_ms = 0 if span is None else max(0, now_ms - int(batch.order_ms[span.start]))
            lag = self._lag.observe(number, age_ms, now_ms)
            signals: list[Signal] = []
            if lag in ("begins", "lasts"):
                begins = lag == "begins"
                rows = self.terms.rows_of_shard(number)[1] if begins else looked_at
                names = self._serving_campaigns(number, rows)
                signals = throttles(names, shard.standing, shard.versions, now_ms)
            elif lag == "ends":
                signals = resumes(shard.standing, shard.versions, now_ms)
            for signal in signals:
                shard.note_signal(signal)
                row = self.terms.campaign_row(signal.entity.partition(":")[2])
                self._pacing.note_standing("campaign", row, signal)
                drafts[number].signals.append(signal)

    def _serving_campaigns(self, shard: int, rows: Rows) -> list[str]:
        """The entities of those that are of the shard and active."""
        of = self.terms.campaign
        serving = rows[(of.shard[rows] == shard) & of.alive[rows] & of.active[rows]]
        return [f"campaign:{self.terms.campaign_ids.text(row)}" for row in serving.tolist()]

    def _worth_review(self, level: str, rows: Rows, now_ms: int) -> list[int]:
        """Of these rows, those that are stopped or have a limit reached: no other can change.

        Nor can what is stopped for the very limit that is reached, as everybody's who goes on
        clicking on what has spent its budget.
        """
        if len(rows) == 0:
            return []
        limits = self._limits_of(level, rows, now_ms)
        stopping = np.full(len(rows), NO_LIMIT, dtype=np.int64)
        near = np.zeros(len(rows), dtype=np.bool_)
        limited = np.flatnonzero(np.minimum(*(bounds for bounds, _ in limits)) < UNLIMITED)
        for limit, (bounds, spend) in zip(_REVIEWED_LIMITS[level], limits, strict=True):
            stopping[(spend >= bounds) & (stopping == NO_LIMIT)] = limit
            if len(limited):
                most, spent = bounds[limited], spend[limited]
                reserve = self._pacing.reserve(level, rows[limited], now_ms, most)
                near[limited] |= (reserve > 0) & (spent >= most - reserve)
        held = self._stopped.held(level, rows, stopping, now_ms)
        reached = (stopping != NO_LIMIT) & ~held
        others = (stopping == NO_LIMIT) & (near | self._stopped.mask(level, rows))
        found: list[int] = rows[reached | others].tolist()
        return found

    def _limits_of(self, level: str, rows: Rows, now_ms: int) -> list[tuple[Rows, Rows]]:
        """The bounds of the lifetime and of the daily limit, each with what is spent of it."""
        zones = zones_of(level, rows, self.terms)
        days = [*(zone.day_of(now_ms) for zone in self.terms.zones), NO_DAY]
        today = np.array(days, dtype=np.int64)[zones]  # the last one where the zone is -1
        limits = limits_on(level, rows, today, self.terms, self.balances)
        daily, lifetime = zip(limits.bounds, limits.spent, strict=True)
        return [lifetime, daily]

    def _review(
        self,
        level: str,
        row: int,
        uses: tuple[LimitUse, ...],
        drafts: dict[int, Draft],
        now_ms: int,
    ) -> None:
        terms = self.terms
        campaign = int(terms.group.campaign[row]) if level == "ad_group" else row
        shard = self.shards.get(int(terms.campaign.shard[campaign]))
        account = int(terms.campaign.account[campaign])
        zone = int(terms.account.zone[account]) if account >= 0 else -1
        if shard is None or zone < 0:
            return
        names = terms.group_ids if level == "ad_group" else terms.campaign_ids
        entity = f"{level}:{names.text(row)}"
        today = terms.zones[zone].day_of(now_ms)
        standing = Standing(
            entity=entity,
            uses=uses,
            billing_day=today,
            day_end_ms=terms.zones[zone].end_ms(today),
            last=shard.standing.get(entity),
            last_version=shard.versions.get(entity, 0),
            row=row,
            is_even=level == "ad_group" and bool(terms.group.even[row]),
            ends_ms=int(terms.group.end_ms[row]) if level == "ad_group" else 0,
            is_alive=bool(columns_of(level, terms).alive[row]),
        )
        signal = self._pacing.review(standing, now_ms)
        if signal is not None:
            if level == "ad_group":  # a level says all, the bid too
                bid_micros = self._bids.bid_micros(row, shard, entity, now_ms)
                signal = replace(signal, bid_micros=bid_micros)
            shard.note_signal(signal)
            self._stopped.note(level, row, signal)
            drafts[shard.shard].signals.append(signal)

    def _uses(self, level: str, rows: list[int], now_ms: int) -> list[tuple[LimitUse, ...]]:
        """What is used of each entity's limits today, the longer lasting limit first."""
        if not rows:
            return []
        at = np.array(rows, dtype=np.int64)
        inflight = self._pacing.inflight(level, at, now_ms)
        found: list[list[LimitUse]] = [[] for _ in rows]
        limits = zip(_REVIEWED_LIMITS[level], self._limits_of(level, at, now_ms), strict=True)
        for limit, (bounds, spend) in limits:
            reserve = self._pacing.reserve(level, at, now_ms, bounds)
            for n in np.flatnonzero(bounds != UNLIMITED).tolist():
                figures = (int(column[n]) for column in (bounds, spend, inflight, reserve))
                found[n].append(LimitUse(LIMITS[limit], *figures))
        return [tuple(uses) for uses in found]


def _as_rows(rows: set[int]) -> Rows:
    return np.fromiter(rows, dtype=np.int64)


class _Stopped:
    """Which entities are not plainly serving, by row, and when a daily limit frees them.

    Throttled ones are left out where the pacing policy looks after them by itself.
    """

    def __init__(self, without_throttles: bool) -> None:
        self._without_throttles = without_throttles
        self._resume_at_ms = {level: np.zeros(16, dtype=np.int64) for level in _REVIEWED_LIMITS}
        """By row; 0 where it is plainly serving."""
        self._limit = {level: np.zeros(16, dtype=np.uint8) for level in _REVIEWED_LIMITS}
        """By row: the reached limit that it is paused for, where it is one."""
        self._next_ms = READ_TO_THE_END

    def mask(self, level: str, rows: Rows) -> Mask:
        """Which of these rows are not plainly serving."""
        self._reserve(level, rows)
        stopped: Mask = self._resume_at_ms[level][rows] > 0
        return stopped

    def held(self, level: str, rows: Rows, limits: Rows, now_ms: int) -> Mask:
        """Which of them are paused because they have reached this limit, and still are today."""
        self._reserve(level, rows)
        paused = self._limit[level][rows] == limits
        still: Mask = paused & (limits != NO_LIMIT) & (now_ms < self._resume_at_ms[level][rows])
        return still

    def note(self, level: str, row: int, signal: Signal) -> None:
        """Take over an entity's last signal."""
        self._reserve(level, np.array([row]))
        throttled = signal.serve_probability > 0 and self._without_throttles
        if signal.serve_probability >= 1.0 or throttled:
            self.forget(level, np.array([row]))
            return
        never = READ_TO_THE_END
        resume_at_ms = never if signal.resume_at_ms is None else signal.resume_at_ms
        self._resume_at_ms[level][row] = resume_at_ms
        for_limit = signal.action == "pause" and signal.reason == LIMIT_REACHED
        self._limit[level][row] = LIMITS.index(signal.limit) if for_limit else NO_LIMIT
        self._next_ms = min(self._next_ms, resume_at_ms)

    def forget(self, level: str, rows: Rows) -> None:
        self._reserve(level, rows)
        self._resume_at_ms[level][rows] = 0
        self._limit[level][rows] = NO_LIMIT

    def is_due(self, now_ms: int) -> bool:
        """Whether a daily limit of somebody has freed up."""
        return self._next_ms <= now_ms

    def resume_due(self, now_ms: int) -> dict[str, Rows]:
        """By level, those whose daily limit has freed up."""
        due = {level: np.empty(0, dtype=np.int64) for level in self._resume_at_ms}
        if not self.is_due(now_ms):
            return due
        self._next_ms = READ_TO_THE_END
        for level, times in self._resume_at_ms.items():
            due[level] = np.flatnonzero((times > 0) & (times <= now_ms))
            later = times[times > now_ms]
            self._next_ms = min(self._next_ms, int(later.min(initial=READ_TO_THE_END)))
        return due

    def _reserve(self, level: str, rows: Rows) -> None:
        size = int(rows.max(initial=0)) + 1
        for columns in (self._resume_at_ms, self._limit):
            known = columns[level]
            if size > len(known):
                more = np.zeros(max(size, 2 * len(known)) - len(known), dtype=known.dtype)
                columns[level] = np.concatenate((known, more))


def _day_ends(calendar: Calendar, after_ms: int, up_to_ms: int) -> list[int]:
    """Ends of billing days within (after, up to]."""
    ends: list[int] = []
    if up_to_ms < 0:
        return ends
    day = calendar.day_of(max(after_ms, 0))
    while (end_ms := calendar.end_ms(day)) <= up_to_ms:
        if end_ms > after_ms:
            ends.append(end_ms)
        day += 1
    return ends
