"""What the commands have in common."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.errors import UserError

# Ids are printed as they are, whatever of them looks like markup; style is by `style=` or `Text`.
out = Console(markup=False, emoji=False)
err = Console(stderr=True, markup=False, emoji=False)


class CommandError(UserError):
    """A command cannot do what it was asked; the text says why and what to do."""


DataOption = Annotated[
    Path | None, typer.Option("--data", help="Data directory of the running `pipeline up`.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


async def until_signalled(run: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run something that ends when the event is set, which SIGINT and SIGTERM do."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await run(stop)
