"""The product beside its peers: the same events, the same core, the same measure."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import machine
from bench.fill import fill
from bench.machine import say
from bench.site import ROOT, BenchError, Site, log_tail, opened, process, report_and_reconcile
from bench.watch import Output, follow, peer_output, steady_events_per_s
from bench.workers import judged, working
from bench.workload import CAMPAIGNS, EVENTS_A_MS, catalog, messages, prices
from pipeline.contract.vocabulary import MS_PER_DAY

KAFKA_STREAMS = ROOT / "bench" / "peers" / "kafka_streams"
_POM = KAFKA_STREAMS / "pom.xml"
_PEER_PACKAGES = ("confluent-kafka", "aiokafka", "quixstreams", "faust-streaming", "orjson")
PEERS_LAST_OUTPUT_EVENTS = 1_000
"""Peers that put out every so many events keep the rest of the last ones to themselves."""
FIRST_OUTPUT_WITHIN_S = 30.0
MS_PER_MINUTE = 60_000


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one contestant. Rates are of the steady state; the rest is of the whole run."""

    events: int
    events_per_s: float
    cpu_s: float
    peak_mib: float
    output_bytes_per_event: float
    reported_per_s: float = 0.0
    """Product only: events a second of the reporter, from its first batch to its last; the books
    reconciled after it."""


@dataclass(slots=True)
class Standing:
    """A contestant with its runs; `problem` says in words why there are none, or fewer."""

    name: str
    guarantee: str
    run: Callable[[], Run]
    runs: list[Run] = field(default_factory=list)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer: how to make ready for it, and what to run before the arguments all of them take."""

    name: str
    guarantee: str
    command: Sequence[str]
    prepare: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Settings:
    """What `python -m bench` is asked."""

    events: int
    runs: int
    partitions: int
    peer_s: float
    """A peer is measured for so long at most: the slow ones would take many minutes."""
    peers_python: Path
    only_peers: frozenset[str]
    """Names of the peers to run; empty for all."""


def peers(python: Path) -> list[Peer]:
    """All peers; the Python ones run under this interpreter."""

    def module(name: str) -> list[str]:
        return [str(python), "-m", f"bench.peers.{name}"]

    exactly, at_least = "exactly once", "at least once"
    return [
        Peer("confluent-kafka loop", exactly, module("confluent_loop")),
        Peer("Kafka Streams", exactly, _java_command(), _build_kafka_streams),
        Peer("aiokafka loop", exactly, module("aiokafka_loop")),
        Peer("Quix Streams", exactly, module("quix")),
        Peer("Faust agent", at_least, module("faust_agent")),
    ]


def _peer_versions(python: Path) -> str:
    """What the peers are made of, for a reader."""
    script = (
        "from importlib.metadata import version\n"
        f"print(*(f'{{name}} {{version(name)}}' for name in {_PEER_PACKAGES}), sep=', ')"
    )
    try:
        done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        packages = "the Python peers' packages were not all installed"
    else:
        packages = done.stdout.strip()
    streams = re.search(r"kafka-streams</artifactId>\s*<version>(.*?)<", _POM.read_text())
    return f"{packages}, Kafka Streams {streams[1] if streams else 'of unknown version'}"


def _java_command() -> list[str]:
    target = KAFKA_STREAMS / "target"
    return ["java", "-Xmx2g", "-cp", f"{target}/peer.jar:{target}/lib/*", "bench.Peer"]


def _build_kafka_streams() -> None:
    """Build the jar where it is not there. Raises `BenchError` where Java or Maven is missing."""
    if (KAFKA_STREAMS / "target" / "peer.jar").exists():
        return
    missing = [tool for tool in ("java", "javac", "mvn") if shutil.which(tool) is None]
    if missing:
        raise BenchError(f"skipped: needs {' and '.join(missing)} (a JDK 17 or later, and Maven)")
    say("building the Kafka Streams peer ...")
    done = subprocess.run(
        ["mvn", "-q", "-B", "package"],
        cwd=KAFKA_STREAMS,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"skipped: Maven failed: {done.stdout.strip()[-300:]}")


def compare(settings: Settings) -> dict[str, Any]:
    """Fill once, run everyone; the results as JSON takes them, the product first.

    Everyone has a run, then everyone the next one, so that a slow hour of the machine is
    everyone's. A peer that fails stops nobody.
    """
    about = machine.described(" ".join(["python -m bench", *sys.argv[1:]]))
    standings = []
    with opened(settings.partitions) as site:
        asyncio.run(_fill(site, settings.events))
        product = Standing(
            "this pipeline", "exactly once", lambda: _run_product(site, settings.events)
        )
        standings.append(product)
        standings += [
            _prepared(site, peer, settings)
            for peer in peers(settings.peers_python)
            if not settings.only_peers or peer.name in settings.only_peers
        ]
        for _ in range(settings.runs):
            for standing in standings:
                _run(standing)
    return {
        "about": about | {"peers": _peer_versions(settings.peers_python)},
        "events": settings.events,
        "partitions": settings.partitions,
        "peer_s": settings.peer_s,
        "contestants": [_as_json(standing) for standing in standings],
    }


def _prepared(site: Site, peer: Peer, settings: Settings) -> Standing:
    """A peer ready to run, or with the reason why it is not."""
    standing = Standing(peer.name, peer.guarantee, lambda: _run_peer(site, peer, settings))
    try:
        peer.prepare()
    except BenchError as error:
        standing.problem = str(error)
        say(f"{peer.name}: {error}")
    return standing


def _as_json(standing: Standing) -> dict[str, Any]:
    return {
        "name": standing.name,
        "guarantee": standing.guarantee,
        "problem": standing.problem,
        "runs": [asdict(run) for run in standing.runs],
    }


def _run(standing: Standing) -> None:
    """One more run of a contestant that has not failed yet."""
    if standing.problem:
        return
    try:
        one = standing.run()
    except (BenchError, OSError, ValueError) as error:
        standing.problem = f"run {len(standing.runs) + 1} failed: {error}"
        say(f"{standing.name}: {standing.problem}")
        return
    standing.runs.append(one)
    say(
        f"{standing.name}: {one.events_per_s:,.0f} events/s, {one.cpu_s:.1f} CPU s for "
        f"{one.events:,} events, {one.peak_mib:.0f} MiB"
    )


async def _fill(site: Site, events: int) -> None:
    now_ms = time.time_ns() // 1_000_000
    say(f"publishing {events:,} events ...")
    site.make_topics()
    created_ms = now_ms - 2 * MS_PER_DAY
    start_ms = now_ms - events // EVENTS_A_MS - MS_PER_MINUTE
    await fill(
        site.bootstrap,
        catalog(CAMPAIGNS, created_ms),
        messages(events, CAMPAIGNS, start_ms),
        site.partitions,
    )
    (site.directory / "prices.json").write_text(json.dumps(prices(CAMPAIGNS)))


def _run_product(site: Site, events: int) -> Run:
    """A worker over everything, from an empty journal; then the books into tables, and checked."""
    asyncio.run(site.forget_outputs())
    with working(site, (site.cores.job,)) as worker:
        run = _measured(asyncio.run(judged(site, events, [worker])), worker.child.pid)
    return replace(run, reported_per_s=report_and_reconcile(site, worker.data_dir, events))


def _run_peer(site: Site, peer: Peer, settings: Settings) -> Run:
    directory = site.run_directory(peer.name.replace(" ", "-"))
    output = group = directory.name
    log = directory / "log"
    prices_file = site.directory / "prices.json"
    asyncio.run(site.make_output_topic(output))
    arguments = [site.bootstrap, output, group, str(prices_file), str(directory)]
    with process([*peer.command, *arguments], cores=(site.cores.job,), log=log) as child:
        outputs = asyncio.run(
            follow(
                site.bootstrap,
                output,
                1,
                peer_output,
                events=settings.events - PEERS_LAST_OUTPUT_EVENTS,
                first_within_s=FIRST_OUTPUT_WITHIN_S,
                within_s=settings.peer_s,
                alive=lambda: child.poll() is None,
            )
        )
        if child.poll() is not None:
            raise BenchError(f"it ended with {child.returncode}: {log_tail(log)}")
        if not outputs:
            raise BenchError(f"no output within {FIRST_OUTPUT_WITHIN_S:.0f} s: {log_tail(log)}")
        return _measured(outputs, child.pid)


def _measured(outputs: list[Output], pid: int) -> Run:
    """The figures of a run whose process still is."""
    events = sum(output.events for output in outputs)
    return Run(
        events=events,
        events_per_s=steady_events_per_s(outputs),
        cpu_s=machine.cpu_s(pid),
        peak_mib=machine.peak_memory_mib(pid),
        output_bytes_per_event=sum(output.size_bytes for output in outputs) / max(1, events),
    )
