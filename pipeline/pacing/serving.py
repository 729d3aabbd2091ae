"""The serving states of an ad group or campaign, and the transitions between them.

    state      last signal                      what the ad servers do
    serving    none, or resume                  serve
    stopped    pause, with the limit            do not serve

    throttled  throttle                         serve with the signal's probability

    from       when                             to         signal
    serving    a limit is reached               stopped    pause
    stopped    no limit is reached any more     serving    resume
    stopped    another limit is what stops it   stopped    pause, with that limit
    stopped    the same limit, on another day   stopped    pause, with that day

With prediction (`pipeline.pacing.predictive`), in addition:

    serving    inflight would reach a limit     stopped    pause, reason `inflight`
    stopped    a limit is reached after all     stopped    pause, reason `limit_reached`
    stopped    inflight turned out smaller      serving    resume, reason `inflight_smaller`
    stopped    events come in spite of it       stopped    the same pause again, a new version
    any        pacing is even                   throttled  throttle, reason `even_pacing`

Signals are levels: each says the whole state, so a lost one is repaired by the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.contract.days import iso
from pipeline.contract.pacing_notes import PacingNote
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import LimitName
from pipeline.pacing.lag import BILLING_LAG
from pipeline.pacing.observed import Facts, Seen, Today
from pipeline.pacing.target_cpi import Estimate

Rows = npt.NDArray[np.int64]
Int64s = npt.NDArray[np.int64]

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
    reserve_nanos: int = 0
    """How long before the limit to stop: inflight and a margin for its uncertainty."""


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
    row: int = -1
    """Its row in the columns of its level."""
    is_even: bool = False
    """Whether the catalog asks for even pacing."""
    ends_ms: int = 0
    """When an ad group's dates end; for the days that a lifetime budget is spread over."""
    is_alive: bool = True
    """Whether the catalog has it still."""

    @property
    def level(self) -> str:
        return self.entity.partition(":")[0]

    @property
    def is_ad_group(self) -> bool:
        return self.level == "ad_group"


class Policy(Protocol):
    """Decides what the ad servers are told about an entity.

    A policy may learn: its state is worth keeping but never needed, for what it has decided is in
    the journal, and what is charged does not depend on it.
    """

    predicts: bool
    """Whether it wants to observe, and looks after throttles by itself."""

    def observe(self, seen: Seen, facts: Facts, today: Today) -> None:
        """Learn from a turn; `facts` are those of `seen.group`, `today` is by time zone."""
        ...

    def inflight(self, level: str, rows: Rows, now_ms: int) -> Int64s:
        """Nanos of each entity that have been served and are not billed, on average."""
        ...

    def reserve(self, level: str, rows: Rows, now_ms: int, limit_nanos: Int64s) -> Int64s:
        """Nanos before each limit at which to stop: inflight and a margin for its uncertainty."""
        ...

    def due(self, level: str, now_ms: int) -> Rows:
        """Ad groups, or campaigns, to be reviewed although nothing may have happened to their
        spend or limits; they are given out once."""
        ...

    def is_due(self, now_ms: int) -> bool:
        """Whether there are any."""
        ...

    def review(self, standing: Standing, now_ms: int) -> Signal | None:
        """The signal to send now, or None where the last one still holds."""
        ...

    def note_standing(self, level: str, row: int, signal: Signal) -> None:
        """A shard was taken over in which this signal holds."""
        ...

    def exhaustion(self, rows: Rows, room_nanos: Int64s, now_ms: int) -> Int64s:
        """Shape (3, n): when each ad group will have spent so much more, in ms: the likeliest
        time, and the bounds of an interval of 80 %; 0 where not within its day."""
        ...

    def estimate_installs(self, row: int, campaign: int, now_ms: int) -> Estimate | None:
        """Installs a million clicks of an ad group: likeliest, and bounds of 80 %; None where
        too little is known to bid by."""
        ...

    def note_bid(
        self,
        entity: str,
        row: int,
        campaign: int,
        billing_day: int,
        estimate: Estimate,
        now_ms: int,
    ) -> None:
        """A day's bid was decided by this estimate."""
        ...

    def remember(
        self, groups: tuple[Rows, Sequence[str]], campaigns: tuple[Rows, Sequence[str]]
    ) -> bytes:
        """What was learned of these ad groups and campaigns (rows and names), to be kept."""
        ...

    def recall(
        self,
        learned: bytes,
        group_row: Callable[[str], int],
        campaign_row: Callable[[str], int],
    ) -> bool:
        """Take that over again; whether it could be read."""
        ...

    def note_recalled(self, rows: Rows, facts: Facts) -> None:
        """These are the ad groups of the shard that was taken over."""
        ...

    def note_active(self, rows: Rows, active: npt.NDArray[np.bool_]) -> None:
        """Whether these ad groups serve, as far as their and their campaigns' status goes; told
        in each turn that it may have changed in, before the reviews."""
        ...

    def end_reviews(self, now_ms: int) -> None:
        """The reviews of this turn are over."""
        ...

    def forecasts_due(self, now_ms: int) -> Rows:
        """Ad groups whose exhaustion is to be predicted and recorded now; mostly none."""
        ...

    def record(self, rows: Rows, names: list[str], predicted: Int64s, now_ms: int) -> None:
        """Take over what `exhaustion` predicted of those; `names` are their entities'."""
        ...

    def take_notes(self) -> list[tuple[int, PacingNote]]:
        """Predictions to record, each with its ad group's row; they are given out once."""
        ...

    def forget(self, groups: Rows, campaigns: Rows) -> None:
        """These entities are another worker's now."""
        ...


class PlainLimits:
    """Pause at a reached limit, resume when none is reached: no prediction, nothing learned."""

    predicts = False

    def observe(self, seen: Seen, facts: Facts, today: Today) -> None:
        pass

    def inflight(self, level: str, rows: Rows, now_ms: int) -> Int64s:
        return np.zeros(len(rows), dtype=np.int64)

    def reserve(self, level: str, rows: Rows, now_ms: int, limit_nanos: Int64s) -> Int64s:
        return np.zeros(len(rows), dtype=np.int64)

    def due(self, level: str, now_ms: int) -> Rows:
        return np.empty(0, dtype=np.int64)

    def is_due(self, now_ms: int) -> bool:
        return False

    def review(self, standing: Standing, now_ms: int) -> Signal | None:
        return review_limits(standing, now_ms)

    def note_standing(self, level: str, row: int, signal: Signal) -> None:
        pass

    def exhaustion(self, rows: Rows, room_nanos: Int64s, now_ms: int) -> Int64s:
        return np.zeros((3, len(rows)), dtype=np.int64)

    def estimate_installs(self, row: int, campaign: int, now_ms: int) -> Estimate | None:
        return None

    def note_bid(
        self,
        entity: str,
        row: int,
        campaign: int,
        billing_day: int,
        estimate: Estimate,
        now_ms: int,
    ) -> None:
        pass

    def remember(
        self, groups: tuple[Rows, Sequence[str]], campaigns: tuple[Rows, Sequence[str]]
    ) -> bytes:
        return b""

    def recall(
        self,
        learned: bytes,
        group_row: Callable[[str], int],
        campaign_row: Callable[[str], int],
    ) -> bool:
        return True

    def note_recalled(self, rows: Rows, facts: Facts) -> None:
        pass

    def note_active(self, rows: Rows, active: npt.NDArray[np.bool_]) -> None:
        pass

    def end_reviews(self, now_ms: int) -> None:
        pass

    def forecasts_due(self, now_ms: int) -> Rows:
        return np.empty(0, dtype=np.int64)

    def record(self, rows: Rows, names: list[str], predicted: Int64s, now_ms: int) -> None:
        pass

    def take_notes(self) -> list[tuple[int, PacingNote]]:
        return []

    def forget(self, groups: Rows, campaigns: Rows) -> None:
        pass


def review_limits(standing: Standing, now_ms: int) -> Signal | None:
    """The plain rule: pause at a reached limit, resume when none is reached."""
    stopping = reached_limit(standing)
    if stopping is None:
        last = standing.last
        if last is None or last.serve_probability >= 1.0 or last.reason == BILLING_LAG:
            return None  # the lag's throttle ends with the lag
        return resume(standing, now_ms, LIMIT_FREE)
    if standing.last is not None and is_paused_for(standing, stopping, LIMIT_REACHED):
        return None
    return pause(standing, stopping, now_ms, LIMIT_REACHED)


def reached_limit(standing: Standing) -> LimitUse | None:
    """The first limit whose spend has reached it."""
    return next((use for use in standing.uses if use.spend_nanos >= use.limit_nanos), None)


def is_paused_for(standing: Standing, use: LimitUse, reason: str) -> bool:
    """Whether the last signal is a pause for this limit, reason and (for daily ones) day."""
    last = standing.last
    if last is None or last.action != "pause" or last.reason != reason:
        return False
    same_day = last.billing_day == iso(standing.billing_day)
    return last.limit == use.limit and (same_day or use.limit not in _DAILY)


def pause(standing: Standing, use: LimitUse, now_ms: int, reason: str) -> Signal:
    """Stop serving for the sake of a limit."""
    return Signal(
        entity=standing.entity,
        action="pause",
        reason=reason,
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


def resume(standing: Standing, now_ms: int, reason: str) -> Signal:
    """Serve again; the figures are those of the limit that had stopped it."""
    return serving(standing, now_ms, reason, 1.0)


def serving(standing: Standing, now_ms: int, reason: str, probability: float) -> Signal:
    """Serve with a probability: a resume at 1, a throttle under it."""
    limit: LimitName = standing.last.limit if standing.last is not None else ""
    if not limit and standing.uses:
        limit = standing.uses[-1].limit
    use = next((use for use in standing.uses if use.limit == limit), None)
    return Signal(
        entity=standing.entity,
        action="resume" if probability >= 1.0 else "throttle",
        reason=reason,
        serve_probability=probability,
        limit=limit,
        limit_nanos=0 if use is None else use.limit_nanos,
        spend_nanos=0 if use is None else use.spend_nanos,
        inflight_nanos=0 if use is None else use.inflight_nanos,
        billing_day=iso(standing.billing_day),
        decided_at_ms=now_ms,
        version=standing.last_version + 1,
    )
