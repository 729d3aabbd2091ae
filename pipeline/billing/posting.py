"""Making a decision take effect: in the books, in days that close, and as drafts of records.

A draft is a journal record without its place in the chain: the shard's writer adds `previous`,
`seq` and the digest when the record before it is known to count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.billing import ids
from pipeline.billing.books import Balances, PostedBlock, Shard
from pipeline.billing.decide import Outcome
from pipeline.billing.journal import EVENT_SCHEMA, AccountTerms, Ad, Block
from pipeline.billing.terms import Terms
from pipeline.contract.days import iso
from pipeline.contract.pacing_notes import PacingNote
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import CHARGED, CPM, NOT_SERVING, UNKNOWN

Rows = npt.NDArray[np.int64]

FIRST_CLOSE_MS = 1
NO_CLOSE_MS = 2**62


@dataclass(slots=True)
class Draft:
    """What one decision did in one shard, but for its place in the journal."""

    shard: int
    sources: dict[str, tuple[int, int]]
    rows: Rows
    """The shard's rows of the outcome, in the order of judgement."""
    signals: list[Signal] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    closed: dict[str, str] = field(default_factory=dict)
    notes: list[PacingNote] = field(default_factory=list)

    def is_empty(self) -> bool:
        return not (self.sources or self.signals or self.blocks or self.closed or self.notes)


def post(
    shards: Mapping[int, Shard], balances: Balances, terms: Terms, outcome: Outcome
) -> dict[int, Draft]:
    """Take an outcome over into the books. Returns a draft for each shard."""
    drafts = {}
    charged = outcome.disposition == CHARGED
    rows = np.flatnonzero(charged)
    balances.post(
        outcome.group[rows],
        outcome.campaign[rows],
        outcome.billing_day[rows],
        outcome.amount_nanos[rows],
    )
    for number, shard in shards.items():
        here = outcome.batch.shard == number
        sources = outcome.batch.ranges.get(number, {})
        draft = Draft(number, sources, np.flatnonzero(here))
        drafts[number] = draft
        if len(draft.rows) == 0:
            continue
        shard.log_time_ms = max(shard.log_time_ms, int(outcome.batch.record_ms[draft.rows].max()))
        remembered = draft.rows[outcome.disposition[draft.rows] >= NOT_SERVING]
        shard.ids.add(outcome.id_keys[remembered], shard.log_time_ms)
        unique = b"".join([outcome.unique_key[row] for row in draft.rows.tolist()])
        shard.unique.add(ids.keys_from_bytes(unique), shard.log_time_ms)
        cpm = draft.rows[charged[draft.rows] & (outcome.basis[draft.rows] == CPM)]
        posted = shard.blocks.accrue(
            outcome.group[cpm],
            outcome.billing_day[cpm],
            outcome.posting_day[cpm],
            outcome.amount_nanos[cpm],
        )
        draft.blocks = [named_block(terms, block) for block in posted]
    return drafts


def named_block(terms: Terms, block: PostedBlock) -> Block:
    """A posted block with ids in place of row numbers."""
    group, billing_day, posting_day = block.key
    campaign = int(terms.group.campaign[group])
    account_id = terms.account_ids.text(int(terms.campaign.account[campaign]))
    return Block(
        account_id=account_id,
        campaign_id=terms.campaign_ids.text(campaign),
        ad_group_id=terms.group_ids.text(group),
        currency=terms.catalog.accounts[account_id].latest.currency,
        billing_day=iso(billing_day),
        posting_day=iso(posting_day),
        quantity=block.quantity,
        amount_nanos=block.amount_nanos,
    )


def event_columns(
    outcome: Outcome, rows: Rows, terms: Terms
) -> tuple[pl.DataFrame, list[Ad], dict[str, AccountTerms]]:
    """The journal's columns of these rows, the ads that they name, and those ads' accounts."""
    ad_codes, ads = _ad_codes(outcome, rows, terms)
    at = rows.tolist()
    batch = outcome.batch
    frame = pl.DataFrame(
        {
            "source": batch.source[rows],
            "source_offset": batch.offset[rows],
            "disposition": outcome.disposition[rows],
            "kind": outcome.kind[rows],
            "placement": outcome.placement[rows],
            "limit": outcome.limit[rows],
            "basis": np.where(outcome.disposition[rows] == CHARGED, outcome.basis[rows], 0).astype(
                np.uint8
            ),
            "event_id": [outcome.event_id[row] for row in at],
            "event_time_ms": outcome.event_time_ms[rows],
            "billing_day": pl.Series(outcome.billing_day[rows].astype(np.int32)).cast(pl.Date),
            "posting_day": pl.Series(outcome.posting_day[rows].astype(np.int32)).cast(pl.Date),
            "ad": ad_codes,
            "user_hash": pl.Series([outcome.user_hash[row] for row in at], dtype=pl.Binary),
            "country": [outcome.country[row] for row in at],
            "device": [outcome.device[row] for row in at],
            "price_micros": outcome.price_micros[rows],
            "amount_nanos": outcome.amount_nanos[rows],
            "free_nanos": outcome.free_nanos[rows],
            "unique_key": pl.Series([outcome.unique_key[row] for row in at], dtype=pl.Binary),
        },
        schema=EVENT_SCHEMA,
    )
    named = {ad.account_id for ad in ads if ad.account_id}
    return frame, ads, {account_id: account_terms(terms, account_id) for account_id in named}


def account_terms(terms: Terms, account_id: str) -> AccountTerms:
    """What the tables need to know of an account."""
    zone = terms.zones[int(terms.account.zone[terms.account_row(account_id)])]
    return AccountTerms(terms.catalog.accounts[account_id].latest.currency, zone.zone_name)


def _ad_codes(
    outcome: Outcome, rows: Rows, terms: Terms
) -> tuple[npt.NDArray[np.uint32], list[Ad]]:
    """Number the ads of the rows: those of the catalog by their pin, others by their own ids."""
    codes = outcome.pin[rows].copy()
    strangers: dict[tuple[str, str, str], int] = {}
    for at in np.flatnonzero(outcome.disposition[rows] <= UNKNOWN).tolist():
        named = outcome.ad_ids[int(rows[at])]
        codes[at] = -1 - strangers.setdefault(named, len(strangers))
    unique, inverse = np.unique(codes, return_inverse=True)
    named_strangers = list(strangers)
    ads = [
        terms.ad(code) if code >= 0 else Ad("", *named_strangers[-1 - code])
        for code in unique.tolist()
    ]
    return inverse.astype(np.uint32), ads


def close_days(
    shard: Shard, terms: Terms, now_ms: int, read_through_ms: int, grace_ms: int
) -> tuple[dict[str, int], list[PostedBlock]]:
    """Close what is due in a shard: time zone -> last closed day, and the blocks posted by it.

    A billing day closes once the clock is past its end + grace and the shard's sources have been
    read past that time (`read_through_ms`: the least of them, or a time without end where all
    are read to their ends). A day that an operator released (`close:DAY`) needs no grace.
    """
    reached_ms = min(now_ms, read_through_ms)
    newly: dict[str, int] = {}
    for calendar in terms.zones:
        last = calendar.day_of(reached_ms - grace_ms) - 1 if reached_ms >= grace_ms else -1
        forced = terms.catalog.forced_close_day
        if forced is not None:
            last = max(last, min(forced, calendar.day_of(reached_ms) - 1))
        if last > shard.closed.get(calendar.zone_name, -1):
            newly[calendar.zone_name] = last
    shard.closed.update(newly)
    return newly, _post_incomplete(shard, terms) if newly else []


def _post_incomplete(shard: Shard, terms: Terms) -> list[PostedBlock]:
    """Take the open blocks of closed days; in a fixed order, so that a replay posts the same."""
    due = []
    for key in sorted(shard.blocks.open):
        group, _, posting_day = key
        account = int(terms.campaign.account[int(terms.group.campaign[group])])
        if account < 0:
            continue  # its campaign is not in the catalog (yet)
        zone = terms.zones[int(terms.account.zone[account])]
        if posting_day <= shard.closed.get(zone.zone_name, -1):
            due.append(key)
    return [shard.blocks.take(key) for key in due]


def next_close_ms(shard: Shard, terms: Terms, grace_ms: int) -> int:
    """When the next day of any zone may close in this shard.

    A zone that the shard has closed no day of yet is due as soon as anything is known of time.
    """
    times = [
        calendar.end_ms(shard.closed[calendar.zone_name] + 1) + grace_ms
        if calendar.zone_name in shard.closed
        else FIRST_CLOSE_MS
        for calendar in terms.zones
    ]
    return min(times, default=NO_CLOSE_MS)
