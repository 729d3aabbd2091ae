"""Credits as rows: each held against the books before anything is posted for it.

A credit names an event and what it was charged. The event's row is in billing.events, or in the
batch that is being written; the credit is posted only where that row agrees in every respect, to
the nano. So no record of the catalog, whoever wrote it, can give back what was not charged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import polars as pl

from pipeline.billing.journal import CreditPosting
from pipeline.contract.vocabulary import CHARGED, DISPOSITIONS
from pipeline.reporting.clickhouse import Store, in_pieces
from pipeline.reporting.rows import CHARGE_SCHEMA, CountedRecord, to_date

IDS_AT_ONCE: Final = 5_000

CREDIT_SCHEMA: Final[dict[str, pl.DataType]] = {
    "posting_day": pl.Date(),
    "billing_day": pl.Date(),
    "account_id": pl.String(),
    "campaign_id": pl.String(),
    "ad_group_id": pl.String(),
    "promoted_pin_id": pl.String(),
    "event_id": pl.String(),
    "charge_id": pl.String(),
    "basis": pl.String(),
    "currency": pl.String(),
    "amount_nanos": pl.Int64(),
    "asked_nanos": pl.Int64(),
    "refused": pl.String(),
    "placement": pl.String(),
    "country": pl.String(),
    "device": pl.String(),
    "charged_day": pl.Date(),
    "reason": pl.String(),
    "credited_by": pl.String(),
    "posted_at_ms": pl.Int64(),
    "journal_partition": pl.UInt16(),
    "journal_offset": pl.Int64(),
    "charge_number": pl.UInt32(),
}

_FIELDS: Final = (
    "account_id",
    "campaign_id",
    "ad_group_id",
    "promoted_pin_id",
    "placement",
    "country",
    "device",
    "basis",
    "currency",
    "billing_day",
    "posting_day",
    "amount_nanos",
)

_CHARGED_EVENTS: Final = f"""
SELECT event_id, {", ".join(_FIELDS)} FROM billing.events
WHERE disposition = 'charged' AND posting_day IN {{days:Array(Date)}}
  AND event_id IN {{ids:Array(String)}} AND journal_partition = {{shard:UInt16}}
"""


@dataclass(frozen=True, slots=True)
class Charged:
    """What the books say of a charged event: a value for each of _FIELDS, days as ISO texts."""

    fields: tuple[object, ...]

    @classmethod
    def of(cls, values: Iterable[object]) -> Charged:
        """From values in the order of _FIELDS."""
        return cls(tuple(value if isinstance(value, int) else str(value) for value in values))

    @classmethod
    def as_asked(cls, credit: CreditPosting) -> Charged:
        """What a credit says of its event."""
        asked = {name: getattr(credit, name) for name in _FIELDS}
        return cls.of((asked | {"posting_day": credit.charged_day}).values())

    @property
    def posting_day(self) -> object:
        return self.fields[_FIELDS.index("posting_day")]


Books = Mapping[tuple[int, str], Charged]
"""(shard, event_id) -> what the event was charged."""


def credits_of(records: Sequence[CountedRecord]) -> list[tuple[CountedRecord, CreditPosting]]:
    """All credits that the records order, in their order."""
    return [(record, credit) for record in records for credit in record.header.credits or ()]


def charged_in_tables(store: Store, records: Sequence[CountedRecord]) -> Books:
    """What billing.events has of the events that these records credit."""
    by_shard: dict[int, list[CreditPosting]] = {}
    for record, credit in credits_of(records):
        by_shard.setdefault(record.partition, []).append(credit)
    found: dict[tuple[int, str], Charged] = {}
    for shard, asked in by_shard.items():
        rest = iter(asked)
        for ids in in_pieces([credit.event_id for credit in asked], IDS_AT_ONCE):
            days = sorted({to_date(credit.charged_day) for credit in islice(rest, len(ids))})
            parameters = {"days": days, "ids": ids, "shard": shard}
            for event_id, *values in store.rows(_CHARGED_EVENTS, parameters):
                found[shard, event_id] = Charged.of(values)
    return found


def charged_in_batch(events: pl.DataFrame, records: Sequence[CountedRecord]) -> Books:
    """The same of a batch's own `event_rows`: its earlier records are not in the tables yet."""
    ids = [credit.event_id for _, credit in credits_of(records)]
    if not ids or events.height == 0:
        return {}
    own = events.filter(
        (pl.col("disposition") == DISPOSITIONS[CHARGED]) & pl.col("event_id").is_in(ids)
    )
    rows = own.select("journal_partition", "event_id", *_FIELDS).iter_rows()
    return {(shard, event_id): Charged.of(values) for shard, event_id, *values in rows}


def credit_rows(
    records: Sequence[CountedRecord], before: Mapping[tuple[int, int], int], books: Books
) -> pl.DataFrame:
    """The rows of billing.credits.

    `before`: (partition, offset) -> charges of the record that come first. A refused credit has
    its number too, and no charge.
    """
    rows = []
    last: CountedRecord | None = None
    number = 0
    for record, credit in credits_of(records):
        number = number + 1 if record is last else before.get((record.partition, record.offset), 0)
        last = record
        refused = _refusal(credit, books.get((record.partition, credit.event_id)))
        rows.append(
            (
                to_date(credit.posting_day),
                to_date(credit.billing_day),
                credit.account_id,
                credit.campaign_id,
                credit.ad_group_id,
                credit.promoted_pin_id,
                credit.event_id,
                "" if refused else f"{record.partition}-{record.offset}-{number}",
                credit.basis,
                credit.currency,
                0 if refused else -credit.amount_nanos,
                credit.amount_nanos,
                refused,
                credit.placement,
                credit.country,
                credit.device,
                to_date(credit.charged_day),
                credit.reason,
                credit.by,
                record.header.now_ms,
                record.partition,
                record.offset,
                number,
            )
        )
    return pl.DataFrame(rows, schema=CREDIT_SCHEMA, orient="row")


def _refusal(credit: CreditPosting, charged: Charged | None) -> str:
    """Why a credit cannot be posted; empty where the books agree with it."""
    if charged is None or charged.posting_day != credit.charged_day:
        # Which other days were looked at depends on the batch, and a refusal must not.
        return f"no charge of this event is in the books of {credit.charged_day}"
    asked = Charged.as_asked(credit)
    wrong = [
        f"{name} is {in_books}, not {said}"
        for name, in_books, said in zip(_FIELDS, charged.fields, asked.fields, strict=True)
        if in_books != said
    ]
    return "; ".join(wrong)


def credit_charges(credits: pl.DataFrame) -> pl.DataFrame:
    """The rows of billing.charges of credits that were not refused; quantity -1, negative."""
    adjusts = pl.col("posting_day") != pl.col("billing_day")
    return (
        credits.filter(pl.col("refused") == "")
        .with_columns(
            pl.lit(-1, dtype=pl.Int64).alias("quantity"),
            adjusts.alias("is_adjustment"),
            pl.when(adjusts)
            .then("billing_day")
            .otherwise(pl.lit(to_date("")))
            .alias("adjusts_day"),
        )
        .select(pl.col(name).cast(kind) for name, kind in CHARGE_SCHEMA.items())
    )
