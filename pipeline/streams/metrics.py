"""What a worker tells Prometheus.

Counted once a turn from the turn's columns, never an event at a time; what has to be asked of
Kafka (how far the sources reach) is asked when somebody scrapes. Amounts here are for rates and
alerts: Prometheus holds floats, the books do not, and no bill is made of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from pipeline.billing.decide import Outcome
from pipeline.billing.terms import Terms
from pipeline.contract.money import CURRENCIES, NANOS_PER_UNIT
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import DISPOSITIONS

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_AGES_S: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 600.0, 3600.0)
_NOT_LOOKED_UP: Final = -1


@dataclass(frozen=True, slots=True)
class ShardGauges:
    """What is known of one shard when somebody scrapes."""

    lag_events: int
    lag_s: float
    """Age of the first event that is not judged, by record timestamps; 0 with no lag."""
    dedupe_ids: int


class WorkerMetrics:
    """The worker's metrics, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        ProcessCollector(registry=self.registry)
        events = counter("pins_events", "Events judged.", ["disposition"])
        self._events = [events.labels(name) for name in DISPOSITIONS]
        self._spend = counter(
            "pins_spend_units", "Charged, in units of the currency.", ["currency"]
        )
        self._free = counter("pins_free_units", "Delivered free, in units.", ["currency"])
        self._signals = counter("pins_signals", "Signals decided.", ["action"])
        self._turn_s = histogram("pins_decision_seconds", "One turn's deciding.", buckets=_SECONDS)
        self.append_s = histogram(
            "pins_append_seconds",
            "One journal append and its outbox, until acknowledged.",
            buckets=_SECONDS,
        )
        self._age_s = histogram(
            "pins_oldest_event_age_seconds",
            "Age of a turn's oldest event when it was decided.",
            buckets=_AGES_S,
        )
        self.recovery_s = histogram(
            "pins_recovery_seconds", "Taking over shards.", buckets=(0.1, 1, 5, 10, 30, 60)
        )
        self._journal_bytes = counter("pins_journal_bytes", "Appended to the journal.")
        self._told_bytes = 0
        self._owned = gauge("pins_shards_owned", "Shards that this worker owns.")
        self._running = gauge("pins_worker_running", "1 while judging, 0 else.")
        self._lag_events = gauge("pins_shard_lag_events", "Not judged yet.", ["shard"])
        self._lag_s = gauge("pins_shard_lag_seconds", "Age of the first of them.", ["shard"])
        self._dedupe_ids = gauge("pins_dedupe_ids", "Event ids remembered.", ["shard"])
        self.lag_unknown = counter(
            "pins_lag_reads_failed", "Scrapes for which Kafka did not say its ends."
        )
        self.copies_failed = counter(
            "pins_snapshot_copies_failed", "Snapshots that were not copied to where all see them."
        )
        self._account_currency: npt.NDArray[np.int8] = np.empty(0, np.int8)

    # -- a turn -------------------------------------------------------------------------------

    def turn(
        self, outcome: Outcome, terms: Terms, signals: Iterable[Signal], seconds: float
    ) -> None:
        """Count one turn that took so long to decide."""
        self._turn_s.observe(seconds)
        for signal in signals:
            self._signals.labels(signal.action).inc()
        if len(outcome.disposition) == 0:
            return
        counts = np.bincount(outcome.disposition, minlength=len(DISPOSITIONS))
        for code in np.flatnonzero(counts).tolist():
            self._events[code].inc(int(counts[code]))
        self._age_s.observe(max(0, outcome.now_ms - int(outcome.batch.order_ms.min())) / 1_000)
        self._count_money(outcome, terms)

    def _count_money(self, outcome: Outcome, terms: Terms) -> None:
        rows = np.flatnonzero((outcome.amount_nanos != 0) | (outcome.free_nanos != 0))
        if len(rows) == 0:
            return
        currency = self._currency_codes(terms.campaign.account[outcome.campaign[rows]], terms)
        for code in np.unique(currency).tolist():
            here = rows[currency == code]
            name = CURRENCIES[code]
            self._spend.labels(name).inc(int(outcome.amount_nanos[here].sum()) / NANOS_PER_UNIT)
            self._free.labels(name).inc(int(outcome.free_nanos[here].sum()) / NANOS_PER_UNIT)

    def _currency_codes(
        self, accounts: npt.NDArray[np.int32], terms: Terms
    ) -> npt.NDArray[np.int8]:
        """Codes of `CURRENCIES` by account row. An account's currency is fixed, so it is kept."""
        known = self._account_currency
        if len(known) < len(terms.account_ids):
            more = np.full(len(terms.account_ids) - len(known), _NOT_LOOKED_UP, np.int8)
            known = self._account_currency = np.concatenate((known, more))
        for row in np.unique(accounts[known[accounts] == _NOT_LOOKED_UP]).tolist():
            account = terms.catalog.accounts[terms.account_ids.text(row)].latest
            known[row] = CURRENCIES.index(account.currency)
        return known[accounts]

    # -- a scrape -----------------------------------------------------------------------------

    def scrape(
        self, shards: Mapping[int, ShardGauges], *, running: bool, journal_bytes: int
    ) -> bytes:
        """The exposition text, with the gauges of exactly these shards."""
        self._running.set(running)
        self._journal_bytes.inc(journal_bytes - self._told_bytes)
        self._told_bytes = journal_bytes
        self._owned.set(len(shards))
        for gauge in (self._lag_events, self._lag_s, self._dedupe_ids):
            gauge.clear()  # a shard that has moved on is another worker's to tell of
        for number, shard in shards.items():
            self._lag_events.labels(number).set(shard.lag_events)
            self._lag_s.labels(number).set(shard.lag_s)
            self._dedupe_ids.labels(number).set(shard.dedupe_ids)
        return bytes(generate_latest(self.registry))
