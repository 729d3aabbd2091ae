"""Creating and migrating tables."""

from __future__ import annotations

import typer

from pipeline.cli import wiring
from pipeline.cli.common import DataOption, out
from pipeline.cli.tables import table_layout
from pipeline.reporting import schema as clickhouse_schema
from pipeline.reporting.clickhouse import Store


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def schema(data: DataOption = None) -> None:
        """Create or migrate databases, tables and views. Idempotent.

        Example: `PIPELINE_CLICKHOUSE_DSN=http://user:pw@host:8123/ pipeline schema`
        """
        settings = wiring.settings_for(data)
        store = Store(settings.clickhouse_dsn)
        applied = clickhouse_schema.apply(store, table_layout(settings))
        out.print(f"applied: {', '.join(applied) or 'nothing'}; the schema is up to date")
