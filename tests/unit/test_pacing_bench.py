"""The bench is honest: deterministic, the same demand for all, and its figures add up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.simulate.bench import Bench, BenchOptions
from pipeline.simulate.compare import POLICIES
from pipeline.simulate.curves import synthetic_curves
from pipeline.simulate.market import build_market, demand_of
from tests.integration.product import until
from tests.integration.test_restart import is_running

OPTIONS = BenchOptions(groups=6, days=1, warmup_days=0, impressions_per_day=100_000)
HOUR_MS = 3_600_000


def part_of_a_day(policy: str, hours: int, seed: int = 1) -> Bench:
    """A run of the first hours of a day, from midnight UTC."""
    bench = Bench(replace(OPTIONS, seed=seed), POLICIES[policy])
    bench.end_ms = bench.start_ms + hours * HOUR_MS
    bench.run()
    return bench


def test_the_same_seed_gives_the_same_run_and_another_gives_another() -> None:
    first, again, other = (part_of_a_day("inflight", 3, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.recorder.curve_nanos, again.recorder.curve_nanos)
    assert np.array_equal(first.recorder.signals, again.recorder.signals)
    assert not np.array_equal(first.recorder.curve_nanos, other.recorder.curve_nanos)


def test_signals_save_what_ignoring_them_gives_away() -> None:
    ignored, obeyed = part_of_a_day("none", 9), part_of_a_day("plain", 9)
    free = ignored.recorder.free_nanos.sum()
    assert free > 0
    assert obeyed.recorder.free_nanos.sum() < free / 20
    # The same Pinners: what could be spent does not depend on the policy.
    assert np.array_equal(ignored.recorder.demand_nanos, obeyed.recorder.demand_nanos)
    spend = ignored.recorder.curve_nanos.sum() + free
    assert abs(spend / ignored.recorder.demand_nanos.sum() - 1) < 0.02


def test_demand_is_of_the_seed_and_the_minute_alone() -> None:
    market = build_market(3, 10, 100_000, synthetic_curves(), 0, even=False)
    first, again = demand_of(market, 7_200_000), demand_of(market, 7_200_000)
    assert np.array_equal(first.time_ms, again.time_ms)
    assert np.array_equal(first.price_micros, again.price_micros)
    assert (np.diff(first.time_ms) >= 0).all()
    assert (first.price_micros <= market.bid_micros[first.group]).all()


def children(pid: int) -> list[int]:
    """Its child processes that run a program of Python."""
    of_threads = Path(f"/proc/{pid}/task").glob("*/children")
    found = [int(child) for path in of_threads for child in path.read_text().split()]
    return [child for child in found if b"spawn_main" in command_of(child)]


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the processes")
def test_a_killed_command_leaves_no_run_behind() -> None:
    command = [sys.executable, "-m", "pipeline", "pacing-bench", "--seeds", "1,2", "--json"]
    parent = subprocess.Popen([*command, "--policies", "none"], stdout=subprocess.DEVNULL)
    at_work: list[int] = []
    try:
        processes = min(2, os.cpu_count() or 1)
        until(lambda: len(children(parent.pid)) == processes, "the runs to begin")
        at_work = children(parent.pid)
        time.sleep(3)  # into the runs
        parent.kill()
        parent.wait()
        until(lambda: not any(is_running(child) for child in at_work), "the runs to end", 60)
    finally:
        parent.kill()
        for child in at_work:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
