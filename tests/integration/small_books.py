"""The real engine and the real reporter over logs in memory: a month of books in seconds."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from pipeline.billing.batch import Assembler
from pipeline.billing.journal import seal
from pipeline.contract.catalog import Accepted
from pipeline.contract.catalog_entities import to_record
from pipeline.contract.log import LogRecord
from pipeline.contract.partitioning import partition_of
from pipeline.reporting import schema
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.corrections import Selection, find_charged
from pipeline.reporting.reconcile import reconcile
from pipeline.reporting.reporter import Reporter
from pipeline.streams.writer import prepare
from tests.auditor import SourceRecord
from tests.property.worlds import PARTITIONS, TO_THE_END, chunks_of, make_engine

TOPICS = {"impression": "ads.impressions", "click": "ads.clicks"}


def at(day: int, hour: int = 12) -> int:
    """An hour of March 2026, UTC, in ms; day 0 is the last of February."""
    first = datetime(2026, 3, 1, tzinfo=UTC)
    return int((first + timedelta(days=day - 1, hours=hour)).timestamp() * 1_000)


class MemoryLog:
    """A topic, and a reader of it."""

    def __init__(self, partitions: int) -> None:
        self.records: dict[int, list[LogRecord]] = {p: [] for p in range(partitions)}
        self._positions: dict[int, int] = dict.fromkeys(self.records, 0)

    async def start(self, positions: Mapping[int, int] | None = None) -> None:
        self._positions = dict.fromkeys(self.records, 0) | dict(positions or {})

    async def fetch(self, timeout_ms: int) -> list[LogRecord]:
        found = []
        for partition, records in self.records.items():
            found += records[self._positions[partition] :]
            self._positions[partition] = len(records)
        if not found:
            await asyncio.sleep(0.001)
        return found

    async def begin_offsets(self) -> dict[int, int]:
        return dict.fromkeys(self.records, 0)

    async def end_offsets(self) -> dict[int, int]:
        return {partition: len(records) for partition, records in self.records.items()}

    async def seek(self, positions: Mapping[int, int]) -> None:
        self._positions.update(positions)

    async def position(self, partition: int) -> int:
        return self._positions[partition]

    async def stop(self) -> None: ...


class SmallBooks:
    """A product without Kafka. An account `x` has campaign `x-c`, ad group `x-g` and pin `x-p`."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(f"chdb://{directory}/clickhouse")
        schema.apply(self.store)
        self.journal = MemoryLog(PARTITIONS)
        self._catalog = MemoryLog(1)
        self._engine = make_engine()
        self._ends: dict[tuple[str, int], int] = defaultdict(int)
        self._last = {shard: (-1, 0, bytes(32)) for shard in range(PARTITIONS)}
        self._events = 0

    def publish(self, key: str, entity: dict[str, Any] | None, at_ms: int) -> None:
        """A catalog record, which must be valid."""
        value = None if entity is None else json.dumps(entity).encode()
        self._take(key.encode(), value, at_ms)

    def _take(self, key: bytes, value: bytes | None, at_ms: int) -> None:
        records = self._catalog.records[0]
        records.append(LogRecord("ads.catalog", 0, len(records), at_ms, key, value))
        assert isinstance(self._engine.apply_catalog(records[-1], at_ms), Accepted)

    def open(
        self,
        name: str,
        objective: str,
        campaign: dict[str, Any] | None = None,
        group: dict[str, Any] | None = None,
    ) -> None:
        """An account with one ad, from the end of February on."""
        names = {"account_id": name, "campaign_id": f"{name}-c", "ad_group_id": f"{name}-g"}
        for entity, fields in (
            ("account", {"country": "US", "currency": "USD"}),
            ("campaign", {"account_id": name, "objective": objective} | (campaign or {})),
            (
                "ad_group",
                {"campaign_id": f"{name}-c", "budget_type": "daily", "budget_micros": 10**15}
                | {"bid_micros": 10**10, "start_ms": 0}
                | (group or {}),
            ),
        ):
            own = {f"{entity}_id": names[f"{entity}_id"]}
            self.publish(f"{entity}:{own[f'{entity}_id']}", own | fields, at(0))
        pin = {"promoted_pin_id": f"{name}-p", "ad_group_id": f"{name}-g", "review": "approved"}
        self.publish(f"promoted_pin:{name}-p", pin, at(0))

    def event(
        self,
        name: str,
        kind: str,
        at_ms: int,
        price_micros: int = 1_000_000,
        *,
        recorded_ms: int | None = None,
        event_id: str = "",
    ) -> SourceRecord:
        """An event of an account's ad."""
        self._events += 1
        topic = TOPICS.get(kind, "ads.engagements")
        value = {
            "event_id": event_id or f"e{self._events}",
            "event_time_ms": at_ms,
            "campaign_id": f"{name}-c",
            "ad_group_id": f"{name}-g",
            "promoted_pin_id": f"{name}-p",
            "user_id": f"u{self._events}",
            "impression_id": f"i{self._events}",
            "price_micros": price_micros,
            "placement": "browse",
            "kind": kind,
        }
        shard = partition_of(f"{name}-c", PARTITIONS)
        offset = self._ends[topic, shard]
        self._ends[topic, shard] += 1
        key = f"{name}-c".encode()
        stamp = at_ms if recorded_ms is None else recorded_ms
        return SourceRecord(topic, shard, offset, stamp, key, json.dumps(value).encode())

    def judge(self, now_ms: int, *events: SourceRecord) -> None:
        """One turn of the engine, into the journal."""
        chunks = chunks_of(list(events))
        turn = self._engine.turn(Assembler().assemble(chunks), now_ms, TO_THE_END)
        for entry in prepare(self._engine, turn):
            records = self.journal.records[entry.shard]
            previous, seq, digest = self._last[entry.shard]
            header = msgspec.structs.replace(entry.header, previous=previous, seq=seq)
            sealed, value = seal(header, entry.body, digest)
            offset = len(records)
            records.append(LogRecord("billing.journal", entry.shard, offset, now_ms, None, value))
            self._last[entry.shard] = (offset, seq + sealed.events, sealed.digest)

    def credit(self, event_id: str, at_ms: int) -> None:
        """Give an event's money back; it must have been reported."""
        [charged] = find_charged(self.store, Selection(event_ids=[event_id]))
        self._take(*to_record(charged.credit("invalid traffic", "ana")), at_ms)
        self.judge(at_ms)

    def report(self) -> None:
        """Bring all of the journal into the tables, closes included."""
        asyncio.run(self._report())

    async def _report(self) -> None:
        reporter = Reporter(self.store, self.journal, self._catalog, PARTITIONS)
        running = asyncio.ensure_future(reporter.run())
        ends = await self.journal.end_offsets()
        while reporter.progress.next_offsets != ends:
            assert not running.done(), running.exception()
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    def failed(self) -> dict[str, list[dict[str, Any]]]:
        """Check of `reconcile` -> what differs."""
        checks = reconcile(self.store).checks
        return {check.name: check.differing for check in checks if not check.ok}
