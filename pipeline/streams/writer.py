"""Appending drafts to the journal, one record a shard at a time, and what follows from it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer

from pipeline import failpoints
from pipeline.billing.journal import NEWEST, Header, decode_header, seal
from pipeline.billing.journal_events import encode_events
from pipeline.billing.posting import Draft, ShardEvents
from pipeline.contract.catalog import Catalog
from pipeline.contract.log import LogRecord
from pipeline.contract.rejects import Reject
from pipeline.contract.vocabulary import JOURNAL
from pipeline.streams.engine import Engine, Turn
from pipeline.streams.log_reader import KafkaLogReader
from pipeline.streams.outbox import Original, Outbox, UndeliverableError, originals_of
from pipeline.streams.recovery import Owned
from pipeline.streams.topics import JOURNAL_MAX_BYTES

log = logging.getLogger(__name__)

_RETRY_S = 0.5
_STOP_WITHIN_S = 1.0
"""For closing the producer, when what flies has had its time."""


class ContestedShardError(Exception):
    """Somebody else appended to a shard's journal, and won: its state here is stale."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A draft made ready: everything but its place in the chain."""

    shard: int
    header: Header
    body: bytes
    originals: list[Original]
    refusals: list[Reject]
    repetitions: list[LogRecord]
    """Of catalog records that must not go down with refused ones."""


def prepare(
    engine: Engine, turn: Turn, refusals: Mapping[int, list[Reject]] | None = None
) -> list[Entry]:
    """Encode what a turn did, an entry for each shard that it did anything in.

    `refusals`: shard -> refused catalog records that its outbox is to send. Needs nothing of the
    records before, so it runs while their appends fly.
    """
    given = refusals or {}
    drafts = {
        shard: draft
        for shard, draft in turn.drafts.items()
        if not draft.is_empty() or given.get(shard)
    }
    events = engine.shard_events(turn, drafts)
    originals = originals_of(turn.outcome)
    return [
        _entry(engine, turn.outcome.now_ms, draft, of_shard, originals, given.get(shard, []))
        for (shard, draft), of_shard in zip(drafts.items(), events, strict=True)
    ]


def _entry(
    engine: Engine,
    now_ms: int,
    draft: Draft,
    events: ShardEvents,
    originals: Mapping[int, list[Original]],
    refusals: list[Reject],
) -> Entry:
    accounts = dict(events.accounts)
    posted = [block.account_id for block in draft.blocks]
    for account_id in posted + [credit.account_id for credit in draft.credits]:
        accounts.setdefault(account_id, engine.account_terms(account_id))
    header = _header(
        engine,
        draft.shard,
        now_ms,
        sources=draft.sources,
        events=len(events.columns),
        ads=events.ads,
        texts=events.texts or msgspec.UNSET,
        accounts=accounts,
        signals=draft.signals,
        blocks=draft.blocks,
        closed=draft.closed,
        credits=draft.credits or msgspec.UNSET,
        pacing=draft.notes or msgspec.UNSET,
    )
    repetitions = _repetitions(engine.catalog, refusals)
    body = encode_events(events.columns, events.form)
    mine = originals.get(draft.shard, [])
    return Entry(draft.shard, header, body, mine, refusals, repetitions)


def _repetitions(catalog: Catalog, refusals: list[Reject]) -> list[LogRecord]:
    """The last valid record of every key that a record was refused of, to be published again."""
    last = {refusal.key_bytes or b"": refusal for refusal in refusals}
    found = (catalog.repetition_of(key, one.offset, one.timestamp_ms) for key, one in last.items())
    return [record for record in found if record is not None]


def checkpoint_entry(engine: Engine, shard: int, packed: bytes, now_ms: int) -> Entry:
    """An entry without events that carries the shard's state over retention.

    It sends no refusals, so it does not say that any more of the catalog was used: the next owner
    would take those that wait for sent.
    """
    header = _header(engine, shard, now_ms, checkpoint=packed)
    used = msgspec.structs.replace(header, catalog_end=engine.shards[shard].catalog_end)
    return Entry(shard, used, b"", [], [], [])


def _header(engine: Engine, shard: int, now_ms: int, **parts: Any) -> Header:
    """A header without its place in the chain; what is not given is empty."""
    empty: dict[str, Any] = {
        "sources": {},
        "events": 0,
        "ads": [],
        "accounts": {},
        "signals": [],
        "blocks": [],
        "closed": {},
    }
    return Header(
        shard=shard,
        previous=-1,
        seq=0,
        now_ms=now_ms,
        log_time_ms=engine.shards[shard].log_time_ms,
        catalog_end=engine.catalog.end_offset,
        outbox_through=-1,
        **(empty | parts),
    )


class JournalWriter:
    """Appends entries and, once they count, sends their outbox."""

    def __init__(
        self,
        client_options: Mapping[str, Any],
        partitions: int,
        journal_version: int = NEWEST,
    ) -> None:
        self.journal_version = journal_version
        """Of the format that records are written in."""
        self._client_options = client_options
        self._producer = _producer(client_options, enable_idempotence=True)
        self._outbox_producer = _producer(client_options, enable_idempotence=False)
        self.outbox = Outbox(self._producer, self._outbox_producer, partitions)
        self.bytes_written = 0

    async def start(self) -> None:
        await self._producer.start()
        await self._outbox_producer.start()

    async def stop(self) -> None:
        """Close the producers. What still flies is given up: whether it was written, the shard's
        next owner reads in the journal."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_WITHIN_S):
                await asyncio.gather(self._producer.stop(), self._outbox_producer.stop())

    async def append(self, owned: Owned, entry: Entry) -> int:
        """Append an entry after the shard's last record.

        Raises `ContestedShardError` where another owner's record came between that counts, so that
        this one does not.
        """
        state, chain = owned.state, owned.state.chain
        header, value = seal(
            placed(entry.header, owned),
            entry.body,
            chain.digest,
            self.journal_version,
        )
        sent = await self._producer.send(
            JOURNAL, value, partition=entry.shard, timestamp_ms=header.now_ms
        )
        failpoints.reach("append_sent")
        where = await sent
        failpoints.reach("append_acknowledged")
        if where.offset != owned.journal_end:
            await self._pass_over(owned, where.offset)
        owned.journal_end = where.offset + 1
        chain.extend(where.offset, header)
        state.catalog_end = header.catalog_end
        self.bytes_written += len(value)
        return int(where.offset)

    async def send_outbox(
        self,
        owned: Owned,
        entry: Entry,
        append: Awaitable[int],
        before: Awaitable[None] | None,
    ) -> None:
        """Send what an entry decided, once it is appended: nothing of it where that fails.

        `before` is the same of the shard's record before it, and goes first: of two signals about
        an entity, a reader that begins after compaction finds the one that was sent last.

        Where it cannot be sent, the shard is noted as stuck and is for the worker to stop: its
        records count, but from this one on their outbox is for its next owner to send.
        """
        offset = await append
        if before is not None:
            await before
        if owned.stuck:
            return
        header = entry.header
        try:
            await self.outbox.send(
                header.signals, entry.originals, entry.refusals, entry.repetitions
            )
        except UndeliverableError as error:
            owned.stuck = str(error)
            return
        failpoints.reach("signals_sent")
        owned.state.outbox_through = offset

    async def _pass_over(self, owned: Owned, offset: int) -> None:
        """An append landed further on than expected: see by the continuity rule whether it counts.

        What came between may be the late append of an owner that was stopped and woke up. If it
        does not claim to follow this owner's last record, every reader passes it over, and takes
        this owner's.
        """
        shard, end = owned.state.shard, owned.journal_end
        between = await self._read(shard, end, offset) if offset > end else []
        headers = [decode_header(record.value or b"")[0] for record in between]
        if not between or any(owned.state.chain.is_next(header) for header in headers):
            raise ContestedShardError(
                f"shard {shard}: appended at journal offset {offset}, expected {end}; another "
                "worker owns it or owned it until now"
            )
        log.warning(
            "shard %d: passed over journal records %d to %d, the late appends of another owner",
            *(shard, end, offset - 1),
        )

    async def _read(self, shard: int, start: int, end: int) -> list[LogRecord]:
        """The journal records from `start` up to, not including, `end`."""
        reader = KafkaLogReader(JOURNAL, self._client_options, partitions=[shard])
        records: list[LogRecord] = []
        try:
            await reader.start({shard: start})
            while await reader.position(shard) < end:
                records += await reader.fetch(timeout_ms=500)
        finally:
            await reader.stop()
        return [record for record in records if record.offset < end]


def _producer(client_options: Mapping[str, Any], *, enable_idempotence: bool) -> AIOKafkaProducer:
    producer = AIOKafkaProducer(
        **client_options,
        enable_idempotence=enable_idempotence,
        acks="all",
        linger_ms=0,
        max_request_size=JOURNAL_MAX_BYTES,
        max_batch_size=1024 * 1024,
    )
    # Without a leader to send it to, a batch would fail after the request timeout, and with it
    # the worker; so would one that is not answered, without idempotence. An outage is waited out
    # instead.
    producer._message_accumulator._batch_ttl = math.inf
    client = producer.client
    client._metadata_update = _unhurried(client._metadata_update)
    return producer


def _unhurried(update: Callable[..., Awaitable[bool]]) -> Callable[..., Awaitable[bool]]:
    """The producer's update of its metadata, with a pause after one that failed.

    While a batch waits for a leader, aiokafka asks again at once, a thousand times a second, and
    logs each time.
    """

    async def with_pause(*args: Any) -> bool:
        done = await update(*args)
        if not done:
            await asyncio.sleep(_RETRY_S)
        return done

    return with_pause


def placed(header: Header, owned: Owned) -> Header:
    """A header with its place in the chain.

    A topic that nothing was taken from yet is named with where it begins: were its first records
    deleted, the next owner would begin with what is left, and nobody would miss them. (Not in a
    checkpoint, which holds the state before it.)
    """
    state, chain = owned.state, owned.state.chain
    begun = {
        topic: (offset, offset)
        for topic, offset in owned.begun.items()
        if topic not in chain.next_offsets and not header.checkpoint
    }
    return msgspec.structs.replace(
        header,
        previous=chain.last_offset,
        seq=chain.seq,
        outbox_through=state.outbox_through,
        sources=begun | header.sources,
    )
