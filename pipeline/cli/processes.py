"""The long-running processes: worker and reporter."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from pipeline import failpoints
from pipeline.cli import wiring
from pipeline.contract.vocabulary import CATALOG, JOURNAL
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.process import run_reporter
from pipeline.settings import Settings, load_settings, misspelt_variables

log = logging.getLogger(__name__)


def configure_logging() -> None:
    """One line an incident, on standard error."""
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for noisy in ("aiokafka", "faust", "mode", "asyncio", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for name, meant in misspelt_variables().items():
        log.warning("%s is not a setting; did you mean %s?", name, meant)


async def until_signalled(run: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run something that ends when the event is set, which SIGINT and SIGTERM do."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await run(stop)


def _collect_garbage_rarely() -> None:
    """For a process that makes many objects and few cycles.

    Each fetched record is an object for a moment; with Python's own thresholds, looking through
    them for cycles costs a worker a fifth of its time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 10, 10)


async def run_worker(settings: Settings, stop: asyncio.Event) -> None:
    """A worker until told to stop."""
    worker = wiring.make_worker(settings)
    _collect_garbage_rarely()
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
        "127.0.0.1",
        http_port,
        stop,
    )


def register(app: typer.Typer) -> None:
    """Add the commands."""

    @app.command()
    def worker() -> None:
        """Run a worker: judge events, enforce limits, append to the journal.

        Example: `PIPELINE_KAFKA_BOOTSTRAP=kafka:9092 pipeline worker`
        """
        configure_logging()
        failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
        settings = load_settings()
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
        configure_logging()
        failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
        settings = load_settings()
        asyncio.run(until_signalled(lambda stop: report(settings, http_port, stop)))
