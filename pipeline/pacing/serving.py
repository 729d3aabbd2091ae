"""The serving states of an ad group or campaign, and the transitions between them.

    state      last signal                      what the ad servers do
    serving    none, or resume                  serve
    stopped    pause, with the limit            do not serve

    from       when                             to         signal
    serving    a limit is reached               stopped    pause
    stopped    no limit is reached any more     serving    resume
    stopped    another limit is what stops it   stopped    pause, with that limit
    stopped    the same limit, on another day   stopped    pause, with that day

Signals are levels: each says the whole state, so a lost one is repaired by the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pipeline.contract.days import iso
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import LimitName

LIMIT_REACHED = "limit_reached"
LIMIT_FREE = "limit_free"

_DAILY = ("ad_group_daily", "campaign_daily")


@dataclass(frozen=True, slots=True)
class LimitUse:
    """One limit of an entity and what is used of it, in nanos of the account's currency."""

    limit: LimitName
    limit_nanos: int
    spend_nanos: int
    inflight_nanos: int = 0
    """Value served already but not billed yet; 0 where no policy predicts it."""

    @property
    def reached(self) -> bool:
        return self.spend_nanos + self.inflight_nanos >= self.limit_nanos


@dataclass(frozen=True, slots=True)
class Standing:
    """What a policy may know of one entity when it reviews it."""

    entity: str
    """`ad_group:ID` or `campaign:ID`."""
    uses: tuple[LimitUse, ...]
    """Its limits, the longer lasting first; an entity without any has none to reach."""
    billing_day: int
    """The account's billing day now (days since the epoch)."""
    day_end_ms: int
    last: Signal | None
    """Its last signal, where that was not plain serving."""
    last_version: int
    """Version of its last signal of any kind; 0 before the first."""


class Policy(Protocol):
    """Decides what the ad servers are told about an entity."""

    def review(self, standing: Standing, now_ms: int) -> Signal | None:
        """The signal to send now, or None where the last one still holds."""
        ...


class PlainLimits:
    """Pause at a reached limit, resume when none is reached: no prediction."""

    def review(self, standing: Standing, now_ms: int) -> Signal | None:
        stopping = next((use for use in standing.uses if use.reached), None)
        if stopping is None:
            return None if standing.last is None else _resume(standing, now_ms)
        last = standing.last
        if last is not None and last.limit == stopping.limit:
            same_day = last.billing_day == iso(standing.billing_day)
            if same_day or stopping.limit not in _DAILY:
                return None
        return _pause(standing, stopping, now_ms)


def _pause(standing: Standing, use: LimitUse, now_ms: int) -> Signal:
    return Signal(
        entity=standing.entity,
        action="pause",
        reason=LIMIT_REACHED,
        serve_probability=0.0,
        limit=use.limit,
        limit_nanos=use.limit_nanos,
        spend_nanos=use.spend_nanos,
        inflight_nanos=use.inflight_nanos,
        billing_day=iso(standing.billing_day),
        decided_at_ms=now_ms,
        resume_at_ms=standing.day_end_ms if use.limit in _DAILY else None,
        version=standing.last_version + 1,
    )


def _resume(standing: Standing, now_ms: int) -> Signal:
    assert standing.last is not None
    freed = standing.last.limit
    use = next((use for use in standing.uses if use.limit == freed), None)
    return Signal(
        entity=standing.entity,
        action="resume",
        reason=LIMIT_FREE,
        serve_probability=1.0,
        limit=freed,
        limit_nanos=0 if use is None else use.limit_nanos,
        spend_nanos=0 if use is None else use.spend_nanos,
        inflight_nanos=0 if use is None else use.inflight_nanos,
        billing_day=iso(standing.billing_day),
        decided_at_ms=now_ms,
        version=standing.last_version + 1,
    )
