"""A paced load, as a process of its own: builds its batches first, then sends them on time.

Arguments: bootstrap, partitions, events a second, seconds, seed. It prints `ready`, waits for a
line on its input, sends, and prints how many events a second it came to.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder

from bench.fill import Batches, Place
from bench.site import ROOT, BenchError, Site
from bench.workload import CAMPAIGNS, messages

TICKS_A_S = 100


async def run(bootstrap: str, partitions: int, events_a_s: int, seconds: float, seed: int) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks=1, linger_ms=0, max_batch_size=1 << 20
    )
    await producer.start()
    try:
        ticks = _ticks(Batches(producer, partitions), events_a_s, seconds, seed)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print(f"{await _send(producer, ticks) * events_a_s:.0f}", flush=True)
    finally:
        await producer.stop()


def _ticks(
    batches: Batches, events_a_s: int, seconds: float, seed: int
) -> list[list[tuple[Place, BatchBuilder]]]:
    """What to send at each tick."""
    count = int(events_a_s * seconds)
    start_ms = time.time_ns() // 1_000_000 - int(seconds * 1_000)
    events_a_ms = max(1, events_a_s // 1_000)
    given = messages(count, CAMPAIGNS, start_ms, seed, events_a_ms=events_a_ms)
    ticks: list[list[tuple[Place, BatchBuilder]]] = []
    for number in range(int(seconds * TICKS_A_S)):
        end = events_a_s * (number + 1) // TICKS_A_S
        begin = events_a_s * number // TICKS_A_S
        ready = [full for _ in range(begin, end) if (full := batches.add(next(given))) is not None]
        ticks.append(ready + batches.rest())
        for _, batch in ticks[-1]:
            batch._build()  # its bytes and their checksum, which would cost the broker's core later
    return ticks


async def _send(producer: AIOKafkaProducer, ticks: list[list[tuple[Place, BatchBuilder]]]) -> float:
    """Send each tick's batches when it is time; the share of the asked rate that came of it."""
    started_s = time.monotonic()
    acks = []
    for number, batches in enumerate(ticks):
        ahead_s = started_s + number / TICKS_A_S - time.monotonic()
        if ahead_s > 0:
            await asyncio.sleep(ahead_s)
        for (topic, partition), batch in batches:
            acks.append(await producer.send_batch(batch, topic, partition=partition))
    await asyncio.gather(*acks)
    return len(ticks) / TICKS_A_S / (time.monotonic() - started_s)


class Load:
    """A load that is ready to be sent."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def go(self) -> None:
        """Begin to send; returns at once."""
        assert self._child.stdin is not None
        self._child.stdin.write("go\n")
        self._child.stdin.flush()

    def reached(self) -> float:
        """Wait for the end; the events a second that were sent. Raises `BenchError`."""
        assert self._child.stdout is not None
        return float(_line_of(self._child))


@contextmanager
def prepared(site: Site, events_a_s: int, seconds: float, seed: int) -> Iterator[Load]:
    """A load on the broker's core, its batches built. Different seeds make different events."""
    command = [sys.executable, "-m", "bench.load", site.bootstrap, str(site.partitions)]
    child = subprocess.Popen(
        [*command, str(events_a_s), str(seconds), str(seed)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        _line_of(child)
        yield Load(child)
    finally:
        child.kill()
        child.communicate()


def _line_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise BenchError(f"the load ended with {child.wait()}; its own words are above")
    return line.strip()


if __name__ == "__main__":
    asyncio.run(
        run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
    )
