"""Runs the scenarios on one cluster under one load, and looks at the books after each.

python -m tests.fault.run [--long] [--seed N] [--only REGEX] [--minutes M] [--write]
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from random import Random

from tests.fault.audit import Audit
from tests.fault.cluster import FaultCluster
from tests.fault.load import Load
from tests.fault.report import Result, write
from tests.fault.scenarios import SCENARIOS, Scenario, Stage
from tests.integration.cluster import PARTITIONS

SEED = 20260308
SHORT_IN_TURN, LONG_IN_TURN = 4, 2
"""Scenarios of a lane between two looks: a look costs seconds."""


@dataclass(frozen=True, slots=True)
class Step:
    """What happens between two looks: lanes at the same time, a lane's scenarios in turn."""

    lanes: list[list[Scenario]]


def steps(scenarios: list[Scenario], in_turn: int) -> Iterator[Step]:
    """The scenarios in steps of so many; those without a lane come last, and alone."""
    lanes = [
        list(_batched([s for s in scenarios if s.lane == lane], in_turn))
        for lane in ("worker", "reporter")
    ]
    for together in zip_longest(*lanes, fillvalue=[]):
        yield Step([lane for lane in together if lane])
    for alone in _batched([s for s in scenarios if not s.lane], in_turn):
        yield Step([alone])


def _batched(scenarios: list[Scenario], size: int) -> Iterator[list[Scenario]]:
    for start in range(0, len(scenarios), size):
        yield scenarios[start : start + size]


def run(
    directory: Path,
    *,
    seed: int = SEED,
    long: bool = False,
    only: str = "",
    within_s: float = 7_200.0,
    say: Callable[[str], None] = lambda _: None,
) -> list[Result]:
    """Run the scenarios whose name matches `only`, a regular expression; results in their order.

    The last results are those of the look after every day is closed. No step is begun after
    `within_s`.
    """
    chosen = [scenario for scenario in SCENARIOS if re.search(only, scenario.name)]
    results: list[Result] = []
    audit = Audit()
    began_s = time.monotonic()
    with FaultCluster(directory) as cluster:
        load = Load(lambda: cluster.kafka, seed, PARTITIONS)
        cluster.kafka.publish(load.catalog())
        cluster.run_always("reporter", "first")
        cluster.until_all_owned()
        with load:
            for step in steps(chosen, LONG_IN_TURN if long else SHORT_IN_TURN):
                if time.monotonic() - began_s > within_s:
                    break
                for result in _step(cluster, load, audit, step, seed, long):
                    say(f"{result}")
                    results.append(result)
            results.append(_close_all(cluster, load, audit))
            say(f"{results[-1]}")
            for name, count in cluster.kills.items():
                whole = results[-1]
                who = "worker" if name == "first" else name
                results.append(replace(whole, name=f"{who} killed at any moment", faults=count))
                say(f"{results[-1]}")
    return results


def _step(
    cluster: FaultCluster, load: Load, audit: Audit, step: Step, seed: int, long: bool
) -> list[Result]:
    """Inject, then let all come to rest and look."""
    began_s = time.monotonic()
    before = len(audit.judged)
    faults = {one.name: one.long if long else one.short for lane in step.lanes for one in lane}

    def inject(lane: list[Scenario]) -> list[str]:
        failed = []
        for scenario in lane:
            stage = Stage(cluster, load, Random(f"{seed} {scenario.name}"))
            try:
                scenario.inject(stage, faults[scenario.name])
            except Exception as error:
                failed.append(f"{scenario.name}: {error!r}")
        return failed

    with ThreadPoolExecutor(len(step.lanes)) as pool:
        differences = [text for failed in pool.map(inject, step.lanes) for text in failed]
    differences += _look(cluster, load, audit)
    seconds = time.monotonic() - began_s
    events = len(audit.judged) - before
    return [Result(name, count, events, seconds, differences) for name, count in faults.items()]


def _look(cluster: FaultCluster, load: Load, audit: Audit) -> list[str]:
    load.pause()
    try:
        cluster.settle()
        return audit.look(cluster)
    except Exception as error:
        return [f"no rest: {error!r}"]
    finally:
        load.go_on()


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
    parser.add_argument("--minutes", type=float, default=120.0, help="begin nothing after these")
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--write", action="store_true", help="the table of docs/reliability.md")
    given = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        directory = given.directory or Path(scratch)
        results = run(
            directory,
            seed=given.seed,
            long=given.long,
            only=given.only,
            within_s=60 * given.minutes,
            say=lambda text: print(text, flush=True),
        )
    if given.write:
        write(results)
    faults = sum(result.faults for result in results)
    print(f"{faults} faults in {time.monotonic() - began_s:.0f} s")
    if any(result.differences for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
