"""What pacing costs: the same events without and with prediction.

`python -m bench.pacing_cost`: the engine alone (decide, post, review; no Kafka), then whole workers
on a real one, the events of `bench.scale`. The two policies take turns, so that a slow minute of
the machine is both's; the best of three passes counts of the engine, the median of whole workers'.
"""

from __future__ import annotations

import statistics
import time
from typing import Final

import numpy as np
import numpy.typing as npt

from bench.scale import whole_job
from pipeline.billing.batch import Assembler, Batch, Chunk
from pipeline.billing.texts import Packed
from pipeline.contract.vocabulary import IMPRESSION, KINDS
from pipeline.pacing.predictive import Predictive
from pipeline.pacing.serving import PlainLimits
from pipeline.pacing.serving import Policy as PacingPolicy
from pipeline.simulate.bench import bench_engine
from pipeline.simulate.curves import synthetic_curves
from pipeline.simulate.market import Market, blocks, build_market
from pipeline.streams.engine import READ_TO_THE_END

Int64s = npt.NDArray[np.int64]

_PINNERS: Final = 2_000_000
EVENTS: Final = 10_000
TURNS: Final = 10
WHOLE_EVENTS: Final = 1_000_000
RUNS: Final = 3
NOON_MS: Final = 1_772_366_400_000
"""2026-03-01T12:00Z: events of one minute of a busy day."""


class EventFormats:
    """Writes events as JSON, much faster than an encoder would: the ids need no escaping."""

    def __init__(self, market: Market) -> None:
        self._ads = [
            b'"campaign_id":"%s","ad_group_id":"%s","promoted_pin_id":"%s-p","placement":"browse"'
            % (market.campaign_ids[campaign].encode(), name.encode(), name.encode())
            for name, campaign in zip(market.group_ids, market.campaign.tolist(), strict=True)
        ]

    def values(self, source: int, columns: list[Int64s]) -> list[bytes]:
        """Message values of one topic; columns as in `its caller`."""
        ads = self._ads
        rows = zip(*(column.tolist() for column in columns[1:]), strict=True)
        if source == 2:
            kinds = [name.encode() for name in KINDS]
            return [
                b'{%s,"event_id":"%d-%d","event_time_ms":%d,"user_id":"%d","impression_id":"%d",'
                b'"price_micros":%d,"kind":"%s"}'
                % (ads[g], n, kind, t, n * 7919 % _PINNERS, n, price, kinds[kind])
                for t, g, kind, price, n in rows
            ]
        return [
            b'{%s,"event_id":"%d-%d","event_time_ms":%d,"user_id":"%d","impression_id":"%d",'
            b'"price_micros":%d}' % (ads[g], n, kind, t, n * 7919 % _PINNERS, n, price)
            for t, g, kind, price, n in rows
        ]


def _market() -> Market:
    return build_market(1, 100, 200_000_000, synthetic_curves(), NOON_MS, even=False)


def _batches() -> list[tuple[Batch, int]]:
    market = _market()
    formats, assembler = EventFormats(market), Assembler()
    found, offset = [], 0
    [(_, demand)] = list(blocks(market, NOON_MS, NOON_MS + 60_000))
    for turn in range(TURNS):
        rows = slice(turn * EVENTS, (turn + 1) * EVENTS)
        size = len(demand.time_ms[rows])
        numbers = offset + np.arange(size)
        kind = np.full(size, IMPRESSION)
        columns = [demand.time_ms[rows], demand.time_ms[rows], demand.group[rows], kind]
        values = formats.values(0, [*columns, demand.price_micros[rows], numbers])
        times = (demand.time_ms[rows] + 300).tolist()
        span = np.arange(offset, offset + size)
        texts, no_keys = Packed.of(values), Packed.of([None] * size)
        chunk = Chunk(0, 0, offset, offset + size, span, times, texts, no_keys)
        found.append((assembler.assemble([chunk]), times[-1]))
        offset += size
    return found


def _seconds(batches: list[tuple[Batch, int]], pacing: PacingPolicy) -> float:
    engine = bench_engine(_market(), pacing)
    started_s = time.perf_counter()
    for batch, now_ms in batches:
        engine.turn(batch, now_ms, {0: READ_TO_THE_END})
    return time.perf_counter() - started_s


def _engine_alone() -> None:
    batches = _batches()
    best = {"plain": 1e9, "inflight": 1e9}
    for _ in range(RUNS):
        best["plain"] = min(best["plain"], _seconds(batches, PlainLimits()))
        best["inflight"] = min(best["inflight"], _seconds(batches, Predictive()))
    events = sum(len(batch) for batch, _ in batches)
    for name, seconds in best.items():
        print(f"engine alone, {name}: {seconds / events * 1e6:.3f} µs an event")
    more_us = (best["inflight"] - best["plain"]) / events * 1e6
    print(f"engine alone: prediction adds {more_us:.3f} µs to an event")


def _whole_workers() -> None:
    costs_us: dict[str, list[float]] = {"plain": [], "inflight": []}
    for _ in range(RUNS):
        for name, taken_us in costs_us.items():
            run = whole_job(4, 1, WHOLE_EVENTS, {"PIPELINE_PACING_POLICY": name})
            taken_us.append(run["cpu_us_per_event"])
    median_us = {name: statistics.median(taken_us) for name, taken_us in costs_us.items()}
    for name, cost_us in median_us.items():
        print(f"whole worker, {name}: {cost_us:.2f} CPU µs an event")
    more = median_us["inflight"] / median_us["plain"] - 1
    print(f"prediction adds {more:+.1%} to the whole job's CPU time")


def main() -> None:
    _engine_alone()
    _whole_workers()


if __name__ == "__main__":
    main()
