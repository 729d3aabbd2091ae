"""What the reporter tells Prometheus, and its pages for probes.

Everything but the inserts' durations is read off the reporter when somebody scrapes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from typing import Any, Final, Protocol

from aiohttp import web
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_SAMPLES: Final = 1_000
_SCRAPE_WITHIN_S: Final = 3.0
_STUCK_AFTER_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a reporter stands when somebody asks."""

    state: str
    trouble: str
    """Why ClickHouse cannot be written to now; empty where it can."""
    events: int
    batches: int
    stopped: Mapping[int, str]
    """Journal partition -> why it is not reported any further: a broken invariant."""
    refused_closes: Mapping[str, str]
    """Account -> why its day stays open: a broken invariant."""
    next_offsets: Mapping[int, int]
    """Journal partition -> the offset after the last record in the tables."""
    last_closed_day: date | None
    oldest_open_day: date | None
    quiet_s: float
    """Since the loop last went round."""


class Reporting(Protocol):
    """What the pages need of a reporter."""

    def standing(self) -> Standing: ...

    async def journal_ends(self) -> dict[int, int]:
        """Journal partition -> the offset after its last record."""
        ...


class LagTracker:
    """How long a position in a growing log has been behind, from samples of the log's end.

    Record timestamps would not do: a backfill's are old however fast it is reported. The answer is
    as fine as samples are frequent, and never more than the truth.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def lag_s(self, position: int, end: int, now_s: float) -> float:
        """Seconds since the log went beyond this position."""
        self._samples.append((now_s, end))
        while self._samples and self._samples[0][1] <= position:
            self._samples.popleft()
        return now_s - self._samples[0][0] if self._samples else 0.0


class ReporterMetrics:
    """The reporter's metrics, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        gauge = partial(Gauge, registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        ProcessCollector(registry=self.registry)
        self.insert_s = Histogram(
            "pins_reporter_insert_seconds",
            "One insert, waiting for ClickHouse included.",
            ["table"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._running = gauge("pins_reporter_running", "1 while reporting, 0 else.")
        self._trouble = gauge(
            "pins_reporter_clickhouse_unavailable", "1 while inserts are tried again."
        )
        self._events = counter("pins_reporter_events", "Events written to the tables.")
        self._batches = counter("pins_reporter_batches", "Batches written to the tables.")
        self._told = (0, 0)
        self._lag = gauge(
            "pins_reporter_lag_records", "Journal records not in the tables.", ["shard"]
        )
        self._lag_s = gauge("pins_reporter_lag_seconds", "Since the first of them came.", ["shard"])
        self._failures = gauge(
            "pins_invariant_failures", "Broken invariants that hold something up.", ["kind"]
        )
        self._closed = gauge(
            "pins_last_closed_day_timestamp_seconds", "Start (UTC) of the last closed day."
        )
        self._open = gauge(
            "pins_oldest_open_day_timestamp_seconds",
            "Start (UTC) of the oldest day that some account has open; 0: no account.",
        )
        self._lag_unknown = gauge(
            "pins_reporter_lag_unknown", "1 where Kafka did not say its ends."
        )
        self._trackers: dict[int, LagTracker] = {}

    async def scrape(self, reporting: Reporting) -> bytes:
        """The exposition text."""
        try:
            ends = await asyncio.wait_for(reporting.journal_ends(), _SCRAPE_WITHIN_S)
        except (OSError, TimeoutError):
            ends = {}
        now = reporting.standing()
        self._lag_unknown.set(not ends)
        self._running.set(now.state == "running")
        self._trouble.set(bool(now.trouble))
        self._events.inc(now.events - self._told[0])
        self._batches.inc(now.batches - self._told[1])
        self._told = (now.events, now.batches)
        self._failures.labels("journal_stopped").set(len(now.stopped))
        self._failures.labels("close_refused").set(len(now.refused_closes))
        self._closed.set(_epoch_s(now.last_closed_day))
        self._open.set(_epoch_s(now.oldest_open_day))
        monotonic_s = time.monotonic()
        for partition, end in ends.items():
            position = now.next_offsets.get(partition, 0)
            tracker = self._trackers.setdefault(partition, LagTracker())
            self._lag.labels(partition).set(max(0, end - position))
            self._lag_s.labels(partition).set(tracker.lag_s(position, end, monotonic_s))
        return bytes(generate_latest(self.registry))


def add_pages(application: web.Application, reporting: Reporting, metrics: ReporterMetrics) -> None:
    """Add /health, /live, /ready and /metrics."""

    async def health(_: web.Request) -> web.Response:
        return web.json_response(health_of(reporting.standing()))

    async def live(_: web.Request) -> web.Response:
        now = reporting.standing()
        # Waiting for ClickHouse is no reason to end the process: it goes on by itself.
        alive = now.state != "running" or bool(now.trouble) or now.quiet_s < _STUCK_AFTER_S
        return web.json_response({"live": alive}, status=200 if alive else 503)

    async def ready(_: web.Request) -> web.Response:
        now = reporting.standing()
        good = now.state == "running" and not now.trouble
        return web.json_response({"state": now.state}, status=200 if good else 503)

    async def expose(_: web.Request) -> web.Response:
        body = await metrics.scrape(reporting)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    application.router.add_get("/health", health)
    application.router.add_get("/live", live)
    application.router.add_get("/ready", ready)
    application.router.add_get("/metrics", expose)


def health_of(now: Standing) -> dict[str, Any]:
    """What the health page says."""
    return {
        "state": now.state,
        "trouble": now.trouble,
        "events": now.events,
        "batches": now.batches,
        "stopped": dict(now.stopped),
        "refused_closes": dict(now.refused_closes),
        "journal_offsets": dict(now.next_offsets),
        "last_closed_day": str(now.last_closed_day or ""),
    }


def _epoch_s(day: date | None) -> float:
    return 0.0 if day is None else datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
