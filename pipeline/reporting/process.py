"""The reporter as a process, with the HTTP interface over the embedded engine."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from pipeline.contract.log import LogReader
from pipeline.reporting import schema
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.http import MAX_QUERY_BYTES, ReadOnlyHttp
from pipeline.reporting.metrics import ReporterMetrics, add_pages
from pipeline.reporting.reporter import Reporter, report
from pipeline.web import served

LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Listeners:
    """Where a reporter listens; a port that is None is not listened on."""

    http_port: int | None = None
    """The read-only ClickHouse interface (loopback only), with the pages for probes beside it."""
    web_host: str = "127.0.0.1"
    web_port: int | None = None
    """The pages for probes and Prometheus alone."""


async def run_reporter(
    store: Store,
    layout: schema.Layout,
    journal: LogReader,
    catalog: LogReader,
    partitions: int,
    listeners: Listeners,
    stop: asyncio.Event,
) -> None:
    """Apply the schema and report until told to stop; serve queries and pages as asked."""
    await asyncio.to_thread(schema.apply, store, layout)
    metrics = ReporterMetrics()
    reporter = Reporter(store, journal, catalog, partitions, metrics)
    async with AsyncExitStack() as serving:
        if listeners.http_port is not None:
            queries = web.Application(client_max_size=MAX_QUERY_BYTES)
            add_pages(queries, reporter, metrics)
            ReadOnlyHttp(store).add_pages(queries)
            await serving.enter_async_context(served(queries, LOOPBACK, listeners.http_port))
        if listeners.web_port is not None:
            pages = web.Application()
            add_pages(pages, reporter, metrics)
            host, port = listeners.web_host, listeners.web_port
            await serving.enter_async_context(served(pages, host, port))
        try:
            await report(reporter, stop)
        finally:
            await journal.stop()
            await catalog.stop()
    await asyncio.to_thread(store.close)
