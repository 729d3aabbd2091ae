"""The reporter as a process, with the HTTP interface over the embedded engine."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from pipeline.contract.log import LogReader
from pipeline.reporting import schema
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.http import ReadOnlyHttp
from pipeline.reporting.reporter import Reporter, report


async def run_reporter(
    store: Store,
    layout: schema.Layout,
    journal: LogReader,
    catalog: LogReader,
    partitions: int,
    host: str,
    http_port: int | None,
    stop: asyncio.Event,
) -> None:
    """Apply the schema and report until told to stop; serve queries on the port, if given."""
    await asyncio.to_thread(schema.apply, store, layout)
    reporter = Reporter(store, journal, catalog, partitions)

    async def health() -> dict[str, Any]:
        progress = reporter.progress
        return {
            "state": progress.state,
            "trouble": progress.trouble,
            "events": progress.events,
            "batches": progress.batches,
            "stopped": progress.stopped,
            "refused_closes": progress.refused_closes,
            "journal_offsets": progress.next_offsets,
        }

    runner = web.AppRunner(ReadOnlyHttp(store, health).application(), access_log=None)
    await runner.setup()
    try:
        if http_port is not None:
            await web.TCPSite(runner, host, http_port).start()
        await report(reporter, stop)
    finally:
        await journal.stop()
        await catalog.stop()
        await runner.cleanup()
        await asyncio.to_thread(store.close)
