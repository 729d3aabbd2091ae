"""The product's workers, and what they have judged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.site import BenchError, Site, log_tail, process
from bench.watch import Output, follow, journal_output
from pipeline.contract.vocabulary import JOURNAL

FIRST_JUDGED_WITHIN_S = 30.0
JUDGED_WITHIN_S = 180.0


@dataclass(frozen=True, slots=True)
class Worker:
    """One that was started; its data directory holds its log."""

    child: subprocess.Popen[bytes]
    data_dir: Path
    web_port: str

    def is_alive(self) -> bool:
        return self.child.poll() is None

    def log_tail(self) -> str:
        return log_tail(_log(self.data_dir))


@contextmanager
def working(site: Site, cores: Sequence[int]) -> Iterator[Worker]:
    """A worker on these cores, with a fresh data directory; ended when the block is left."""
    data_dir = site.run_directory("worker")
    env = site.environment(data_dir)
    command = [sys.executable, "-m", "pipeline", "worker"]
    with process(command, cores=cores, log=_log(data_dir), env=env) as child:
        yield Worker(child, data_dir, env["PIPELINE_WORKER_WEB_PORT"])


def _log(data_dir: Path) -> Path:
    return data_dir / "worker.log"


async def judged(site: Site, events: int, workers: Sequence[Worker]) -> list[Output]:
    """All outputs of these workers, once they are of so many events.

    Raises `BenchError` where they do not get there, or get further.
    """
    outputs = await follow(
        site.bootstrap,
        JOURNAL,
        site.partitions,
        journal_output,
        events=events,
        first_within_s=FIRST_JUDGED_WITHIN_S,
        within_s=JUDGED_WITHIN_S,
        alive=lambda: all(worker.is_alive() for worker in workers),
    )
    found = sum(output.events for output in outputs)
    if found != events:
        logs = "; ".join(worker.log_tail() for worker in workers)
        raise BenchError(f"{found} of {events} events were judged: {logs}")
    return outputs
