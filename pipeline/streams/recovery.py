"""Taking over shards: state = snapshot + fold of the journal to its end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import polars as pl

from pipeline.billing import fold
from pipeline.billing.books import Shard
from pipeline.billing.chain import BrokenChainError, Chain
from pipeline.billing.journal import (
    Header,
    JournalError,
    LaterVersionError,
    decode_events,
    decode_header,
)
from pipeline.contract.log import LogRecord
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import FUTURE_TOLERANCE_MS, JOURNAL, LONGEST_DAY_MS
from pipeline.streams.clock import Clock
from pipeline.streams.engine import Engine
from pipeline.streams.log_reader import KafkaLogReader
from pipeline.streams.outbox import unsent_dispositions
from pipeline.streams.snapshots import SnapshotStore

log = logging.getLogger(__name__)

_REPAIR_JOURNAL = (
    "Nothing of it is lost: its events wait in Kafka. Find what wrote to its partition of "
    "billing.journal, restore that partition, and restart the worker"
)
EVENTS_AT_ONCE = 20_000
"""How many events are folded at once; bounds the memory that they wait in."""


@dataclass(frozen=True, slots=True)
class Unsent:
    """A record that counts, whose outbox may not have been sent by the owner before."""

    journal_offset: int
    catalog_end: int
    signals: list[Signal]
    dispositions: dict[tuple[str, int], int]
    """(topic, source offset) -> disposition, of the events to be rejected or sent home."""


@dataclass(slots=True)
class Owned:
    """A shard that this worker owns, and where it stands in the logs."""

    state: Shard
    since_snapshot: int = 0
    """Journal offsets from the snapshot that it was taken over by, or the journal's beginning."""
    journal_end: int = 0
    """The journal offset that the next append is expected to get."""
    taken: dict[str, int] = field(default_factory=dict)
    """Event topic -> the next source offset to judge; ahead of the chain while appends fly."""
    begun: dict[str, int] = field(default_factory=dict)
    """Event topic -> the source offset that this owner went on from."""
    unsent: list[Unsent] = field(default_factory=list)
    """Records whose outbox may not have been sent by the owner before."""
    refusals_from: int = 0
    """Catalog refusals from this offset on may not have been sent by the owner before."""
    stuck: str = ""
    """Why its outbox cannot be sent, and what to do; empty where it can."""
    judges_from_ms: int = 0
    """Events that were recorded before may not be judged: they may repeat what has been forgotten,
    for retention has deleted it from the journal."""


@dataclass(slots=True)
class TakenOver:
    """What became of the shards that were to be taken over: each is in one of the two."""

    owned: dict[int, Owned] = field(default_factory=dict)
    broken: dict[int, str] = field(default_factory=dict)
    """Shard -> why its journal, or its sources, cannot be gone on from, and what to do; the engine
    does not hold it."""

    def attempt(self, shard: int, step: Callable[[], None]) -> None:
        """Do a step of a shard's recovery, unless the shard is broken already."""
        if shard in self.broken:
            return
        try:
            step()
        except LaterVersionError as error:
            self.broken[shard] = str(error)
        except (BrokenChainError, JournalError, fold.StateError) as error:
            self.broken[shard] = f"{error}. {_REPAIR_JOURNAL}"


async def take_over(
    shards: list[int],
    engine: Engine,
    clock: Clock,
    snapshots: SnapshotStore,
    client_options: Mapping[str, Any],
) -> TakenOver:
    """Bring these shards to the end of their journals, in the engine and for the writer.

    A shard whose journal contradicts itself, or that nothing can be folded from, is left out with
    the reason; the others go on.
    """
    folds = {shard: _Fold(shard, engine, clock) for shard in shards}
    taken = TakenOver()
    async with _reader(shards, client_options) as reader:
        bounds = await reader.bounds()
    # No reader meanwhile: it would fetch what is not asked for yet.
    for shard, one in folds.items():
        one.stand_on(await snapshots.load(shard, bounds[shard]))
    async with _reader(shards, client_options) as reader:
        bounds = await reader.bounds()  # that may have taken minutes
        await reader.seek({shard: one.begin(bounds[shard]) for shard, one in folds.items()})
        behind = set(shards)
        while behind := {
            shard
            for shard in behind - taken.broken.keys()
            if await reader.position(shard) < bounds[shard].stop
        }:
            for record in await reader.fetch(timeout_ms=500):
                taken.attempt(record.partition, partial(folds[record.partition].take, record))
            for shard, one in folds.items():
                if one.is_to_begin_anew:
                    one.stand_on(await snapshots.load(shard, bounds[shard], one.refused))
                    await reader.seek({shard: one.begin(bounds[shard])})
    for shard, one in folds.items():
        taken.attempt(shard, partial(_finish, taken, shard, one, bounds[shard].stop))
    for shard in taken.broken:
        engine.release(shard)
    return taken


@contextlib.asynccontextmanager
async def _reader(
    shards: list[int], client_options: Mapping[str, Any]
) -> AsyncIterator[KafkaLogReader]:
    reader = KafkaLogReader(JOURNAL, client_options, partitions=shards)
    try:
        await reader.start()
        yield reader
    finally:
        await reader.stop()


def _finish(taken: TakenOver, shard: int, one: _Fold, end: int) -> None:
    taken.owned[shard] = one.finish(end)


@dataclass(frozen=True, slots=True)
class _Read:
    """A record that was read."""

    offset: int
    header: Header
    body: bytes


class _Fold:
    """The fold of one shard's journal."""

    def __init__(self, shard: int, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._shard = shard
        self._anchor: bytes | None = None
        """Digest of the record that the snapshot claims to stand on, until that was checked."""
        self.stood_on = 0
        """The journal offset that the fold began at: the snapshot's last record, if there is one.
        """
        self.refused: set[bytes] = set()
        """Such digests that are not this journal's."""
        self.is_to_begin_anew = False
        """Whether what was folded is of another journal; what is read meanwhile is ignored."""
        self._search: _CheckpointSearch | None = None
        self._counted: list[fold.Counted] = []
        """Records that count and are not folded yet: many small ones are folded faster at once."""
        self._counted_events = 0
        self._unsent: list[tuple[int, Header, pl.DataFrame]] = []
        """Journal offset, header and events of the records that may not have been sent."""
        self._sent_catalog_end = 0
        engine.new_shard(shard)

    @property
    def _state(self) -> Shard:
        return self._engine.shards[self._shard]

    def stand_on(self, packed: bytes | None) -> None:
        """Go on from a snapshot, if there is one and it is whole.

        A snapshot is a cache of the journal's fold. One that the journal does not bear out is not
        used, whatever the reason: any other worker, which has no snapshot, would judge by the
        journal too. (That a journal has lost records the reporter sees: its tables are ahead.)
        """
        if packed is None:
            return
        try:
            fold.unpack(packed, self._state, self._engine.balances, self._engine.terms)
        except fold.StateError as error:
            log.warning("snapshot of shard %d not used: %s", self._shard, error)
            self._engine.new_shard(self._shard)
        else:
            self._anchor = self._state.chain.digest

    def begin(self, bounds: range) -> int:
        """Where to read from, of a journal with these offsets: the snapshot's last record, to check
        it, or the journal's beginning."""
        self.is_to_begin_anew = False
        self.stood_on = bounds.start
        if self._anchor is not None:
            self.stood_on = self._state.chain.last_offset
        elif bounds.start > 0:
            self._search = _CheckpointSearch(self._shard, bounds.start)
        return self.stood_on

    def take(self, record: LogRecord) -> None:
        if self.is_to_begin_anew:
            return
        value = record.value or b""
        header, body = decode_header(value)
        read = _Read(record.offset, header, body)
        if self._anchor is not None:
            self._check_anchor(read, self._anchor)
            return
        if self._search is not None:
            self._search.note(read)
            if self._state.chain.last_offset < 0 and not self._found_checkpoint(self._search, read):
                return
        chain: Chain = self._state.chain
        if chain.admit(record.offset, header, value):
            events = decode_events(header, body)
            self._counted.append((header, events))
            self._counted_events += header.events
            self._unsent.append((record.offset, header, events))
            if self._counted_events >= EVENTS_AT_ONCE:
                self.fold()

    def fold(self) -> None:
        """Fold what was taken in."""
        self._engine.fold(self._shard, self._counted)
        for header, _ in self._counted:
            self._clock.observe(header.now_ms)
        self._counted, self._counted_events = [], 0
        sent = 0
        while sent < len(self._unsent) and self._unsent[sent][0] <= self._state.outbox_through:
            self._sent_catalog_end = self._unsent[sent][1].catalog_end
            sent += 1
        del self._unsent[:sent]

    def _found_checkpoint(self, search: _CheckpointSearch, read: _Read) -> bool:
        """Whether the fold has a state to stand on, on which this record may follow."""
        counted = search.take(read)
        if counted is None:
            return False
        if not counted.header.checkpoint:
            events = decode_events(counted.header, counted.body)
            fold.remember(self._state, events, counted.header.log_time_ms)
            return False
        self._start_at(counted)
        return True

    def _start_at(self, checkpoint: _Read) -> None:
        engine = self._engine
        fold.unpack(checkpoint.header.checkpoint, self._state, engine.balances, engine.terms)
        # It holds the state before its own record.
        self._state.chain.last_offset = checkpoint.offset
        self._state.chain.digest = checkpoint.header.digest
        self._state.checkpointed_ms = checkpoint.header.now_ms
        self._clock.observe(checkpoint.header.now_ms)

    def _check_anchor(self, read: _Read, digest: bytes) -> None:
        self._anchor = None
        if read.header.digest != digest:
            self.refused.add(digest)
            self._engine.new_shard(self._shard)
            self.is_to_begin_anew = True
            return
        self._clock.observe(read.header.now_ms)
        if self._state.outbox_through < self._state.chain.last_offset:
            events = decode_events(read.header, read.body)
            self._unsent.append((read.offset, read.header, events))
        else:
            self._sent_catalog_end = read.header.catalog_end

    def finish(self, end: int) -> Owned:
        self.fold()
        state = self._state
        judges_from_ms = 0
        if self._search is not None:
            horizon_ms = self._engine.settings.judging.horizon_ms
            if state.chain.last_offset < 0:
                self._start_at(self._search.last())
            self._search.check_ids(state, horizon_ms)
            judges_from_ms = self._search.judges_from_ms(state, horizon_ms)
        if state.chain.last_offset < 0:
            state.checkpointed_ms = self._clock.now_ms()
        self._engine.adopt(self._shard)
        return Owned(
            state=state,
            since_snapshot=max(0, end - self.stood_on),
            journal_end=end,
            taken=dict(state.chain.next_offsets),
            unsent=[_unsent(*one) for one in self._unsent],
            refusals_from=self._sent_catalog_end if self._unsent else state.catalog_end,
            judges_from_ms=judges_from_ms,
        )


class _CheckpointSearch:
    """Which record is the first checkpoint that counts, where what was before it is deleted.

    A zombie may have written a checkpoint that does not count, and the record that won over it may
    be among the deleted ones. But a loser stops at its first append, so a record that a later one
    names as `previous` is one that counts.
    """

    def __init__(self, shard: int, begin: int) -> None:
        self._shard = shard
        self._begin = begin
        self._first_ms: int | None = None
        self._last_ms = 0
        """Times of the first and the last record read: retention deletes by them."""
        self._open: dict[int, _Read] = {}
        """Records that none has named yet: the last one, and losers."""

    def take(self, read: _Read) -> _Read | None:
        """The record that this one tells to count, if it names one that was read."""
        if self._first_ms is None:
            self._first_ms = read.header.now_ms
        self._open[read.offset] = read
        counted = self._open.pop(read.header.previous, None)
        if counted is not None:
            # Whatever is older and was not named lost.
            self._open = {at: one for at, one in self._open.items() if at > counted.offset}
        return counted

    def note(self, read: _Read) -> None:
        """A record was read."""
        self._last_ms = max(self._last_ms, read.header.now_ms)

    def last(self) -> _Read:
        """A checkpoint that no record follows, and that certainly counts.

        Raises `StateError` where there is none.
        """
        if self._open:
            read = self._open[max(self._open)]
            if read.header.checkpoint and read.header.previous == read.offset - 1:
                return read
        raise fold.StateError(
            f"the journal of shard {self._shard} begins at offset {self._begin} and holds no "
            "checkpoint to start from: older records were deleted. Restore a snapshot of the "
            "shard, or raise the journal's retention"
        )

    def check_ids(self, state: Shard, horizon_ms: int) -> None:
        """Raises `StateError` where deleted records may hold ids that must still be known."""
        if state.chain.seq and self._begin_ms > self._last_ms - horizon_ms:
            raise fold.StateError(
                f"the journal of shard {self._shard} begins at offset {self._begin}, within the "
                "acceptance horizon: events whose records were deleted could be charged again. "
                "Restore a snapshot of the shard, and raise the journal's retention"
            )

    def judges_from_ms(self, state: Shard, horizon_ms: int) -> int:
        """From which log time on events may be judged by the ids that are left; 0 where the shard
        has come there already.

        Ids age by log time, and after an outage that is far behind the time of the decision.
        """
        from_ms = self._begin_ms + horizon_ms + FUTURE_TOLERANCE_MS + LONGEST_DAY_MS
        return from_ms if state.chain.seq and state.log_time_ms < from_ms else 0

    @property
    def _begin_ms(self) -> int:
        return self._last_ms if self._first_ms is None else self._first_ms


def _unsent(journal_offset: int, header: Header, events: pl.DataFrame) -> Unsent:
    dispositions = unsent_dispositions(events)
    return Unsent(journal_offset, header.catalog_end, header.signals, dispositions)
