"""Policies side by side: the same demand and seeds, one figure row a policy."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.pacing.predictive import Predictive
from pipeline.pacing.serving import PlainLimits
from pipeline.simulate.bench import Bench, BenchOptions, PolicyUnderTest
from pipeline.simulate.measures import Figures

Floats = npt.NDArray[np.float64]

POLICIES: Final = {
    policy.name: policy
    for policy in (
        PolicyUnderTest("none", PlainLimits, obeyed=False),
        PolicyUnderTest("plain", PlainLimits),
        PolicyUnderTest("inflight", Predictive),
        PolicyUnderTest("even", Predictive, even=True),
    )
}
"""`none`: the ad servers ignore all signals. `plain`: pause at a reached limit. `inflight`: pause
before it. `even`: that, with every ad group's pacing set to even."""


@dataclass(frozen=True, slots=True)
class Run:
    """One policy with one seed, and what came of it."""

    policy: str
    seed: int
    figures: Figures
    curve: Floats
    """Mean cumulative spend over budget, by bin of the local day."""
    target: Floats


def compare(
    policies: Sequence[str],
    seeds: Sequence[int],
    options: BenchOptions,
    on_done: Callable[[Run], None] = lambda run: None,
    processes: int | None = None,
) -> list[Run]:
    """Run every policy with every seed, in processes of their own; in a fixed order."""
    jobs = [(name, replace(options, seed=seed)) for seed in seeds for name in policies]
    workers = min(len(jobs), processes or os.cpu_count() or 1)
    runs = []
    # A turn of the bench is small: threads of a process would only wait for each other.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    # Spawned, not forked: the parent may have threads.
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        for run in pool.map(_run, jobs):
            on_done(run)
            runs.append(run)
    return runs


def _end_with_parent() -> None:
    """A run takes minutes: nobody would read what comes of it once the command was killed."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def _run(job: tuple[str, BenchOptions]) -> Run:
    name, options = job
    bench = Bench(options, POLICIES[name])
    figures = bench.run()
    curve, target = bench.recorder.mean_curves(options.warmup_days)
    return Run(name, options.seed, figures, curve, target)
