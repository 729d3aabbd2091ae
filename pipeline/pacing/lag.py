"""Billing lag: what ad servers are told while spend figures are older than a bound.

    state      when                                   to         signals
    punctual   a shard's lag is over the bound        lagging    throttle its serving campaigns
    lagging    its lag is under half the bound        punctual   resume those that were throttled

A campaign that is stopped stays so; one that a limit stops meanwhile is paused as ever. Which
campaigns are throttled is told by their standing signals alone, so it survives a takeover.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from pipeline.contract.days import iso
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import MS_PER_DAY

BILLING_LAG: Final = "billing_lag"
LAG_OVER: Final = "billing_lag_over"
LAGGING_PROBABILITY: Final = 0.5


def lag_signals(
    campaigns: Iterable[str],
    standing: Mapping[str, Signal],
    versions: Mapping[str, int],
    lag_ms: int,
    bound_ms: int,
    now_ms: int,
) -> list[Signal]:
    """The signals that a shard's lag asks for now; `campaigns` are its serving ones' entities."""
    throttled = [name for name, last in standing.items() if last.reason == BILLING_LAG]
    if lag_ms > bound_ms and not throttled:
        return [
            _signal(name, versions, BILLING_LAG, LAGGING_PROBABILITY, now_ms)
            for name in campaigns
            if name not in standing
        ]
    if throttled and 2 * lag_ms < bound_ms:
        return [_signal(name, versions, LAG_OVER, 1.0, now_ms) for name in throttled]
    return []


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
