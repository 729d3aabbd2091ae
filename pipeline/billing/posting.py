"""Making a decision take effect: in the books, in days that close, and as drafts of records.

A draft is a journal record without its place in the chain: the shard's writer adds `previous`,
`seq` and the digest when the record before it is known to count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.billing.books import Balances, Blocks, PostedBlock, Shard
from pipeline.billing.decide import Outcome
from pipeline.billing.journal import AccountTerms, Ad, Block, CreditPosting, pack_ad, pack_ads
from pipeline.billing.journal_events import BRIEF_TEXTS, PLAIN, EventForm, schema_of
from pipeline.billing.terms import AD_COLUMNS, Terms
from pipeline.contract.days import Calendar, iso
from pipeline.contract.pacing_notes import PacingNote
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import CHARGED, CPM, NOT_SERVING, UNKNOWN
from pipeline.dense import numbered

Rows = npt.NDArray[np.int64]

FIRST_CLOSE_MS = 1
NO_CLOSE_MS = 2**62


@dataclass(slots=True)
class Draft:
    """What one decision did in one shard, but for its place in the journal."""

    shard: int
    sources: dict[str, tuple[int, int]]
    signals: list[Signal] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    closed: dict[str, str] = field(default_factory=dict)
    credits: list[CreditPosting] = field(default_factory=list)
    notes: list[PacingNote] = field(default_factory=list)

    def is_empty(self) -> bool:
        posted = self.blocks or self.closed or self.credits
        return not (self.sources or self.signals or posted or self.notes)


def post(
    shards: Mapping[int, Shard], balances: Balances, terms: Terms, outcome: Outcome
) -> dict[int, Draft]:
    """Take an outcome over into the books. Returns a draft for each shard; those that the batch
    names must be there."""
    batch = outcome.batch
    charged = outcome.disposition == CHARGED
    rows = np.flatnonzero(charged)
    balances.post(
        outcome.group[rows],
        outcome.campaign[rows],
        outcome.billing_day[rows],
        outcome.amount_nanos[rows],
    )
    drafts = {number: Draft(number, batch.ranges.get(number, {})) for number in sorted(shards)}
    for number, here in batch.spans.items():
        shard = shards[number]
        shard.log_time_ms = max(shard.log_time_ms, int(batch.record_ms[here].max()))
        known = outcome.disposition[here] >= NOT_SERVING
        event_keys, unique_keys = batch.event_keys[here], outcome.unique_keys[here]
        shard.remember(event_keys.compress(known, axis=0), unique_keys, shard.log_time_ms)
    cpm = rows[outcome.basis[rows] == CPM]
    posted = balances.blocks.accrue(
        outcome.group[cpm],
        outcome.billing_day[cpm],
        outcome.posting_day[cpm],
        outcome.amount_nanos[cpm],
    )
    for block in posted:
        campaign = terms.group.campaign[block.key[0]]
        drafts[int(terms.campaign.shard[campaign])].blocks.append(named_block(terms, block))
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


@dataclass(frozen=True, slots=True)
class ShardEvents:
    """The events of a draft as the journal holds them."""

    columns: pa.RecordBatch
    form: EventForm
    """Of the columns."""
    texts: list[str]
    """That they name by position."""
    ads: msgspec.Raw
    accounts: dict[str, AccountTerms]
    """Of the ads."""


NO_EVENTS = ShardEvents(
    pa.RecordBatch.from_arrays(
        [pa.nulls(0, kind) for kind in schema_of(PLAIN).types], schema_of(PLAIN).names
    ),
    PLAIN,
    [],
    pack_ads(b"", 0),
    {},
)


def shard_events(outcome: Outcome, drafts: Mapping[int, Draft], terms: Terms) -> list[ShardEvents]:
    """The events of each draft, in the order of the drafts.

    The columns are made once for all of them: their cost does not grow with the shards.
    """
    batch = outcome.batch
    if len(batch) == 0:
        return [NO_EVENTS] * len(drafts)
    sizes = [here.stop - here.start for here in batch.spans.values()]
    place = np.repeat(np.arange(len(sizes)), sizes)
    codes, ads = _ads(outcome, place, terms)
    accounts = _accounts(outcome, place, terms)
    form, columns, texts = _event_columns(outcome, codes)
    found = {
        shard: ShardEvents(columns.slice(here.start, size), form, its_texts, its_ads, its_accounts)
        for (shard, here), size, its_texts, its_ads, its_accounts in zip(
            batch.spans.items(), sizes, texts, ads, accounts, strict=True
        )
    }
    return [found.get(draft.shard, NO_EVENTS) for draft in drafts.values()]


def _event_columns(
    outcome: Outcome, ad_codes: npt.NDArray[np.uint32]
) -> tuple[EventForm, pa.RecordBatch, list[list[str]]]:
    """The journal's columns of all rows, in which form they are, and the texts that each shard's
    name by position."""
    batch = outcome.batch
    texts: list[list[str]] = [[] for _ in batch.spans]
    numbers: dict[str, npt.NDArray[Any]] = {
        "source": batch.source,
        "source_offset": batch.offset,
        "disposition": outcome.disposition,
        "kind": batch.kind,
        "placement": batch.placement,
        "limit": outcome.limit,
        "basis": outcome.basis * (outcome.disposition == CHARGED),
        "event_time_ms": batch.event_time_ms,
        "billing_day": outcome.billing_day.astype(np.int32),
        "posting_day": outcome.posting_day.astype(np.int32),
        "ad": ad_codes,
        "price_micros": batch.price_micros,
        "amount_nanos": outcome.amount_nanos,
        "free_nanos": outcome.free_nanos,
        "unique_low": np.ascontiguousarray(outcome.unique_keys[:, 0]),
        "unique_high": np.ascontiguousarray(outcome.unique_keys[:, 1]),
    }
    parts: dict[str, tuple[npt.NDArray[Any], ...]] = {
        name: (column,) for name, column in numbers.items()
    }
    brief = batch.brief
    form = EventForm(
        has_user_hashes=not batch.malformed.any(),
        has_positions=brief is not None,
        id_form="text" if brief is None else brief.id_form,
    )
    parts["user_hash"] = (outcome.user_keys,)
    if not form.has_user_hashes:
        edges = np.concatenate((np.zeros(1, np.int64), np.cumsum(np.where(batch.malformed, 0, 16))))
        parts["user_hash"] = edges, outcome.user_keys[~batch.malformed]
    if brief is not None:
        edges = np.array([0, *(here.stop for here in batch.spans.values())])
        positions, texts = brief.by_part(edges)
        parts |= {name: (of,) for name, of in zip(BRIEF_TEXTS, positions, strict=True)}
        parts["event_id"] = (brief.ids,)
    as_they_are = () if form.has_positions else BRIEF_TEXTS
    if form.id_form == "text":
        as_they_are = ("event_id", *as_they_are)
    if as_they_are:
        parts |= zip(as_they_are, batch.texts.packed(*as_they_are), strict=True)
    schema = schema_of(form)
    # Of the buffers: converting arrays makes pyarrow import pandas.
    arrays = [
        pa.Array.from_buffers(kind, len(batch), [None, *map(pa.py_buffer, parts[name])])
        for name, kind in zip(schema.names, schema.types, strict=True)
    ]
    return form, pa.RecordBatch.from_arrays(arrays, schema=schema), texts


def account_terms(terms: Terms, account_id: str) -> AccountTerms:
    """What the tables need to know of an account."""
    zone = terms.zones[int(terms.account.zone[terms.account_row(account_id)])]
    return AccountTerms(terms.catalog.accounts[account_id].latest.currency, zone.zone_name)


def _ads(
    outcome: Outcome, place: Rows, terms: Terms
) -> tuple[npt.NDArray[np.uint32], list[msgspec.Raw]]:
    """Number the ads of each shard; the numbers of its rows, and its ads in their order: those that
    the catalog does not know, then the others. `place` is each row's shard, as the batch has them.
    """
    codes = outcome.pin.copy()
    strangers: dict[tuple[str, str, str], int] = {}
    strange = np.flatnonzero(outcome.disposition <= UNKNOWN)
    if len(strange):
        names = [outcome.batch.texts.column(name, strange) for name in AD_COLUMNS]
        for at, *named in zip(strange.tolist(), *names, strict=True):
            codes[at] = -1 - strangers.setdefault(tuple(named), len(strangers))
    # One code an ad and shard, so that all are numbered at once: strangers first, then the pins.
    span = len(strangers) + int(codes.max()) + 1
    unique, inverse = numbered(place * span + codes + len(strangers))
    starts = np.searchsorted(unique, np.arange(len(outcome.batch.spans) + 1) * span)
    numbers = unique % span - len(strangers)
    known = numbers >= 0
    edges, packed = terms.packed_ads(numbers[known])
    cuts = edges[np.concatenate((np.zeros(1, np.int64), np.cumsum(known)))[starts]].tolist()
    foreign = [pack_ad(Ad("", *named)) for named in strangers]
    ads = []
    for (start, end), (first, last) in zip(pairwise(starts.tolist()), pairwise(cuts), strict=True):
        unknown = numbers[start:end][~known[start:end]].tolist() if strangers else []
        strange_ads = b"".join(foreign[-1 - number] for number in unknown)
        ads.append(pack_ads(strange_ads + packed[first:last], end - start))
    return (inverse - starts[place]).astype(np.uint32), ads


def _accounts(outcome: Outcome, place: Rows, terms: Terms) -> list[dict[str, AccountTerms]]:
    """The accounts of each shard's known ads; `place` as in `_ads`."""
    found: list[dict[str, AccountTerms]] = [{} for _ in outcome.batch.spans]
    rows = np.flatnonzero(outcome.disposition > UNKNOWN)
    span = len(terms.account_ids)
    codes, _ = numbered(place[rows] * span + terms.campaign.account[outcome.campaign[rows]])
    known: dict[str, AccountTerms] = {}
    for at, account in (divmod(code, span) for code in codes.tolist()):
        name = terms.account_ids.text(account)
        if name not in known:
            known[name] = account_terms(terms, name)
        found[at][name] = known[name]
    return found


def close_days(
    shard: Shard, blocks: Blocks, terms: Terms, now_ms: int, read_through_ms: int, grace_ms: int
) -> tuple[dict[str, int], list[PostedBlock]]:
    """Close what is due in a shard: time zone -> last closed day, and the blocks posted by it.

    A billing day closes once the clock is past its end + grace and the shard's sources have been
    read past that time (`read_through_ms`: the least of them, or a time without end where all
    are read to their ends). A day that an operator released (`close:DAY`) needs no grace.
    """
    newly: dict[str, int] = {}
    for calendar in terms.closing_zones:
        ended = _ended_through(calendar, terms, now_ms, grace_ms)
        read = _ended_through(calendar, terms, min(now_ms, read_through_ms), grace_ms)
        if read > shard.closed_through(calendar.zone_name):
            shard.close_through(calendar.zone_name, read, ended)
            newly[calendar.zone_name] = read
    return newly, _post_incomplete(shard, blocks, terms) if newly else []


def _ended_through(calendar: Calendar, terms: Terms, time_ms: int, grace_ms: int) -> int:
    """The zone's last day whose time is up at `time_ms`; -1 for none."""
    last = calendar.day_of(time_ms - grace_ms) - 1 if time_ms >= grace_ms else -1
    forced = terms.catalog.forced_close_day
    return last if forced is None else max(last, min(forced, calendar.day_of(time_ms) - 1))


def _post_incomplete(shard: Shard, blocks: Blocks, terms: Terms) -> list[PostedBlock]:
    """Take the open blocks of closed days; in a fixed order, so that a replay posts the same."""
    due = []
    for block in blocks.open_in(terms.rows_of_shard(shard.shard)[0]):
        group, _, posting_day = block.key
        account = int(terms.campaign.account[int(terms.group.campaign[group])])
        if account < 0:
            continue  # its campaign is not in the catalog (yet)
        zone = terms.zones[int(terms.account.zone[account])]
        if posting_day <= zone.closed_through(shard.closed):
            due.append(blocks.take(block.key))
    return due


def next_close_ms(shard: Shard, terms: Terms, grace_ms: int) -> int:
    """When the next day of any zone may close in this shard.

    A zone that the shard has closed no day of yet is due as soon as anything is known of time.
    """
    times = [
        calendar.end_ms(shard.closed[calendar.zone_name] + 1) + grace_ms
        if calendar.zone_name in shard.closed
        else FIRST_CLOSE_MS
        for calendar in terms.closing_zones
    ]
    return min(times, default=NO_CLOSE_MS)
