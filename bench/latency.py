"""From the event that reaches a limit to the signal that stops its ad group.

Beside a load, probes: a click that spends the whole budget of an ad group of its own. A probe's
latency is the time from Kafka's acknowledgement of the click to the arrival of the pause at a
consumer of `pacing.signals`, both seen by this process. The load, the probes, the consumer and the
broker share one core, the worker has the other: what the first four wait for each other is in the
figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from statistics import median_high
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from bench import load, machine
from bench.fill import fill
from bench.machine import say
from bench.site import Site, opened
from bench.watch import steady_events_per_s
from bench.workers import Worker, judged, working
from bench.workload import CAMPAIGNS, catalog, messages
from pipeline.contract.signals import decode_signal
from pipeline.contract.vocabulary import CLICKS, MS_PER_DAY, SIGNALS

SHARES = (0.1, 0.5, 0.8)
"""Of live capacity: what the worker takes of a stream that is being sent."""
PARTITIONS = 4
ROUNDS = 3
"""Of all loads, each with a broker and a worker of its own, and so with logs that begin empty."""
PROBE_CAMPAIGNS = 64
PROBE_PRICE_MICROS = 1_000_000
WARM_UP_S = 2.0
ANSWERED_WITHIN_S = 30.0
_WARM_UP_EVENTS = 1_000_000
"""So many that the tables of ids have grown (they do it in steps, in a shard's first seconds), and
that they tell how fast a backlog goes."""
_FLOOD_S = 6
"""How long it would take to send what the live capacity is measured with; it takes longer."""
_FLOOD_SETTLES_MS = 2_000
_RATES = ("capacity_events_per_s", "backlog_events_per_s")


def latency(seconds: int, probes_a_s: int) -> dict[str, Any]:
    """At each share of capacity, the latencies of the probes in some runs; as JSON takes them.

    Capacity is what the worker takes of a stream of this very hour while the senders and the broker
    are at work beside it, as at every load here; a backlog that it has to itself goes faster.
    """
    about = machine.described(" ".join(["python -m bench", *sys.argv[1:]]))
    rounds = [_round(seconds, seconds * probes_a_s) for _ in range(ROUNDS)]
    return {
        "about": about,
        **{name: median_high([one[name] for one in rounds]) for name in _RATES},
        "levels": [together(runs) for runs in zip(*(one["levels"] for one in rounds), strict=True)],
    }


def _round(seconds: int, probes: int) -> dict[str, Any]:
    """A run of each load, and of what capacity they are shares."""
    with opened(PARTITIONS) as site:
        asyncio.run(_fill(site, probes * len(SHARES)))
        with working(site, (site.cores.job,)) as worker:
            backlog = steady_events_per_s(asyncio.run(judged(site, _WARM_UP_EVENTS, [worker])))
            capacity = _live_capacity(site, worker, int(backlog), seed=_seed(len(SHARES)))
            found = dict(zip(_RATES, (capacity, backlog), strict=True))
            say(json.dumps(found))
            levels: list[dict[str, Any]] = []
            for number, share in enumerate(SHARES):
                level = _level(site, int(share * capacity), seconds, number, probes)
                levels.append({"share": share} | level)
                say(json.dumps(levels[-1]))
    return {**found, "levels": levels}


def _seed(number: int) -> int:
    """Of a load of its own events: the first seed is that of what comes before."""
    return number + 2


def _live_capacity(site: Site, worker: Worker, events_a_s: int, seed: int) -> float:
    """The events a second that are judged while more are being sent: as many as of a backlog."""
    with load.prepared(site, events_a_s, _FLOOD_S, seed) as flood:
        flood.go()
        began_ms = time.time_ns() // 1_000_000 + _FLOOD_SETTLES_MS
        flood.reached()
        ended_ms = time.time_ns() // 1_000_000
    outputs = asyncio.run(judged(site, _WARM_UP_EVENTS + events_a_s * _FLOOD_S, [worker]))
    meanwhile = sum(one.events for one in outputs if began_ms <= one.at_ms < ended_ms)
    return meanwhile / (ended_ms - began_ms) * 1_000


def together(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The runs of one load: the median of each of their figures, but of the worst the worst, the
    number of all probes, and the p99 of each. A run in which nothing was answered is the slowest.
    """
    found = runs[0] | {name: sum(run[name] for run in runs) for name in ("probes", "unanswered")}
    rates = "asked_events_per_s", "reached_events_per_s"
    for name in (*rates, *(f"p{of}_ms" for of in QUANTILES)):
        figures = [math.inf if run[name] is None else run[name] for run in runs]
        figure = max(figures) if name == _WORST else median_high(figures)
        found[name] = None if figure == math.inf else figure
    return found | {"p99_ms_of_runs": [run["p99_ms"] for run in runs]}


async def _fill(site: Site, probes: int) -> None:
    now_ms = time.time_ns() // 1_000_000
    created_ms = now_ms - 2 * MS_PER_DAY
    site.make_topics()
    await fill(
        site.bootstrap,
        [*catalog(CAMPAIGNS, created_ms), *_probe_catalog(probes, created_ms)],
        messages(_WARM_UP_EVENTS, CAMPAIGNS, now_ms - 600_000),
        site.partitions,
    )


def _level(site: Site, events_a_s: int, seconds: int, number: int, probes: int) -> dict[str, Any]:
    """The latencies of the run of this number, with probes of its own."""
    with load.prepared(site, events_a_s, WARM_UP_S + seconds, _seed(number)) as one:
        # What came before is written out: 30 s later the system would do it at once, gigabytes in
        # which the broker, and with it the run, stands still for half a second.
        os.sync()
        one.go()
        latencies_ms = asyncio.run(_probe(site, number * probes, probes, seconds))
        reached = one.reached()
    return {
        "asked_events_per_s": events_a_s,
        "reached_events_per_s": reached,
        "probes": probes,
        "unanswered": probes - len(latencies_ms),
        **{f"p{name}_ms": quantile(latencies_ms, of) for name, of in QUANTILES.items()},
    }


QUANTILES = {"50": 0.5, "99": 0.99, "99.9": 0.999, "100": 1.0}
_WORST = "p100_ms"


def quantile(values: Sequence[float], share: float) -> float | None:
    """The least value that this share of the values does not exceed; None of no values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


async def _probe(site: Site, first: int, probes: int, seconds: int) -> list[float]:
    """Send the probes evenly over the seconds; the latencies, in ms, of those answered."""
    acknowledged_s: dict[str, float] = {}
    paused_s: dict[str, float] = {}
    consumer = AIOKafkaConsumer(bootstrap_servers=site.bootstrap, auto_offset_reset="latest")
    # Each its own batch at once: a probe that waits in its client would not be in the log yet.
    producer = AIOKafkaProducer(bootstrap_servers=site.bootstrap, acks="all", linger_ms=0)
    await consumer.start()
    await producer.start()
    try:
        partitions = [TopicPartition(SIGNALS, number) for number in range(site.partitions)]
        consumer.assign(partitions)
        await consumer.seek_to_end(*partitions)
        wanted = {f"ad_group:{_group(number)}" for number in range(first, first + probes)}
        listening = asyncio.create_task(_listen(consumer, wanted, paused_s))
        await asyncio.sleep(WARM_UP_S)
        started_s = time.monotonic()
        for number in range(probes):
            await asyncio.sleep(started_s + number * seconds / probes - time.monotonic())
            await _send_probe(producer, first + number, acknowledged_s)
        await producer.flush()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(listening, ANSWERED_WITHIN_S)
    finally:
        await producer.stop()
        await consumer.stop()
    return [
        (paused_s[entity] - acked_s) * 1_000
        for entity, acked_s in acknowledged_s.items()
        if entity in paused_s
    ]


async def _listen(consumer: AIOKafkaConsumer, wanted: set[str], paused_s: dict[str, float]) -> None:
    """Note when the first pause of each wanted entity arrives; returns when all have."""
    while wanted:
        record = await consumer.getone()
        arrived_s = time.monotonic()
        signal = decode_signal(record.value)
        if signal.action == "pause" and signal.entity in wanted:
            wanted.remove(signal.entity)
            paused_s[signal.entity] = arrived_s


async def _send_probe(
    producer: AIOKafkaProducer, number: int, acknowledged_s: dict[str, float]
) -> None:
    entity = f"ad_group:{_group(number)}"
    now_ms = time.time_ns() // 1_000_000
    event = {
        "event_id": f"probe-{number}",
        "event_time_ms": now_ms,
        "campaign_id": _campaign(number),
        "ad_group_id": _group(number),
        "promoted_pin_id": f"{_group(number)}-p",
        "user_id": f"prober-{number}",
        "impression_id": f"probe-{number}",
        "price_micros": PROBE_PRICE_MICROS,
        "placement": "browse",
    }
    ack = await producer.send(
        CLICKS, json.dumps(event).encode(), key=_campaign(number).encode(), timestamp_ms=now_ms
    )
    ack.add_done_callback(lambda _: acknowledged_s.setdefault(entity, time.monotonic()))


def _campaign(number: int) -> str:
    return f"probe-c{number % PROBE_CAMPAIGNS}"


def _group(number: int) -> str:
    return f"probe-g{number}"


def _probe_catalog(probes: int, created_ms: int) -> Iterator[tuple[bytes, bytes]]:
    """A click campaign's ad group for each probe, with a budget of the one click."""

    def record(key: str, **fields: Any) -> tuple[bytes, bytes]:
        return key.encode(), json.dumps(fields | {"effective_ms": created_ms}).encode()

    for number in range(PROBE_CAMPAIGNS):
        name = _campaign(number)
        yield record(f"campaign:{name}", campaign_id=name, account_id="a", objective="traffic")
    for number in range(probes):
        group = _group(number)
        yield record(
            f"ad_group:{group}",
            ad_group_id=group,
            campaign_id=_campaign(number),
            budget_type="daily",
            budget_micros=PROBE_PRICE_MICROS,
            bid_micros=PROBE_PRICE_MICROS,
            start_ms=0,
        )
        pin = f"{group}-p"
        yield record(
            f"promoted_pin:{pin}", promoted_pin_id=pin, ad_group_id=group, review="approved"
        )
