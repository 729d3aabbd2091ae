"""What a large state costs: remembered ids, keys of rule 8, ad groups; on one core.

Rates are of CPU time, so that they hold on a machine that is shared; a turn that waits is told in
the clock's time too.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine
from bench.engine import EVENTS_A_TURN, EngineAlone, make_engine, turns_of
from bench.machine import say
from bench.workload import CAMPAIGNS, GROUPS_A_CAMPAIGN, catalog, messages
from pipeline.billing import fold
from pipeline.billing.books import Balances, Shard
from pipeline.billing.ids import IdSet, Keys
from pipeline.billing.terms import Terms
from pipeline.contract.catalog import Catalog
from pipeline.contract.vocabulary import MS_PER_DAY
from pipeline.streams.snapshots import SnapshotStore

HORIZON_DAYS = 7
ANY_OFFSET = range(-1, 1 << 62)
KEYS_A_TURN = 20_000
RESENT_A_TURN = 200
"""Keys of a turn that are in the set, from any time before."""
RATE_OVER_KEYS = 1_000_000
"""The rates are those of the first and of the last so many keys."""
START_MS = 1_772_323_200_000
PARTITIONS = 4
GROUP_EVENTS = 300_000
JOB_EVENTS = 240_000
_SETTLE_S = 0.05
FEW_GROUPS = 800


def state(
    millions: list[int], unique_millions: list[int], ad_groups: int, memory_mib: int
) -> dict[str, Any]:
    """Sets of so many ids and keys of rule 8, and a catalog of so many ad groups."""
    about = machine.described(" ".join(["python -m bench", *sys.argv[1:]]))
    empty_us = _alone(job_us, None)
    sizes = [
        _alone(measure, what, number * 1_000_000, memory_mib)
        for what, numbers in (("ids", millions), ("unique", unique_millions))
        for number in sorted(numbers)
    ]
    groups = [_alone(measure_groups, number) for number in (FEW_GROUPS, ad_groups) if number]
    return {"about": about, "empty_job_us": empty_us, "sizes": sizes, "ad_groups": groups}


def _alone(measured: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own: memory that was freed would hide what is needed."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        figures = pool.submit(measured, *arguments).result()
    say(str(figures))
    return figures


# -- sets of keys ---------------------------------------------------------------------------------


def measure(what: str, keys: int, memory_mib: int) -> dict[str, Any]:
    """Fill a shard's set with so many keys, spread over the horizon, and save and load it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        before_bytes = machine.private_memory_bytes()
        store = SnapshotStore(Path(directory), memory_mib << 20)
        shard = Shard.new(0, HORIZON_DAYS, 1_000, store.open(0))
        filled: IdSet = getattr(shard, what)
        turns = max(1, keys // KEYS_A_TURN)
        cpu_s, clock_s = [], []
        all_cpu_s, drawn_s = time.process_time(), time.thread_time()
        for number in range(turns):
            cpu, clock = _turn(filled, number, turns)
            cpu_s.append(cpu)
            clock_s.append(clock)
        all_cpu_s = time.process_time() - all_cpu_s
        drawn_s = time.thread_time() - drawn_s - sum(cpu_s)  # making up the keys
        private_bytes = machine.private_memory_bytes() - before_bytes
        live, runs = len(filled), sum(map(len, filled.run_names().values()))
        rate_turns = max(1, min(turns // 2, RATE_OVER_KEYS // KEYS_A_TURN))
        figures = {
            "what": what,
            "ids": live,
            "runs": runs,
            "memory_bytes_per_id": private_bytes / live,
            "private_mib": private_bytes / 2**20,
            "first_ids_per_s": rate_turns * KEYS_A_TURN / sum(cpu_s[:rate_turns]),
            "last_ids_per_s": rate_turns * KEYS_A_TURN / sum(cpu_s[-rate_turns:]),
            "cpu_us_per_id": (all_cpu_s - drawn_s) / live * 1e6,
            "longest_turn_cpu_ms": max(cpu_s) * 1_000,
            "longest_turn_ms": max(clock_s) * 1_000,
            "peak_mib": machine.peak_memory_mib("self"),
            **_snapshot(store, shard, Path(directory), memory_mib),
        }
        if what == "ids":
            # What the fill has left to be merged is its cost, not that of the events to come.
            while not filled.settle():
                time.sleep(_SETTLE_S)
            figures["job_us"] = job_us(filled)
        store.stop()
        return figures


def job_us(ids: IdSet | None) -> float:
    """CPU microseconds an event of the engine, one shard, all its threads; with these ids."""
    began_ms = START_MS + HORIZON_DAYS * MS_PER_DAY
    created_ms = began_ms - 2 * MS_PER_DAY
    engine = make_engine(1, catalog(CAMPAIGNS, created_ms), created_ms)
    if ids is not None:
        engine.shards[0].ids = ids
    alone = EngineAlone(engine)
    turns = list(turns_of(messages(JOB_EVENTS, CAMPAIGNS, began_ms), 1))
    alone.take(turns[:2])
    return alone.take(turns[2:]) / (len(turns) - 2) / EVENTS_A_TURN * 1e6


def _turn(filled: IdSet, number: int, turns: int) -> tuple[float, float]:
    """What a turn does with its keys: look them up, remember the new ones; the seconds that it
    took, of CPU and by the clock."""
    keys = _keys_of(number)
    if number:
        resent = np.random.default_rng((2, number))
        keys[:RESENT_A_TURN] = _keys_of(int(resent.integers(number)))[-RESENT_A_TURN:]
    log_time_ms = START_MS + number * HORIZON_DAYS * MS_PER_DAY // turns
    cpu_s, clock_s = time.thread_time(), time.perf_counter()
    found = filled.contains(keys)
    filled.add(keys[~found], log_time_ms)
    cpu_s, clock_s = time.thread_time() - cpu_s, time.perf_counter() - clock_s
    if number and not (found[:RESENT_A_TURN].all() and not found[RESENT_A_TURN:].any()):
        raise ValueError(f"turn {number}: what was found is not what was resent")
    return cpu_s, clock_s


def _keys_of(turn: int) -> Keys:
    random = np.random.default_rng((1, turn))
    return random.integers(0, 2**64 - 1, size=(KEYS_A_TURN, 2), dtype=np.uint64)


def _snapshot(
    store: SnapshotStore, shard: Shard, directory: Path, memory_mib: int
) -> dict[str, float]:
    """How long a turn waits for a snapshot, how long it takes beside the turns, what lies on disk,
    and how long another worker takes to stand on it."""
    started_s = time.perf_counter()
    packed = fold.pack(shard, Balances(HORIZON_DAYS), Terms(Catalog(), 1), with_ids=True)
    saving = store.save(shard.shard, packed)
    packed_s = time.perf_counter() - started_s
    saving.result()
    saved_s = time.perf_counter() - started_s
    disk_bytes = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    files = sum(1 for _ in directory.rglob("*.ids"))
    other = SnapshotStore(directory, memory_mib << 20)
    started_s = time.perf_counter()
    fresh = Shard.new(0, HORIZON_DAYS, 1_000, other.open(0))
    loaded = asyncio.run(other.load(shard.shard, ANY_OFFSET))
    if loaded is None:
        raise OSError(f"no snapshot came back from {directory}: is the disk full?")
    fold.unpack(loaded, fresh, Balances(HORIZON_DAYS), Terms(Catalog(), 1))
    loaded_s = time.perf_counter() - started_s
    other.stop()
    for before, after in ((shard.ids, fresh.ids), (shard.unique, fresh.unique)):
        if len(after) != len(before):
            raise ValueError(f"{len(before)} keys saved, {len(after)} loaded")
    return {
        "snapshot_bytes": len(packed),
        "pack_s": packed_s,
        "save_s": saved_s,
        "load_s": loaded_s,
        "disk_bytes": disk_bytes,
        "files": files,
    }


# -- ad groups ------------------------------------------------------------------------------------


def measure_groups(ad_groups: int) -> dict[str, Any]:
    """An engine that knows so many ad groups, of one pin each, and judges events of them all."""
    campaigns = ad_groups // GROUPS_A_CAMPAIGN
    created_ms = START_MS - 2 * MS_PER_DAY
    records = list(catalog(campaigns, created_ms, pins_a_group=1))
    before_bytes = machine.private_memory_bytes()
    started_s = time.process_time()
    engine = make_engine(PARTITIONS, records, created_ms)
    loaded_s = time.process_time() - started_s
    grown_bytes = machine.private_memory_bytes() - before_bytes
    alone = EngineAlone(engine)
    turns = turns_of(messages(GROUP_EVENTS, campaigns, START_MS, pins_a_group=1), PARTITIONS)
    alone.take([next(turns)])
    took_s = [alone.take([turn]) for turn in turns]
    started_s = time.process_time()
    packed = fold.pack(engine.shards[0], engine.balances, engine.terms, with_ids=True)
    packed_s = time.process_time() - started_s
    return {
        "ad_groups": ad_groups,
        "records": len(records),
        "load_cpu_s": loaded_s,
        "memory_mib": grown_bytes / 2**20,
        "cpu_us_per_event": sum(took_s) / (len(took_s) * EVENTS_A_TURN) * 1e6,
        "longest_turn_cpu_ms": max(took_s) * 1_000,
        "pack_cpu_s": packed_s,
        "packed_mib": len(packed) / 2**20,
    }
