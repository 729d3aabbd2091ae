"""Billing lag: what ad servers are told while spend figures are older than a bound.

    state      when                                         to         signals
    punctual   a batch's oldest event is over the bound     lagging    throttle what serves
    lagging    a campaign begins to serve                   lagging    throttle it
    lagging    for a minute none was half the bound old     punctual   resume those still throttled

A turn may bring a shard nothing, or events of one partition of many, so a single batch says that a
shard lags but never that it does not. A campaign that is stopped stays so; one that a limit stops
meanwhile is paused as ever. Which campaigns are throttled is told by their standing signals alone,
so it survives a takeover: the new owner counts the minute from its first turn on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal

from pipeline.contract.days import iso
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import MS_PER_DAY

BILLING_LAG: Final = "billing_lag"
LAG_OVER: Final = "billing_lag_over"
LAGGING_PROBABILITY: Final = 0.5
PUNCTUAL_AFTER_MS: Final = 60_000
"""How long a lagging shard must bring nothing late: longer than fetches take to come round."""

Lag = Literal["punctual", "begins", "lasts", "ends"]


class LagWatch:
    """Which shards lag. Nothing that money depends on, and kept nowhere."""

    def __init__(self, bound_ms: int) -> None:
        """`bound_ms`: how old events may be when they are judged; 0: as old as they like."""
        self._bound_ms = bound_ms
        self._late_ms: dict[int, int | None] = {}
        """When each lagging shard last brought something late; None: before this worker had it."""

    def take_over(self, shard: int, standing: Iterable[Signal]) -> None:
        """A shard was taken over in which these signals hold."""
        if self._bound_ms and any(signal.reason == BILLING_LAG for signal in standing):
            self._late_ms[shard] = None

    def forget(self, shard: int) -> None:
        """The shard is another worker's now."""
        self._late_ms.pop(shard, None)

    def observe(self, shard: int, age_ms: int, now_ms: int) -> Lag:
        """A turn brought events of this shard, the oldest of this age; 0 where it brought none."""
        lagged = shard in self._late_ms
        if age_ms > self._bound_ms or (lagged and 2 * age_ms >= self._bound_ms):
            self._late_ms[shard] = now_ms
            return "lasts" if lagged else "begins"
        if not lagged:
            return "punctual"
        late_ms = self._late_ms[shard]
        if late_ms is None:
            late_ms = self._late_ms[shard] = now_ms
        if now_ms - late_ms < PUNCTUAL_AFTER_MS:
            return "lasts"
        del self._late_ms[shard]
        return "ends"

    def is_due(self, now_ms: int) -> bool:
        """Whether a shard's lag is over, though nothing comes that would say so."""
        return any(
            late_ms is None or now_ms - late_ms >= PUNCTUAL_AFTER_MS
            for late_ms in self._late_ms.values()
        )


def throttles(
    campaigns: Iterable[str],
    standing: Mapping[str, Signal],
    versions: Mapping[str, int],
    now_ms: int,
) -> list[Signal]:
    """What these serving campaigns (their entities) of a lagging shard are told."""
    told = (name for name in campaigns if name not in standing)
    return [_signal(name, versions, BILLING_LAG, LAGGING_PROBABILITY, now_ms) for name in told]


def resumes(
    standing: Mapping[str, Signal], versions: Mapping[str, int], now_ms: int
) -> list[Signal]:
    """What the campaigns of a shard are told that lags no more."""
    throttled = [name for name, last in standing.items() if last.reason == BILLING_LAG]
    return [_signal(name, versions, LAG_OVER, 1.0, now_ms) for name in throttled]


def _signal(
    entity: str, versions: Mapping[str, int], reason: str, probability: float, now_ms: int
) -> Signal:
    return Signal(
        entity=entity,
        action="resume" if probability >= 1.0 else "throttle",
        reason=reason,
        serve_probability=probability,
        limit="",
        limit_nanos=0,
        spend_nanos=0,
        inflight_nanos=0,
        billing_day=iso(now_ms // MS_PER_DAY),
        decided_at_ms=now_ms,
        version=versions.get(entity, 0) + 1,
    )
