"""Whether an event costs the same in a larger product, and what one costs that has little to do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from bench import load, machine
from bench.engine import EVENTS_A_TURN, EngineAlone, make_engine, turns_of
from bench.fill import fill, hidden
from bench.machine import say
from bench.site import BenchError, Site, opened
from bench.workers import Worker, judged, working
from bench.workload import (
    CAMPAIGNS,
    EVENTS_A_MS,
    GROUPS_A_CAMPAIGN,
    Message,
    catalog,
    messages,
)
from pipeline.billing.batch import Chunk
from pipeline.contract.vocabulary import MS_PER_DAY
from pipeline.streams.intake import events_a_turn

PARTITIONS = (4, 16, 64)
AD_GROUPS = (200, 2_000, 20_000, 200_000)
WORKERS = (1, 2, 4)
WORKERS_AD_GROUPS = (200, 20_000, 200_000)
LOADS_A_S = (0, 2_000, 20_000)
RUNS = 3
WARM_UP_TURNS, TURNS = 6, 30
WARM_UP_EVENTS = 1_000_000
"""Of whole workers, and not measured. Nearly each of 200,000 ad groups has had one by then, and
what is kept of it is made: a worker does that once, not with each event."""
START_MS = 1_772_323_200_000
BALANCED_WITHIN_S = 180.0
_SETTLE_S = 3.0


def scale(events: int, seconds: int) -> dict[str, Any]:
    """All of it; `events` for each run of workers, `seconds` at each low load."""
    about = machine.described(" ".join(["python -m bench", *sys.argv[1:]]))
    engine = _engines()
    of_workers = [_Kind(partitions, 1) for partitions in PARTITIONS]
    of_workers += [_Kind(4, number) for number in WORKERS if number > 1]
    of_sizes = [_Kind(4, 1, groups) for groups in WORKERS_AD_GROUPS]
    found = _medians(of_workers + of_sizes, events)
    return {
        "about": about,
        "engine": engine,
        "workers": found[: len(of_workers)],
        "sizes": found[len(of_workers) :],
        "low_load": _low_load(seconds),
    }


@dataclass(frozen=True, slots=True)
class _Kind:
    """Whole workers; without a number of ad groups, on the workload's own."""

    partitions: int
    workers: int
    ad_groups: int | None = None


def _medians(kinds: list[_Kind], events: int) -> list[dict[str, Any]]:
    """Of each kind, the run of the median cost. They take a run each, then each the next one, as
    the engines do their turns."""
    runs = [
        [
            whole_job(kind.partitions, kind.workers, events, ad_groups=kind.ad_groups)
            for kind in kinds
        ]
        for _ in range(RUNS)
    ]
    return [sorted(of_kind, key=_cost_us)[RUNS // 2] for of_kind in zip(*runs, strict=True)]


def _cost_us(run: Mapping[str, Any]) -> float:
    return float(run["cpu_us_per_event"])


# -- the engine alone -----------------------------------------------------------------------------


@dataclass(slots=True)
class _Size:
    """An engine of one size, and what each of its turns took."""

    partitions: int
    ad_groups: int
    alone: EngineAlone
    turn_events: int
    turns: Iterator[list[Chunk]]
    took_s: list[float] = field(default_factory=list)

    def take_turn(self) -> None:
        self.took_s.append(self.alone.take([next(self.turns)]))


def _engines() -> list[dict[str, Any]]:
    """CPU microseconds an event of the engine in each size: the median of its turns.

    All sizes take a turn each, then each the next one: the machine's speed moves by more than the
    sizes differ, so each must have its share of every hour.
    """
    ample = CAMPAIGNS * GROUPS_A_CAMPAIGN
    sizes = [_of_size(partitions, ample) for partitions in PARTITIONS]
    sizes += [_of_size(4, groups) for groups in AD_GROUPS]
    for turn in range(WARM_UP_TURNS + TURNS):
        for size in sizes[turn % len(sizes) :] + sizes[: turn % len(sizes)]:
            size.take_turn()
    return [_cost(size) for size in sizes]


def _of_size(partitions: int, ad_groups: int) -> _Size:
    """No budget runs out: the more ad groups, the more signals would be decided, and a signal costs
    what some twenty events cost."""
    campaigns = ad_groups // GROUPS_A_CAMPAIGN
    created_ms = START_MS - 2 * MS_PER_DAY
    records = catalog(campaigns, created_ms, pins_a_group=1, scarce=False)
    alone = EngineAlone(make_engine(partitions, records, created_ms))
    a_turn = events_a_turn(EVENTS_A_TURN, partitions)
    given = messages((WARM_UP_TURNS + TURNS) * a_turn, campaigns, START_MS, pins_a_group=1)
    turns = turns_of(given, partitions, a_turn)
    return _Size(partitions, ad_groups, alone, a_turn, turns)


def _cost(size: _Size) -> dict[str, Any]:
    cost_us = statistics.median(size.took_s[WARM_UP_TURNS:]) / size.turn_events * 1e6
    found = {
        "partitions": size.partitions,
        "ad_groups": size.ad_groups,
        "cpu_us_per_event": cost_us,
    }
    say(json.dumps(found))
    return found


# -- whole workers --------------------------------------------------------------------------------


def whole_job(
    partitions: int,
    number: int,
    events: int,
    settings: Mapping[str, str] | None = None,
    ad_groups: int | None = None,
) -> dict[str, Any]:
    """The rate and the cost of so many workers, each with its share of the shards, and warm by a
    million events that came before, when the events are shown to them; with so many ad groups, of
    one pin each and with ample budgets, or else the workload's own.

    One worker has a core to itself; several share all cores with the broker.
    """
    with opened(partitions, settings) as site:
        found = asyncio.run(_measured(site, number, events, ad_groups))
    say(json.dumps(found))
    return found


async def _measured(site: Site, number: int, events: int, ad_groups: int | None) -> dict[str, Any]:
    records, given = _workload(ad_groups, WARM_UP_EVENTS + events)
    site.make_topics()
    await fill(site.bootstrap, records, [], site.partitions)
    async with (
        hidden(site.bootstrap, islice(given, WARM_UP_EVENTS), site.partitions) as show_first,
        hidden(site.bootstrap, given, site.partitions) as show,
    ):
        with _running(site, number) as workers:
            await asyncio.to_thread(_await_balance, workers, site.partitions, len(records))
            await show_first()
            await judged(site, WARM_UP_EVENTS, workers)
            cpu_s = -sum(machine.cpu_s(worker.child.pid) for worker in workers)
            shown_ms = time.time_ns() // 1_000_000
            await show()
            outputs = await judged(site, WARM_UP_EVENTS + events, workers)
            cpu_s += sum(machine.cpu_s(worker.child.pid) for worker in workers)
    outputs = [output for output in outputs if output.at_ms >= shown_ms]
    return {
        "partitions": site.partitions,
        "workers": number,
        "ad_groups": ad_groups or CAMPAIGNS * GROUPS_A_CAMPAIGN,
        "events_per_s": events / (outputs[-1].at_ms - shown_ms) * 1_000,
        "cpu_us_per_event": cpu_s / events * 1e6,
        "journal_bytes_per_event": sum(output.size_bytes for output in outputs) / events,
    }


def _workload(
    ad_groups: int | None, events: int
) -> tuple[list[tuple[bytes, bytes]], Iterator[Message]]:
    """The catalog, and so many events of the last minutes or hours."""
    now_ms = time.time_ns() // 1_000_000
    created_ms, first_ms = now_ms - 2 * MS_PER_DAY, now_ms - events // EVENTS_A_MS
    if ad_groups is None:
        return list(catalog(CAMPAIGNS, created_ms)), messages(events, CAMPAIGNS, first_ms)
    campaigns = ad_groups // GROUPS_A_CAMPAIGN
    records = list(catalog(campaigns, created_ms, pins_a_group=1, scarce=False))
    return records, messages(events, campaigns, first_ms, pins_a_group=1)


@contextlib.contextmanager
def _running(site: Site, number: int) -> Iterator[list[Worker]]:
    cores = (site.cores.job,) if number == 1 else (site.cores.job, site.cores.others)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(working(site, cores)) for _ in range(number)]


def _await_balance(workers: list[Worker], partitions: int, catalog_records: int) -> None:
    """Return when all shards are judged, each worker has some and the catalog. Raises
    `BenchError`."""
    until_s = time.monotonic() + BALANCED_WITHIN_S
    while True:
        shards = [_shards(worker, catalog_records) for worker in workers]
        if all(shards) and sum(shards) == partitions:
            return
        if time.monotonic() > until_s or not all(worker.is_alive() for worker in workers):
            logs = "; ".join(worker.log_tail() for worker in workers)
            raise BenchError(f"workers have {shards} of {partitions} shards: {logs}")
        time.sleep(0.1)


def _shards(worker: Worker, catalog_records: int) -> int:
    """How many it judges now; 0 while it does not answer, takes over or reads the catalog."""
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{worker.web_port}/health", timeout=5
        ) as page:
            health = json.load(page)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return 0
    ready = health["state"] == "running" and health["catalog_offset"] >= catalog_records
    return len(health["shards"]) if ready else 0


# -- little to do ---------------------------------------------------------------------------------


def _low_load(seconds: int) -> list[dict[str, Any]]:
    """The share of a core that a worker uses with nothing, and with little, to do."""
    found = []
    with opened(partitions=4) as site:
        records, given = _workload(None, events=1_000)
        site.make_topics()
        asyncio.run(fill(site.bootstrap, records, given, site.partitions))
        with _running(site, 1) as [worker]:
            _await_balance([worker], site.partitions, len(records))
            time.sleep(_SETTLE_S)
            for seed, events_a_s in enumerate(LOADS_A_S, start=2):
                reached, share = _share_at(site, worker, events_a_s, seconds, seed)
                found.append({"events_per_s": reached, "core_share": share})
                say(json.dumps(found[-1]))
            if not worker.is_alive():
                raise BenchError(worker.log_tail())
    return found


def _share_at(
    site: Site, worker: Worker, events_a_s: int, seconds: int, seed: int
) -> tuple[float, float]:
    """Events a second that were sent, and the worker's share of a core meanwhile."""
    if events_a_s == 0:
        return 0.0, _share_over(worker, seconds)
    with load.prepared(site, events_a_s, seconds + 2 * _SETTLE_S, seed) as one:
        one.go()
        time.sleep(_SETTLE_S)
        share = _share_over(worker, seconds)
        return one.reached(), share


def _share_over(worker: Worker, seconds: float) -> float:
    started_s, before_s = time.monotonic(), machine.cpu_s(worker.child.pid)
    time.sleep(seconds)
    used_s = machine.cpu_s(worker.child.pid) - before_s
    return used_s / (time.monotonic() - started_s)
