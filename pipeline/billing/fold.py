"""State = fold of the journal; and its two packed forms, checkpoint and snapshot.

A checkpoint goes into the journal so that a fold can start there once retention has deleted what
was before; it leaves out the remembered ids, which age out by themselves. A snapshot is a local
file with everything; losing it costs time, never data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
import polars as pl

from pipeline.billing import ids
from pipeline.billing.books import Balances, Rows, Shard
from pipeline.billing.chain import Chain
from pipeline.billing.credits import credit_key
from pipeline.billing.id_runs import RunError
from pipeline.billing.journal import Ad, Header
from pipeline.billing.terms import Terms
from pipeline.billing.texts import Texts
from pipeline.contract.days import from_iso
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import CHARGED, CPM, CPM_BLOCK, LIMITS, NOT_SERVING

CHECKPOINT_VERSION = 1
SNAPSHOT_VERSION = 2
"""Names runs of ids that lie beside it, which an older reader would leave out."""


class StateError(Exception):
    """Packed state that this version cannot read."""


class PackedState(msgspec.Struct, frozen=True, kw_only=True):
    """A shard's state with ids in place of row numbers. Days are days since the epoch."""

    version: int
    shard: int
    last_offset: int
    next_offsets: dict[str, int]
    seq: int
    digest: bytes
    closed: dict[str, int]
    log_time_ms: int
    catalog_end: int
    outbox_through: int
    checkpointed_ms: int = 0
    versions: dict[str, int]
    standing: list[Signal]
    blocks: list[tuple[str, int, int, int, int]]
    """(ad_group_id, billing day, posting day, impressions, nanos)"""
    parents: dict[str, str]
    """ad_group_id -> campaign_id, of the ad groups named here."""
    balances: list[tuple[int, int, list[str], list[int]]]
    """(limit, day or -1, entity ids, nanos)"""
    ids: dict[int, bytes] | None = None
    unique: dict[int, bytes] | None = None
    id_runs: dict[int, list[str]] = {}
    """Generation -> the names of the runs that hold the ids which `ids` does not."""
    unique_runs: dict[int, list[str]] = {}
    ids_generation_ms: int = 0
    unique_generation_ms: int = 0
    """How long the generations are that `ids` and `unique` are of, which the acceptance horizon
    says; 0: as long as the reader's."""
    bids: list[tuple[str, list[tuple[int, int]]]] = []
    """(ad group's entity, (decided at ms, micros) of each bid decided for it)"""
    learned: bytes = b""
    """What pacing has learned, in snapshots only: opaque, and never needed."""
    credited: bytes = b""
    """16 bytes for each event whose charge has been given back, for ever: credits are rare."""


class Outline(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot says of itself: where it stands, and the runs of ids that it needs."""

    version: int
    shard: int
    last_offset: int
    digest: bytes
    id_runs: dict[int, list[str]] = {}
    unique_runs: dict[int, list[str]] = {}

    @property
    def runs(self) -> set[str]:
        """Their names."""
        return {
            name
            for by_generation in (self.id_runs, self.unique_runs)
            for names in by_generation.values()
            for name in names
        }


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(PackedState)
_outlines = msgspec.msgpack.Decoder(Outline)
_State = TypeVar("_State", PackedState, Outline)


Counted = tuple[Header, pl.DataFrame]
"""A record that counts (the chain has admitted it): its header and its events."""


def fold_record(
    shard: Shard, balances: Balances, terms: Terms, header: Header, events: pl.DataFrame
) -> None:
    """Take over a record that counts."""
    fold_records(shard, balances, terms, [(header, events)])


def fold_records(
    shard: Shard, balances: Balances, terms: Terms, records: Sequence[Counted]
) -> None:
    """Take over records that count, in the order of the journal.

    Comes to the same as one after the other, and is several times as fast where they are small:
    the events of all are posted at once. What a record's header does to a state is not touched by
    events of the records after it: none is booked in a day that has been closed.
    """
    start = 0
    log_time_ms = shard.log_time_ms
    for number, (header, _) in enumerate(records):
        before_ms, log_time_ms = log_time_ms, max(log_time_ms, header.log_time_ms)
        if number > start and not shard.same_generations(before_ms, log_time_ms):
            _fold_together(shard, balances, terms, records[start:number])
            start = number
    _fold_together(shard, balances, terms, records[start:])


def _fold_together(
    shard: Shard, balances: Balances, terms: Terms, records: Sequence[Counted]
) -> None:
    """Fold records whose ids belong to the same generations."""
    for header, _ in records:
        shard.log_time_ms = max(shard.log_time_ms, header.log_time_ms)
        shard.catalog_end = max(shard.catalog_end, header.catalog_end)
        shard.outbox_through = max(shard.outbox_through, header.outbox_through)
        if header.checkpoint:
            shard.checkpointed_ms = header.now_ms
    _fold_events(shard, balances, terms, [record for record in records if record[1].height])
    for header, _ in records:
        for block in header.blocks:
            if block.quantity < CPM_BLOCK:
                group = terms.group_row(block.ad_group_id)
                days = from_iso(block.billing_day), from_iso(block.posting_day)
                balances.blocks.take((group, *days))
        for zone, day in header.closed.items():
            # That its time was up is what the record says.
            shard.close_through(zone, from_iso(day), from_iso(day))
        for signal in header.signals:
            shard.note_signal(signal)
        for credit in header.credits or ():
            shard.credited.add(credit_key(credit.event_id))


def _fold_events(
    shard: Shard, balances: Balances, terms: Terms, records: Sequence[Counted]
) -> None:
    if not records:
        return
    ads: list[Ad] = []
    parts = []
    for header, of_record in records:
        # A record's events name its own ads; here they are all in one list.
        parts.append(of_record.with_columns(pl.col("ad") + pl.lit(len(ads), pl.UInt32)))
        ads += header.ads
    events = pl.concat(parts, rechunk=True)
    remember(shard, events, shard.log_time_ms)
    charged = events.filter(pl.col("disposition") == CHARGED)
    if charged.height == 0:
        return
    at = charged["ad"].to_numpy()
    group_of, campaign_of = _rows_of_ads(terms, ads, charged["ad"].unique().to_list())
    groups, campaigns = group_of[at], campaign_of[at]
    billing = charged["billing_day"].to_physical().to_numpy().astype(np.int64)
    posting = charged["posting_day"].to_physical().to_numpy().astype(np.int64)
    amounts = charged["amount_nanos"].to_numpy()
    balances.post(groups, campaigns, billing, amounts)
    cpm = charged["basis"].to_numpy() == CPM
    balances.blocks.accrue(groups[cpm], billing[cpm], posting[cpm], amounts[cpm])


def remember(shard: Shard, events: pl.DataFrame, log_time_ms: int) -> None:
    """Take over the ids, and the keys of rule 8, of a record's events."""
    known = events.filter(pl.col("disposition") >= NOT_SERVING)
    unique = ids.join_keys(events["unique_low"].to_numpy(), events["unique_high"].to_numpy())
    event_keys = ids.hash_columns(Texts.of(known.select("event_id")), "event_id")
    shard.remember(event_keys, unique, log_time_ms)


def _rows_of_ads(terms: Terms, ads: Sequence[Ad], used: Sequence[int]) -> tuple[Rows, Rows]:
    """Rows of the ad groups and of the campaigns of these ads, by position in `ads`; those that
    are not `used` hold 0.

    An ad group's campaign never changes, so one that is known already tells it.
    """
    group_of = np.zeros(len(ads), dtype=np.int64)
    campaign_of = np.zeros(len(ads), dtype=np.int64)
    find = terms.group_ids.find
    for number in used:
        ad = ads[number]
        group = find(ad.ad_group_id)
        if group is None or terms.group.campaign[group] < 0:
            group, _ = _rows_of(terms, ad.ad_group_id, ad.campaign_id)
        group_of[number] = group
    at = np.array(used, dtype=np.int64)
    campaign_of[at] = terms.group.campaign[group_of[at]]
    return group_of, campaign_of


def _rows_of(terms: Terms, ad_group_id: str, campaign_id: str) -> tuple[int, int]:
    """Row numbers of an ad group and its campaign, known to the catalog or not."""
    group, campaign = terms.group_row(ad_group_id), terms.campaign_row(campaign_id)
    if terms.group.campaign[group] < 0:
        terms.group.campaign[group] = campaign
    return group, campaign


def pack(shard: Shard, balances: Balances, terms: Terms, *, with_ids: bool) -> bytes:
    """A shard's state as bytes; `with_ids` for a snapshot, without for a checkpoint."""
    groups, campaigns = terms.rows_of_shard(shard.shard)
    parents: dict[str, str] = {}
    packed: list[tuple[int, int, list[str], list[int]]] = []
    for limit, day, balance in balances.all():
        of_groups = LIMITS[limit].startswith("ad_group")
        rows = balance.nonzero()
        rows = rows[np.isin(rows, groups if of_groups else campaigns, kind="table")]
        if len(rows) == 0:
            continue
        names = terms.group_ids if of_groups else terms.campaign_ids
        packed.append(
            (limit, day, [names.text(row) for row in rows.tolist()], balance.of(rows).tolist())
        )
        if of_groups:
            _note_parents(parents, terms, rows.tolist())
    open_blocks = balances.blocks.open_in(groups)
    _note_parents(parents, terms, [block.key[0] for block in open_blocks])
    chain = shard.chain
    return _encoder.encode(
        PackedState(
            version=SNAPSHOT_VERSION if with_ids else CHECKPOINT_VERSION,
            shard=shard.shard,
            last_offset=chain.last_offset,
            next_offsets=chain.next_offsets,
            seq=chain.seq,
            digest=chain.digest,
            closed=shard.closed,
            log_time_ms=shard.log_time_ms,
            catalog_end=shard.catalog_end,
            outbox_through=shard.outbox_through,
            checkpointed_ms=shard.checkpointed_ms,
            versions=shard.versions,
            standing=list(shard.standing.values()),
            blocks=[
                (
                    terms.group_ids.text(block.key[0]),
                    *block.key[1:],
                    block.quantity,
                    block.amount_nanos,
                )
                for block in open_blocks
            ],
            parents=parents,
            balances=packed,
            learned=shard.learned if with_ids else b"",
            ids=shard.ids.dump() if with_ids else None,
            unique=shard.unique.dump() if with_ids else None,
            id_runs=shard.ids.run_names() if with_ids else {},
            unique_runs=shard.unique.run_names() if with_ids else {},
            ids_generation_ms=shard.ids.generation_ms if with_ids else 0,
            unique_generation_ms=shard.unique.generation_ms if with_ids else 0,
            bids=sorted(shard.bids.items()),
            credited=b"".join(sorted(shard.credited)),
        )
    )


def _note_parents(parents: dict[str, str], terms: Terms, groups: list[int]) -> None:
    for group in groups:
        campaign = int(terms.group.campaign[group])
        parents[terms.group_ids.text(group)] = terms.campaign_ids.text(campaign)


def _decode(decoder: msgspec.msgpack.Decoder[_State], value: bytes) -> _State:
    try:
        state = decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StateError(f"not a packed state: {error}") from error
    if state.version not in (CHECKPOINT_VERSION, SNAPSHOT_VERSION):
        raise StateError(
            f"packed state of version {state.version}, expected {SNAPSHOT_VERSION} at most"
        )
    return state


def outline_of(snapshot: bytes, shard: int) -> Outline:
    """What a snapshot of this shard says of itself; its state is not unpacked.

    Raises `StateError` where the bytes are not a state of this version and shard.
    """
    return _of_shard(_decode(_outlines, snapshot), shard)


def _of_shard(state: _State, shard: int) -> _State:
    if state.shard != shard:
        raise StateError(f"packed state of shard {state.shard}, expected {shard}")
    return state


def chain_of(checkpoint: bytes) -> Chain:
    """Where a shard's chain stood when a checkpoint was made: readers may begin there.

    Raises `StateError` where the bytes are not a state of this version.
    """
    state = _decode(_decoder, checkpoint)
    return Chain(
        shard=state.shard,
        last_offset=state.last_offset,
        next_offsets=dict(state.next_offsets),
        seq=state.seq,
        digest=state.digest,
    )


def unpack(value: bytes, shard: Shard, balances: Balances, terms: Terms) -> None:
    """Fill an empty shard, and its rows of the balances, from packed bytes.

    Raises `StateError` where the bytes are not a state of this version and shard, or name a run
    of ids that is lost.
    """
    state = _of_shard(_decode(_decoder, value), shard.shard)
    chain = shard.chain
    chain.last_offset, chain.seq, chain.digest = state.last_offset, state.seq, state.digest
    chain.next_offsets = dict(state.next_offsets)
    shard.closed = dict(state.closed)
    shard.log_time_ms, shard.catalog_end = state.log_time_ms, state.catalog_end
    shard.outbox_through = state.outbox_through
    shard.checkpointed_ms = state.checkpointed_ms
    shard.versions = dict(state.versions)
    shard.standing = {signal.entity: signal for signal in state.standing}
    shard.learned = state.learned
    shard.bids = {entity: list(decided) for entity, decided in state.bids}
    shard.credited = {state.credited[i : i + 16] for i in range(0, len(state.credited), 16)}
    _unpack_balances(state, shard, balances, terms)
    if state.ids is not None and state.unique is not None:
        try:
            now_ms = state.log_time_ms
            shard.ids.load(state.ids, state.id_runs, state.ids_generation_ms, now_ms)
            shard.unique.load(state.unique, state.unique_runs, state.unique_generation_ms, now_ms)
        except RunError as error:
            raise StateError(str(error)) from error


def _unpack_balances(state: PackedState, shard: Shard, balances: Balances, terms: Terms) -> None:
    for group_id, campaign_id in state.parents.items():
        _rows_of(terms, group_id, campaign_id)
    for group_id, billing, posting, quantity, nanos in state.blocks:
        balances.blocks.put((terms.group_row(group_id), billing, posting), quantity, nanos)
    for limit, day, names, amounts in state.balances:
        of_groups = LIMITS[limit].startswith("ad_group")
        number: Any = terms.group_row if of_groups else terms.campaign_row
        rows = np.array([number(name) for name in names], dtype=np.int64)
        balances.to_post(limit, day).post(rows, np.array(amounts, dtype=np.int64))


def release(shard: int, balances: Balances, terms: Terms) -> None:
    """Empty a shard's rows of the balances: another worker owns it now, or it starts over."""
    groups, campaigns = terms.rows_of_shard(shard)
    for limit, _, balance in balances.all():
        balance.clear(groups if LIMITS[limit].startswith("ad_group") else campaigns)
    balances.blocks.clear(groups)
