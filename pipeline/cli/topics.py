"""Creating topics."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from pipeline.cli import wiring
from pipeline.cli.common import DataOption, out
from pipeline.streams.topics import ensure_topics


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def topics(
        data: DataOption = None,
        keep_all: Annotated[
            bool, typer.Option(help="Keep events and journal for ever (backfills).")
        ] = False,
    ) -> None:
        """Create the topics that are missing and check the others. Idempotent.

        Example: `PIPELINE_KAFKA_REPLICATION_FACTOR=3 pipeline topics`
        """
        settings = wiring.settings_for(data)
        specs = wiring.specs_of(settings, keep_all=keep_all)
        options = settings.kafka_client_options()
        created = asyncio.run(ensure_topics(options, specs, settings.kafka_replication_factor))
        out.print(f"created: {', '.join(created) or 'nothing'}; {len(specs)} topics are there")
