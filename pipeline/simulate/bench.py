"""The pacing bench: the real engine against simulated demand and ad servers, in one process.

No Kafka and no clock: events reach the engine an ingest delay after they happened, its signals
reach the ad servers a reaction time after they were decided, and simulated time moves in ticks of
two seconds while an ad group is near its stop or a signal is on its way, of thirty seconds
elsewhere (and of two minutes in the warm-up). The product decides within milliseconds.
The same options give the same figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.billing.batch import Batch, event_columns
from pipeline.billing.decide import Outcome, Policy
from pipeline.billing.decode import Decoded
from pipeline.contract.days import from_iso
from pipeline.contract.log import LogRecord
from pipeline.contract.vocabulary import (
    CATALOG,
    CLOSEUP,
    EVENT_TOPICS,
    IMPRESSION,
    INSTALL,
    KINDS,
    MS_PER_DAY,
    PLACEMENTS,
)
from pipeline.pacing.serving import Policy as PacingPolicy
from pipeline.simulate.adservers import Fleet
from pipeline.simulate.curves import Curves, recorded_curves, synthetic_curves
from pipeline.simulate.market import Demand, Market, blocks, build_market
from pipeline.simulate.measures import Figures, Recorder
from pipeline.streams.engine import READ_TO_THE_END, Engine, EngineSettings

Int64s = npt.NDArray[np.int64]

FINE_MS: Final = 2_000
COARSE_MS: Final = 30_000
WARMUP_MS: Final = 120_000
_NEAR_DEVIATIONS: Final = 3.0
"""A stop is near where a long step could bring what is left and more: what it brings on average and
so many standard deviations, and another billable event."""
SETTLE_MS: Final = 10_000
"""How long after a pause or a resume time moves in small steps."""
GRACE_MS: Final = 2 * 3_600_000
LATEST_MIDNIGHT_MS: Final = 5 * 3_600_000
"""After midnight UTC the last account's day ends so much later."""
_PINNERS: Final = 2_000_000
_POSITION_OF_KIND: Final = np.array([0, 0, 1, 2, 2, 2], dtype=np.int64)
"""Kind code -> position of its topic in EVENT_TOPICS."""


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to simulate; the same options give the same figures."""

    seed: int = 1
    groups: int = 100
    days: int = 3
    warmup_days: int = 1
    """Days before, for what is learned; not in the figures."""
    impressions_per_day: int = 3_000_000
    """Impressions that could be won on a mean day, by all ad groups together."""
    servers: int = 8
    ingest_ms: int = 1_000
    reaction_ms: int = 2_000
    loss_rate: float = 0.002
    """Of signals, for each server by itself."""
    restarts_a_day: float = 1.0
    """Of each server."""
    first_day: str = "2026-03-01"
    data_dir: Path | None = None
    """Recorded curves; None: synthetic ones."""


@dataclass(frozen=True, slots=True)
class PolicyUnderTest:
    """One way of pacing: what the engine decides by, and what the catalog and the fleet do."""

    name: str
    make: Callable[[], PacingPolicy]
    even: bool = False
    obeyed: bool = True


@dataclass(slots=True)
class _InTransit:
    """Events that happened or will, and have not reached the engine; one entry an event."""

    columns: list[Int64s] = field(
        default_factory=lambda: [np.empty(0, dtype=np.int64) for _ in range(6)]
    )
    """arrival_ms, event_time_ms, group, kind, price_micros, impression number."""

    def add(self, columns: list[Int64s]) -> None:
        self.columns = [np.concatenate(pair) for pair in zip(self.columns, columns, strict=True)]

    def take_until(self, now_ms: int) -> list[Int64s]:
        """The events that have arrived by now, in the order of arrival."""
        here = self.columns[0] <= now_ms
        taken = [column[here] for column in self.columns]
        self.columns = [column[~here] for column in self.columns]
        order = np.argsort(taken[0], kind="stable")
        return [column[order] for column in taken]


class Bench:
    """One run of one policy."""

    def __init__(self, options: BenchOptions, policy: PolicyUnderTest) -> None:
        self.options = options
        self.start_ms = from_iso(options.first_day) * MS_PER_DAY
        days = options.warmup_days + options.days
        self._warm_ms = self.start_ms + options.warmup_days * MS_PER_DAY
        self.end_ms = self.start_ms + days * MS_PER_DAY + LATEST_MIDNIGHT_MS
        self.market = build_market(
            options.seed,
            options.groups,
            options.impressions_per_day,
            curves_of(options),
            self.start_ms,
            even=policy.even,
        )
        self.fleet = Fleet(
            self.market,
            options.servers,
            options.reaction_ms,
            options.loss_rate,
            options.restarts_a_day,
            policy.obeyed,
        )
        self.engine = bench_engine(self.market, policy.make())
        self.recorder = Recorder(self.market, self.engine, self.start_ms, days)
        self._rng = np.random.default_rng([options.seed, 3])
        self._transit = _InTransit()
        self._impressions = 0
        self._fine_until_ms = 0
        self._events = EventColumns(self.market)
        self._value_per_impression = self.market.nanos_per_impression()
        self._value_per_billable = self.market.nanos_per_billable()

    def run(self, on_progress: Callable[[float], None] = lambda share: None) -> Figures:
        """Simulate all days; the figures leave the warm-up out."""
        span = self.end_ms - self.start_ms
        for block_ms, demand in blocks(self.market, self.start_ms, self.end_ms):
            self.recorder.note_demand(demand)
            self._minute(block_ms, demand)
            if block_ms % 3_600_000 == 0:
                on_progress((block_ms - self.start_ms) / span)
        return self.recorder.figures(self.options.warmup_days, self.fleet.lost)

    def _minute(self, block_ms: int, demand: Demand) -> None:
        now_ms, end_ms = block_ms, block_ms + 60_000
        while now_ms < end_ms:
            next_ms = min(end_ms, now_ms + self._tick_ms(now_ms))
            while now_ms < next_ms:
                self.fleet.advance(now_ms)
                until_ms = max(now_ms + 1, self.fleet.next_change_ms(next_ms))
                self._serve(demand, now_ms, until_ms)
                now_ms = until_ms
            self._turn(now_ms)

    def _tick_ms(self, now_ms: int) -> int:
        if now_ms < self._warm_ms or not self.fleet.obeys:
            return WARMUP_MS
        if now_ms < self._fine_until_ms:
            return FINE_MS
        near = self.recorder.room_nanos(now_ms) < self._soon_nanos(now_ms)
        return FINE_MS if near.any() else COARSE_MS - now_ms % COARSE_MS

    def _soon_nanos(self, now_ms: int) -> npt.NDArray[np.float64]:
        rate = self.market.impressions_per_ms(now_ms) * self._value_per_impression
        serving = self.fleet.serving()
        mean, price = rate * serving * COARSE_MS, self._value_per_billable
        soon = mean + _NEAR_DEVIATIONS * np.sqrt(mean * price) + price
        return np.where(serving > 0, soon, -np.inf)

    def _serve(self, demand: Demand, from_ms: int, to_ms: int) -> None:
        rows = self.fleet.served(demand, demand.between(from_ms, to_ms))
        if len(rows) == 0:
            return
        self.recorder.note_served(demand.group[rows], demand.time_ms[rows])
        numbers = self._impressions + np.arange(len(rows), dtype=np.int64)
        self._impressions += len(rows)
        time_ms, group, price = demand.time_ms[rows], demand.group[rows], demand.price_micros[rows]
        kind = np.full(len(rows), IMPRESSION, dtype=np.int64)
        self._send(time_ms, group, kind, price, numbers)
        acts = np.flatnonzero(demand.action[rows])
        acted_ms = time_ms[acts] + demand.action_delay_ms[rows[acts]]
        kinds = demand.action[rows[acts]].astype(np.int64)
        self._send(acted_ms, group[acts], kinds, price[acts], numbers[acts])
        installs = np.flatnonzero(demand.install_delay_ms[rows])
        installed_ms = time_ms[installs] + demand.install_delay_ms[rows[installs]]
        kinds = np.full(len(installs), INSTALL, dtype=np.int64)
        self._send(installed_ms, group[installs], kinds, price[installs], numbers[installs])

    def _send(
        self, time_ms: Int64s, group: Int64s, kind: Int64s, price: Int64s, number: Int64s
    ) -> None:
        delay = self.options.ingest_ms * (0.5 + self._rng.random(len(time_ms)))
        arrival_ms = time_ms + delay.astype(np.int64)
        self._transit.add([arrival_ms, time_ms, group, kind, price, number])

    def _turn(self, now_ms: int) -> None:
        """The engine takes what has arrived and decides."""
        arrived = self._transit.take_until(now_ms)
        through = {0: READ_TO_THE_END}
        if len(arrived[0]) == 0 and not self.engine.is_due(now_ms, through):
            return
        turn = self.engine.turn(self._events.batch(arrived), now_ms, through)
        self._follow(turn.outcome, now_ms)
        self.recorder.note_predictions(turn.drafts[0].notes)
        signals = turn.drafts[0].signals
        for signal in signals:
            self.fleet.hear(signal, now_ms)
            self.recorder.note_signal(signal)
        # A resume too: nothing is served yet that could be near its stop, and soon is.
        if any(signal.action in ("pause", "resume") for signal in signals):
            self._fine_until_ms = now_ms + SETTLE_MS

    def _follow(self, outcome: Outcome, now_ms: int) -> None:
        self.recorder.note_outcome(outcome, now_ms)


_EVENT_TEXTS: Final = [
    pl.col("event_id", "user_id", "impression_id").cast(pl.String),
    pl.col("event_time_ms", "price_micros"),
    pl.lit(PLACEMENTS[1]).alias("placement"),
    *(pl.lit(None, dtype=pl.String).alias(name) for name in ("country", "device", "keyword")),
]


class EventColumns:
    """Arrived events as the batch that decoding their messages would give.

    The bench is of pacing, not of decoding: writing and reading JSON would take half its time.
    """

    def __init__(self, market: Market) -> None:
        names, campaigns = market.group_ids, market.campaign_ids
        self._ads = pl.DataFrame(
            {
                "campaign_id": [campaigns[at] for at in market.campaign.tolist()],
                "ad_group_id": names,
                "promoted_pin_id": [f"{name}-p" for name in names],
            }
        )
        self._kinds = pl.Series([None] * CLOSEUP + list(KINDS[CLOSEUP:]), dtype=pl.String)
        self._offsets = np.zeros(len(EVENT_TOPICS), dtype=np.int64)

    def batch(self, arrived: list[Int64s]) -> Batch:
        """The batch of these events, in the order of judgement; columns as in `_InTransit`."""
        order = np.lexsort((_POSITION_OF_KIND[arrived[3]], arrived[0]))
        arrival_ms, time_ms, group, kind, price, number = (column[order] for column in arrived)
        size, source = len(order), _POSITION_OF_KIND[kind]
        offset = np.zeros(size, dtype=np.int64)
        ranges: dict[str, tuple[int, int]] = {}
        for at, topic in enumerate(EVENT_TOPICS):
            here = np.flatnonzero(source == at)
            if len(here):
                start = int(self._offsets[at])
                self._offsets[at] += len(here)
                offset[here] = np.arange(start, start + len(here))
                ranges[topic] = (start, start + len(here))
        numbers = pl.DataFrame(
            {
                "event_id": number * len(KINDS) + kind,
                "user_id": number * 7919 % _PINNERS,
                "impression_id": number,
                "event_time_ms": time_ms,
                "price_micros": price,
            }
        )
        rest = numbers.select(_EVENT_TEXTS).with_columns(kind=self._kinds.gather(kind))
        decoded = Decoded.of(self._ads[group].hstack(rest), np.zeros(size, dtype=np.bool_))
        codes = source.astype(np.uint8)
        return Batch(
            source=codes,
            shard=np.zeros(size, dtype=np.int32),
            offset=offset,
            record_ms=arrival_ms,
            order_ms=arrival_ms,
            came_as=np.arange(size),
            **event_columns(decoded, codes),
            chunks=(),
            chunk_ends=np.empty(0, np.int64),
            ranges={0: ranges} if ranges else {},
            spans={0: slice(0, size)} if size else {},
        )


def curves_of(options: BenchOptions) -> Curves:
    """The curves that a bench draws from. Raises `CurveError` where recorded ones do not read."""
    return synthetic_curves() if options.data_dir is None else recorded_curves(options.data_dir)


def bench_engine(market: Market, pacing: PacingPolicy) -> Engine:
    """An engine that owns one shard, all of the market, and knows its catalog."""
    judging = Policy(acceptance_horizon_days=1, user_hash_key=b"pacing bench key")
    engine = Engine(EngineSettings(1, judging, GRACE_MS), pacing)
    engine.new_shard(0)
    created_ms = market.start_ms - 2 * MS_PER_DAY
    for offset, (key, entity) in enumerate(market.entities):
        record = LogRecord(
            CATALOG, 0, offset, created_ms, key.encode(), msgspec.json.encode(entity)
        )
        result = engine.apply_catalog(record, created_ms)
        assert not hasattr(result, "reason"), result
    return engine
