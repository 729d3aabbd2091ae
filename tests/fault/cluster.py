"""A cluster whose processes are ended by faults and started again as a supervisor would."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
import urllib.request
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.error import HTTPError, URLError

from pipeline.embedded.kafka import EmbeddedKafka
from tests.integration.cluster import PARTITIONS, Cluster
from tests.integration.product import EVENT_TOPICS, Kafka, until

SESSION_TIMEOUT_S = 2.0
SETTINGS = {
    "worker_session_timeout_ms": str(round(SESSION_TIMEOUT_S * 1_000)),
    # So often that faults meet them.
    "snapshot_every_records": "10",
    "checkpoint_every_records": "40",
    "dedupe_max_ids": "20000000",
    "dedupe_memory_mib": "1",
}
_POLL_S = 0.05
_CLOCK = str(Path(__file__).parent / "clock")


class FaultCluster(Cluster):
    """A broker, workers and a reporter, supervised: what has ended is started again.

    `queue(name)`: fail points for the next starts of a process, one text a start.
    """

    def __init__(self, directory: Path, clock: str = "stream", **settings: str) -> None:
        self.broker = EmbeddedKafka(directory)
        self.broker.start()
        super().__init__(directory, self.broker.bootstrap, clock)
        self.directory = directory
        self._environment |= {
            f"PIPELINE_{key.upper()}": text for key, text in (SETTINGS | settings).items()
        }
        self.copies = directory / "copies"
        """Of the workers' snapshots."""
        self.copies.mkdir()
        self._environment["PIPELINE_SNAPSHOT_COPIES_DIR"] = str(self.copies)
        self._clock_file = directory / "clock"
        if clock == "wall":
            self._environment |= {
                "PYTHONPATH": os.pathsep.join([_CLOCK, os.environ.get("PYTHONPATH", "")]),
                "FAULT_CLOCK_FILE": str(self._clock_file),
            }
        self._armed: dict[str, deque[str]] = defaultdict(deque)
        self._live: dict[str, tuple[str, int]] = {}
        """Process -> what it was started with, and how often that point had fired until then."""
        self._wanted: list[str] = []
        self._held: set[str] = set()
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self.exits: Counter[tuple[str, int]] = Counter()
        """(process, exit code) -> how often."""
        self.kills: Counter[str] = Counter()
        """Process -> how often it was killed at whatever it was doing."""
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor")

    def __enter__(self) -> Self:
        super().__enter__()
        self._supervisor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._supervisor.join()
        super().__exit__()
        self.broker.stop()

    def forget_copies(self) -> None:
        """Delete the copies of all snapshots."""
        shutil.rmtree(self.copies)
        self.copies.mkdir()

    # -- supervising --------------------------------------------------------------------------

    def run_always(self, *names: str) -> None:
        """Start these (`reporter`, or a worker's name) and keep them running."""
        with self._lock:
            for name in names:
                self._wanted.append(name)
                self._start_one(name)

    def retire(self, name: str) -> int:
        """End a process for good, as an orchestrator does: SIGTERM. Returns its exit code."""
        with self._lock:
            self._wanted.remove(name)
        self.send(name, signal.SIGTERM)
        return self.wait(name)

    def kill(self, name: str) -> None:
        """Kill -9 of a process, at whatever it is doing; it is started again."""
        self.kills[name] += 1
        self.send(name, signal.SIGKILL)

    @contextlib.contextmanager
    def held_down(self, name: str) -> Iterator[None]:
        """Within it, the process is dead and stays so."""
        with self._lock:
            self._held.add(name)
            self.kill(name)
            self.wait(name)
        try:
            yield
        finally:
            with self._lock:
                self._held.discard(name)

    def queue(self, name: str, *failpoints: str) -> None:
        """Arm the next starts of a process, each with one of these texts."""
        self._armed[name] += failpoints

    def restart_armed(self, name: str, *failpoints: str) -> None:
        """Kill a process, and arm its next starts. In one: it may just be being started again."""
        with self._lock:
            self.queue(name, *failpoints)
            self.kill(name)

    def shift_clocks(self, by_ms: int) -> None:
        """Set the wall clock of all processes this far from the true time (needs clock="wall")."""
        part = self._clock_file.with_suffix(".part")
        part.write_text(str(by_ms))
        part.replace(self._clock_file)

    def fired(self, name: str, point: str) -> int:
        """How often a fail point has fired in a process and those before it."""
        known = (self.directory / f"{name}.log").exists()
        return self.log(name).count(f"fail point {point} fires") if known else 0

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a process of this cluster."""
        return {**os.environ, **self._environment, **more}

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def _start_one(self, name: str) -> None:
        armed = self._armed[name].popleft() if self._armed[name] else ""
        self._live[name] = (armed, self.fired(name, armed.partition(":")[0]) if armed else 0)
        if name == "reporter":
            self.start_reporter(failpoints=armed)
        else:
            self.start_worker(name, failpoints=armed)

    def _supervise(self) -> None:
        while not self._closing.wait(_POLL_S):
            with self._lock:
                for name in self._wanted:
                    if name in self._held or self.is_running(name):
                        continue
                    self.exits[name, self._processes[name].returncode] += 1
                    armed, before = self._live[name]
                    if armed and self.fired(name, armed.partition(":")[0]) == before:
                        self._armed[name].appendleft(armed)  # it ended of something else
                    self._start_one(name)

    # -- the broker ---------------------------------------------------------------------------

    def kill_broker(self) -> None:
        """Kill -9 of the broker, and a start on what it left."""
        os.kill(self.broker.pid, signal.SIGKILL)
        self.restart_broker()

    def restart_broker(self, down_s: float = 0.0) -> None:
        with self.broker_away():
            time.sleep(down_s)

    @contextlib.contextmanager
    def broker_away(self) -> Iterator[None]:
        """Within it there is no broker."""
        self.broker.stop()
        try:
            yield
        finally:
            self.broker.start()
            self.kafka = Kafka(self.broker.bootstrap)

    @contextlib.contextmanager
    def broker_frozen(self) -> Iterator[None]:
        """Within it the broker is there and does not answer."""
        os.kill(self.broker.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.broker.pid, signal.SIGCONT)

    # -- what it says -------------------------------------------------------------------------

    def status(self, name: str, page: str) -> int:
        """The HTTP status of a page for probes."""
        try:
            with urllib.request.urlopen(self._page(name, page), timeout=2) as answer:
                return int(answer.status)
        except HTTPError as error:
            return error.code

    def _page(self, name: str, page: str) -> str:
        port = self._reporter_port if name == "reporter" else self._web_ports[name]
        return f"http://127.0.0.1:{port}/{page}"

    def until_all_owned(self) -> None:
        """Wait until the workers that are to run own all shards between them."""
        workers = [name for name in self._wanted if name != "reporter"]
        until(
            lambda: (
                sorted(shard for name in workers for shard in self.shards(name))
                == list(range(PARTITIONS))
            ),
            "every shard owned once",
        )

    def settle(self) -> None:
        """Wait until every offset of the event topics has its row, and no more of them come.

        Strays that are still to be sent home would be records to come: the journals' owners send
        them as they append, so that a quiet second tells.
        """

        def counts() -> tuple[int, int]:
            try:
                [found] = self.query("SELECT count() AS rows FROM billing.events")
            except (URLError, ConnectionError, TimeoutError, KeyError):
                return -1, sum(self.kafka.ends(*EVENT_TOPICS).values())
            return int(found["rows"]), sum(self.kafka.ends(*EVENT_TOPICS).values())

        def settled() -> bool:
            first = counts()
            if first[0] != first[1]:
                return False
            time.sleep(1.0)
            return first == counts()

        until(settled, "a row in billing.events for every offset of the event topics", 120)
