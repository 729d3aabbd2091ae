"""Even pacing: the serve probability by which spend follows the day's traffic to its end.

The plan is a line: from where the ad group stood when its day began (or its budget changed, or it
fell too far behind or ahead) to the whole budget, along the share of the day's traffic that has
gone by. Wanted is the probability that brings spend back to the line within a while:

    probability = (the line a while ahead - spend - inflight) / what that while could bring

What a while could bring is the ad group's potential (impressions at probability 1 per day's
traffic, times what an impression brings now) times its share of the traffic. So prices that move
with the hours, and curves that were learned badly, are corrected before they add up. A lifetime
budget has no line of a day: it is spread over what is still to come. A signal goes out only where
the wanted probability has left a dead band, and moves by bounded steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.pacing.columns import Columns

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

FIRST_PROBABILITY: Final = 0.2
"""Where nothing is known of an ad group yet: slow to begin with, corrected within minutes."""
LOWEST_PROBABILITY: Final = 0.005
LONGEST_STEP: Final = 2.0
"""A signal changes the probability by at most this factor."""
_DEAD_BAND: Final = 0.2
_DEAD_BAND_OF_BUDGET: Final = 0.02
_DEAD_BAND_OF_FEW: Final = 1.5
"""Times the error of what is counted: what few events seem to say changes with each of them."""
_WIDEST_BAND: Final = 0.5
END_EARLY_SHARE: Final = 0.01
"""Of a day's traffic: a budget is paced to be used up so long before its end, so that what comes
late and what goes wrong at the end still finds demand; where it pays for few billable events, by
the share that one of them is of it, ..."""
LONGEST_END_SHARE: Final = 0.3
"""... up to here: the last event may be long in coming."""
LOOK_AHEAD_SHARE: Final = 0.08
"""Of a day's traffic: spend is brought back to the line within so much ..."""
LOOK_AHEAD_EVENTS: Final = 40.0
"""... or as much of the budget as pays for so many billable events: fewer are chance ..."""
LONGEST_LOOK_AHEAD: Final = 0.4
"""... up to here."""
SCARCE: Final = 0.7
SCARCE_FACTOR: Final = 1.15
"""Where so much of the traffic to come is needed, no less than this much more is served ..."""
SURE_DEVIATIONS: Final = 2.0
"""... or by so many times its error than the potential was taken for, where few events tell of it
..."""
NOT_SCARCE: Final = 0.5
"""... and from here on a part of it: a sudden end would throw an ad group that is ahead of its
line from one extreme into the other."""
LOST_SHARE: Final = 0.15
"""Of the budget: further from the line than this, and ..."""
LOST_EVENTS: Final = 2.0
"""... than so many billable events, a new one is drawn from here."""
_LONGEST_MEMORY_SHARE: Final = 0.12
"""Of a day's traffic: how much potential is averaged over, at the most. Less where there are many
impressions, ..."""
_MEMORY_SHARE_OF_ONE: Final = 25.0
"""... by the square root of their number a day: what is averaged has two errors, that of counts,
and that of curves which differ from the day's traffic more the longer the memory is. At 30,000
impressions a day that is 0.03."""
_REMEMBERED_EVENTS: Final = 12.0
"""Where few come, they are averaged over as much traffic as brings so many, ..."""
_LONGEST_MEMORY: Final = 5.0
"""... up to so many days' worth."""
_FEWEST_EVENTS: Final = 4.0
"""With fewer a potential is not known; it is hardly larger than had so many come."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What of an ad group's tightest own budget is left, and until when."""

    left_nanos: float
    """Limit less spend less inflight."""
    to_come: float
    """Traffic until the budget's end, in days' worth at the price of now; today's rest and whole
    days after it."""


@dataclass(frozen=True, slots=True)
class Line:
    """The plan of an ad group's day: from here, evenly along the traffic, to the whole budget."""

    from_share: float
    from_nanos: float
    limit_nanos: float
    to_share: float = 1.0 - END_EARLY_SHARE

    def at(self, share: float) -> float:
        """What is to be spent when so much of the day's traffic has gone by."""
        span = max(1e-9, self.to_share - self.from_share)
        gone = min(1.0, max(0.0, (share - self.from_share) / span))
        return self.from_nanos + gone * (self.limit_nanos - self.from_nanos)

    def holds(
        self, share: float, nanos: float, limit_nanos: float, price_nanos: float = 0.0
    ) -> bool:
        """Whether an ad group that has come so far may still be brought back to it."""
        if limit_nanos != self.limit_nanos:
            return False
        far_nanos = max(LOST_SHARE * limit_nanos, LOST_EVENTS * price_nanos)
        return abs(self.at(share) - nanos) <= far_nanos


class PotentialModel:
    """Impressions per day's traffic at probability 1, and what one brings; by ad group's row."""

    def __init__(self) -> None:
        self.groups = Columns(events=(0, 0.0), share=(0, 0.0), worth_nanos=(0, 0.0))
        """Decayed sums: impressions seen, and the traffic share x probability behind them; what
        an impression brings now, on average."""

    def observe(self, rows: Rows, events: Floats, passed: Floats, probability: Floats) -> None:
        """Impressions that came while `passed` of a day's traffic went by, served with
        `probability`."""
        groups = self.groups
        groups.reserve(rows)
        per_day = groups.events[rows] / np.maximum(groups.share[rows], 1e-9) * probability
        memory = np.sqrt(_MEMORY_SHARE_OF_ONE / np.maximum(per_day, 1.0))
        memory = np.minimum(memory, _LONGEST_MEMORY_SHARE)
        holds_enough = np.minimum(_REMEMBERED_EVENTS / np.maximum(per_day, 1e-9), _LONGEST_MEMORY)
        kept = np.exp(-passed / np.maximum(memory, holds_enough))
        groups.events[rows] = groups.events[rows] * kept + events
        groups.share[rows] = groups.share[rows] * kept + passed * probability

    def note_worth(self, rows: Rows, nanos: Floats) -> None:
        """What an impression of each brings now, on average."""
        self.groups.reserve(rows)
        self.groups.worth_nanos[rows] = nanos

    def per_day(self, rows: Rows) -> Floats:
        """Nanos per day's traffic at probability 1; 0 where too little is known."""
        groups = self.groups
        groups.reserve(rows)
        known = (groups.events[rows] >= _FEWEST_EVENTS) & (groups.share[rows] > 0)
        impressions = groups.events[rows] / np.maximum(groups.share[rows], 1e-12)
        return np.where(known, impressions * groups.worth_nanos[rows], 0.0)

    def nanos_per_day(self, row: int) -> float:
        """The potential of one ad group, at most: where too little is known, as if just enough had
        come; 0 where nothing is."""
        groups = self.groups
        groups.reserve(np.array([row]))
        share, worth = float(groups.share[row]), float(groups.worth_nanos[row])
        events = max(_FEWEST_EVENTS, float(groups.events[row]))
        return events / share * worth if share > 0 else 0.0

    def is_known(self, row: int) -> bool:
        """Whether enough is known of one ad group's potential."""
        return bool(self.per_day(np.array([row]))[0] > 0)

    def relative_error(self, rows: Rows) -> Floats:
        """Each potential's standard error over itself, by the number of events behind it."""
        self.groups.reserve(rows)
        return np.asarray(1.0 / np.sqrt(np.maximum(1.0, self.groups.events[rows])))

    def forget(self, rows: Rows) -> None:
        """The ad groups are another worker's now."""
        self.groups.clear(rows)


def wanted_probability(budget: Budget, nanos_per_day: float) -> float:
    """The probability that uses the budget up exactly at its end."""
    if nanos_per_day <= 0:
        return FIRST_PROBABILITY
    could = nanos_per_day * (budget.to_come - END_EARLY_SHARE)
    if could <= 0:
        return 1.0
    return float(np.clip(budget.left_nanos / could, LOWEST_PROBABILITY, 1.0))


def with_scarce_traffic(
    wanted: float, budget: Budget, nanos_per_day: float, relative_error: float = 0.0
) -> float:
    """The wanted probability, but no less than what is left needs where that is most of the
    traffic still to come: an ad group that waits for it might not find it.

    `relative_error` is that of the impressions a day."""
    sure = max(1.0, (1.0 + SURE_DEVIATIONS * relative_error) / SCARCE_FACTOR)
    needed = wanted_probability(budget, nanos_per_day / sure) if nanos_per_day > 0 else 0.0
    scarcity = min(1.0, max(0.0, (needed - NOT_SCARCE) / (SCARCE - NOT_SCARCE)))
    return max(wanted, scarcity * min(1.0, SCARCE_FACTOR * needed))


def look_ahead(limit_nanos: float, price_nanos: float) -> float:
    """How much of a day's traffic an ad group is given to come back to its line."""
    wanted = LOOK_AHEAD_EVENTS * price_nanos / max(1.0, limit_nanos)
    return min(LONGEST_LOOK_AHEAD, max(LOOK_AHEAD_SHARE, wanted))


def end_early(limit_nanos: float, price_nanos: float) -> float:
    """How much of a day's traffic before its end the budget is to be used up."""
    return min(LONGEST_END_SHARE, max(END_EARLY_SHARE, price_nanos / max(1.0, limit_nanos)))


def probability_along(
    line: Line, share: float, nanos: float, nanos_per_day: float, ahead_share: float
) -> float:
    """The probability that brings an ad group back to its line `ahead_share` from now.

    `share` of the day's traffic has gone by, and `nanos` are spent or inflight.
    """
    if nanos_per_day <= 0:
        return FIRST_PROBABILITY
    ahead = min(share + ahead_share, line.to_share)
    if ahead <= share:
        return 1.0
    wanted = (line.at(ahead) - nanos) / (nanos_per_day * (ahead - share))
    return float(np.clip(wanted, LOWEST_PROBABILITY, 1.0))


def next_probability(
    current: float,
    wanted: float,
    relative_error: float,
    left_share: float,
    count_error: float = 0.0,
) -> float | None:
    """What to signal now, or None where the current probability is near enough.

    The dead band is wider where the potential is poorly known (noise must not cost signals) and
    where little of the budget is left (`left_share`): the same error then moves less money. And
    where few impressions tell of the potential (`count_error` is theirs alone), unless all that
    comes is wanted.
    """
    few = _DEAD_BAND_OF_FEW * count_error if wanted < 1.0 else 0.0
    band = max(_DEAD_BAND, 0.5 * relative_error, _DEAD_BAND_OF_BUDGET / max(left_share, 1e-6))
    band = min(_WIDEST_BAND, max(band, few))
    if current > 0 and abs(wanted / current - 1.0) <= band:
        return None
    if current >= 1.0 and wanted >= 1.0:
        return None
    low, high = current / LONGEST_STEP, min(1.0, current * LONGEST_STEP)
    stepped = min(max(wanted, low), high) if current > 0 else wanted
    return float(np.clip(round(stepped, 4), LOWEST_PROBABILITY, 1.0))
