"""A reporter bills every record once, whatever is cut off, frozen or lost, and says what it lacks.

On the embedded engine, with logs in memory that can lose their ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import pyarrow as pa
import pytest

from pipeline.billing.journal import EMPTY_DIGEST, AccountTerms, Ad, decode_header, seal
from pipeline.billing.journal_events import ARROW_SCHEMA, EVENT_SCHEMA, encode_events
from pipeline.contract.log import LogRecord
from pipeline.contract.vocabulary import CATALOG, CHARGED, CLICK, CLICKS, CPC, JOURNAL
from pipeline.reporting import plans, reporter, schema
from pipeline.reporting.clickhouse import Store, StoreUnavailable
from pipeline.reporting.intake import Intake
from pipeline.reporting.plans import SetBackError, TakenOver
from pipeline.reporting.reporter import Reporter
from tests.headers import a_header

DAY = date(2026, 3, 1)
AMOUNT_NANOS = 1_000_000
WINDOW = 5
"""Inserts that a table remembers, here."""


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "DEDUPLICATION_WINDOW", WINDOW)
    monkeypatch.setattr(reporter, "REST_S", 0.02)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(f"chdb://{tmp_path}")
    schema.apply(one)
    yield one
    one.close()


class CutOff(Store):
    """Plans and questions about them reach it, nothing else about a batch while it is `away`."""

    away = True

    def rows(self, sql: str, *parts: Any, **named: Any) -> list[tuple[Any, ...]]:
        # Were it told that another one has inserted its batch, it could be the one to go on.
        if self.away and sql.startswith("SELECT count()"):
            raise StoreUnavailable("cut off")
        return super().rows(sql, *parts, **named)

    def insert(self, table: str, rows: pa.Table, token: str) -> None:
        if self.away and table != plans.TABLE:
            raise StoreUnavailable("cut off")
        super().insert(table, rows, token)


class Frozen(Store):
    """Stops at the answer that a plan is the last, until it is `woken`."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.asleep, self.woken = threading.Event(), threading.Event()

    def rows(self, sql: str, *parts: Any, **named: Any) -> list[tuple[Any, ...]]:
        found = super().rows(sql, *parts, **named)
        if "any(owner)" in sql:
            self.asleep.set()
            self.woken.wait()
        return found


class Deaf(Store):
    """Loses the first answer of each insert, by when its token is forgotten."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.lost: set[str] = set()

    def insert(self, table: str, rows: pa.Table, token: str) -> None:
        again = token in self.lost
        super().insert(table, rows, f"{token}, again" if again else token)
        if table != plans.TABLE and not again:
            self.lost.add(token)
            raise StoreUnavailable("the answer is lost")


class Curious(Store):
    """Counts how often it was asked for the last plan."""

    asked = 0

    def rows(self, sql: str, *parts: Any, **named: Any) -> list[tuple[Any, ...]]:
        self.asked += "any(owner)" in sql
        return super().rows(sql, *parts, **named)


@dataclass(slots=True)
class _Shard:
    last: int = -1
    events: int = 0
    digest: bytes = EMPTY_DIGEST


@dataclass(slots=True)
class Journal:
    """Records of clicks, each charged, in memory."""

    logs: dict[int, list[LogRecord]]
    shards: dict[int, list[_Shard]] = field(default_factory=dict)
    now_ms: int = 0

    @classmethod
    def of(cls, partitions: int) -> Journal:
        return cls({p: [] for p in range(partitions)}, {p: [_Shard()] for p in range(partitions)})

    def append(self, partition: int, events: int, **parts: Any) -> None:
        at = self.shards[partition][-1]
        offset = len(self.logs[partition])
        header = a_header(
            at.last,
            shard=partition,
            sources={CLICKS: (at.events, at.events + events)} if events else {},
            seq=at.events,
            events=events,
            now_ms=self.now_ms,
            ads=[Ad("acc", "c", f"g{partition}", "p")],
            accounts={"acc": AccountTerms("USD", "UTC")},
            **parts,
        )
        body = encode_events(_clicks(at.events, events)) if events else b""
        sealed, value = seal(header, body, at.digest)
        self.logs[partition].append(LogRecord(JOURNAL, partition, offset, 0, None, value))
        self.shards[partition].append(_Shard(offset, at.events + events, sealed.digest))

    def lose(self, partition: int, count: int) -> list[LogRecord]:
        """Take the last records off, and give them back."""
        lost = self.logs[partition][-count:]
        del self.logs[partition][-count:], self.shards[partition][-count:]
        return lost

    def give_back(self, partition: int, lost: list[LogRecord]) -> None:
        for record in lost:
            header, _ = decode_header(record.value or b"")
            state = _Shard(record.offset, header.seq + header.events, header.digest)
            self.logs[partition].append(record)
            self.shards[partition].append(state)

    @property
    def events(self) -> int:
        return sum(states[-1].events for states in self.shards.values())


def _clicks(first: int, count: int) -> pa.RecordBatch:
    columns: dict[str, Any] = dict.fromkeys(EVENT_SCHEMA, [0] * count) | {
        "source": [1] * count,
        "source_offset": list(range(first, first + count)),
        "disposition": [CHARGED] * count,
        "kind": [CLICK] * count,
        "placement": [1] * count,
        "basis": [CPC] * count,
        "event_id": [f"e{number}" for number in range(first, first + count)],
        "billing_day": [DAY] * count,
        "posting_day": [DAY] * count,
        "user_hash": [b"x" * 16] * count,
        "country": ["US"] * count,
        "device": ["phone"] * count,
        "amount_nanos": [AMOUNT_NANOS] * count,
    }
    table = pl.DataFrame(columns, schema=EVENT_SCHEMA).to_arrow(
        compat_level=pl.CompatLevel.oldest()
    )
    [batch] = table.cast(ARROW_SCHEMA).combine_chunks().to_batches()
    return batch


class Reader:
    """A `LogReader` of logs in memory."""

    def __init__(self, logs: Mapping[int, list[LogRecord]]) -> None:
        self._logs = logs
        self._next: dict[int, int] = {}

    async def start(self, positions: Mapping[int, int] | None = None) -> None:
        begin = await self.begin_offsets()
        self._next = {p: (positions or {}).get(p, first) for p, first in begin.items()}

    async def fetch(self, timeout_ms: int) -> list[LogRecord]:
        found = []
        for partition, log in self._logs.items():
            end = log[-1].offset + 1 if log else 0
            if self._next[partition] > end:  # out of range: from the beginning, as aiokafka
                self._next[partition] = 0
            found += [record for record in log if record.offset >= self._next[partition]]
            self._next[partition] = end
        await asyncio.sleep(0 if found else min(timeout_ms, 10) / 1_000)
        return found

    async def begin_offsets(self) -> dict[int, int]:
        return {p: log[0].offset if log else 0 for p, log in self._logs.items()}

    async def end_offsets(self) -> dict[int, int]:
        return {p: log[-1].offset + 1 if log else 0 for p, log in self._logs.items()}

    async def seek(self, positions: Mapping[int, int]) -> None:
        self._next |= positions

    async def position(self, partition: int) -> int:
        return self._next[partition]

    async def stop(self) -> None: ...


S = TypeVar("S", bound=Store)


@contextlib.contextmanager
def opened(kind: type[S], store: Store) -> Iterator[S]:
    """Another connection to the same engine."""
    one = kind(store.dsn)
    try:
        yield one
    finally:
        one.close()


@contextlib.asynccontextmanager
async def reporting(
    store: Store, journal: Journal, catalog: list[LogRecord] | None = None
) -> AsyncIterator[tuple[Reporter, asyncio.Task[None]]]:
    logs = {0: [] if catalog is None else catalog}
    one = Reporter(store, Reader(journal.logs), Reader(logs), len(journal.logs))
    running = asyncio.create_task(one.run())
    try:
        yield one, running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def until(condition: Callable[[], object], *running: asyncio.Task[None]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            for task in running:
                if task.done():
                    task.result()
            await asyncio.sleep(0.01)


async def batches(
    one: Reporter,
    journal: Journal,
    partition: int,
    count: int,
    *running: asyncio.Task[None],
) -> None:
    """Have so many batches of one record written."""
    for _ in range(count):
        journal.append(partition, 1)
        end = journal.logs[partition][-1].offset + 1
        # Not by the count of batches: the first may be of the catalog alone.
        await until(lambda end=end: one.progress.next_offsets[partition] >= end, *running)  # type: ignore[misc]


def billed(store: Store) -> list[tuple[int, int]]:
    """Rows and nanos of the events, and of the charges."""
    tables = ("billing.events", "billing.charges")
    return [
        (int(n), int(nanos))
        for table in tables
        for n, nanos in store.rows(f"SELECT count(), sum(amount_nanos) FROM {table}")
    ]


def judged(journal: Journal) -> list[tuple[int, int]]:
    return [(journal.events, journal.events * AMOUNT_NANOS)] * 2


# -- cut off for longer than ClickHouse remembers ---------------------------------------------


async def test_a_reporter_that_was_cut_off_does_not_bill_its_batch_again(store: Store) -> None:
    journal = Journal.of(1)
    journal.append(0, 10)
    with opened(CutOff, store) as away:
        await cut_off_and_back(store, away, journal)


async def cut_off_and_back(store: Store, away: CutOff, journal: Journal) -> None:
    """A reporter is cut off until another one has done more than ClickHouse remembers."""
    async with reporting(away, journal) as (first, cut_off):
        await until(lambda: first.progress.trouble, cut_off)
        async with reporting(store, journal) as (second, running):
            await until(lambda: second.progress.state == "running", running)
            await batches(second, journal, 0, WINDOW + 1, running)
            away.away = False
            with pytest.raises(TakenOver):
                await asyncio.wait_for(cut_off, 30)
            assert billed(store) == judged(journal)


async def test_a_reporter_that_was_cut_off_at_its_start_does_not_either(store: Store) -> None:
    """It finishes what another one has planned."""
    journal = Journal.of(1)
    journal.append(0, 10)
    with opened(CutOff, store) as away:
        async with reporting(away, journal) as (planner, planning):
            await until(lambda: planner.progress.trouble, planning)
        await cut_off_and_back(store, away, journal)


async def test_a_reporter_that_was_frozen_before_its_insert_does_not_either(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal.of(1)
    journal.append(0, 10)
    with opened(Frozen, store) as frozen:
        async with reporting(frozen, journal) as (_, asleep):
            await until(frozen.asleep.is_set, asleep)
            async with reporting(store, journal) as (second, running):
                await until(lambda: second.progress.state == "running", running)
                await batches(second, journal, 0, WINDOW + 1, running)
                woken_s = plans._now_s() + 2 * reporter.PLAN_SURE_S
                monkeypatch.setattr(plans, "_now_s", lambda: woken_s)
                frozen.woken.set()
                with pytest.raises(TakenOver):
                    await asyncio.wait_for(asleep, 30)
                assert billed(store) == judged(journal)


async def test_an_insert_whose_answer_is_lost_is_not_made_again(store: Store) -> None:
    journal = Journal.of(1)
    journal.append(0, 10)
    with opened(Deaf, store) as deaf:
        async with reporting(deaf, journal) as (one, running):
            await until(lambda: one.progress.batches, running)
            assert billed(store) == judged(journal)
        assert len(deaf.lost) > 2


async def test_a_batch_that_nothing_happens_to_is_confirmed_once(store: Store) -> None:
    journal = Journal.of(1)
    with opened(Curious, store) as curious:
        async with reporting(curious, journal) as (one, running):
            await until(lambda: one.progress.state == "running", running)
            await batches(one, journal, 0, 3)
        assert curious.asked == one.progress.batches


# -- a journal that lost what is reported ------------------------------------------------------


async def reported_then_lost(store: Store, journal: Journal) -> list[LogRecord]:
    """Two partitions are reported; then one loses the last record of the last batch."""
    async with reporting(store, journal) as (one, running):
        await until(lambda: one.progress.state == "running", running)
        await batches(one, journal, 0, 1)
        await batches(one, journal, 1, 2)
    return journal.lose(1, 1)


async def test_a_partition_that_lost_its_end_is_not_set_back(store: Store) -> None:
    """Else its records are billed again when it is whole again."""
    journal = Journal.of(2)
    lost = await reported_then_lost(store, journal)
    async with reporting(store, journal) as (one, running):
        await until(lambda: one.progress.state == "running", running)
        await batches(one, journal, 0, 2)
        assert "ends at offset 1, but was reported up to 2" in one.progress.stopped[1]
    journal.give_back(1, lost)
    async with reporting(store, journal) as (one, running):
        await until(lambda: one.progress.state == "running", running)
        await batches(one, journal, 1, 2)
        assert one.progress.stopped == {}
    assert billed(store) == judged(journal)
    positions = store.rows(
        "SELECT next_offset FROM reporting.reporter_batches "
        "WHERE topic = 'billing.journal' AND log_partition = 1 ORDER BY batch"
    )
    assert positions == sorted(positions)


@pytest.mark.parametrize("when", ["before the reporter is back", "while it is back"])
async def test_what_a_partition_has_instead_of_its_lost_end_is_not_billed(
    store: Store, when: str
) -> None:
    """The worker judged the same events again: they are in the tables."""
    journal = Journal.of(2)
    await reported_then_lost(store, journal)
    journal.now_ms = 1
    if when == "while it is back":
        async with reporting(store, journal) as (one, running):
            await until(lambda: one.progress.state == "running", running)
            await batches(one, journal, 0, 2)
    for _ in range(2):
        journal.append(1, 1)
    async with reporting(store, journal) as (one, running):
        await until(lambda: one.progress.state == "running", running)
        await batches(one, journal, 0, 2)
        assert set(one.progress.stopped) == {1}
    assert store.rows(
        "SELECT count(), countIf(decided_at_ms = 1) FROM billing.events WHERE journal_partition = 1"
    ) == [(2, 0)]


async def test_a_batch_whose_records_retention_has_deleted_holds_nothing_up(store: Store) -> None:
    journal = Journal.of(2)
    await reported_then_lost(store, journal)
    for _ in range(3):
        journal.append(1, 1)
    del journal.logs[1][:3]
    async with reporting(store, journal) as (one, running):
        await until(lambda: one.progress.state == "running", running)
        await batches(one, journal, 0, 1)
        assert set(one.progress.stopped) == {1}


async def test_a_plan_that_sets_a_log_back_is_refused(store: Store) -> None:
    catalog = [LogRecord(CATALOG, 0, offset, 0, b"?", b"{}") for offset in range(3)]
    journal = Journal.of(1)
    async with reporting(store, journal, catalog) as (one, running):
        await until(lambda: one.progress.state == "running", running)
        await batches(one, journal, 0, 1)
        del catalog[1:]
        with pytest.raises(SetBackError, match="the catalog would be set back"):
            await batches(one, journal, 0, 1, running)


# -- a catalog that lost what was used ---------------------------------------------------------


async def test_a_catalog_that_lost_its_end_is_told_and_waited_for(store: Store) -> None:
    catalog = [LogRecord(CATALOG, 0, offset, 0, b"?", b"{}") for offset in range(3)]
    journal = Journal.of(1)
    lost = catalog.pop()
    async with reporting(store, journal, catalog) as (one, running):
        await until(lambda: one.progress.state == "running", running)
        journal.append(0, 1, catalog_end=3)
        await until(lambda: one.progress.trouble, running)
        assert "the catalog ends at offset 2, but was used up to 3" in one.progress.trouble
        assert billed(store)[0] == (0, 0)
        catalog.append(lost)
        await until(lambda: one.progress.events, running)
        assert one.progress.trouble == ""
    catalog.pop()
    async with reporting(store, journal, catalog) as (one, running):
        await until(lambda: one.progress.trouble, running)
        assert "used up to 3" in one.standing().trouble


# -- a gap in the journal ----------------------------------------------------------------------


def losing(offset: int, previous: int) -> LogRecord:
    """The append of an owner that has lost its shard."""
    _, value = seal(a_header(previous), b"", EMPTY_DIGEST)
    return LogRecord(JOURNAL, 0, offset, 0, None, value)


def test_a_gap_that_a_losing_record_ends_stops_the_partition() -> None:
    """Else all after it is passed over as if it had lost as well."""
    journal = Journal.of(1)
    for _ in range(6):
        journal.append(0, 1)
    records = journal.logs[0]
    intake = Intake(plans.origin(1))
    intake.take([*records[:2], losing(4, previous=0), records[5]])
    assert "offset 5 behind record 4, which was deleted" in intake.stopped[0]
    assert "(reported up to 2)" in intake.stopped[0]


def test_what_has_lost_is_passed_over() -> None:
    journal = Journal.of(1)
    journal.append(0, 1)
    journal.append(0, 1)
    intake = Intake(plans.origin(1))
    late = [losing(2, previous=0), losing(3, previous=-1)]
    journal.logs[0] += late
    journal.append(0, 1)
    intake.take(journal.logs[0])
    assert intake.stopped == {}
    assert [record.offset for record in intake.cut(0, 9, 0).records] == [0, 1, 4]
