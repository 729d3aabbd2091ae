"""What a command takes to start."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from pipeline.cli.main import app

JUDGING = {"worker", "replay", "pacing-bench", "explain", "reconcile", "demo", "simulate"}
"""Commands that judge events or fold what was judged, and the demo, which reconciles: their loops
are compiled."""
WITH_FAUST = {"worker", "replay"}

PROGRAM = """
import sys
from pipeline.cli.main import app
import typer
typer.main.get_group(app).commands[sys.argv[1]]
if sys.argv[1] == "worker":
    from pipeline.billing.decode import warm_up
    warm_up()
print(*sys.modules)
"""


def imported_by(command: str) -> set[str]:
    """The modules that are there when a command has been loaded, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, command], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("command", typer.main.get_group(app).commands)
def test_a_command_imports_nothing_large_that_it_does_not_need(command: str) -> None:
    """pyarrow imports pandas to convert arrays, which takes a fifth of a start; the embedded engine
    is for those who use it; compiled loops are for those who judge."""
    modules = imported_by(command)
    assert not modules & {"pandas", "chdb"}
    assert ("numba" in modules) == (command in JUDGING)
    assert ("faust" in modules) == (command in WITH_FAUST)
