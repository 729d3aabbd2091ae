"""A real Kafka with the contract's topics, and the product's processes on it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from bench.machine import Cores, on_cores
from pipeline.contract.vocabulary import JOURNAL, REJECTS, SIGNALS
from pipeline.embedded.kafka import EmbeddedKafka
from pipeline.embedded.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
STOP_WITHIN_S = 15.0
_POLL_S = 0.1
_DELETE_POLLS = 300
_REPORTED_WITHIN_S = 300.0
_LAST_BATCH_S = 3.0
"""From the last batch's events to its charges, which are inserted after them."""


class BenchError(Exception):
    """A run that gave no figure; the text says why."""


class Site:
    """A broker with the product's topics, and a directory for whoever runs on it.

    Made by `opened`. The calling thread, and with it the broker and every process that is started
    without naming cores, is on `cores.others`.
    """

    def __init__(
        self,
        directory: Path,
        kafka: EmbeddedKafka,
        cores: Cores,
        partitions: int,
        settings: Mapping[str, str],
    ) -> None:
        self.directory = directory
        self.bootstrap = kafka.bootstrap
        self.cores = cores
        self.partitions = partitions
        self._settings = settings
        self._runs = 0

    def run_directory(self, name: str) -> Path:
        """A fresh directory of this name and a number."""
        self._runs += 1
        path = self.directory / f"{name}-{self._runs}"
        path.mkdir()
        return path

    def environment(self, data_dir: Path) -> dict[str, str]:
        """Environment variables for the product's processes on this data directory."""
        # Settings of whoever runs the benchmark would make it another one.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PIPELINE_")}
        return dict(
            inherited,
            PIPELINE_KAFKA_BOOTSTRAP=self.bootstrap,
            PIPELINE_PARTITIONS=str(self.partitions),
            PIPELINE_DATA_DIR=str(data_dir),
            PIPELINE_CLICKHOUSE_DSN=f"chdb://{data_dir / 'clickhouse'}",
            PIPELINE_WORKER_WEB_PORT=str(free_port()),
            # One core: a second thread would only take turns with the first.
            POLARS_MAX_THREADS="1",
            **self._settings,
        )

    def pipeline(self, *arguments: str, data_dir: Path) -> str:
        """Run a command of the product to its end; its output. Raises `BenchError`."""
        command = [sys.executable, "-m", "pipeline", *arguments]
        done = subprocess.run(
            command,
            env=self.environment(data_dir),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip()[-2_000:]
            raise BenchError(
                f"`pipeline {' '.join(arguments)}` ended with {done.returncode}: {said}"
            )
        return done.stdout

    def make_topics(self) -> None:
        """The contract's topics, as `pipeline topics` makes them."""
        self.pipeline("topics", "--keep-all", data_dir=self.directory)

    async def forget_outputs(self) -> None:
        """Delete what the product wrote, so that its next worker begins at the first event."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            outputs = {JOURNAL, SIGNALS, REJECTS}
            await admin.delete_topics(sorted(outputs))
            for _ in range(_DELETE_POLLS):
                if not outputs & set(await admin.list_topics()):
                    break
                await asyncio.sleep(_POLL_S)
            else:
                raise BenchError(f"Kafka did not delete {sorted(outputs)} in time")
        finally:
            await admin.close()
        self.make_topics()

    async def make_output_topic(self, name: str) -> None:
        """A topic for a peer's outputs, stamped by the broker: one clock for all peers."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            configs = {"message.timestamp.type": "LogAppendTime"}
            await admin.create_topics([NewTopic(name, 1, 1, topic_configs=configs)])
        finally:
            await admin.close()


@contextmanager
def opened(partitions: int, settings: Mapping[str, str] | None = None) -> Iterator[Site]:
    """A site in a temporary directory, removed at the end; `settings` are environment variables of
    its processes, all else is as it comes.

    What a worker compiles at its first start is compiled before, on all cores: no run is to be the
    one that begins with it.
    """
    subprocess.run(
        [sys.executable, "-c", "from pipeline.streams.worker import warm_up; warm_up()"],
        cwd=ROOT,
        check=True,
    )
    cores = Cores.choose()
    directory = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        with on_cores(cores.others), EmbeddedKafka(directory) as kafka:
            yield Site(directory, kafka, cores, partitions, settings or {})
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def process(
    command: Sequence[str], *, cores: Sequence[int], log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process on these cores, its output in a log; ended when the block is left."""
    with log.open("wb") as sink, on_cores(*cores):
        child = subprocess.Popen(command, env=env, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def log_tail(log: Path, characters: int = 500) -> str:
    """The end of a log, for a message."""
    return log.read_text(errors="replace").strip()[-characters:]


def report_and_reconcile(site: Site, data_dir: Path, events: int) -> float:
    """Run the reporter over the whole journal into the embedded engine, then `reconcile`.

    Returns its events a second from its first batch to its last, the first one's own events left
    out, as they are of the worker's rate. Raises `BenchError` where not all events get there or an
    identity does not hold.
    """
    port = free_port()
    command = [sys.executable, "-m", "pipeline", "reporter", "--http-port", str(port)]
    log = data_dir / "reporter.log"
    started_s = time.monotonic()
    with process(
        command, cores=(site.cores.job,), log=log, env=site.environment(data_dir)
    ) as reporter:
        first, first_s = 0, started_s
        while (reported := _reported(port)) < events:
            if reported and not first:
                first, first_s = reported, time.monotonic()
            if reporter.poll() is not None or time.monotonic() - started_s > _REPORTED_WITHIN_S:
                raise BenchError(f"{reported} of {events} events reported: {log_tail(log)}")
            time.sleep(_POLL_S)
        ended_s = time.monotonic()
        time.sleep(_LAST_BATCH_S)
    found = json.loads(site.pipeline("reconcile", "--json", data_dir=data_dir))
    if found["events"] != events:
        raise BenchError(f"reconciled {found['events']} of {events} events")
    return (events - first) / (ended_s - first_s)


def _reported(port: int) -> int:
    """Rows of billing.events so far; 0 while the reporter does not answer yet."""
    query = urllib.parse.quote("SELECT count() FROM billing.events")
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/?query={query}", timeout=30
        ) as answer:
            return int(answer.read())
    except (urllib.error.URLError, ConnectionError, ValueError):
        return 0
