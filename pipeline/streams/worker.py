"""The worker: a Faust app whose agent takes chunks in, and the loop that decides them.

One turn decides everything that has come for all owned shards; the appends of a turn, one a
shard, fly together while the next turn is decided. A turn starts when there is something to do
and the appends before the last have been acknowledged: once enough events wait, or else a while
after the turn before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import faust
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError
from faust.types import TP

from pipeline import dense, failpoints
from pipeline.billing import batch, decide, decode, fold, id_runs, key_table, limits
from pipeline.billing.batch import Assembler, Batch, Chunk, in_steps
from pipeline.billing.journal import NEWEST
from pipeline.contract.rejects import Reject
from pipeline.contract.vocabulary import CATALOG, EVENT_TOPICS
from pipeline.pacing import observed, predictive
from pipeline.pacing.serving import PlainLimits
from pipeline.pacing.serving import Policy as PacingPolicy
from pipeline.streams import observing, outbox, record_batches, transport
from pipeline.streams.catalog_feed import CatalogFeed
from pipeline.streams.clock import Clock
from pipeline.streams.engine import READ_TO_THE_END, Engine, EngineSettings
from pipeline.streams.flights import Flights
from pipeline.streams.intake import Intake
from pipeline.streams.log_reader import ANSWER_WITHIN_S, AWAY
from pipeline.streams.metrics import ShardGauges, WorkerMetrics
from pipeline.streams.recovery import Owned, TakenOver, take_over
from pipeline.streams.snapshots import SnapshotStore
from pipeline.streams.sources import misplaced, troubles
from pipeline.streams.writer import Entry, JournalWriter, checkpoint_entry, prepare

log = logging.getLogger(__name__)

GROUP = "promoted-pins-billing"
EXIT_BROKEN = 70
"""Exit code of a worker that stopped because going on could have been wrong; start it again."""

_IDLE_WAIT_S = 0.2
_TURN_EVERY_S = 0.05
"""A turn begins when enough events wait, or else so long after the last one began: a little less
than between two slow fetches, so that neither waits for the other."""
_LANDING_S = 0.002
_CHECKPOINTS_A_TURN = 4
_STUCK_AFTER_S = 60.0
_RECOVERY_WITHIN_S = 3_600.0
"""How long taking shards over may last before the group takes them away."""
_SCRAPE_WITHIN_S = 3.0
_STOP_WAIT_S = 5.0
_AWAY_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 5.0
_WATCH_EVERY_S = 1.0
_END_CHECK_EVERY_S = 0.5
_CHECKPOINT_EVERY_MS = 6 * 3_600_000
"""Far within the journal's retention, which is at least a day longer than ids must be known."""
_STREAM_SETTLES_S = 1.0
"""With the stream's clock, a partition counts as read to its end once nothing came for so long:
the clock moves with the data, so a producer's records in flight would else look late."""


def warm_up() -> None:
    """Compile the loops that a turn runs, or load them as a start before has left them."""
    billing = batch, decode, decide, limits, key_table, id_runs
    for part in (*billing, dense, record_batches, observing, observed, predictive):
        part.warm_up()


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a worker runs; what it decides is in `engine`."""

    engine: EngineSettings
    client_options: Mapping[str, Any]
    bootstrap: str
    data_dir: Path
    group: str = GROUP
    turn_min_s: float = 0.005
    max_buffered_events: int = 100_000
    max_turn_events: int = 20_000
    """Of few shards; see `intake.events_a_turn`."""
    checkpoint_every_records: int = 5_000
    snapshot_every_records: int = 1_000
    snapshot_copies_dir: Path | None = None
    """Where all workers see it; None where there is no such place."""
    dedupe_memory_bytes: int = 256 << 20
    """For the ids of all shards that are not in files."""
    session_timeout_s: float = 10.0
    """How long a worker may be silent before its shards move to others."""
    journal_version: int = NEWEST
    """Of the journal's format: what is written; what is read is any that this program knows."""
    pacing: Callable[[], PacingPolicy] = PlainLimits
    """Makes the policy by which serving is stopped."""


@dataclass(slots=True)
class Progress:
    """What the health page and the monitors may know."""

    started_monotonic_s: float = field(default_factory=time.monotonic)
    events: int = 0
    turns: int = 0
    last_turn_ms: int = 0
    signals: int = 0
    last_pass_monotonic_s: float = field(default_factory=time.monotonic)
    state: str = "starting"
    trouble: str = ""
    """What the worker waits for; empty where nothing is in its way."""


def _end_process(what: str, error: BaseException) -> NoReturn:
    log.critical("%s: %s: %s", what, type(error).__name__, error, exc_info=error)
    logging.shutdown()
    os._exit(EXIT_BROKEN)


class FaustCrashedError(Exception):
    """A part of Faust is dead."""


class Worker:
    """Owns shards and decides them. `app` is the Faust app to run."""

    def __init__(
        self, settings: WorkerSettings, clock: Clock, metrics: WorkerMetrics | None = None
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._metrics = metrics or WorkerMetrics()
        self._snapshots = SnapshotStore(
            settings.data_dir / "snapshots",
            settings.dedupe_memory_bytes,
            settings.snapshot_copies_dir,
            self._metrics.copies_failed.inc,
        )
        self.engine = Engine(settings.engine, settings.pacing(), self._snapshots)
        self.progress = Progress()
        self.owned: dict[int, Owned] = {}
        self.stopped: dict[int, str] = {}
        """Assigned shards that an invariant is broken in -> which and what to do. They are not
        judged here until they are assigned anew; the others go on."""
        self._assembler = Assembler()
        self._intake = Intake(settings.max_buffered_events)
        self._turning = asyncio.Lock()
        self._between_owners = False
        """From the revocation of the shards to their next assignment: nothing is decided."""
        self._ready = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._watchers: list[asyncio.Task[None]] = []
        self._unwritten = False
        """Whether the books hold a decision whose records are not on their way yet."""
        self._since_snapshot: dict[int, int] = {}
        self._since_checkpoint: dict[int, int] = {}
        self._last_end_check_s = 0.0
        self._last_turn_at_s = 0.0
        self._ends: AIOKafkaConsumer | None = None
        options = settings.client_options
        self._writer = JournalWriter(options, settings.engine.partitions, settings.journal_version)
        self._flights = Flights(self._writer, self._is_current, self._metrics.append_s)
        self._feed = CatalogFeed(self.engine, clock, options, self._intake.wake.set)
        self.app = self._make_app()

    # -- Faust --------------------------------------------------------------------------------

    def _make_app(self) -> faust.App:
        settings = self._settings
        app = faust.App(
            settings.group,
            broker=f"{transport.SCHEME}://{settings.bootstrap}",
            store="memory://",
            datadir=str(settings.data_dir / "faust"),
            topic_disable_leader=True,
            topic_allow_declare=False,
            topic_partitions=settings.engine.partitions,
            consumer_auto_offset_reset="earliest",
            consumer_max_fetch_size=4 * 1024 * 1024,
            broker_max_poll_records=1_000,
            # Faust fetches nothing while shards are recovered.
            broker_max_poll_interval=_RECOVERY_WITHIN_S,
            broker_session_timeout=settings.session_timeout_s,
            broker_heartbeat_interval=settings.session_timeout_s / 4,
            broker_request_timeout=_RECOVERY_WITHIN_S,  # bounds the seek after a rebalance too
            web_enabled=False,  # it would answer only once Kafka does
        )
        chunks = app.transport
        assert isinstance(chunks, transport.Transport)
        chunks.client_options = settings.client_options
        chunks.owner = self
        topic = app.topic(*EVENT_TOPICS, value_type=bytes, value_serializer="raw")
        app.agent(topic, name="judge")(self._take_in)
        return app

    async def _take_in(self, stream: Any) -> None:
        async for event in stream.events():
            self._intake.put(event.value)

    async def await_kafka(self) -> None:
        """Return when Kafka answers, until then saying that it does not; comes before `start`."""
        self._ends = AIOKafkaConsumer(
            **self._settings.client_options,
            enable_auto_commit=False,
            isolation_level="read_committed",
        )
        pause_s = _AWAY_PAUSE_S
        while True:
            try:
                await self._ends.start()
            except KafkaConnectionError as error:
                log.warning("waiting for Kafka: %s", error)
                self.progress.trouble = f"Kafka does not answer: {error}"
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                self.progress.trouble = ""
                return

    async def start(self) -> None:
        """Start the loops, then Faust; returns when shards may be assigned.

        Not Faust's own tasks: those start only after the first recovery, which needs the loops.
        """
        await asyncio.to_thread(warm_up)  # a first start compiles long enough to look dead
        # Faust makes its own directory in it, and would not start without this one.
        self._settings.data_dir.mkdir(parents=True, exist_ok=True)
        self._tasks = [
            asyncio.create_task(self._guarded(self._feed.run, "catalog feed")),
            asyncio.create_task(self._guarded(self._run, "worker")),
        ]
        self._watchers = [asyncio.create_task(self._guarded(self._watch_kafka, "watch"))]
        await self.app.start()
        self._watchers.append(asyncio.create_task(self._guarded(self._watch_faust, "Faust")))

    async def _watch_kafka(self) -> None:
        """Note whether Kafka answers. The loop cannot tell: it may be waiting for an append."""
        assert self._ends is not None
        while True:
            text = ""
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    await self._ends.end_offsets([TopicPartition(CATALOG, 0)])
            except AWAY as error:
                text = f"Kafka at {self._settings.bootstrap} does not answer: {error!r}"
            if bool(text) != bool(self.progress.trouble):
                log.warning("%s", text or f"Kafka at {self._settings.bootstrap} answers again")
            self.progress.trouble = text
            await asyncio.sleep(_WATCH_EVERY_S)

    async def _watch_faust(self) -> None:
        """Raises once a part of Faust has crashed, which it only logs: the process would stay a
        member of the group, own its shards, and read nothing more."""
        while True:
            for service in _with_children(self.app):
                if service.crashed:
                    raise FaustCrashedError(f"{service.label}: {service.crash_reason!r}")
            await asyncio.sleep(_WATCH_EVERY_S)

    async def stop(self) -> None:
        """Let what flies land, leave snapshots behind, then leave the group.

        In this order: an append that lands after the next owner has read the journal would make
        the shard look contested, and cost that owner its process.
        """
        self.progress.state = "stopping"
        self._intake.close()
        for watcher in self._watchers:
            watcher.cancel()  # stopping is no crash
        await asyncio.wait(self._watchers)
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self.app.stop()

    async def _guarded(self, run: Callable[[], Awaitable[None]], name: str) -> None:
        """A crash ends the process, so that its shards move on: a Faust worker whose parts have
        crashed could else stay a member of the group with nobody reading its partitions."""
        try:
            await run()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            _end_process(f"{name} stopped", error)

    def health(self) -> dict[str, Any]:
        """What the health page says."""
        return {
            "state": self.progress.state,
            "trouble": self.progress.trouble,
            "shards": sorted(self.owned),
            "stopped": {str(shard): reason for shard, reason in sorted(self.stopped.items())},
            "events": self.progress.events,
            "turns": self.progress.turns,
            "signals": self.progress.signals,
            "journal_bytes": self._writer.bytes_written,
            "journal_version": self._writer.journal_version,
            "catalog_offset": self.engine.catalog.end_offset,
            "now_ms": self._clock.now_ms(),
        }

    def is_live(self) -> bool:
        """Whether the loop goes round. Taking over shards may take long, and is no reason to end
        a worker: it would only begin anew."""
        quiet_s = time.monotonic() - self.progress.last_pass_monotonic_s
        return self.progress.state != "running" or quiet_s < _STUCK_AFTER_S

    async def scrape(self) -> bytes:
        """The metrics; where Kafka does not tell its ends in time, without the shards' lags."""
        shards: dict[int, ShardGauges] = {}
        try:
            if self._ready.is_set():
                shards = await asyncio.wait_for(self._shard_gauges(), _SCRAPE_WITHIN_S)
        except (KafkaError, TimeoutError):
            self._metrics.lag_unknown.inc()
        return self._metrics.scrape(
            shards,
            running=self.progress.state == "running",
            journal_bytes=self._writer.bytes_written,
        )

    async def _shard_gauges(self) -> dict[int, ShardGauges]:
        ends = await self._source_ends(list(self.owned))
        now_ms = self._clock.now_ms()
        found = {}
        for shard, owned in self.owned.items():
            behind = {
                topic: max(0, ends[shard, topic] - owned.taken[topic])
                for topic in EVENT_TOPICS
                if (shard, topic) in ends and owned.taken.get(topic, -1) >= 0
            }
            reached_ms = [
                self._assembler.read_up_to_ms(shard, EVENT_TOPICS.index(topic))
                for topic, events in behind.items()
                if events
            ]
            # Nothing read of a source yet: how old its backlog is, is not known.
            lag_s = max((now_ms - at_ms for at_ms in reached_ms if at_ms), default=0) / 1_000
            dedupe_ids = len(owned.state.ids) + len(owned.state.unique)
            found[shard] = ShardGauges(sum(behind.values()), max(0.0, lag_s), dedupe_ids)
        return found

    # -- ownership ----------------------------------------------------------------------------

    async def has_room(self) -> None:
        """Called by the transport before it takes what was fetched."""
        await self._intake.has_room()

    async def let_go(self) -> None:
        """Called by the transport before every rebalance.

        A record that is appended after the next owner has read the journal would count before that
        owner's first, and cost it its process.
        """
        try:
            self._intake.close()
            async with self._turning:
                self._between_owners = True
                async with asyncio.timeout(_STOP_WAIT_S):
                    await self._flights.land()
        except TimeoutError:
            log.warning("Kafka does not answer: shards move with appends on their way")
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            _end_process("letting go of shards failed", error)

    async def recover(self, assigned: set[TP]) -> dict[TP, int]:
        """Called by the transport after every rebalance: own exactly the assigned shards."""
        try:
            await self._ready.wait()
            async with self._turning:
                if self.progress.state == "stopping":
                    return {}
                return await self._own(assigned)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if self.progress.state == "stopping":
                log.info("told to end while taking over shards: %s", error)
                return {}
            _end_process("taking over shards failed", error)

    async def _own(self, assigned: set[TP]) -> dict[TP, int]:
        shards = {tp.partition for tp in assigned}
        for shard in set(self.owned) - shards:
            self._give_up(shard)
        self._intake.close()
        self.stopped = {s: reason for s, reason in self.stopped.items() if s in shards}
        new = sorted(shards - self.owned.keys() - self.stopped.keys())
        if new:
            await self._take_over(new)
        if self.progress.state == "stopping":
            return {}
        self.progress.state = "running"
        self._between_owners = False
        self._intake.wake.set()
        return {
            TP(topic, shard): self.owned[shard].taken.get(topic, -1)
            for shard in sorted(shards & self.owned.keys())
            for topic in EVENT_TOPICS
        }

    async def _take_over(self, new: list[int]) -> None:
        """Own these shards, or, where another rebalance cuts this off, none of them."""
        self.progress.state = "recovering"
        started_s = time.monotonic()
        try:
            taken = await take_over(
                new, self.engine, self._clock, self._snapshots, self._settings.client_options
            )
            failpoints.reach("taken_over")
            await self._leave_out_troubled(taken)
            for owned in taken.owned.values():
                await self._send_unsent(owned)
        except BaseException:
            for shard in new:
                self.engine.release(shard)
            raise
        self.owned.update(taken.owned)
        for shard, owned in taken.owned.items():
            self._since_snapshot[shard] = owned.since_snapshot
        for shard, reason in taken.broken.items():
            self._note_stopped(shard, reason)
        self._stop_stuck()
        events = sum(owned.state.chain.seq for owned in taken.owned.values())
        elapsed_s = time.monotonic() - started_s
        self._metrics.recovery_s.observe(elapsed_s)
        log.info("took over shards %s (%d events) in %.2f s", list(taken.owned), events, elapsed_s)

    async def _leave_out_troubled(self, taken: TakenOver) -> None:
        """Stop the shards that cannot go on from their sources as these are now."""
        assert self._ends is not None
        for shard, trouble in (await troubles(self._ends, taken.owned.values())).items():
            del taken.owned[shard]
            taken.broken[shard] = trouble
            self.engine.release(shard)

    def _is_current(self, owned: Owned) -> bool:
        return self.owned.get(owned.state.shard) is owned

    def _note_stopped(self, shard: int, reason: str) -> None:
        self.stopped[shard] = reason
        log.critical("shard %d is stopped, the others go on: %s", shard, reason)

    def _stop_stuck(self) -> None:
        """Stop the shards whose outbox cannot be sent, before anything is taken for sent."""
        for shard, owned in list(self.owned.items()):
            if owned.stuck:
                self._give_up(shard)
                self._note_stopped(shard, owned.stuck)

    def _give_up(self, shard: int) -> None:
        del self.owned[shard]
        self._since_snapshot.pop(shard, None)
        self._since_checkpoint.pop(shard, None)
        self.engine.release(shard)
        self._assembler.forget(shard)

    def go_on_from(self, positions: Mapping[TP, int], epoch: int) -> None:
        """Called by the transport: the sources have been sought to these offsets."""
        for tp, offset in positions.items():
            if tp.partition in self.owned:
                owned = self.owned[tp.partition]
                owned.taken[tp.topic] = offset
                owned.begun.setdefault(tp.topic, offset)
        if self.progress.state != "stopping":
            self._intake.open(epoch)

    def journaled(self) -> dict[TP, int]:
        """How far the journal has each owned source; for lag monitors."""
        return {
            TP(topic, shard): offset
            for shard, owned in self.owned.items()
            for topic, offset in owned.state.chain.next_offsets.items()
        }

    async def _send_unsent(self, owned: Owned) -> None:
        """Send again what the owner before may not have sent, and every standing signal."""
        dispositions: dict[tuple[str, int], int] = {}
        for unsent in owned.unsent:
            dispositions |= unsent.dispositions
        originals = await outbox.read_originals(
            owned.state.shard, dispositions, self._settings.client_options
        )
        signals = [signal for unsent in owned.unsent for signal in unsent.signals]
        standing = list(owned.state.standing.values())
        try:
            await self._writer.outbox.send([*signals, *standing], originals)
        except outbox.UndeliverableError as error:
            owned.stuck = str(error)
        owned.unsent.clear()

    # -- the loop -----------------------------------------------------------------------------

    async def _run(self) -> None:
        await self._writer.start()
        self._ready.set()
        try:
            while True:
                await self._wait_for_work()
                self.progress.last_pass_monotonic_s = time.monotonic()
                if await self._catalog_is_read():
                    async with self._turning:
                        if self._between_owners:
                            continue
                        await self._work()
        finally:
            await self._stop()

    async def _catalog_is_read(self) -> bool:
        """Whether all of the catalog has been read; False while Kafka is away.

        Without Kafka nothing can be judged, for nobody knows whether the catalog has changed. What
        flies waits as well: the producer tries again until it is answered.
        """
        assert self._ends is not None
        try:
            await self._feed.catch_up(self._ends)
        except AWAY:
            await asyncio.sleep(_AWAY_PAUSE_S)
            return False
        return True

    async def _wait_for_work(self) -> None:
        """Let events gather: a turn's fixed cost is that of judging some thousands.

        What comes after a rest is decided at once.
        """
        wake, enough = self._intake.wake, self._intake.enough
        # Not wait_for: before Python 3.12 it swallows a cancellation that comes with the wake.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_IDLE_WAIT_S):
                await wake.wait()
            if not enough.is_set():
                await asyncio.sleep(self._settings.turn_min_s)
            rest_s = self._last_turn_at_s + _TURN_EVERY_S - time.monotonic()
            async with asyncio.timeout(rest_s):
                await enough.wait()
        wake.clear()

    async def _work(self) -> None:
        """Everything that there is to do now, in as many turns as time has boundaries."""
        await self._maintain()
        chunks = self._in_place(self._intake.take(self._settings.max_turn_events))
        batch = self._assembler.assemble(chunks)
        # A decision holds the loop up: what is being answered, and its signals, go first.
        await self._flights.let_land(_LANDING_S)
        for part, now_ms in self._in_steps(batch):
            read_through_ms = await self._read_through(now_ms)
            refused = bool(self._refusals())
            if part.ranges or refused or self.engine.is_due(now_ms, read_through_ms):
                await self._turn(part, now_ms, read_through_ms)
        if not batch.ranges:
            self._flights.check()

    def _in_place(self, chunks: list[Chunk]) -> list[Chunk]:
        """The chunks of owned shards, each from where its source was left."""
        kept = []
        for chunk in chunks:
            owned = self.owned.get(chunk.shard)
            topic = EVENT_TOPICS[chunk.source]
            if owned is None:
                continue
            position = owned.taken[topic]
            if chunk.start != position:
                self._give_up(chunk.shard)
                name = f"{topic}-{chunk.shard}"
                self._note_stopped(chunk.shard, misplaced(name, position, chunk.start))
                continue
            kept.append(chunk)
            owned.taken[topic] = chunk.end
        return [chunk for chunk in kept if chunk.shard in self.owned]

    def _in_steps(self, batch: Batch) -> list[tuple[Batch, int]]:
        """The batch with its now; with the stream's clock, cut where something falls due: at a
        day's turn or close, at a change taking effect."""
        if not self._clock.follows_stream or len(batch) == 0:
            return [(batch, self._clock.now_ms())]
        first_ms, last_ms = int(batch.order_ms.min()), int(batch.order_ms.max())
        before_ms = self._clock.now_ms() or first_ms
        self._clock.observe(last_ms)
        return in_steps(batch, before_ms, self.engine.boundaries_ms(before_ms, last_ms))

    async def _turn(self, batch: Batch, now_ms: int, read_through_ms: Mapping[int, int]) -> None:
        """Decide, and append what the decision did; the appends fly on when this returns."""
        self._unwritten = True
        self._last_turn_at_s = self.progress.last_pass_monotonic_s
        started_s = time.perf_counter()
        turn = self.engine.turn(batch, now_ms, read_through_ms)
        failpoints.reach("decide")
        signals = [signal for draft in turn.drafts.values() for signal in draft.signals]
        elapsed_s = time.perf_counter() - started_s
        self._metrics.turn(turn.outcome, self.engine.terms, signals, elapsed_s)
        entries = prepare(self.engine, turn, {0: self._refusals()})
        await self._flights.make_way()
        for entry in entries:
            owned = self.owned[entry.shard]
            self._count(owned, entry)
            self._flights.launch(owned, entry)
        self._unwritten = False
        self.progress.turns += 1
        self.progress.events += len(batch)
        self.progress.last_turn_ms = now_ms

    def _count(self, owned: Owned, entry: Entry) -> None:
        if entry.shard == 0:
            owned.refusals_from = entry.header.catalog_end
        self.progress.signals += len(entry.header.signals)
        self._since_snapshot[entry.shard] = self._since_snapshot.get(entry.shard, 0) + 1
        self._since_checkpoint[entry.shard] = self._since_checkpoint.get(entry.shard, 0) + 1

    def _refusals(self) -> list[Reject]:
        """Catalog refusals to send; the owner of shard 0 sends them for all."""
        owned = self.owned.get(0)
        return [] if owned is None else self._feed.refused_from(owned.refusals_from)

    # -- checkpoints and snapshots ------------------------------------------------------------

    async def _maintain(self) -> None:
        """Write the checkpoints and snapshots that are due, while nothing flies."""
        self._stop_stuck()
        settings = self._settings
        checkpoints = _due(self._since_checkpoint, settings.checkpoint_every_records)
        checkpoints |= self._checkpoints_due()
        snapshots = _due(self._since_snapshot, settings.snapshot_every_records)
        snapshots -= {shard for shard in snapshots if self._snapshots.is_saving(shard)}
        if not checkpoints and not snapshots:
            return
        await self._flights.land()
        self._stop_stuck()
        # The others' after the next turns: each waits for a few only.
        due = sorted(checkpoints & self.owned.keys())[:_CHECKPOINTS_A_TURN]
        await asyncio.gather(*(self._write_checkpoint(shard) for shard in due))
        for shard in sorted(snapshots & self.owned.keys())[:1]:
            self._save_snapshot(shard)

    async def _write_checkpoint(self, shard: int) -> None:
        engine, owned = self.engine, self.owned[shard]
        packed = fold.pack(owned.state, engine.balances, engine.terms, with_ids=False)
        # Nothing goes out of it.
        owned.state.outbox_through = await self._writer.append(
            owned, checkpoint_entry(engine, shard, packed, self._clock.now_ms())
        )
        owned.state.checkpointed_ms = max(1, self._clock.now_ms())
        self._since_checkpoint[shard] = 0

    def _checkpoints_due(self) -> set[int]:
        """Shards whose last checkpoint has come of age, idle ones too: retention goes by time."""
        due_ms = self._clock.now_ms() - _CHECKPOINT_EVERY_MS
        return {
            shard
            for shard, owned in self.owned.items()
            if owned.state.checkpointed_ms <= due_ms and owned.state.chain.last_offset >= 0
        }

    def _save_snapshot(self, shard: int) -> None:
        """Pack it now; it is written beside what comes next."""
        engine = self.engine
        state = self.owned[shard].state
        if state.chain.last_offset < 0:
            return  # nothing to keep
        engine.note_learned(shard)
        packed = fold.pack(state, engine.balances, engine.terms, with_ids=True)
        self._snapshots.save(shard, packed)
        self._since_snapshot[shard] = 0

    async def _stop(self) -> None:
        """Let flying appends land, leave snapshots behind, close the clients."""
        landed = await self._flights.let_land(_STOP_WAIT_S)
        if not landed:
            log.warning("ending with appends on their way, or failed: no snapshots are left behind")
        self._stop_stuck()
        if landed and not self._unwritten:
            for shard in self.owned:
                self._save_snapshot(shard)
        await asyncio.to_thread(self._snapshots.stop)
        await self._writer.stop()
        if self._ends is not None:
            await self._ends.stop()

    # -- how far the sources have been read ---------------------------------------------------

    async def _read_through(self, now_ms: int) -> dict[int, int]:
        """Per shard: the time up to which all its sources have been read (READ_TO_THE_END where
        all are read to their ends). The ends are asked for only where a day's close hangs on it.
        """
        sources = range(len(EVENT_TOPICS))
        read_ms = {
            (shard, source): self._assembler.read_up_to_ms(shard, source)
            for shard in self.owned
            for source in sources
        }
        through = {shard: min(read_ms[shard, source] for source in sources) for shard in self.owned}
        waiting = [
            shard
            for shard in self.owned
            if self.engine.close_is_due(shard, now_ms)
            and not self.engine.close_is_due(shard, min(now_ms, through[shard]))
        ]
        if not waiting or not self._may_check_ends():
            return through
        at_end = await self._at_end(waiting)
        for shard in waiting:
            through[shard] = min(
                READ_TO_THE_END if (shard, source) in at_end else read_ms[shard, source]
                for source in sources
            )
        return through

    def _may_check_ends(self) -> bool:
        now_s = time.monotonic()
        quiet_s = now_s - self._intake.last_arrival_s
        if self._clock.follows_stream and quiet_s < _STREAM_SETTLES_S:
            return False
        if now_s - self._last_end_check_s < _END_CHECK_EVERY_S:
            return False
        self._last_end_check_s = now_s
        return True

    async def _at_end(self, shards: list[int]) -> set[tuple[int, int]]:
        """Which sources (shard, topic code) of these shards have been read to their ends."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                ends = await self._source_ends(shards)
        except AWAY:
            return set()  # not known to be
        return {
            (shard, EVENT_TOPICS.index(topic))
            for (shard, topic), end in ends.items()
            # Not known between taking a shard over and seeking its sources. Beyond the end: the
            # source has lost its own, and not all that comes is judged.
            if self.owned[shard].taken.get(topic, -1) == end
        }

    async def _source_ends(self, shards: list[int]) -> dict[tuple[int, str], int]:
        """(shard, event topic) -> the offset after its last record."""
        assert self._ends is not None
        tps = [TopicPartition(topic, shard) for shard in shards for topic in EVENT_TOPICS]
        ends = await self._ends.end_offsets(tps) if tps else {}
        return {(tp.partition, tp.topic): end for tp, end in ends.items()}


def _with_children(app: faust.App) -> list[Any]:
    """The services of a Faust app, its consumer and fetcher with all that they run among them."""
    found: list[Any] = []
    waiting: list[Any] = [app, app._fetcher, app.consumer]
    while waiting:
        service = waiting.pop()
        if service is not None and service not in found:
            found.append(service)
            waiting += getattr(service, "_children", [])
    return found


def _due(counts: Mapping[int, int], every: int) -> set[int]:
    return {shard for shard, count in counts.items() if count >= every}
