"""The `pipeline` command."""

from __future__ import annotations

import sys

import typer
from aiokafka.errors import KafkaConnectionError
from rich.console import Console

from pipeline.cli import (
    admin,
    catalog_edit,
    doctor,
    finance,
    pacing,
    processes,
    replay,
    reports,
    simulation,
    up,
)
from pipeline.contract.log import LogUnavailable
from pipeline.embedded.errors import EmbeddedError
from pipeline.reporting.clickhouse import StoreError
from pipeline.reporting.corrections import TooManyError
from pipeline.reporting.plans import TakenOver
from pipeline.reporting.schema import SchemaError
from pipeline.reporting.statements import StatementError
from pipeline.settings import SettingsError
from pipeline.streams.topics import TopicsError

EXIT_FAILED = 1
EXIT_USAGE = 2

_TOLD = (
    EmbeddedError,
    TopicsError,
    StoreError,
    SchemaError,
    TakenOver,
    StatementError,
    TooManyError,
    admin.CommandError,
)

app = typer.Typer(
    name="pipeline",
    help="Streaming billing and pacing for promoted pins.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
up.register(app)
processes.register(app)
admin.register(app)
catalog_edit.register(admin.catalog_app)
reports.register(app)
finance.register(app)
simulation.register(app)
pacing.register(app)
replay.register(app)
doctor.register(app)


def main() -> None:
    """Run a command; what a person can put right is told in words, with exit code 1 or 2."""
    try:
        app()
    except SettingsError as error:
        _say(str(error))
        sys.exit(EXIT_USAGE)
    except _TOLD as error:
        _say(str(error))
        sys.exit(EXIT_FAILED)
    except (KafkaConnectionError, LogUnavailable) as error:
        _say(
            f"Kafka cannot be reached ({error}). See that it runs, and where: "
            "PIPELINE_KAFKA_BOOTSTRAP, or --data DIR of a running `pipeline up`."
        )
        sys.exit(EXIT_FAILED)


def _say(text: str) -> None:
    Console(stderr=True).print(text, style="red", markup=False, highlight=False, soft_wrap=True)
