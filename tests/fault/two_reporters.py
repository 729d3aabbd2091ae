"""Two reporters on one ClickHouse, each started again whenever it ends: run as a process.

python -m tests.fault.two_reporters HTTP_PORT

They share the embedded engine, and with it the process: it is not to be had from two. Says on
stderr each time that one gave way.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from aiohttp import web

from pipeline.cli import wiring
from pipeline.cli.common import until_signalled
from pipeline.cli.tables import table_layout
from pipeline.contract.vocabulary import CATALOG, JOURNAL
from pipeline.reporting import schema
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.http import ReadOnlyHttp
from pipeline.reporting.plans import TakenOver
from pipeline.reporting.reporter import Reporter
from pipeline.settings import Settings, load_settings
from pipeline.web import served

GAVE_WAY = "gave way"
log = logging.getLogger("two_reporters")


async def _report(name: str, settings: Settings, store: Store) -> None:
    reader = wiring.reader_factory(settings)
    while True:
        journal, catalog = reader(JOURNAL), reader(CATALOG)
        try:
            await Reporter(store, journal, catalog, settings.partitions).run()
        except TakenOver as error:
            log.warning("%s %s: %s", name, GAVE_WAY, error)
        finally:
            await journal.stop()
            await catalog.stop()
        await asyncio.sleep(1.0)


async def _run(settings: Settings, port: int, stop: asyncio.Event) -> None:
    store = Store(settings.clickhouse_dsn)
    schema.apply(store, table_layout(settings))
    pages = web.Application()
    ReadOnlyHttp(store).add_pages(pages)
    async with served(pages, "127.0.0.1", port), asyncio.TaskGroup() as group:
        both = [group.create_task(_report(name, settings, store)) for name in ("one", "other")]
        await stop.wait()
        for task in both:
            task.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    given = int(sys.argv[1])
    asyncio.run(until_signalled(lambda stop: _run(load_settings(), given, stop)))
