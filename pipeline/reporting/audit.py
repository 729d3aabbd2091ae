"""Holding the tables against the journal, record by record and row by row.

Some corruptions leave the tables in agreement with themselves: an event with another price, a
Pinner's click booked on somebody else. So the rows that each journal record gives are made again,
by the code that the reporter writes them with, and compared: first by a count and a checksum for
each record, which is cheap over the whole history, then row by row where those differ.

A checksum is the sum, modulo 2^64, of the XXH3 of each row's text: the columns as ClickHouse prints
them, joined by tabs. Memory grows with the number of journal records, not of events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

import numpy as np
import polars as pl
import xxhash

from pipeline.billing.chain import Chain
from pipeline.billing.fold import chain_of
from pipeline.billing.journal import Header, decode_header
from pipeline.contract.log import LogReader, LogRecord
from pipeline.contract.vocabulary import EVENT_TOPICS
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.credits import (
    CREDIT_SCHEMA,
    charged_in_batch,
    charged_in_tables,
    credit_charges,
    credit_rows,
)
from pipeline.reporting.intake import Intake
from pipeline.reporting.plans import Plan, origin, read_plans
from pipeline.reporting.rows import (
    CHARGE_SCHEMA,
    EVENT_COLUMNS,
    CountedRecord,
    charge_rows,
    charges_per_record,
    event_rows,
)

FETCH_WAIT_MS: Final = 500
EVENTS_AT_ONCE: Final = 200_000

Finding = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AuditedTable:
    """A table whose rows are the journal's: its columns, and which of them tells rows apart."""

    name: str
    columns: tuple[str, ...]
    row_key: str


AUDITED: Final = (
    AuditedTable("billing.events", EVENT_COLUMNS, "shard_seq"),
    AuditedTable("billing.charges", tuple(CHARGE_SCHEMA), "charge_number"),
    AuditedTable("billing.credits", tuple(CREDIT_SCHEMA), "charge_number"),
)

_PLACE: Final = ("posting_day", "journal_partition", "journal_offset")


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found: the first differences, and what it could not look at."""

    findings: list[Finding]
    records: int
    note: str = ""


async def audit_journal(
    store: Store,
    reader: LogReader,
    partitions: int,
    day: date | None = None,
    most: int = 10,
    noted: Callable[[str], None] = lambda text: None,
) -> Audit:
    """Compare all that the journal still holds and the tables should have; at most `most` findings.

    `day`: rows of this posting day only. The reader is started here; the caller stops it. The
    batch that a running reporter is writing may show up as missing: what an audit finds beside
    one, a second audit must find too.
    """
    plans = read_plans(store, partitions)
    reported = plans[-1] if plans else origin(partitions)
    await reader.start()
    begin = await reader.begin_offsets()
    walk = _Walk(store, reported, begin, day)
    while not walk.is_done:
        walk.take(await reader.fetch(FETCH_WAIT_MS))
        noted(f"journal: {walk.records:,} records")
    findings = walk.broken()
    for table, sums in zip(AUDITED, walk.sums(), strict=True):
        noted(f"journal: {table.name}")
        differing = _differing(store, table, sums, walk.first_offsets, reported, day)
        for place in differing:
            if len(findings) >= most:
                break
            findings += await _row_by_row(store, reader, walk, table, place)
    return Audit(findings[:most], walk.records, walk.note)


class _Walk:
    """One pass over the journal up to where the tables are."""

    def __init__(
        self, store: Store, reported: Plan, begin: Mapping[int, int], day: date | None
    ) -> None:
        self._store = store
        self._day = day
        self._ends = {number: at.next_offset for number, at in reported.journal.items()}
        self._begin = {n: begin.get(n, 0) for n in self._ends}
        self._starts = {n: _CheckpointStart() for n, first in self._begin.items() if first > 0}
        """Where retention has deleted the beginning: the search for where to begin instead."""
        self._intake = Intake(origin(len(self._ends)), self._start_behind_gap)
        self._seen = dict(self._begin)
        self._sums: list[list[pl.DataFrame]] = [[] for _ in AUDITED]
        self.first_offsets = {n: 0 for n in self._ends if self._begin[n] == 0}
        """Partition -> the first journal offset that can be compared."""
        self.records = 0
        self._outside: list[Finding] = []

    def _start_behind_gap(self, record: LogRecord, _: Header) -> Chain | None:
        """Behind what retention deleted, the checkpoint's chain; any other gap is a lost record."""
        start = self._starts.get(record.partition)
        return None if start is None else start.chain

    @property
    def is_done(self) -> bool:
        return all(
            self._seen[n] >= end or n in self._intake.stopped for n, end in self._ends.items()
        )

    @property
    def note(self) -> str:
        gone = [n for n, first in self._begin.items() if first > 0]
        return f"older records of shards {gone} are past their retention" if gone else ""

    def take(self, fetched: Sequence[LogRecord]) -> None:
        """Take records in; those that the tables need not have yet are passed over."""
        for record in fetched:
            if record.offset >= self._ends.get(record.partition, 0):
                self._seen[record.partition] = max(
                    self._seen.get(record.partition, 0), record.offset
                )
                continue
            self._seen[record.partition] = record.offset + 1
            start = self._starts.get(record.partition)
            self._intake.take([record] if start is None else start.take(record))
            if start is not None and start.chain is not None:
                first = start.chain.last_offset + 1
                self.first_offsets.setdefault(record.partition, first)
        while not self._intake.is_empty:
            records = self._intake.cut(0, EVENTS_AT_ONCE, 0).records
            self.records += len(records)
            self._outside += [found for record in records for found in outside(record)]
            for sums, frame in zip(self._sums, self.rows(records), strict=True):
                sums.append(_checksums(frame))

    def rows(self, records: Sequence[CountedRecord]) -> tuple[pl.DataFrame, ...]:
        """The rows of each audited table that the records give."""
        events = event_rows(records)
        posted = charge_rows(records, events)
        books = {**charged_in_tables(self._store, records), **charged_in_batch(events, records)}
        credits = credit_rows(records, charges_per_record(posted), books)
        frames = (events, pl.concat([posted, credit_charges(credits)]), credits)
        if self._day is None:
            return frames
        return tuple(
            frame.filter(pl.col("posting_day") == self._day) if frame.height else frame
            for frame in frames
        )

    def sums(self) -> list[pl.DataFrame]:
        """For each audited table: place -> rows and checksum."""
        return [pl.concat(frames) if frames else _NO_SUMS for frames in self._sums]

    def broken(self) -> list[Finding]:
        """Where the journal contradicts itself, or lacks a record."""
        return self._outside + [
            {"what": "the journal is broken", "journal_partition": number, "why": why}
            for number, why in self._intake.stopped.items()
        ]


def outside(record: CountedRecord) -> list[Finding]:
    """Events that are not of the source offsets that the record took, or more than one of one.

    Fewer events than offsets are right where a source has transactions, whose markers and aborted
    records hold no event.
    """
    findings: list[Finding] = []
    source = record.events["source"].to_numpy()
    offset = record.events["source_offset"].to_numpy()
    for code, topic in enumerate(EVENT_TOPICS):
        offsets = np.sort(offset[source == code])
        start, end = record.header.sources.get(topic, (0, 0))
        within = not len(offsets) or (start <= offsets[0] and offsets[-1] < end)
        if not within or (np.diff(offsets) == 0).any():
            findings.append(
                {
                    "what": "events of offsets that the record did not take, or not once",
                    "journal_partition": record.partition,
                    "journal_offset": record.offset,
                    "source_topic": topic,
                    "taken": [start, end],
                    "events": [int(offsets[0]), int(offsets[-1]) + 1],
                }
            )
    return findings


class _CheckpointStart:
    """Begins a partition at its first checkpoint that certainly counts.

    A checkpoint may be a losing owner's. But a loser stops at its first append, so one that a
    later record names as `previous` counts.
    """

    def __init__(self) -> None:
        self.chain: Chain | None = None
        """Where the checkpoint leaves a reader; None until one is found."""
        self._held: dict[int, LogRecord] = {}
        """Offset -> record, from the first checkpoint met on."""

    def take(self, record: LogRecord) -> list[LogRecord]:
        """The records to go on with: none until a checkpoint is found, then all after it."""
        if self.chain is not None:
            return [record]
        header, _ = decode_header(record.value or b"")
        if self._held or header.checkpoint:
            self._held[record.offset] = record
        named = self._held.get(header.previous)
        if named is None:
            return []
        checkpoint, _ = decode_header(named.value or b"")
        if not checkpoint.checkpoint:
            return []
        self.chain = chain_of(checkpoint.checkpoint)
        self.chain.last_offset, self.chain.digest = named.offset, checkpoint.digest
        after = [held for offset, held in self._held.items() if offset > named.offset]
        self._held.clear()
        return after


_SUMS_SCHEMA: Final[dict[str, pl.DataType]] = {
    "posting_day": pl.Date(),
    "journal_partition": pl.UInt16(),
    "journal_offset": pl.Int64(),
    "rows": pl.UInt64(),
    "checksum": pl.UInt64(),
}
_NO_SUMS: Final = pl.DataFrame(schema=_SUMS_SCHEMA)


def _checksums(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows and checksum of each record's rows in each posting day."""
    if frame.height == 0:
        return _NO_SUMS
    text = frame.select(pl.concat_str(pl.all().cast(pl.String), separator="\t")).to_series()
    digest = xxhash.xxh3_64_intdigest
    hashes = np.fromiter(
        (digest(row) for row in text.cast(pl.Binary)), dtype=np.uint64, count=frame.height
    )
    keyed = frame.select(_PLACE).with_columns(pl.Series("hash", hashes))
    found = keyed.group_by(_PLACE).agg(pl.len().alias("rows"), pl.col("hash"))
    # numpy adds modulo 2^64, as ClickHouse does; polars' own sum is not promised to.
    sums = [int(np.sum(hashes.to_numpy(), dtype=np.uint64)) for hashes in found["hash"]]
    return found.select(
        *_PLACE, pl.col("rows").cast(pl.UInt64), pl.Series("checksum", sums, dtype=pl.UInt64)
    )


def _row_text(table: AuditedTable) -> str:
    columns = ", ".join(f"toString(`{name}`)" for name in table.columns)
    return f"concatWithSeparator('\\t', {columns})"


def _differing(
    store: Store,
    table: AuditedTable,
    expected: pl.DataFrame,
    first_offsets: Mapping[int, int],
    reported: Plan,
    day: date | None,
) -> list[tuple[int, int]]:
    """(journal partition, offset) of records whose rows are not in the table as they should be."""
    known = [
        f"(journal_partition = {number} AND journal_offset >= {first} "
        f"AND journal_offset < {reported.journal[number].next_offset})"
        for number, first in sorted(first_offsets.items())
    ]
    if not known:
        return []
    sql = (
        f"SELECT {', '.join(_PLACE)}, count() AS rows, sum(xxh3({_row_text(table)})) AS checksum "
        f"FROM {table.name} WHERE ({' OR '.join(known)})"
        + (" AND posting_day = {day:Date}" if day else "")
        + f" GROUP BY {', '.join(_PLACE)}"
    )
    parameters = {"day": day} if day else {}
    found = pl.DataFrame(pl.from_arrow(store.arrow(sql, parameters)))
    if found.height == 0:
        found = _NO_SUMS
    found = found.select(
        pl.col("posting_day").cast(pl.UInt16).cast(pl.Int32).cast(pl.Date)
        if found.schema["posting_day"] != pl.Date
        else pl.col("posting_day"),
        *(pl.col(name).cast(_SUMS_SCHEMA[name]) for name in list(_SUMS_SCHEMA)[1:]),
    )
    both = pl.concat([expected, found])
    odd = both.group_by(*_PLACE, "rows", "checksum").len().filter(pl.col("len") != 2)
    places = odd.select("journal_partition", "journal_offset").unique().sort(pl.all())
    return [(int(partition), int(offset)) for partition, offset in places.iter_rows()]


async def _row_by_row(
    store: Store, reader: LogReader, walk: _Walk, table: AuditedTable, place: tuple[int, int]
) -> list[Finding]:
    """What exactly differs in one record's rows."""
    partition, offset = place
    names = ", ".join(f"toString(`{name}`) AS `{name}`" for name in table.columns)
    in_table = store.dicts(
        # The inner query, because names there are the columns' and not those of the texts.
        f"SELECT {names} FROM (SELECT * FROM {table.name} "
        "WHERE journal_partition = {p:UInt16} AND journal_offset = {o:Int64})",
        {"p": partition, "o": offset},
    )
    record = await _read_again(reader, partition, offset)
    in_journal: list[dict[str, str]] = []
    if record is not None:
        frame = walk.rows([record])[AUDITED.index(table)]
        in_journal = frame.select(pl.all().cast(pl.String)).to_dicts() if frame.height else []
    about = {"table": table.name, "journal_partition": partition, "journal_offset": offset}
    if record is None:
        return [about | {"what": "rows of a record that the journal does not have"}]
    if in_journal and not in_table:
        return [about | {"what": "a journal record is missing", "rows": len(in_journal)}]
    differences = compare_rows(in_journal, in_table, table.row_key)
    return [about | finding for finding in differences or [{"what": "checksums differ"}]]


def compare_rows(
    in_journal: Sequence[Mapping[str, str]], in_table: Sequence[Mapping[str, str]], key: str
) -> list[Finding]:
    """How the rows of a record in a table differ from those that the journal gives."""
    by_key: dict[str, list[Mapping[str, str]]] = {}
    for row in in_table:
        by_key.setdefault(row[key], []).append(row)
    findings: list[Finding] = []
    for expected in in_journal:
        found = by_key.pop(expected[key], [])
        about = {key: expected[key], "event_id": expected.get("event_id", "")}
        if not found:
            findings.append(about | {"what": "row missing"})
        elif len(found) > 1:
            findings.append(about | {"what": "row more than once", "times": len(found)})
        for row in found[:1]:
            changed = {
                name: f"{value} in the journal, {row[name]} in the table"
                for name, value in expected.items()
                if row[name] != value
            }
            if changed:
                findings.append(about | {"what": "row changed"} | changed)
    findings += [{key: other, "what": "row that no record gives"} for other in by_key]
    return findings


async def _read_again(reader: LogReader, partition: int, offset: int) -> CountedRecord | None:
    """One record of the journal, read for a second time; None where it is not there."""
    await reader.seek({partition: offset})
    while await reader.position(partition) <= offset:
        for record in await reader.fetch(FETCH_WAIT_MS):
            if (record.partition, record.offset) == (partition, offset):
                return CountedRecord.decoded(record)
    return None
