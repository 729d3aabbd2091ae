"""The product as production has it: workers and a reporter, processes of their own on a broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

from pipeline.embedded.ports import free_port
from tests.integration.product import Kafka, Running, pipeline, until

PARTITIONS = 4
EXIT_BROKEN = 70


class Cluster(Running):
    """Processes of the product on a broker; ended as they are closed."""

    def __init__(self, directory: Path, bootstrap: str, clock: str) -> None:
        super().__init__()
        self.kafka = Kafka(bootstrap)
        self._directory = directory
        port = free_port()
        self.clickhouse = f"http://127.0.0.1:{port}"
        self._reporter_port = port
        self._environment = {
            "PIPELINE_KAFKA_BOOTSTRAP": bootstrap,
            "PIPELINE_PARTITIONS": str(PARTITIONS),
            "PIPELINE_CLOCK": clock,
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._web_ports: dict[str, int] = {}

    def __enter__(self) -> Cluster:
        done = pipeline("topics", "--keep-all", environment=self._environment)
        assert done.returncode == 0, done.stderr
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        read_only = {"PIPELINE_CLICKHOUSE_DSN": self.clickhouse}
        return pipeline(*arguments, environment=self._environment | read_only)

    def start(self, name: str, *command: str, **settings: str) -> None:
        given = {f"PIPELINE_{key.upper()}": value for key, value in settings.items()}
        with (self._directory / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "pipeline", *command],
                env={**os.environ, **self._environment, **given},
                stdout=log,
                stderr=log,
            )

    def start_reporter(self, **settings: str) -> None:
        dsn = f"chdb://{self._directory / 'clickhouse'}"
        port = str(self._reporter_port)
        self.start("reporter", "reporter", "--http-port", port, clickhouse_dsn=dsn, **settings)

    def start_worker(self, name: str, **settings: str) -> None:
        port = self._web_ports[name] = free_port()
        data_dir = str(self.data_dir(name))
        self.start(name, "worker", data_dir=data_dir, worker_web_port=str(port), **settings)

    def send(self, name: str, number: signal.Signals) -> None:
        self._processes[name].send_signal(number)

    def wait(self, name: str) -> int:
        return self._processes[name].wait(30)

    def is_running(self, name: str) -> bool:
        return self._processes[name].poll() is None

    def log(self, name: str) -> str:
        return (self._directory / f"{name}.log").read_text()

    def data_dir(self, name: str) -> Path:
        """A worker's own."""
        return self._directory / name

    def health(self, name: str) -> dict[str, Any]:
        """The health page of a worker or the reporter; empty while it does not answer."""
        port = self._reporter_port if name == "reporter" else self._web_ports[name]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                return dict(json.loads(answer.read()))
        except (URLError, TimeoutError, ConnectionError):
            return {}

    def shards(self, name: str) -> list[int]:
        """The shards that a worker says it owns; none while it does not answer."""
        return list(self.health(name).get("shards", []))

    def workers(self) -> list[str]:
        """The names of those that run."""
        return [name for name in self._web_ports if self.is_running(name)]

    def until_shared(self, *names: str, supervised: bool = False) -> None:
        """Wait until these workers own all shards between them, each some, none twice.

        `supervised`: one that ended because another owner had appended to its shard is started
        again, as any supervisor does.
        """

        def shared() -> bool:
            for name in names:
                if supervised and self._processes[name].poll() == EXIT_BROKEN:
                    assert "ContestedShardError" in self.log(name)
                    self.start_worker(name)
                assert self.is_running(name), f"{name} has ended: {self.log(name)[-2000:]}"
            owned = [self.shards(name) for name in names]
            together = sorted(shard for shards in owned for shard in shards)
            return all(owned) and together == list(range(PARTITIONS))

        until(shared, f"the shards shared by {', '.join(names)}")
