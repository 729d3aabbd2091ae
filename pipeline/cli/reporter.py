"""The reporter as a process."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

import typer

from pipeline import failpoints
from pipeline.cli import wiring
from pipeline.cli.common import until_signalled
from pipeline.cli.logs import configure_logging
from pipeline.cli.tables import table_layout
from pipeline.contract.vocabulary import CATALOG, JOURNAL
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.process import Listeners, run_reporter
from pipeline.settings import Settings, load_settings


async def report(settings: Settings, http_port: int | None, stop: asyncio.Event) -> None:
    """The reporter until told to stop."""
    store = await asyncio.to_thread(Store, settings.clickhouse_dsn)
    reader = wiring.reader_factory(settings)
    await run_reporter(
        store,
        table_layout(settings),
        reader(JOURNAL),
        reader(CATALOG),
        settings.partitions,
        Listeners(http_port, settings.web_host, settings.reporter_web_port),
        stop,
    )


def register(app: typer.Typer) -> None:
    """Add the command."""

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
