"""What remembering ids costs: memory, rate, snapshot and recovery, for one shard on one core."""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine
from bench.machine import say
from pipeline.billing import fold
from pipeline.billing.books import Balances, Shard
from pipeline.billing.ids import Keys
from pipeline.billing.terms import Terms
from pipeline.contract.catalog import Catalog
from pipeline.contract.vocabulary import MS_PER_DAY
from pipeline.streams.recovery import SnapshotStore

HORIZON_DAYS = 7
KEYS_A_TURN = 20_000
RATE_OVER_KEYS = 500_000
"""The rates are those of the first and of the last so many ids."""
START_MS = 1_772_323_200_000


def state(millions: list[int]) -> dict[str, Any]:
    """For each number of ids, in a process of its own: the figures as JSON takes them."""
    about = machine.described(" ".join(["python -m bench", *sys.argv[1:]]))
    sizes = []
    for number in sorted(millions):
        # A fresh process each: memory that was freed would hide what is needed.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            figures = pool.submit(measure, number * 1_000_000).result()
        sizes.append(figures)
        say(str(figures))
    return {"about": about, "sizes": sizes}


def measure(ids: int) -> dict[str, Any]:
    """Fill a shard's set with so many ids, spread over the horizon, and save and load it."""
    before_bytes = machine.memory_bytes()
    shard = Shard.new(0, HORIZON_DAYS, keep_at_most_ids=1_000)
    random = np.random.default_rng(1)
    took_s: list[float] = []
    turns = max(1, ids // KEYS_A_TURN)
    for turn in range(turns):
        log_time_ms = START_MS + turn * HORIZON_DAYS * MS_PER_DAY // turns
        took_s.append(_turn(shard, _random_keys(random, KEYS_A_TURN), log_time_ms))
    memory_bytes = machine.memory_bytes() - before_bytes
    rate_turns = max(1, min(turns // 2, RATE_OVER_KEYS // KEYS_A_TURN))
    return {
        "ids": len(shard.ids),
        "memory_bytes_per_id": memory_bytes / len(shard.ids),
        "first_ids_per_s": rate_turns * KEYS_A_TURN / sum(took_s[:rate_turns]),
        "last_ids_per_s": rate_turns * KEYS_A_TURN / sum(took_s[-rate_turns:]),
        "longest_turn_ms": max(took_s) * 1_000,
        "peak_mib_before_snapshot": machine.peak_memory_mib("self"),
        **_snapshot(shard),
        "peak_mib": machine.peak_memory_mib("self"),
    }


def _turn(shard: Shard, keys: Keys, log_time_ms: int) -> float:
    """What a turn does with its ids: look them up, remember them; the seconds that it took."""
    started_s = time.perf_counter()
    if shard.ids.contains(keys).any():
        raise ValueError("random 128-bit keys were equal: the set finds what is not in it")
    shard.ids.add(keys, log_time_ms)
    return time.perf_counter() - started_s


def _random_keys(random: np.random.Generator, count: int) -> Keys:
    return random.integers(0, 2**64 - 1, size=(count, 2), dtype=np.uint64)


def _snapshot(shard: Shard) -> dict[str, float]:
    """Seconds to write a snapshot as a worker does, its size, and seconds to stand on it again."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        store = SnapshotStore(Path(directory))
        started_s = time.perf_counter()
        packed = fold.pack(shard, Balances(HORIZON_DAYS), Terms(Catalog(), 1), with_ids=True)
        store.save(shard.shard, packed)
        saved_s = time.perf_counter() - started_s
        size_bytes = len(packed)
        del packed
        fresh = Shard.new(0, HORIZON_DAYS, keep_at_most_ids=1_000)
        started_s = time.perf_counter()
        loaded = store.load(shard.shard)
        if loaded is None:
            raise OSError(f"no snapshot came back from {directory}: is the disk full?")
        fold.unpack(loaded, fresh, Balances(HORIZON_DAYS), Terms(Catalog(), 1))
        loaded_s = time.perf_counter() - started_s
    if len(fresh.ids) != len(shard.ids):
        raise ValueError(f"{len(shard.ids)} ids saved, {len(fresh.ids)} loaded")
    return {"snapshot_bytes": size_bytes, "save_s": saved_s, "load_s": loaded_s}
