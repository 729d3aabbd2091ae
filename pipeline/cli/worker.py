"""The worker as a process."""

from __future__ import annotations

import asyncio
import os

import typer

from pipeline import failpoints
from pipeline.cli.common import until_signalled
from pipeline.cli.judging import make_worker
from pipeline.cli.logs import configure_logging
from pipeline.settings import Settings, load_settings
from pipeline.streams.memory import tune_memory
from pipeline.streams.pages import application
from pipeline.streams.worker import Worker
from pipeline.web import served


async def run_worker(settings: Settings, stop: asyncio.Event) -> None:
    """A worker until told to stop."""
    worker = make_worker(settings)
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


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def worker() -> None:
        """Run a worker: judge events, enforce limits, append to the journal.

        Example: `PIPELINE_KAFKA_BOOTSTRAP=kafka:9092 pipeline worker`
        """
        failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
        settings = load_settings()
        configure_logging(settings.log_format)
        asyncio.run(until_signalled(lambda stop: run_worker(settings, stop)))
