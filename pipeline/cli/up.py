"""`pipeline up`: the embedded default. One command, a real Kafka, a worker and the reporter.

This process supervises. The parts are processes of their own, so each can crash and be started
again; none outlives this one (see `pipeline.embedded.processes`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer
from aiohttp import web

from pipeline.cli import wiring
from pipeline.cli.common import until_signalled
from pipeline.cli.logs import configure_logging
from pipeline.dashboard.server import Dashboard, DashboardSettings
from pipeline.embedded import ports
from pipeline.embedded.errors import EmbeddedError
from pipeline.embedded.kafka import EmbeddedKafka
from pipeline.embedded.processes import ChildProcess, DirectoryLock
from pipeline.reporting.clickhouse import Store
from pipeline.settings import Settings, load_settings
from pipeline.streams.topics import ensure_topics
from pipeline.web import served

log = logging.getLogger(__name__)

_START_WITHIN_S = 90.0
_STOP_PARTS_WITHIN_S = 4.5
_STOP_KAFKA_WITHIN_S = 3.5
_MAX_RESTARTS_A_MINUTE = 10
_POLL_S = 0.25


@dataclass(slots=True)
class Part:
    """A supervised process and where its health is told."""

    name: str
    child: ChildProcess
    health_url: str
    restarts: list[float] = field(default_factory=list)
    health: dict[str, Any] = field(default_factory=dict)

    def is_ready(self) -> bool:
        return self.health.get("state") == "running"


class Up:
    """The embedded default on one data directory."""

    def __init__(self, settings: Settings, kafka_port: int, clickhouse_port: int, web_port: int):
        self._settings = settings
        self._kafka = EmbeddedKafka(settings.data_dir, kafka_port)
        self._clickhouse_port = ports.demand(clickhouse_port, "--clickhouse-port") or 0
        self._web_port = ports.demand(web_port, "--web-port") or 0
        self._parts: list[Part] = []
        self._failed: str | None = None
        self.ready = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Start everything, say `ready`, supervise until told to stop."""
        await asyncio.to_thread(self._kafka.start)
        try:
            settings = self._settings = with_own_kafka(self._settings, self._kafka.bootstrap)
            specs = wiring.specs_of(settings, keep_all=True)
            await ensure_topics(settings.kafka_client_options(), specs, 1)
            self._parts = [self._reporter(), self._worker()]
            async with aiohttp.ClientSession() as session, self._web():
                for part in self._parts:
                    part.child.start()
                await self._until_ready(session, stop)
                if not stop.is_set():
                    wiring.write_endpoints(settings, self._clickhouse_url)
                    self._say_ready()
                    self.ready.set()
                    await self._supervise(session, stop)
        finally:
            wiring.remove_endpoints(self._settings)
            await self._stop()
        if self._failed:
            raise EmbeddedError(self._failed)

    # -- parts --------------------------------------------------------------------------------

    @property
    def _clickhouse_url(self) -> str:
        return f"http://{ports.HOST}:{self._clickhouse_port}"

    @property
    def beside(self) -> Settings:
        """The settings of a command beside it, once it is ready, whatever the environment says."""
        given = self._settings.model_dump(exclude_unset=True)
        return load_settings(**given | {"clickhouse_dsn": self._clickhouse_url})

    def _environment(self) -> dict[str, str]:
        settings = self._settings
        inherited = dict(os.environ)
        inherited.pop("PIPELINE_CLICKHOUSE_DSN_FILE", None)  # told below, and not twice
        return inherited | {
            "PIPELINE_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
            "PIPELINE_KAFKA_SECURITY_PROTOCOL": settings.kafka_security_protocol,
            "PIPELINE_CLICKHOUSE_DSN": f"chdb://{settings.data_dir.absolute()}/clickhouse",
            "PIPELINE_DATA_DIR": str(settings.data_dir),
            "PIPELINE_CLOCK": settings.clock,
            "PIPELINE_PARTITIONS": str(settings.partitions),
            "PIPELINE_WORKER_WEB_PORT": str(settings.worker_web_port),
            # The worker's columns are small and many: a pool of threads costs more than it gives.
            "TZ": "UTC",
            "POLARS_MAX_THREADS": os.environ.get("POLARS_MAX_THREADS", "1"),
        }

    def _part(self, name: str, arguments: list[str], health_url: str) -> Part:
        run_dir = self._settings.data_dir.absolute()
        child = ChildProcess(
            name,
            [sys.executable, "-m", "pipeline", name, *arguments],
            run_dir,
            run_dir / f"{name}.log",
            env=self._environment(),
        )
        return Part(name, child, health_url)

    def _worker(self) -> Part:
        return self._part(
            "worker", [], f"http://{ports.HOST}:{self._settings.worker_web_port}/health"
        )

    def _reporter(self) -> Part:
        arguments = ["--http-port", str(self._clickhouse_port)]
        return self._part("reporter", arguments, f"{self._clickhouse_url}/health")

    # -- life ---------------------------------------------------------------------------------

    async def _until_ready(self, session: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        deadline = time.monotonic() + _START_WITHIN_S
        while not stop.is_set() and not all(part.is_ready() for part in self._parts):
            for part in self._parts:
                code = part.child.poll()
                if code is not None:
                    raise EmbeddedError(
                        f"The {part.name} ended with code {code} while starting. Its last lines "
                        f"({part.child.log_path}):\n{part.child.log_tail()}"
                    )
            await self._ask_health(session)
            if time.monotonic() > deadline:
                waiting = ", ".join(part.name for part in self._parts if not part.is_ready())
                raise EmbeddedError(
                    f"Not ready after {_START_WITHIN_S:.0f} s: {waiting}. See the logs in "
                    f"{self._settings.data_dir}."
                )
            await _sleep_or(stop, 0.1)

    async def _supervise(self, session: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        asked_s = 0.0
        while not stop.is_set() and self._failed is None:
            if self._kafka.poll() is not None:
                log.error("Kafka ended; starting it again")
                await asyncio.to_thread(self._restart_kafka)
            for part in self._parts:
                self._revive(part)
            if time.monotonic() - asked_s > 1.0:
                asked_s = time.monotonic()
                await self._ask_health(session)
            await _sleep_or(stop, _POLL_S)

    def _restart_kafka(self) -> None:
        self._kafka.stop(_STOP_KAFKA_WITHIN_S)
        self._kafka = EmbeddedKafka(
            self._settings.data_dir, int(self._settings.kafka_bootstrap.rpartition(":")[2])
        )
        self._kafka.start()

    def _revive(self, part: Part) -> None:
        code = part.child.poll()
        if code is None:
            return
        now_s = time.monotonic()
        part.restarts = [at for at in part.restarts if now_s - at < 60] + [now_s]
        log.error("the %s ended with code %d; starting it again", part.name, code)
        if len(part.restarts) > _MAX_RESTARTS_A_MINUTE:
            self._failed = (
                f"The {part.name} keeps ending (code {code}). Its last lines "
                f"({part.child.log_path}):\n{part.child.log_tail()}"
            )
            return
        part.health = {"state": "restarting"}
        part.child.start()

    async def _ask_health(self, session: aiohttp.ClientSession) -> None:
        timeout = aiohttp.ClientTimeout(total=2)
        for part in self._parts:
            try:
                async with session.get(part.health_url, timeout=timeout) as response:
                    part.health = await response.json()
            except (aiohttp.ClientError, TimeoutError, ValueError):
                part.health = {"state": "no answer"}

    async def _stop(self) -> None:
        children = [part.child for part in self._parts if _was_started(part.child)]
        for child in children:
            child.terminate()
        stops = [asyncio.to_thread(child.stop, _STOP_PARTS_WITHIN_S) for child in children]
        await asyncio.gather(*stops)
        await asyncio.to_thread(self._kafka.stop, _STOP_KAFKA_WITHIN_S)

    def _say_ready(self) -> None:
        print(
            f"ready kafka={self._settings.kafka_bootstrap} clickhouse={self._clickhouse_url} "
            f"web=http://{ports.HOST}:{self._web_port}",
            flush=True,
        )

    # -- the web port --------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _web(self) -> AsyncIterator[None]:
        """The dashboard, with /health of all parts."""
        metrics = (
            f"http://{ports.HOST}:{self._settings.worker_web_port}/metrics",
            f"{self._clickhouse_url}/metrics",
        )
        token = self._settings.dashboard_token.get_secret_value()
        dashboard = Dashboard(
            lambda: Store(self._clickhouse_url), DashboardSettings(token, metrics)
        )
        async with served(dashboard.application(self._serve_health), ports.HOST, self._web_port):
            yield
        await dashboard.close()

    def _health(self) -> dict[str, Any]:
        states = {part.name: part.health for part in self._parts}
        kafka = {"state": "running" if self._kafka.poll() is None else "ended"}
        healthy = kafka["state"] == "running" and all(part.is_ready() for part in self._parts)
        return {"healthy": healthy, "kafka": kafka} | states

    async def _serve_health(self, _: web.Request) -> web.Response:
        health = self._health()
        return web.json_response(health, status=200 if health["healthy"] else 503)


def with_own_kafka(settings: Settings, bootstrap: str) -> Settings:
    """The settings with the embedded Kafka, whichever the environment names."""
    given: dict[str, Any] = {"worker_web_port": ports.free_port()}
    given |= settings.model_dump(exclude_unset=True)
    given |= {"kafka_bootstrap": bootstrap} | wiring.OWN_KAFKA
    return load_settings(**given)


def _was_started(child: ChildProcess) -> bool:
    try:
        child.poll()
    except EmbeddedError:
        return False
    return True


async def _sleep_or(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


@contextlib.contextmanager
def _owned(data_dir: Path) -> Iterator[None]:
    with DirectoryLock(data_dir):
        yield


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def up(
        data: Annotated[
            Path | None,
            typer.Option(help="Data directory; a second start goes on where it stopped."),
        ] = None,
        partitions: Annotated[
            int | None, typer.Option(help="Shards; fixed once topics exist.")
        ] = None,
        kafka_port: Annotated[int, typer.Option(help="0: the last one, or a free one.")] = 0,
        clickhouse_port: Annotated[int, typer.Option(help="0: a free one.")] = 0,
        web_port: Annotated[int, typer.Option(help="0: a free one.")] = 0,
    ) -> None:
        """Run the embedded default: Kafka, a worker, the reporter and ClickHouse over HTTP.

        Prints one line `ready kafka=… clickhouse=… web=…` and runs until SIGINT or SIGTERM.

        Example: `pipeline up --data ./data --clickhouse-port 8123`
        """
        settings = load_settings(data_dir=data, partitions=partitions)
        configure_logging(settings.log_format)
        with _owned(settings.data_dir):
            one = Up(
                settings,
                kafka_port,
                clickhouse_port or ports.free_port(),
                web_port or ports.free_port(),
            )
            asyncio.run(until_signalled(one.run))
