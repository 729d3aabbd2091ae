"""Every command in README.md runs, in its order, and says what the README says it does.

Blocks marked `sh` are run by bash in a directory that looks like a clone after `make demo`; a block
marked `text` after one holds phrases that its output must contain. Ports are replaced by free ones.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.embedded.ports import free_port
from tests.docs import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PORTS = ("9092", "8123", "8080")
READY_WITHIN_S = 120


@dataclass(frozen=True)
class Block:
    """Commands, and phrases that must be in what they print."""

    commands: str
    phrases: list[str]


def _blocks() -> list[Block]:
    fenced = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.M | re.S)
    blocks = []
    for (kind, text), after in zip(fenced, [*fenced[1:], ("", "")], strict=True):
        if kind == "sh":
            blocks.append(Block(text, after[1].splitlines() if after[0] == "text" else []))
    return blocks


MAKE = [block for block in _blocks() if block.commands.startswith("make ")]
UP = [block for block in _blocks() if "pipeline up" in block.commands]
BESIDE = [block for block in _blocks() if block not in MAKE + UP]


class Clone:
    """A directory with what the README's commands need of a clone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        binaries = directory / ".venv" / "bin"
        binaries.mkdir(parents=True)
        _write_program(binaries / "python", "")
        _write_program(binaries / "pipeline", "-m pipeline ")
        (directory / "docs").symlink_to(ROOT / "docs")
        self._ports = {port: str(free_port()) for port in PORTS}
        kept = {name: text for name, text in os.environ.items() if not name.startswith("PIPELINE_")}
        self._environment = kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        self._session = "set -eu\n"
        """What earlier blocks exported, as in one terminal."""

    def start(self, commands: str, output: Path) -> subprocess.Popen[bytes]:
        """Start commands in a process group of their own; what they print goes into a file."""
        for port, free in self._ports.items():
            commands = re.sub(rf"\b{port}\b", free, commands)
        script = self._session + commands
        self._session += "".join(f"{line}\n" for line in re.findall(r"^export .*$", commands, re.M))
        with output.open("wb") as file:
            return subprocess.Popen(
                ["bash", "-c", script],
                cwd=self.directory,
                env=self._environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, commands: str, timeout_s: float = 120) -> str:
        """Run commands to their end; what they print. Fails where one of them fails."""
        output = self.directory / "output"
        process = self.start(commands, output)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        printed = output.read_text(encoding="utf-8")
        assert code == 0, printed
        return printed


def _write_program(path: Path, arguments: str) -> None:
    """A program that runs the Python of the tests on this tree."""
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
    path.chmod(0o755)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clone after a small `make demo`, with the README's `pipeline up` running in it."""
    one = Clone(tmp_path_factory.mktemp("clone"))
    demo = one.run("export PATH=$PWD/.venv/bin:$PATH\npipeline demo --impressions 6000 --seconds 4")
    assert "every identity holds" in demo
    [block] = UP
    log = one.directory / "up.log"
    # Bash replaced by the program, so that the signal reaches it.
    up = one.start(block.commands.replace(" pipeline up", " exec pipeline up"), log)
    try:
        deadline_s = time.monotonic() + READY_WITHIN_S
        while "ready kafka=" not in log.read_text():
            assert up.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.1)
        yield one
        up.send_signal(signal.SIGTERM)
        assert up.wait(20) == 0
    finally:
        up.kill()


def test_the_readme_has_its_parts() -> None:
    assert len(MAKE) == 1
    assert len(UP) == 1
    assert len(BESIDE) >= 7


def test_every_make_command_is_a_target() -> None:
    for target in re.findall(r"^make (\S+)", MAKE[0].commands, re.M):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)
    recipe = subprocess.run(
        ["make", "--dry-run", "demo"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert "pipeline demo" in recipe.stdout


def test_every_command_beside_up_runs_and_says_what_is_promised(clone: Clone) -> None:
    for block in BESIDE:
        if "curl" in block.commands and shutil.which("curl") is None:
            continue  # the README's reader has it; the query's columns are tested elsewhere
        printed = clone.run(block.commands)
        assert "DB::Exception" not in printed
        for phrase in block.phrases:
            assert phrase in printed, f"{block.commands}\nprinted\n{printed}"
