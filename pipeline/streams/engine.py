"""The sans-I/O heart of a worker: chunks in, drafts of journal records out.

The engine holds the books of the shards that its worker owns, and the catalog's terms. A turn
judges one batch, posts it, closes the days that are due and reviews serving states, in that
order; everything that a turn did in one shard is one draft. Time is what it is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from pipeline.billing import fold, posting
from pipeline.billing.batch import Batch
from pipeline.billing.books import Balances, Shard
from pipeline.billing.decide import Outcome, Policy, decide
from pipeline.billing.journal import EVENT_SCHEMA, AccountTerms, Ad, Header
from pipeline.billing.posting import Draft
from pipeline.billing.terms import UNLIMITED, Terms
from pipeline.contract.catalog import Accepted, Catalog, Refused
from pipeline.contract.days import Calendar, iso
from pipeline.contract.log import LogRecord
from pipeline.contract.vocabulary import (
    AD_GROUP_DAILY,
    AD_GROUP_LIFETIME,
    CAMPAIGN_DAILY,
    CAMPAIGN_LIFETIME,
    LIMITS,
    OVER_BUDGET,
)
from pipeline.pacing.serving import LimitUse, PlainLimits, Standing
from pipeline.pacing.serving import Policy as PacingPolicy

READ_TO_THE_END = 2**62


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the engine's decisions depend on, beside its inputs."""

    partitions: int
    judging: Policy
    grace_ms: int
    keep_at_most_ids: int = 20_000_000


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn came to: the outcome of its batch, and a draft for each shard it touched."""

    outcome: Outcome
    drafts: dict[int, Draft]


class Engine:
    """The books and the terms of one worker."""

    def __init__(self, settings: EngineSettings, pacing: PacingPolicy | None = None) -> None:
        self.settings = settings
        self.catalog = Catalog()
        self.terms = Terms(self.catalog, settings.partitions)
        self.balances = Balances(settings.judging.acceptance_horizon_days + 3)
        self.shards: dict[int, Shard] = {}
        self._pacing: PacingPolicy = pacing or PlainLimits()
        self._next_close_ms: dict[int, int] = {}

    # -- ownership ----------------------------------------------------------------------------

    def new_shard(self, shard: int) -> Shard:
        """An empty shard with empty books, to be filled by a snapshot and the journal."""
        self.release(shard)
        policy = self.settings.judging
        state = Shard.new(shard, policy.acceptance_horizon_days, self.settings.keep_at_most_ids)
        self.shards[shard] = state
        return state

    def release(self, shard: int) -> None:
        """The shard is no longer this worker's."""
        if self.shards.pop(shard, None) is not None:
            fold.release(shard, self.balances, self.terms)
        self._next_close_ms.pop(shard, None)

    def fold(self, shard: int, header: Header, events: pl.DataFrame) -> None:
        """Take over a journal record that counts."""
        fold.fold_record(self.shards[shard], self.balances, self.terms, header, events)

    # -- the catalog --------------------------------------------------------------------------

    def apply_catalog(self, record: LogRecord, now_ms: int) -> Accepted | Refused:
        """Take over one record of the catalog, in the order of its topic."""
        result = self.catalog.apply(record)
        if isinstance(result, Accepted):
            self.terms.update(result.entity_kind, result.entity_id, now_ms)
            if result.entity_kind in ("account", "day_close"):
                self._next_close_ms.clear()
        return result

    # -- a turn -------------------------------------------------------------------------------

    def boundaries_ms(self, after_ms: int, up_to_ms: int) -> list[int]:
        """Times within (after, up to] that no decision may step over.

        The turns of the billing days and their closes (end + grace), of every time zone in use,
        and the times at which known catalog changes take effect.
        """
        found: list[int] = []
        for calendar in self.terms.zones:
            found += _day_ends(calendar, after_ms, up_to_ms)
            grace_ms = self.settings.grace_ms
            ends = _day_ends(calendar, after_ms - grace_ms, up_to_ms - grace_ms)
            found += [end_ms + grace_ms for end_ms in ends]
        effective_ms = self.terms.next_effective_ms()
        if effective_ms is not None and after_ms < effective_ms <= up_to_ms:
            found.append(effective_ms)
        return found

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
        for number in self.shards:
            self._close_days(drafts[number], now_ms, read_through_ms.get(number, 0))
        self._review_serving(outcome, drafts, now_ms)
        return Turn(outcome, drafts)

    def is_due(self, now_ms: int, read_through_ms: Mapping[int, int]) -> bool:
        """Whether a turn without events would do anything."""
        if self.terms.limits_changed:
            return True
        effective_ms = self.terms.next_effective_ms()
        if effective_ms is not None and effective_ms <= now_ms:
            return True
        for number, shard in self.shards.items():
            if self.close_is_due(number, min(now_ms, read_through_ms.get(number, 0))):
                return True
            if any(_resume_due(signal.resume_at_ms, now_ms) for signal in shard.standing.values()):
                return True
        return False

    def event_columns(
        self, outcome: Outcome, draft: Draft
    ) -> tuple[pl.DataFrame, list[Ad], dict[str, AccountTerms]]:
        """The journal's columns of a draft's events."""
        if len(draft.rows) == 0:
            return pl.DataFrame(schema=EVENT_SCHEMA), [], {}
        return posting.event_columns(outcome, draft.rows, self.terms)

    def account_terms(self, account_id: str) -> AccountTerms:
        """What the tables need to know of an account."""
        return posting.account_terms(self.terms, account_id)

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
            shard, self.terms, now_ms, read_through_ms, self.settings.grace_ms
        )
        draft.closed = {zone: iso(day) for zone, day in closed.items()}
        draft.blocks += [posting.named_block(self.terms, block) for block in blocks]

    # -- serving ------------------------------------------------------------------------------

    def _review_serving(self, outcome: Outcome, drafts: dict[int, Draft], now_ms: int) -> None:
        """Review every entity whose spend, limits or billing day may have changed."""
        spent = np.flatnonzero(outcome.disposition >= OVER_BUDGET)
        groups = set(np.unique(outcome.group[spent]).tolist())
        campaigns = set(np.unique(outcome.campaign[spent]).tolist())
        for level, row in self.terms.limits_changed:
            (groups if level == "ad_group" else campaigns).add(row)
        self.terms.limits_changed.clear()
        for shard in self.shards.values():
            for signal in shard.standing.values():
                if _resume_due(signal.resume_at_ms, now_ms):
                    level, _, name = signal.entity.partition(":")
                    if level == "ad_group":
                        groups.add(self.terms.group_row(name))
                    else:
                        campaigns.add(self.terms.campaign_row(name))
        self._review_groups(sorted(groups), drafts, now_ms)
        self._review_campaigns(sorted(campaigns), drafts, now_ms)

    def _review_groups(self, rows: list[int], drafts: dict[int, Draft], now_ms: int) -> None:
        columns = self.terms.group
        limits = (
            (AD_GROUP_LIFETIME, columns.lifetime_nanos),
            (AD_GROUP_DAILY, columns.daily_nanos),
        )
        for row in rows:
            campaign = int(columns.campaign[row])
            entity = "ad_group:" + self.terms.group_ids.text(row)
            self._review(entity, row, campaign, limits, drafts, now_ms)

    def _review_campaigns(self, rows: list[int], drafts: dict[int, Draft], now_ms: int) -> None:
        columns = self.terms.campaign
        limits = (
            (CAMPAIGN_LIFETIME, columns.lifetime_nanos),
            (CAMPAIGN_DAILY, columns.daily_nanos),
        )
        for row in rows:
            entity = "campaign:" + self.terms.campaign_ids.text(row)
            self._review(entity, row, row, limits, drafts, now_ms)

    def _review(
        self,
        entity: str,
        row: int,
        campaign: int,
        limits: Iterable[tuple[int, "np.ndarray[tuple[int], np.dtype[np.int64]]"]],
        drafts: dict[int, Draft],
        now_ms: int,
    ) -> None:
        shard = self.shards.get(int(self.terms.campaign.shard[campaign]))
        account = int(self.terms.campaign.account[campaign])
        if shard is None or account < 0:
            return
        calendar = self.terms.zones[int(self.terms.account.zone[account])]
        today = calendar.day_of(now_ms)
        at = np.array([row])
        uses = []
        for limit, bounds in limits:
            bound = int(bounds[row])
            if bound != UNLIMITED:
                spend = int(self.balances.get(limit, today).of(at)[0])
                uses.append(LimitUse(LIMITS[limit], bound, spend))  # type: ignore[arg-type]
        standing = Standing(
            entity=entity,
            uses=tuple(uses),
            billing_day=today,
            day_end_ms=calendar.end_ms(today),
            last=shard.standing.get(entity),
            last_version=shard.versions.get(entity, 0),
        )
        signal = self._pacing.review(standing, now_ms)
        if signal is not None:
            shard.note_signal(signal)
            drafts[shard.shard].signals.append(signal)


def _day_ends(calendar: Calendar, after_ms: int, up_to_ms: int) -> list[int]:
    """Ends of billing days within (after, up to]."""
    ends = []
    if up_to_ms < 0:
        return ends
    day = calendar.day_of(max(after_ms, 0))
    while (end_ms := calendar.end_ms(day)) <= up_to_ms:
        if end_ms > after_ms:
            ends.append(end_ms)
        day += 1
    return ends


def _resume_due(resume_at_ms: int | None, now_ms: int) -> bool:
    return resume_at_ms is not None and resume_at_ms <= now_ms
