"""The reporter: the journal and the catalog, batch by batch, into ClickHouse.

A batch is claimed by a plan before its rows are inserted, and each insert holds one table's rows
of one day, atomically, under a token made of the batch's number (see `plans`). A reporter that
starts writes the last planned batch again; inserts that had happened are recognised by their rows.
So are those of an insert that is tried again, once its plan is known to be the last one still:
ClickHouse remembers tokens for some time only, and a reporter may be cut off for longer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from typing import Any, Final, TypeVar

import polars as pl
import pyarrow as pa

from pipeline import failpoints
from pipeline.contract.catalog import Accepted, Catalog, Change
from pipeline.contract.days import Calendar
from pipeline.contract.log import LogReader, LogRecord, LogUnavailable
from pipeline.reporting import closes, statements
from pipeline.reporting.clickhouse import Store, insistently
from pipeline.reporting.credits import (
    Books,
    charged_in_batch,
    charged_in_tables,
    credit_charges,
    credit_rows,
)
from pipeline.reporting.daybook import DayBook, DueClose
from pipeline.reporting.intake import Cut, Intake, ahead_of_journal, not_after
from pipeline.reporting.metrics import ReporterMetrics, Standing
from pipeline.reporting.plans import Plan, PlanBook
from pipeline.reporting.rows import (
    by_day,
    charge_rows,
    charges_per_record,
    event_rows,
    first_posting_days,
    in_table_order,
    pacing_rows,
    signal_rows,
    to_arrow,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

EVENTS_A_BATCH: Final = 400_000
EVENTS_WAITING: Final = 1_000_000
"""Bound of what is read and not written: beyond it the journal holds the backlog."""
EVENTS_WORTH_A_BATCH: Final = 50_000
REST_S: Final = 0.4
"""Between two batches of fewer events: how late the tables are, against how many inserts."""
FETCH_WAIT_MS: Final = 200
QUIET_S: Final = 5.0
"""After so long without a record the log is asked whether it is there."""
AWAY_PAUSE_S: Final = 0.5
PLAN_SURE_S: Final = 10.0
"""For so long a plan that was the last is taken to be: nobody can make `DEDUPLICATION_WINDOW`
inserts meanwhile."""

CHANGE_SCHEMA: Final[dict[str, pl.DataType]] = {
    "entity": pl.String(),
    "field": pl.String(),
    "old": pl.String(),
    "new": pl.String(),
    "changed_by": pl.String(),
    "effective_ms": pl.Int64(),
    "catalog_offset": pl.Int64(),
    "change_number": pl.UInt32(),
}


@dataclass(frozen=True, slots=True)
class _Insert:
    """One atomic insert: rows of one table in one partition of it."""

    table: str
    part: str
    rows: pa.Table
    first_record: str
    """A condition that the rows of one journal record meet, the first row's, and those of no other
    insert."""


@dataclass(slots=True)
class Progress:
    """What the health page may know."""

    state: str = "starting"
    trouble: str = ""
    batches: int = 0
    events: int = 0
    next_offsets: dict[int, int] = field(default_factory=dict)
    stopped: dict[int, str] = field(default_factory=dict)
    refused_closes: dict[str, str] = field(default_factory=dict)
    last_batch_monotonic_s: float = 0.0
    last_pass_monotonic_s: float = field(default_factory=time.monotonic)
    last_closed_day: date | None = None


class CatalogIntake:
    """The catalog's changes that are not written yet."""

    def __init__(self) -> None:
        self._catalog = Catalog()
        self._changes: list[Change] = []
        self.next_offset = 0

    def calendar_of(self, account_id: str) -> Calendar | None:
        """An account's billing days, as far as the catalog has been read."""
        return self._catalog.calendar_of(account_id)

    def take(self, records: Sequence[LogRecord]) -> None:
        """Take catalog records in, from the first retained one on."""
        for record in records:
            result = self._catalog.apply(record)
            if isinstance(result, Accepted):
                self._changes += result.changes
            self.next_offset = record.offset + 1

    def cut(self, start: int, end: int) -> pl.DataFrame:
        """The changes of records from `start` up to `end`, as rows; forgets all before `end`."""
        rows = []
        numbers: dict[int, int] = {}
        for change in self._changes:
            if start <= change.offset < end:
                number = numbers[change.offset] = numbers.get(change.offset, -1) + 1
                rows.append(
                    (
                        change.entity,
                        change.field,
                        change.old,
                        change.new,
                        change.changed_by,
                        change.effective_ms,
                        change.offset,
                        number,
                    )
                )
        self._changes = [change for change in self._changes if change.offset >= end]
        return pl.DataFrame(rows, schema=CHANGE_SCHEMA, orient="row")


class Reporter:
    """Reads the logs and writes the tables; one of it runs on a ClickHouse."""

    def __init__(
        self,
        store: Store,
        journal: LogReader,
        catalog: LogReader,
        partitions: int,
        metrics: ReporterMetrics | None = None,
    ) -> None:
        self._store = store
        self._metrics = metrics or ReporterMetrics()
        self._journal = journal
        self._catalog = catalog
        self._partitions = partitions
        owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._plans = PlanBook(store, partitions, owner)
        self._changes = CatalogIntake()
        self._book = DayBook(partitions)
        self._intake: Intake
        self._last: Plan
        self._last_fetched_s = 0.0
        self._standing: Plan | None = None
        """The last plan, as far as this reporter knows: the one that it found, then its own."""
        self.progress = Progress()

    async def run(self) -> None:
        """Report for ever. Raises `TakenOver` where another reporter writes."""
        complete, planned = await self._insist(self._plans.last_two)
        self._standing = planned
        self._book = await self._insist(lambda: DayBook.load(self._store, self._partitions))
        starts = {partition: at.next_offset for partition, at in complete.journal.items()}
        await self._when_there(self._catalog.start)
        end = (await self._when_there(self._catalog.end_offsets))[0]
        while await self._catalog.position(0) < end:
            self._changes.take(await self._catalog.fetch(FETCH_WAIT_MS))
        await self._when_there(lambda: self._journal.start(starts))
        self._intake = Intake(complete)
        ends = await self._when_there(self._journal.end_offsets)
        ahead = ahead_of_journal(planned or complete, ends)
        for partition, reason in ahead.items():
            self._intake.stop(partition, reason)
        self._last = complete
        if planned is not None:
            await self._finish(complete, planned)
        self._note_reached(self._last)
        await self._insist(lambda: statements.state_months(self._store, self._book, self._confirm))
        self.progress.state = "running"
        while True:
            self.progress.last_pass_monotonic_s = time.monotonic()
            await self._read()
            await self._write_what_came()

    async def lag(self) -> dict[int, int]:
        """Journal records not written yet, by partition."""
        ends = await self._journal.end_offsets()
        return {p: end - self._last.journal[p].next_offset for p, end in ends.items()}

    async def journal_ends(self) -> dict[int, int]:
        """Journal partition -> the offset after its last record."""
        if self.progress.state != "running":
            return {}
        return await self._journal.end_offsets()

    def standing(self) -> Standing:
        """Where the reporter stands now, for its pages."""
        now = self.progress
        open_days = (account.first_open_day for account in self._book.accounts.values())
        return Standing(
            state=now.state,
            trouble=now.trouble,
            events=now.events,
            batches=now.batches,
            stopped=now.stopped,
            refused_closes=now.refused_closes,
            next_offsets=now.next_offsets,
            last_closed_day=now.last_closed_day,
            oldest_open_day=min(open_days, default=None),
            quiet_s=time.monotonic() - now.last_pass_monotonic_s,
        )

    def _note_reached(self, plan: Plan) -> None:
        now = self.progress
        now.next_offsets = {p: at.next_offset for p, at in plan.journal.items()}
        closed = [a.closed_through for a in self._book.accounts.values() if a.closed_through]
        now.last_closed_day = max(closed, default=None)

    async def _insist(self, call: Callable[[], T]) -> T:
        return await insistently(call, self._note_trouble)

    async def _when_there(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What the log says, when it can be reached; until then why not is on the health page."""
        while True:
            try:
                answer = await ask()
            except LogUnavailable as error:
                if self.progress.trouble != str(error):
                    log.warning("%s; waiting", error)
                self._note_trouble(str(error))
                await asyncio.sleep(AWAY_PAUSE_S)
            else:
                self._note_trouble("")
                return answer

    def _note_trouble(self, text: str) -> None:
        self.progress.trouble = text

    # -- reading ------------------------------------------------------------------------------

    async def _finish(self, complete: Plan, planned: Plan) -> None:
        """Write the last planned batch again: it may have been cut off anywhere."""
        ends = {partition: at.next_offset for partition, at in planned.journal.items()}
        while await self._is_short_of(ends):
            records = await self._journal.fetch(FETCH_WAIT_MS)
            self._intake.take(not_after(records, planned))
        await self._read_catalog_to(planned.catalog_next)
        cut = self._intake.cut(planned.batch, EVENTS_WAITING * 1_000, planned.catalog_next)
        self._intake.resume_at(planned)
        changes = self._changes.cut(complete.catalog_next, planned.catalog_next)
        inserts = await self._rows(cut, changes)
        await self._insert(planned, inserts, again=True)
        self._last = planned
        await self._insist(self._close_days)
        # What was fetched beyond the plan was passed over.
        await self._journal.seek(ends)

    async def _is_short_of(self, ends: Mapping[int, int]) -> bool:
        """Whether some journal partition that can be reported is not read up to here yet."""
        # Not by what was taken in: what retention has deleted will not come.
        return any(
            [
                await self._journal.position(partition) < end
                for partition, end in ends.items()
                if partition not in self._intake.stopped
            ]
        )

    async def _read(self) -> None:
        """Take in what there is, within the bound."""
        waiting = self._intake.events
        wait_ms = 0 if waiting else FETCH_WAIT_MS
        if waiting < EVENTS_WAITING:
            await self._fetch_journal(wait_ms)
        self._changes.take(await self._catalog.fetch(0))
        # A close must not be read without the changes of time zone that the shards knew of.
        await self._read_catalog_to(self._intake.catalog_end)
        self.progress.stopped = dict(self._intake.stopped)

    async def _fetch_journal(self, wait_ms: int) -> None:
        records = await self._journal.fetch(wait_ms)
        self._intake.take(records)
        if records:
            self._last_fetched_s = time.monotonic()
        elif time.monotonic() - self._last_fetched_s > QUIET_S:
            # Nothing new, or nobody there? A fetch does not tell.
            await self._when_there(self._journal.end_offsets)
            self._last_fetched_s = time.monotonic()

    async def _read_catalog_to(self, offset: int) -> None:
        """Take in the catalog up to this offset, which was there once; if it is not, say so."""
        while self._changes.next_offset < offset:
            records = await self._catalog.fetch(FETCH_WAIT_MS)
            self._changes.take(records)
            if not records:
                await self._when_there(partial(self._ask_for_catalog, offset))

    async def _ask_for_catalog(self, offset: int) -> None:
        """Raises `LogUnavailable` where the catalog ends before this offset."""
        end = (await self._catalog.end_offsets())[0]
        if end < offset:
            raise LogUnavailable(
                f"the catalog ends at offset {end}, but was used up to {offset}: this is another "
                "catalog, or it has lost records. Connect to the Kafka that the journal was "
                "written on, or restore it"
            )

    # -- writing ------------------------------------------------------------------------------

    async def _write_what_came(self) -> None:
        rested_s = time.monotonic() - self.progress.last_batch_monotonic_s
        if self._intake.events < EVENTS_WORTH_A_BATCH and rested_s < REST_S:
            return
        cut = self._intake.cut(self._last.batch + 1, EVENTS_A_BATCH, self._changes.next_offset)
        if cut.plan.same_ends(self._last):
            return
        cut.plan.check_follows(self._last)
        changes = self._changes.cut(self._last.catalog_next, cut.plan.catalog_next)
        inserts = await self._rows(cut, changes)
        await self._insist(lambda: self._plans.write(cut.plan))
        failpoints.reach("plan_stored")
        self._standing = cut.plan
        await self._insert(cut.plan, inserts)
        self._last = cut.plan
        await self._insist(self._close_days)
        self.progress.batches += 1
        self.progress.events += sum(record.header.events for record in cut.records)
        self._note_reached(cut.plan)
        self.progress.last_batch_monotonic_s = time.monotonic()

    async def _rows(self, cut: Cut, changes: pl.DataFrame) -> list[_Insert]:
        books = await self._insist(partial(charged_in_tables, self._store, cut.records))
        return await asyncio.to_thread(self._inserts_of, cut, changes, books)

    def _inserts_of(self, cut: Cut, changes: pl.DataFrame, books: Books) -> list[_Insert]:
        """A batch's rows; notes its accounts and closes in the day book."""
        events = event_rows(cut.records)
        charges = charge_rows(cut.records, events)
        credits = credit_rows(
            cut.records,
            charges_per_record(charges),
            {**books, **charged_in_batch(events, cut.records)},
        )
        for row in credits.filter(pl.col("refused") != "").iter_rows(named=True):
            log.error("the credit of event %s is refused: %s", row["event_id"], row["refused"])
        accounts, shard_closes = self._book.note(cut.records, first_posting_days(events))
        return [
            *_daily_inserts("billing.events", in_table_order(events, cut.records), "posting_day"),
            *_daily_inserts(
                "billing.charges", pl.concat([charges, credit_charges(credits)]), "posting_day"
            ),
            *_daily_inserts("billing.credits", credits, "posting_day"),
            *_daily_inserts("reporting.signals", signal_rows(cut.records), "billing_day"),
            *_daily_inserts("reporting.pacing", pacing_rows(cut.records), "billing_day"),
            *_whole_insert("reporting.changes", changes, "catalog_offset"),
            *_whole_insert("reporting.accounts", accounts, "journal_offset"),
            *_whole_insert("reporting.shard_closes", shard_closes, "journal_offset"),
        ]

    async def _insert(self, plan: Plan, inserts: Sequence[_Insert], *, again: bool = False) -> None:
        """Insert a batch's rows. `again`: some may be there, and are recognised by their rows."""
        for insert in inserts:
            token = f"{plan.batch}:{insert.table}:{insert.part}"
            with self._metrics.insert_s.labels(insert.table).time():
                await self._insist(self._attempt(insert, token, again=again))

    def _attempt(self, insert: _Insert, token: str, *, again: bool) -> Callable[[], None]:
        """A call that makes an insert once, however often it is called."""
        may_be_in = again

        def attempt() -> None:
            nonlocal may_be_in
            self._confirm(within_s=0.0 if may_be_in else PLAN_SURE_S)
            if may_be_in and self._is_in(insert):
                return
            may_be_in = True
            self._store.insert(insert.table, insert.rows, token)

        return attempt

    def _is_in(self, insert: _Insert) -> bool:
        sql = f"SELECT count() FROM {insert.table} WHERE {insert.first_record}"
        return bool(self._store.rows(sql)[0][0])

    def _close_days(self) -> None:
        """Close what all shards have closed; an account that is refused keeps its day open."""
        due = self._book.due(self._changes.calendar_of)
        if due:
            self._close(due)
            statements.state_months(self._store, self._book, self._confirm)

    def _close(self, due: list[DueClose]) -> None:
        currencies = {name: account.currency for name, account in self._book.accounts.items()}
        refused: dict[str, str] = {}
        for one in due:
            open_ids = [name for name in one.account_ids if name not in refused]
            narrowed = type(one)(one.day, open_ids, one.closed_at_ms)
            newly = closes.close_day(self._store, narrowed, currencies, self._confirm)
            refused |= newly
            self._book.note_closed([name for name in open_ids if name not in newly], one.day)
        if not refused:
            self._book.settle()
        elif refused != self.progress.refused_closes:
            for reason in refused.values():
                log.error("a day stays open: %s", reason)
        self.progress.refused_closes = refused

    def _confirm(self, *, within_s: float = 0.0) -> None:
        """Raises `TakenOver` where another reporter has gone on."""
        if self._standing is not None:
            self._plans.confirm(self._standing, within_s=within_s)


def _daily_inserts(table: str, frame: pl.DataFrame, day_column: str) -> list[_Insert]:
    inserts = []
    for day, rows in by_day(frame, day_column):
        first = _first(rows, ("journal_partition", "journal_offset"))
        condition = f"{day_column} = '{day.isoformat()}' AND {first}"
        inserts.append(_Insert(table, day.isoformat(), rows, condition))
    return inserts


def _whole_insert(table: str, frame: pl.DataFrame, offset_column: str) -> list[_Insert]:
    if frame.height == 0:
        return []
    rows = to_arrow(frame)
    names: tuple[str, ...] = (offset_column,)
    if "journal_partition" in frame.columns:
        names = ("journal_partition", offset_column)
    return [_Insert(table, "all", rows, _first(rows, names))]


def _first(rows: pa.Table, names: tuple[str, ...]) -> str:
    """A condition on integer columns that holds for the first row's journal record only."""
    values: dict[str, Any] = {name: int(rows[name][0].as_py()) for name in names}
    return " AND ".join(f"{name} = {value}" for name, value in values.items())


async def report(reporter: Reporter, stop: asyncio.Event) -> None:
    """Run a reporter until told to stop; a batch in hand is left for the next start."""
    running = asyncio.ensure_future(reporter.run())
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    running.cancel()
    stopping.cancel()
    await asyncio.gather(running, stopping, return_exceptions=True)
