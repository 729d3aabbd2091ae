"""The long-running processes: worker and reporter."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from pipeline import failpoints
from pipeline.cli import wiring
from pipeline.cli.admin import DataOption
from pipeline.cli.logs import configure_logging
from pipeline.contract.vocabulary import CATALOG, JOURNAL
from pipeline.dashboard.server import Dashboard, DashboardSettings, check_exposure, urls_of
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.process import Listeners, run_reporter, served
from pipeline.settings import Settings, SettingsError, load_settings
from pipeline.streams.memory import tune_memory
from pipeline.streams.pages import application
from pipeline.streams.worker import Worker


async def until_signalled(run: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run something that ends when the event is set, which SIGINT and SIGTERM do."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await run(stop)


async def run_worker(settings: Settings, stop: asyncio.Event) -> None:
    """A worker until told to stop."""
    worker = wiring.make_worker(settings)
    tune_memory()
    async with served(application(worker), settings.web_host, settings.worker_web_port):
        await _work(worker, stop)


async def _work(worker: Worker, stop: asyncio.Event) -> None:
    stopping = asyncio.ensure_future(stop.wait())
    waiting = asyncio.ensure_future(worker.await_kafka())
    await asyncio.wait([waiting, stopping], return_when=asyncio.FIRST_COMPLETED)
    if not waiting.done():  # Kafka may never answer
        waiting.cancel()
        return
    waiting.result()
    await worker.start()
    await stopping
    await worker.stop()


async def report(settings: Settings, http_port: int | None, stop: asyncio.Event) -> None:
    """The reporter until told to stop."""
    store = await asyncio.to_thread(Store, settings.clickhouse_dsn)
    reader = wiring.reader_factory(settings)
    await run_reporter(
        store,
        wiring.table_layout(settings),
        reader(JOURNAL),
        reader(CATALOG),
        settings.partitions,
        Listeners(http_port, settings.web_host, settings.reporter_web_port),
        stop,
    )


async def serve_dashboard(settings: Settings, port: int, stop: asyncio.Event) -> None:
    """The dashboard until told to stop."""
    token = settings.dashboard_token.get_secret_value()
    try:
        check_exposure(settings.web_host, token)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    served_by = DashboardSettings(token, tuple(urls_of(settings.dashboard_metrics_urls)))
    dashboard = Dashboard(lambda: Store(settings.clickhouse_dsn), served_by)
    async with served(dashboard.application(), settings.web_host, port):
        print(f"ready web=http://{settings.web_host}:{port}", flush=True)
        await stop.wait()
    await dashboard.close()


def register(app: typer.Typer) -> None:
    """Add the commands."""

    @app.command()
    def worker() -> None:
        """Run a worker: judge events, enforce limits, append to the journal.

        Example: `PIPELINE_KAFKA_BOOTSTRAP=kafka:9092 pipeline worker`
        """
        failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
        settings = load_settings()
        configure_logging(settings.log_format)
        asyncio.run(until_signalled(lambda stop: run_worker(settings, stop)))

    @app.command()
    def reporter(
        http_port: Annotated[
            int | None, typer.Option(help="Serve read-only queries of the embedded engine here.")
        ] = None,
    ) -> None:
        """Run the reporter: write the journal to ClickHouse, close days.

        Example: `PIPELINE_CLICKHOUSE_DSN=http://user:pw@host:8123/ pipeline reporter`
        """
        failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
        settings = load_settings()
        configure_logging(settings.log_format)
        asyncio.run(until_signalled(lambda stop: report(settings, http_port, stop)))

    @app.command("dashboard")
    def dashboard_command(
        port: Annotated[int, typer.Option(help="Port to listen on.")] = 8080,
        data: DataOption = None,
    ) -> None:
        """Serve the dashboard in the browser, read-only over ClickHouse.

        On loopback unless PIPELINE_WEB_HOST says otherwise; then PIPELINE_DASHBOARD_TOKEN is
        needed. Example: `pipeline dashboard --port 8080`
        """
        settings = wiring.settings_for(data)
        configure_logging(settings.log_format)
        asyncio.run(until_signalled(lambda stop: serve_dashboard(settings, port, stop)))
