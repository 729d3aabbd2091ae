"""The machine: which core runs what, what a process has used, and what to say of it beside figures.

Linux only: /proc and CPU affinity.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_TICKS_A_S = os.sysconf("SC_CLK_TCK")
_VERSIONS_OF = ("faust-streaming", "aiokafka", "polars", "numba", "numpy", "chdb")


@dataclass(frozen=True, slots=True)
class Cores:
    """Numbers of the core of the job and of the core of everything else (the same if only one)."""

    job: int
    others: int

    @classmethod
    def choose(cls) -> Cores:
        """The first two cores that this process may use."""
        allowed = sorted(os.sched_getaffinity(0))
        return cls(allowed[0], allowed[-1])


@contextlib.contextmanager
def on_cores(*cores: int) -> Iterator[None]:
    """Processes started within stay on these cores; this thread comes back."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_s(pid: int | str) -> float:
    """CPU seconds (user and system, all threads) that a living process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_S


def peak_memory_mib(pid: int | str) -> float:
    """The most resident memory that a living process has had."""
    return _status_kib(pid, "VmHWM:") / 1_024


def private_memory_bytes(pid: int | str = "self") -> int:
    """Memory of a living process that no file is behind, so that the system cannot take it."""
    return _status_kib(pid, "RssAnon:") * 1_024


def _status_kib(pid: int | str, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise LookupError(f"/proc/{pid}/status has no {name}: figures need Linux")


def described(command: str) -> dict[str, str]:
    """Where and with what a figure was measured, as names and texts for a reader."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": command,
        "revision": _revision(),
        "processor": _processor(),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {metadata.version(name)}" for name in _VERSIONS_OF),
        "load": f"{os.getloadavg()[0]:.1f} before the first run (1-minute average)",
    }


def _processor() -> str:
    models = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"


def _revision() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
