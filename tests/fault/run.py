"""Runs the scenarios on one cluster under one load, and looks at the books after each.

python -m tests.fault.run [--long] [--seed N] [--only TEXT] [--directory DIR] [--write FILE]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from random import Random

from tests.fault.audit import Audit
from tests.fault.cluster import PARTITIONS, FaultCluster
from tests.fault.load import Load
from tests.fault.scenarios import SCENARIOS, Scenario, Stage

SEED = 20260308


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one scenario."""

    name: str
    faults: int
    events: int
    """Judged since the look before; scenarios that ran at the same time share them."""
    seconds: float
    differences: list[str] = field(default_factory=list)


def steps(scenarios: list[Scenario]) -> Iterator[list[Scenario]]:
    """Which scenarios run at the same time: one of each lane."""
    lanes = [[s for s in scenarios if s.lane == lane] for lane in ("worker", "reporter")]
    for together in zip_longest(*lanes):
        yield [scenario for scenario in together if scenario is not None]
    for scenario in scenarios:
        if not scenario.lane:
            yield [scenario]


def run(
    directory: Path,
    *,
    seed: int = SEED,
    long: bool = False,
    only: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> list[Result]:
    """Run the scenarios whose name holds `only`; results in the order they ended.

    The last result is the look after every day is closed.
    """
    chosen = [scenario for scenario in SCENARIOS if only in scenario.name]
    results: list[Result] = []
    audit = Audit()
    with FaultCluster(directory) as cluster:
        load = Load(lambda: cluster.kafka, seed, PARTITIONS)
        cluster.kafka.publish(load.catalog())
        cluster.run_always("reporter", "first")
        cluster.until_all_owned()
        with load:
            for together in steps(chosen):
                for result in _step(cluster, load, audit, together, seed, long):
                    say(f"{result}")
                    results.append(result)
            results.append(_close_all(cluster, load, audit))
            say(f"{results[-1]}")
    return results


def _step(
    cluster: FaultCluster, load: Load, audit: Audit, together: list[Scenario], seed: int, long: bool
) -> list[Result]:
    """Inject, then let all come to rest and look."""
    began_s = time.monotonic()
    before = len(audit.judged)
    faults = {one.name: one.long if long else one.short for one in together}

    def inject(scenario: Scenario) -> None:
        stage = Stage(cluster, load, Random(f"{seed} {scenario.name}"))
        scenario.inject(stage, faults[scenario.name])

    with ThreadPoolExecutor(len(together)) as pool:
        list(pool.map(inject, together))
    differences = _look(cluster, load, audit)
    seconds = time.monotonic() - began_s
    events = len(audit.judged) - before
    return [Result(name, count, events, seconds, differences) for name, count in faults.items()]


def _look(cluster: FaultCluster, load: Load, audit: Audit) -> list[str]:
    load.pause()
    cluster.settle()
    differences = audit.look(cluster)
    load.go_on()
    return differences


def _close_all(cluster: FaultCluster, load: Load, audit: Audit) -> Result:
    """Close every day that there is, and look at the closed books."""
    began_s = time.monotonic()
    load.pause()
    cluster.settle()
    last = max(event.posting_day for event in audit.judged)
    done = cluster.run("close-day", last)
    differences = [] if done.returncode == 0 else [f"close-day {last}: {done.stderr}"]
    cluster.settle()
    differences += audit.look(cluster)
    return Result("all days closed", 0, len(audit.judged), time.monotonic() - began_s, differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", default="")
    parser.add_argument("--directory", type=Path)
    given = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        directory = given.directory or Path(scratch)
        results = run(
            directory,
            seed=given.seed,
            long=given.long,
            only=given.only,
            say=lambda text: print(text, flush=True),
        )
    faults = sum(result.faults for result in results)
    print(f"{faults} faults in {time.monotonic() - began_s:.0f} s")
    if any(result.differences for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
