"""Reconciling ten million events: how long it takes, and how much memory."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from aiokafka import AIOKafkaProducer

from pipeline.billing.journal import AccountTerms, Ad, Header, seal
from pipeline.billing.journal_events import ARROW_SCHEMA, EVENT_SCHEMA, encode_events
from pipeline.contract.days import from_iso
from pipeline.contract.vocabulary import (
    CATALOG,
    CHARGED,
    CLICK,
    CLICKS,
    COUNTED,
    CPC,
    IMPRESSION,
    JOURNAL,
    MS_PER_DAY,
)
from pipeline.embedded.kafka import EmbeddedKafka
from pipeline.reporting import schema
from pipeline.reporting.audit import Audit, audit_journal
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.reconcile import Report, reconcile
from pipeline.reporting.reporter import Reporter
from pipeline.streams.log_reader import KafkaLogReader
from pipeline.streams.topics import ensure_topics, topic_specs
from tests.headers import a_header

EVENTS, A_RECORD, ADS = 10_000_000, 20_000, 200
DAY = "2026-03-02"
DAY_MS = from_iso(DAY) * MS_PER_DAY


def journal_records(shard: int) -> Iterator[bytes]:
    """A shard's day: impressions that are counted and clicks that are charged, then its close."""
    ads = [Ad("acc", f"c{n % 20}", f"g{n % 60}", f"p{n}") for n in range(ADS)]
    random = np.random.default_rng(1)
    digest, previous, seq = bytes(32), -1, 0
    for _ in range(EVENTS // A_RECORD):
        events = _events(random, seq)
        header = _header(shard, previous, seq, events.height, ads)
        table = events.to_arrow(compat_level=pl.CompatLevel.oldest())
        [batch] = table.cast(ARROW_SCHEMA).combine_chunks().to_batches()
        sealed, value = seal(header, body := encode_events(batch), digest)
        assert body
        yield value
        digest, previous, seq = sealed.digest, previous + 1, seq + events.height
    yield seal(_header(shard, previous, seq, 0, []), b"", digest)[1]


def _header(shard: int, previous: int, seq: int, events: int, ads: list[Ad]) -> Header:
    return a_header(
        previous,
        shard=shard,
        sources={CLICKS: (seq, seq + events)} if events else {},
        seq=seq,
        events=events,
        now_ms=DAY_MS + MS_PER_DAY,
        log_time_ms=DAY_MS,
        ads=ads,
        accounts={"acc": AccountTerms("USD", "UTC")} if ads else {},
        closed={} if events else {"UTC": DAY},
    )


def _events(random: np.random.Generator, seq: int) -> pl.DataFrame:
    charged = random.random(A_RECORD) < 0.1
    price = random.integers(100_000, 2_000_000, A_RECORD)
    return pl.DataFrame(
        {
            "source": np.ones(A_RECORD, np.uint8),
            "source_offset": np.arange(seq, seq + A_RECORD),
            "disposition": np.where(charged, CHARGED, COUNTED).astype(np.uint8),
            "kind": np.where(charged, CLICK, IMPRESSION).astype(np.uint8),
            "placement": np.ones(A_RECORD, np.uint8),
            "limit": np.zeros(A_RECORD, np.uint8),
            "basis": np.where(charged, CPC, 0).astype(np.uint8),
            "event_id": [f"event-{n:026d}" for n in range(seq, seq + A_RECORD)],
            "event_time_ms": DAY_MS + random.integers(0, MS_PER_DAY, A_RECORD),
            "billing_day": [date.fromisoformat(DAY)] * A_RECORD,
            "posting_day": [date.fromisoformat(DAY)] * A_RECORD,
            "ad": random.integers(0, ADS, A_RECORD).astype(np.uint32),
            "user_hash": [random.bytes(16) for _ in range(A_RECORD)],
            "country": ["US"] * A_RECORD,
            "device": ["phone"] * A_RECORD,
            "price_micros": price,
            "amount_nanos": np.where(charged, price * 1_000, 0),
            "free_nanos": np.zeros(A_RECORD, np.int64),
            "unique_low": np.zeros(A_RECORD, np.uint64),
            "unique_high": np.zeros(A_RECORD, np.uint64),
        },
        schema=EVENT_SCHEMA,
    )


async def publish(bootstrap: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_request_size=64 << 20)
    await producer.start()
    try:
        for value in journal_records(0):
            await producer.send_and_wait(
                JOURNAL, value, partition=0, timestamp_ms=DAY_MS + MS_PER_DAY
            )
    finally:
        await producer.stop()


async def report_all(store: Store, bootstrap: str) -> None:
    journal, catalog = (
        KafkaLogReader(topic, {"bootstrap_servers": bootstrap}) for topic in (JOURNAL, CATALOG)
    )
    reporter = Reporter(store, journal, catalog, 1)
    running = asyncio.ensure_future(reporter.run())
    try:
        while not store.rows("SELECT 1 FROM billing.day_closes"):
            assert not running.done(), running.exception()
            await asyncio.sleep(0.5)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        for reader in (journal, catalog):
            await reader.stop()


async def audit(store: Store, bootstrap: str) -> Audit:
    reader = KafkaLogReader(JOURNAL, {"bootstrap_servers": bootstrap})
    try:
        return await audit_journal(store, reader, 1)
    finally:
        await reader.stop()


def peak_mb() -> int:
    """The most memory of this process since its peak was last cleared."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [peak] = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(peak) // 1024


@pytest.mark.long
@pytest.mark.timeout(1_200)
def test_ten_million_events_are_reconciled_in_two_minutes_and_two_gigabytes(
    kafka: EmbeddedKafka, tmp_path: Path
) -> None:
    options = {"bootstrap_servers": kafka.bootstrap}
    asyncio.run(ensure_topics(options, topic_specs(1, 7, keep_all=True), 1))
    asyncio.run(publish(kafka.bootstrap))
    store = Store(f"chdb://{tmp_path}/clickhouse")
    schema.apply(store)
    asyncio.run(report_all(store, kafka.bootstrap))
    # What the reporter needed is not reconciling's: begin the peak anew.
    Path("/proc/self/clear_refs").write_text("5")
    held_mb = peak_mb()  # by tests before this one, too
    began_s = time.monotonic()
    found: Report = reconcile(store)
    tables_s = time.monotonic() - began_s
    audited = asyncio.run(audit(store, kafka.bootstrap))
    took_s = time.monotonic() - began_s
    print(f"tables {tables_s:.1f} s, journal {took_s - tables_s:.1f} s, {held_mb}-{peak_mb()} MB")
    assert [check for check in found.checks if not check.ok] == []
    assert audited.findings == []
    assert (found.events, audited.records) == (EVENTS, EVENTS // A_RECORD + 1)
    assert took_s < 120
    assert peak_mb() - held_mb < 2_048
