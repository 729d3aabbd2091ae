"""Reading a recording for a replay: one shard's journal, and the source records that it judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.billing import fold
from pipeline.billing.journal import Header, decode_events, decode_header
from pipeline.contract.log import LogRecord
from pipeline.contract.vocabulary import CATALOG, EVENT_TOPICS, JOURNAL
from pipeline.streams.log_reader import KafkaLogReader
from pipeline.streams.replay import Replay, ReplayError

_FETCH_MS = 500


@dataclass(frozen=True, slots=True)
class Window:
    """What to replay: journal records decided from `from_ms` on and before `to_ms`."""

    from_ms: int
    to_ms: int


async def read_catalog(client_options: Mapping[str, Any]) -> list[LogRecord]:
    """All records of the catalog, in their order."""
    reader = KafkaLogReader(CATALOG, client_options)
    try:
        await reader.start()
        end = (await reader.end_offsets())[0]
        records: list[LogRecord] = []
        while await reader.position(0) < end:
            records += await reader.fetch(_FETCH_MS)
        return records
    finally:
        await reader.stop()


class _Sources:
    """The three event topics of one shard, read in step with its journal."""

    def __init__(self, shard: int, client_options: Mapping[str, Any]) -> None:
        self._shard = shard
        self._readers = {
            topic: KafkaLogReader(topic, client_options, partitions=[shard])
            for topic in EVENT_TOPICS
        }
        self._waiting: dict[str, list[LogRecord]] = {topic: [] for topic in EVENT_TOPICS}
        self._placed: set[str] = set()

    async def start(self) -> None:
        for reader in self._readers.values():
            await reader.start()

    async def stop(self) -> None:
        for reader in self._readers.values():
            await reader.stop()

    async def of(self, header: Header) -> list[LogRecord]:
        """The source records that a journal record judged. Raises `ReplayError`."""
        found: list[LogRecord] = []
        for topic, (start, end) in header.sources.items():
            found += await self._range(topic, start, end)
        if len(found) != header.events:
            raise ReplayError(
                f"shard {self._shard}: {header.events} events were judged, {len(found)} are still "
                "in the topics: retention has deleted the others. Replay a later window"
            )
        return found

    async def _range(self, topic: str, start: int, end: int) -> list[LogRecord]:
        reader, waiting = self._readers[topic], self._waiting[topic]
        if topic not in self._placed:
            self._placed.add(topic)
            begin = (await reader.begin_offsets())[self._shard]
            await reader.seek({self._shard: max(begin, start)})
        while await reader.position(self._shard) < end:
            waiting += await reader.fetch(_FETCH_MS)
        taken = [record for record in waiting if record.offset < end]
        self._waiting[topic] = waiting[len(taken) :]
        return [record for record in taken if record.offset >= start]


async def replay_shard(
    replay: Replay,
    window: Window,
    catalog: Sequence[LogRecord],
    client_options: Mapping[str, Any],
) -> int:
    """Feed a shard's recording to its replay; returns how many journal records were judged again.

    Raises `ReplayError` where something of it has been deleted.
    """
    shard = replay.shard
    journal = KafkaLogReader(JOURNAL, client_options, partitions=[shard])
    sources = _Sources(shard, client_options)
    judged = 0
    try:
        await journal.start()
        await sources.start()
        begin, end = (await journal.begin_offsets())[shard], (await journal.end_offsets())[shard]
        feed = _Feed(replay, catalog, await_checkpoint=begin > 0)
        while await journal.position(shard) < end:
            for record in await journal.fetch(_FETCH_MS):
                counted = feed.admit(record)
                if counted is None or counted[0].now_ms >= window.to_ms:
                    continue
                header, body = counted
                events = decode_events(header, body)
                if header.now_ms < window.from_ms:
                    replay.fold(header, events)
                elif not header.checkpoint:
                    replay.judge(header, events, await sources.of(header))
                    judged += 1
    finally:
        await journal.stop()
        await sources.stop()
    return judged


class _Feed:
    """Admits a shard's journal records, each with the catalog as it was then."""

    def __init__(
        self, replay: Replay, catalog: Sequence[LogRecord], *, await_checkpoint: bool
    ) -> None:
        self._replay = replay
        self._catalog = catalog
        self._taken = 0
        self._await_checkpoint = await_checkpoint

    def admit(self, record: LogRecord) -> tuple[Header, bytes] | None:
        """The record, where it counts and the fold can begin at or before it."""
        value = record.value or b""
        header, body = decode_header(value)
        engine = self._replay.engine
        state = engine.shards[self._replay.shard]
        if self._await_checkpoint:
            if not header.checkpoint:
                return None
            self._await_checkpoint = False
            fold.unpack(header.checkpoint, state, engine.balances, engine.terms)
        upto = self._taken
        while upto < len(self._catalog) and self._catalog[upto].offset < header.catalog_end:
            upto += 1
        self._replay.apply_catalog(self._catalog[self._taken : upto], header.now_ms)
        self._taken = upto
        return (header, body) if state.chain.admit(record.offset, header, value) else None
