"""The `pipeline` command."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Any, Final, cast

import typer
from aiokafka.errors import KafkaConnectionError
from typer.core import TyperGroup

from pipeline.cli.common import err
from pipeline.contract.log import LogUnavailable
from pipeline.errors import EXIT_FAILED, UserError

_MODULES: Final = {
    "up": "up",
    "worker": "worker",
    "reporter": "reporter",
    "dashboard": "dashboard",
    "topics": "topics",
    "schema": "schema",
    "catalog": "catalog",
    "close-day": "close_day",
    "redrive": "redrive",
    "reconcile": "reports",
    "explain": "reports",
    "statement": "finance",
    "credit": "finance",
    "simulate": "simulation",
    "demo": "simulation",
    "pacing-bench": "pacing",
    "replay": "replay",
    "doctor": "doctor",
}
"""Each command's module, in the order of `pipeline --help`."""
_MARKUP: Final = "markdown"
"""Of help texts."""


class _Commands(Mapping[str, Any]):
    """The commands by name, each loaded when it is asked for: loading all takes seconds, of which
    most commands need a small part."""

    def __getitem__(self, name: str) -> Any:
        of_module = typer.Typer(rich_markup_mode=_MARKUP)
        import_module(f"pipeline.cli.{_MODULES[name]}").register(of_module)
        return typer.main.get_group(of_module).commands[name]

    def get(self, name: str, default: Any = None) -> Any:
        # Not by a KeyError, which a module's own fault could be.
        if name not in _MODULES:
            return default
        return self[name]

    def __contains__(self, name: object) -> bool:
        return name in _MODULES

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


class _Group(TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        # Whatever could change them is not used.
        self.commands = cast("MutableMapping[str, Any]", _Commands())

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)


app = typer.Typer(
    name="pipeline",
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode=_MARKUP,
    pretty_exceptions_enable=False,
)


@app.callback()
def _pipeline() -> None:
    """Streaming billing and pacing for promoted pins."""


def main() -> None:
    """Run a command; what a person can put right is told in words, with exit code 1 or 2."""
    try:
        app()
    except UserError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except (KafkaConnectionError, LogUnavailable) as error:
        _say(
            f"Kafka cannot be reached ({error}). See that it runs, and where: "
            "PIPELINE_KAFKA_BOOTSTRAP, or --data DIR of a running `pipeline up`."
        )
        sys.exit(EXIT_FAILED)


def _say(text: str) -> None:
    err.print(text, style="red", highlight=False, soft_wrap=True)
