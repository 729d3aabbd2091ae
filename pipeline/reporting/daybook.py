"""Which account days are open and which are due to be closed.

A shard closes the days of a time zone; an account's day is due once every shard has closed the
zone day that it ends with (`pipeline.contract.days`; the states are `pipeline.billing.daylife`'s).
The book is kept in two small tables (reporting.accounts and reporting.shard_closes), rows derived
from the journal like all others, and in billing.day_closes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Final

import polars as pl

from pipeline.billing.daylife import ACCOUNT_DAY, DayEvent, DayState, account_state, step
from pipeline.contract.days import Calendar, calendar
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.rows import FIRST_DATE, CountedRecord, to_date

ACCOUNT_SCHEMA: Final[dict[str, pl.DataType]] = {
    "account_id": pl.String(),
    "currency": pl.String(),
    "time_zone": pl.String(),
    "first_day": pl.Date(),
    "seen_at_ms": pl.Int64(),
    "journal_partition": pl.UInt16(),
    "journal_offset": pl.Int64(),
}

SHARD_CLOSE_SCHEMA: Final[dict[str, pl.DataType]] = {
    "time_zone": pl.String(),
    "closed_through": pl.Date(),
    "closed_at_ms": pl.Int64(),
    "journal_partition": pl.UInt16(),
    "journal_offset": pl.Int64(),
}

ONE_DAY: Final = timedelta(days=1)

CalendarOf = Callable[[str], Calendar | None]
"""An account's billing days by the catalog; None where that does not know it."""


@dataclass(slots=True)
class Account:
    """An account's terms, and how far its days are closed."""

    currency: str
    time_zone: str
    first_day: date
    closed_through: date | None = None

    stated_through: date | None = None
    """First day of the last month whose statement is written."""

    @property
    def first_open_day(self) -> date:
        return self.first_day if self.closed_through is None else self.closed_through + ONE_DAY

    def close(self, day: date, what: str) -> None:
        """Its next day is in billing.day_closes. Raises `IllegalTransitionError` for any other."""
        state = DayState.CLOSING if day == self.first_open_day else DayState.OPEN
        if self.closed_through is not None and day <= self.closed_through:
            state = DayState.CLOSED
        step(ACCOUNT_DAY, state, DayEvent.BALANCED, f"{what}: {day}")
        self.closed_through = day


@dataclass(frozen=True, slots=True)
class DueClose:
    """One day to be closed for some accounts, for all of which it ends at one time."""

    day: date
    account_ids: list[str]
    """Sorted."""
    closed_at_ms: int
    """Largest `now` of the records by which the shards closed the day."""


@dataclass(slots=True)
class DayBook:
    """Accounts and the shards' closes, as far as the batches written so far say."""

    partitions: int
    accounts: dict[str, Account] = field(default_factory=dict)
    closes: dict[str, dict[int, list[tuple[date, int]]]] = field(default_factory=dict)
    """Time zone -> shard -> (closed through, at ms), ascending; those still needed."""
    settled: dict[str, date] = field(default_factory=dict)
    """Time zone -> the day up to which all accounts' days are in billing.day_closes."""

    @classmethod
    def load(cls, store: Store, partitions: int) -> DayBook:
        """The book as the tables have it."""
        book = cls(partitions)
        for account_id, currency, zone, first_day in store.rows(
            "SELECT account_id, argMax(currency, seen), argMax(time_zone, seen), min(first_day) "
            "FROM (SELECT *, (seen_at_ms, journal_partition, journal_offset) AS seen "
            "FROM reporting.accounts) GROUP BY account_id"
        ):
            book.accounts[account_id] = Account(currency, zone, first_day)
        for account_id, closed_through in store.rows(
            "SELECT account_id, max(billing_day) FROM billing.day_closes GROUP BY account_id"
        ):
            if account_id in book.accounts:
                book.accounts[account_id].closed_through = closed_through
        for account_id, month in store.rows(
            "SELECT account_id, max(month) FROM billing.statements GROUP BY account_id"
        ):
            if account_id in book.accounts:
                book.accounts[account_id].stated_through = month
        oldest = min((a.first_open_day for a in book.accounts.values()), default=FIRST_DATE)
        for zone, shard, closed_through, at_ms in store.rows(
            "SELECT time_zone, journal_partition, closed_through, closed_at_ms "
            "FROM reporting.shard_closes WHERE closed_through >= {oldest:Date} "
            "OR (time_zone, journal_partition, closed_through) IN ("
            "SELECT time_zone, journal_partition, max(closed_through) "
            "FROM reporting.shard_closes GROUP BY time_zone, journal_partition) "
            "ORDER BY time_zone, journal_partition, closed_through",
            {"oldest": oldest},
        ):
            book.closes.setdefault(zone, {}).setdefault(shard, []).append((closed_through, at_ms))
        return book

    def note(
        self, records: Sequence[CountedRecord], first_days: Mapping[str, date]
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Take over a batch's records; `first_days`: account -> its earliest posting day in them.

        Returns what was new, as rows of reporting.accounts and of reporting.shard_closes.
        """
        accounts: list[tuple[object, ...]] = []
        closes: list[tuple[object, ...]] = []
        for record in records:
            accounts += self._note_terms(record, first_days)
            closes += self._note_closes(record)
        return (
            pl.DataFrame(accounts, schema=ACCOUNT_SCHEMA, orient="row"),
            pl.DataFrame(closes, schema=SHARD_CLOSE_SCHEMA, orient="row"),
        )

    def note_closed(self, account_ids: Sequence[str], day: date) -> None:
        """These accounts' day is in billing.day_closes."""
        for account_id in account_ids:
            if account_id in self.accounts:
                self.accounts[account_id].close(day, f"account {account_id}")

    def state_of(self, account_id: str, day: date, calendar_of: CalendarOf) -> DayState:
        """Where an account's day is in its life."""
        account = self.accounts[account_id]
        zone, number = self._days_of(account_id, calendar_of).mark(_number(day))
        shards = sum(closes[-1][0] >= _day(number) for closes in self.closes.get(zone, {}).values())
        through = account.closed_through
        return account_state(shards, is_closed=through is not None and day <= through)

    def due(self, calendar_of: CalendarOf = lambda account_id: None) -> list[DueClose]:
        """Account days that all shards have closed and billing.day_closes lacks, oldest first."""
        reached = {}
        for zone in self.closes:
            last = self._closed_by_all(zone)
            if last is not None:
                reached[zone] = last
        if all(last <= self.settled.get(zone, FIRST_DATE) for zone, last in reached.items()):
            return []
        closed = {zone: _number(last) for zone, last in reached.items()}
        by_mark: dict[tuple[date, str, int], list[str]] = {}
        for account_id, account in self.accounts.items():
            days = self._days_of(account_id, calendar_of)
            last = _day(days.closed_through(closed))
            day = account.first_open_day
            while day <= last:
                by_mark.setdefault((day, *days.mark(_number(day))), []).append(account_id)
                day += ONE_DAY
        return [
            DueClose(day, sorted(ids), self._closed_at_ms(zone, _day(number)))
            for (day, zone, number), ids in sorted(by_mark.items())
        ]

    def _days_of(self, account_id: str, calendar_of: CalendarOf) -> Calendar:
        return calendar_of(account_id) or calendar(self.accounts[account_id].time_zone)

    def months_due(self) -> list[tuple[date, list[str]]]:
        """(first day of a month, accounts sorted) closed to its end and not stated, in order."""
        by_month: dict[date, list[str]] = {}
        for account_id, account in self.accounts.items():
            stated = account.stated_through
            month = account.first_day.replace(day=1) if stated is None else next_month(stated)
            while account.closed_through and next_month(month) <= account.closed_through + ONE_DAY:
                by_month.setdefault(month, []).append(account_id)
                month = next_month(month)
        return [(month, sorted(account_ids)) for month, account_ids in sorted(by_month.items())]

    def settle(self) -> None:
        """Everything that was due is closed: forget what only that needed."""
        for zone, by_shard in self.closes.items():
            last = self._closed_by_all(zone)
            if last is None:
                continue
            self.settled[zone] = last
            for shard, closes in by_shard.items():
                by_shard[shard] = [close for close in closes if close[0] >= last]

    def _note_terms(
        self, record: CountedRecord, first_days: Mapping[str, date]
    ) -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = []
        for account_id, terms in record.header.accounts.items():
            known = self.accounts.get(account_id)
            first_day = first_days.get(account_id)
            if known is None:
                if first_day is None:
                    continue  # Nothing of its own yet: its days begin with its first event.
                known = Account(terms.currency, terms.time_zone, first_day)
                self.accounts[account_id] = known
            elif (terms.currency, terms.time_zone) == (known.currency, known.time_zone) and (
                first_day is None or first_day >= known.first_day
            ):
                continue
            known.currency, known.time_zone = terms.currency, terms.time_zone
            known.first_day = min(known.first_day, first_day or known.first_day)
            rows.append(
                (
                    account_id,
                    known.currency,
                    known.time_zone,
                    known.first_day,
                    record.header.now_ms,
                    record.partition,
                    record.offset,
                )
            )
        return rows

    def _note_closes(self, record: CountedRecord) -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = []
        for zone, iso_day in record.header.closed.items():
            day = to_date(iso_day)
            known = self.closes.setdefault(zone, {}).setdefault(record.partition, [])
            if known and day <= known[-1][0]:
                continue
            known.append((day, record.header.now_ms))
            rows.append((zone, day, record.header.now_ms, record.partition, record.offset))
        return rows

    def _closed_by_all(self, zone: str) -> date | None:
        """The last day that all shards have closed in a zone."""
        by_shard = self.closes[zone]
        if len(by_shard) < self.partitions:
            return None
        return min(closes[-1][0] for closes in by_shard.values())

    def _closed_at_ms(self, zone: str, day: date) -> int:
        return max(
            next(at_ms for through, at_ms in closes if through >= day)
            for closes in self.closes[zone].values()
        )


def next_month(month: date) -> date:
    """The first day of the month after this day's."""
    return (month.replace(day=1) + timedelta(days=32)).replace(day=1)


def _number(day: date) -> int:
    return (day - FIRST_DATE).days


def _day(number: int) -> date:
    return FIRST_DATE + timedelta(days=number)
