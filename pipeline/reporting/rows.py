"""From journal records to table rows, in columns: no Python object for an event.

A pure function of the records: the same records give the same rows in the same order, so an
insert that is made again is the same insert (by another version in another order, perhaps; but its
token is the same).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipeline.billing.journal import Header, JournalError, decode_events, decode_header
from pipeline.billing.journal_events import CODE_NAMES
from pipeline.contract.log import LogRecord
from pipeline.contract.vocabulary import BASES, CHARGED, CPC, CPE, DISPOSITIONS, NOT_SERVING

FIRST_DATE: Final = date(1970, 1, 1)
"""ClickHouse's zero Date: stands for no day."""
LAST_DATE: Final = date(2149, 6, 6)

OWN_DAY: Final = DISPOSITIONS[NOT_SERVING:]
"""Dispositions of events that have a billing day of their own; reports count these."""

EVENT_COLUMNS: Final = (
    "posting_day",
    "billing_day",
    "account_id",
    "campaign_id",
    "ad_group_id",
    "promoted_pin_id",
    "kind",
    "disposition",
    "basis",
    "limit",
    "currency",
    "price_micros",
    "amount_nanos",
    "free_nanos",
    "placement",
    "country",
    "device",
    "event_time_ms",
    "event_id",
    "user_hash",
    "source_topic",
    "source_partition",
    "source_offset",
    "shard_seq",
    "decided_at_ms",
    "journal_partition",
    "journal_offset",
)

_EVENTS_AN_AD: Final = 3
"""So many at least for each ad that a record names, or ClickHouse sorts them as fast."""
_BASIS: Final = pl.Enum(BASES)

CHARGE_SCHEMA: Final[dict[str, pl.DataType]] = {
    "posting_day": pl.Date(),
    "billing_day": pl.Date(),
    "account_id": pl.String(),
    "campaign_id": pl.String(),
    "ad_group_id": pl.String(),
    "promoted_pin_id": pl.String(),
    "charge_id": pl.String(),
    "basis": _BASIS,
    "quantity": pl.Int64(),
    "currency": pl.String(),
    "amount_nanos": pl.Int64(),
    "is_adjustment": pl.Boolean(),
    "adjusts_day": pl.Date(),
    "event_id": pl.String(),
    "posted_at_ms": pl.Int64(),
    "journal_partition": pl.UInt16(),
    "journal_offset": pl.Int64(),
    "charge_number": pl.UInt32(),
}

SIGNAL_SCHEMA: Final[dict[str, pl.DataType]] = {
    "entity": pl.String(),
    "version": pl.Int64(),
    "action": pl.String(),
    "reason": pl.String(),
    "serve_probability": pl.Float64(),
    "bid_micros": pl.Int64(),
    "limit": pl.String(),
    "limit_nanos": pl.Int64(),
    "spend_nanos": pl.Int64(),
    "inflight_nanos": pl.Int64(),
    "billing_day": pl.Date(),
    "decided_at_ms": pl.Int64(),
    "resume_at_ms": pl.Int64(),
    "journal_partition": pl.UInt16(),
    "journal_offset": pl.Int64(),
}

PACING_SCHEMA: Final[dict[str, pl.DataType]] = {
    "entity": pl.String(),
    "kind": pl.String(),
    "billing_day": pl.Date(),
    "made_at_ms": pl.Int64(),
    "predicted": pl.Int64(),
    "low": pl.Int64(),
    "high": pl.Int64(),
    "realised": pl.Int64(),
    "realised_at_ms": pl.Int64(),
    "journal_partition": pl.UInt16(),
    "journal_offset": pl.Int64(),
}


@dataclass(frozen=True, slots=True)
class CountedRecord:
    """A journal record that counts (the chain has admitted it), and its place in the journal."""

    partition: int
    offset: int
    header: Header
    events: pl.DataFrame
    """With the columns of the journal's EVENT_SCHEMA."""

    @classmethod
    def decoded(cls, record: LogRecord) -> CountedRecord:
        """A record that is known to count. Raises `JournalError`."""
        header, body = decode_header(record.value or b"")
        return cls(record.partition, record.offset, header, decode_events(header, body))

    def check(self) -> None:
        """Raises `JournalError` where rows cannot be made of the record."""
        for ad in self.header.ads:
            _currency(self, ad.account_id)


def event_rows(records: Sequence[CountedRecord]) -> pl.DataFrame:
    """The rows of billing.events, in journal order; columns of EVENT_COLUMNS."""
    holding = _holding(records)
    if not holding:
        return pl.DataFrame(schema=dict.fromkeys(EVENT_COLUMNS, pl.Null()))
    events = pl.concat([record.events for record in holding])
    counts = np.array([record.header.events for record in holding])
    starts = np.cumsum(counts) - counts

    def each(values: Iterable[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.repeat(np.fromiter(values, dtype=np.int64, count=len(holding)), counts)

    in_record = np.arange(events.height) - np.repeat(starts, counts)
    ads = _ad_columns(holding)
    ad = pl.Series(_ad_of_events(holding))
    partition = pl.Series(each(record.partition for record in holding), dtype=pl.UInt16)
    return events.with_columns(
        *(_named(code) for code in CODE_NAMES),
        _within_date("posting_day"),
        _within_date("billing_day"),
        *(column.gather(ad).alias(name) for name, column in ads.items()),
        pl.col("user_hash").bin.encode("hex"),
        partition.alias("source_partition"),
        partition.alias("journal_partition"),
        pl.Series("journal_offset", each(record.offset for record in holding)),
        pl.Series("decided_at_ms", each(record.header.now_ms for record in holding)),
        pl.Series("shard_seq", in_record + each(record.header.seq for record in holding)),
    ).select(
        pl.col("source").alias(name) if name == "source_topic" else pl.col(name)
        for name in EVENT_COLUMNS
    )


def in_table_order(events: pl.DataFrame, records: Sequence[CountedRecord]) -> pl.DataFrame:
    """The `event_rows` of the records, sorted as billing.events is.

    ClickHouse would sort them by comparing strings, which is a third of an insert; here an ad group
    is compared once for each record that names it, and events by numbers. Where records name
    nearly as many ads as they have events that is no gain, and ClickHouse does sort them.
    """
    holding = _holding(records)
    ads = sum(len(record.header.ads) for record in holding)
    if not holding or events.height < _EVENTS_AN_AD * ads:
        return events
    # Code points sort as the bytes of UTF-8 do, by which ClickHouse sorts.
    groups = [
        "\0".join((ad.account_id, ad.campaign_id, ad.ad_group_id))
        for record in holding
        for ad in record.header.ads
    ]
    ranks = {group: rank for rank, group in enumerate(sorted(set(groups)))}
    rank = np.fromiter(map(ranks.__getitem__, groups), dtype=np.int32, count=len(groups))
    order = np.lexsort((events["shard_seq"].to_numpy(), rank[_ad_of_events(holding)]))
    return events[pl.Series(order)]


def charge_rows(records: Sequence[CountedRecord], events: pl.DataFrame) -> pl.DataFrame:
    """The rows of billing.charges that the records post; `events` are their `event_rows`.

    One charge for each event charged by click or engagement, then one for each CPM block; then
    come credits (`pipeline.reporting.credits`). The n-th charge of a record is
    `journal_partition-journal_offset-n`, for ever.
    """
    posted = _event_charges(events) if events.height else pl.DataFrame(schema=CHARGE_SCHEMA)
    blocks = _block_charges(records, charges_per_record(posted))
    return pl.concat([posted, blocks])


def signal_rows(records: Sequence[CountedRecord]) -> pl.DataFrame:
    """The rows of reporting.signals: every signal that the records decided."""
    rows = [
        (
            signal.entity,
            signal.version,
            signal.action,
            signal.reason,
            signal.serve_probability,
            signal.bid_micros or 0,
            signal.limit,
            signal.limit_nanos,
            signal.spend_nanos,
            signal.inflight_nanos,
            to_date(signal.billing_day),
            signal.decided_at_ms,
            signal.resume_at_ms or 0,
            record.partition,
            record.offset,
        )
        for record in records
        for signal in record.header.signals
    ]
    return pl.DataFrame(rows, schema=SIGNAL_SCHEMA, orient="row")


def pacing_rows(records: Sequence[CountedRecord]) -> pl.DataFrame:
    """The rows of reporting.pacing: what the records predicted, and what came of it."""
    rows = [
        (
            note.entity,
            note.kind,
            to_date(note.billing_day),
            note.made_at_ms,
            note.predicted,
            note.low,
            note.high,
            note.realised,
            note.realised_at_ms,
            record.partition,
            record.offset,
        )
        for record in records
        for note in record.header.pacing or ()
    ]
    return pl.DataFrame(rows, schema=PACING_SCHEMA, orient="row")


def first_posting_days(events: pl.DataFrame) -> dict[str, date]:
    """Account -> the earliest day that these events with a day of their own are posted in."""
    if events.height == 0:
        return {}
    own = events.filter((pl.col("account_id") != "") & pl.col("disposition").is_in(list(OWN_DAY)))
    firsts = own.group_by("account_id").agg(pl.col("posting_day").min())
    return dict(firsts.iter_rows())


def by_day(frame: pl.DataFrame, day_column: str) -> list[tuple[date, pa.Table]]:
    """The rows of each day, oldest day first, each in the order that they came."""
    if frame.height == 0:
        return []
    if (day := frame[day_column].min()) == frame[day_column].max():
        return [(cast(date, day), to_arrow(frame))]
    parts = frame.partition_by(day_column, as_dict=True, maintain_order=True)
    return [(day, to_arrow(part)) for (day,), part in sorted(parts.items())]


def to_arrow(frame: pl.DataFrame) -> pa.Table:
    """An Arrow table with types that ClickHouse servers of the last years read."""
    return frame.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())


def to_date(iso_day: str) -> date:
    """A day of the journal as a Date; the empty string is no day."""
    day = date.fromisoformat(iso_day) if iso_day else FIRST_DATE
    return min(max(day, FIRST_DATE), LAST_DATE)


def _holding(records: Sequence[CountedRecord]) -> list[CountedRecord]:
    """Those that hold events."""
    return [record for record in records if record.header.events]


def _ad_of_events(holding: Sequence[CountedRecord]) -> npt.NDArray[np.int64]:
    """For each event of records that hold some: its ad's place among all of the records' ads."""
    bases = np.cumsum([0, *(len(record.header.ads) for record in holding[:-1])])
    return np.concatenate(
        [
            record.events["ad"].to_numpy().astype(np.int64) + base
            for record, base in zip(holding, bases, strict=True)
        ]
    )


def _named(code: str) -> pl.Expr:
    return pl.col(code).cat.to(pl.Enum(CODE_NAMES[code]))


def _within_date(name: str) -> pl.Expr:
    # A record timestamp is the producer's word: an absurd one must not stop the tables.
    return pl.col(name).clip(FIRST_DATE, LAST_DATE)


def _ad_columns(records: Sequence[CountedRecord]) -> dict[str, pl.Series]:
    """The records' ads one after the other, in columns."""
    ads = [ad for record in records for ad in record.header.ads]
    return {
        "account_id": pl.Series([ad.account_id for ad in ads], dtype=pl.String),
        "campaign_id": pl.Series([ad.campaign_id for ad in ads], dtype=pl.String),
        "ad_group_id": pl.Series([ad.ad_group_id for ad in ads], dtype=pl.String),
        "promoted_pin_id": pl.Series([ad.promoted_pin_id for ad in ads], dtype=pl.String),
        "currency": pl.Series(
            [_currency(record, ad.account_id) for record in records for ad in record.header.ads],
            dtype=pl.String,
        ),
    }


def _currency(record: CountedRecord, account_id: str) -> str:
    if not account_id:
        return ""
    terms = record.header.accounts.get(account_id)
    if terms is None:
        raise JournalError(
            f"journal partition {record.partition} offset {record.offset} names the account "
            f"{account_id!r} without its terms"
        )
    return terms.currency


def _event_charges(events: pl.DataFrame) -> pl.DataFrame:
    charged = events.filter(
        (pl.col("disposition") == DISPOSITIONS[CHARGED])
        & pl.col("basis").is_in([BASES[CPC], BASES[CPE]])
    )
    adjusts = pl.col("posting_day") != pl.col("billing_day")
    return (
        charged.with_columns(
            pl.int_range(pl.len(), dtype=pl.UInt32)
            .over("journal_partition", "journal_offset")
            .alias("charge_number")
        )
        .with_columns(
            pl.format("{}-{}-{}", "journal_partition", "journal_offset", "charge_number").alias(
                "charge_id"
            ),
            pl.lit(1, dtype=pl.Int64).alias("quantity"),
            adjusts.alias("is_adjustment"),
            pl.when(adjusts).then("billing_day").otherwise(pl.lit(FIRST_DATE)).alias("adjusts_day"),
            pl.col("decided_at_ms").alias("posted_at_ms"),
        )
        .select(pl.col(name).cast(kind) for name, kind in CHARGE_SCHEMA.items())
    )


def charges_per_record(charges: pl.DataFrame) -> dict[tuple[int, int], int]:
    """(journal partition, offset) -> how many of these charges the record posts."""
    counts = charges.group_by("journal_partition", "journal_offset").len()
    return {(partition, offset): count for partition, offset, count in counts.iter_rows()}


def _block_charges(
    records: Sequence[CountedRecord], before: dict[tuple[int, int], int]
) -> pl.DataFrame:
    """The CPM blocks that the records post; `before`: charges of each record that come first."""
    rows = []
    for record in records:
        first = before.get((record.partition, record.offset), 0)
        for number, block in enumerate(record.header.blocks, first):
            adjusts = block.posting_day != block.billing_day
            rows.append(
                (
                    to_date(block.posting_day),
                    to_date(block.billing_day),
                    block.account_id,
                    block.campaign_id,
                    block.ad_group_id,
                    "",
                    f"{record.partition}-{record.offset}-{number}",
                    "cpm",
                    block.quantity,
                    block.currency,
                    block.amount_nanos,
                    adjusts,
                    to_date(block.billing_day) if adjusts else FIRST_DATE,
                    "",
                    record.header.now_ms,
                    record.partition,
                    record.offset,
                    number,
                )
            )
    return pl.DataFrame(rows, schema=CHARGE_SCHEMA, orient="row")
