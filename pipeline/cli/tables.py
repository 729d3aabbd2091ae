"""The tables, as the settings say."""

from __future__ import annotations

import time

from pipeline.reporting.clickhouse import Store
from pipeline.reporting.corrections import last_decided_ms
from pipeline.reporting.schema import Layout
from pipeline.settings import Settings


def table_layout(settings: Settings) -> Layout:
    """How the tables are laid out."""
    return Layout(settings.clickhouse_replicated, settings.clickhouse_cluster)


def now_by_clock_ms(settings: Settings, catalog_ms: int) -> int:
    """Now by the product's clock; of a stream's, the last time that is known of it.

    So a command beside a stream's clock does not move it on to today. `catalog_ms`: the largest
    timestamp of the catalog's records, which move a stream's clock as events do.
    """
    if settings.clock == "stream":
        return max(last_decided_ms(Store(settings.clickhouse_dsn)), catalog_ms)
    return time.time_ns() // 1_000_000
