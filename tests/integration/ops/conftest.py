"""One `pipeline up` for all tests of operating it: a simulated day, closed, and a day begun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.embedded import ports

CLOSED_DAY = "2026-03-02"
OPEN_DAY = "2026-03-03"
READY_WITHIN_S = 120


@dataclass(frozen=True)
class Running:
    """Where the parts of a running product listen."""

    data: Path
    clickhouse: str
    web: str
    worker: str
    environment: dict[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return pipeline(*arguments, "--data", str(self.data), environment=self.environment)


def pipeline(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def get(url: str, body: str | None = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers; an error status is an answer too."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, body.encode() if body is not None else None, named)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read(), dict(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


def query(running: Running, sql: str) -> list[list[object]]:
    """The rows of a query through the read-only interface."""
    status, body, _ = get(running.clickhouse, f"{sql} FORMAT JSONCompact")
    assert status == 200, body.decode()
    rows: list[list[object]] = json.loads(body)["data"]
    return rows


def until_ready(process: subprocess.Popen[str]) -> dict[str, str]:
    """The addresses of the line `ready name=address ...`."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready "), line or "ended before it was ready; see its log"
    return dict(part.split("=", 1) for part in line.split()[1:])


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    data = tmp_path_factory.mktemp("running_up")
    own = {name: text for name, text in os.environ.items() if not name.startswith("PIPELINE_")}
    worker_port = ports.free_port()
    environment = own | {
        "PIPELINE_CLOCK": "stream",
        "PIPELINE_WORKER_WEB_PORT": str(worker_port),
        "PIPELINE_LOG_FORMAT": "json",
    }
    command = [sys.executable, "-m", "pipeline", "up", "--data", str(data)]
    with (data / "up.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            ready = until_ready(process)
            one = Running(
                data,
                ready["clickhouse"],
                ready["web"],
                f"http://127.0.0.1:{worker_port}",
                environment,
            )
            simulate(one, CLOSED_DAY)
            closed = one.run("close-day", CLOSED_DAY)
            assert closed.returncode == 0, closed.stderr
            simulate(one, OPEN_DAY)
            yield one
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def simulate(one: Running, day: str) -> None:
    done = one.run(
        "simulate", "--day", day, "--seconds", "0", "--impressions", "12000", "--campaigns", "8"
    )
    assert done.returncode == 0, done.stderr
    deadline_s = time.monotonic() + 60
    while True:
        [[rows]] = query(one, "SELECT count() FROM billing.events")
        time.sleep(0.5)
        [[later]] = query(one, "SELECT count() FROM billing.events")
        if rows == later:
            return
        assert time.monotonic() < deadline_s, "the tables do not settle"
