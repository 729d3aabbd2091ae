"""Even pacing: the serve probability by which a budget lasts to the end of its day.

    probability = what is left of the budget / what could be spent until then at probability 1

The denominator is the ad group's potential (value at probability 1 per day's traffic, learned from
what it spends at the probabilities in force) times the share of traffic still to come, of today
and for lifetime budgets of the days after it. Catch-up and slow-down follow by themselves, and the
answer is steady as long as the potential is, so few signals are needed: one goes out only where
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
_DEAD_BAND: Final = 0.1
_DEAD_BAND_OF_BUDGET: Final = 0.04
_WIDEST_BAND: Final = 0.5
END_EARLY_SHARE: Final = 0.01
"""Of a day's traffic: a budget is paced to be used up so long before its end, so that what comes
late and what goes wrong at the end still finds demand."""
_MEMORY_SHARE: Final = 0.12
"""Of a day's traffic: how much potential is averaged over."""
_FEWEST_EVENTS: Final = 4.0


@dataclass(frozen=True, slots=True)
class Budget:
    """What of an ad group's tightest own budget is left, and until when."""

    left_nanos: float
    """Limit less spend less inflight."""
    share_to_come: float
    """Traffic until the budget's end, in days' worth; today's rest and whole days after it."""


class PotentialModel:
    """Value per day's traffic at probability 1, by row of the ad group."""

    def __init__(self) -> None:
        self.groups = Columns(value_nanos=(0, 0.0), events=(0, 0.0), share=(0, 0.0))
        """Decayed sums: value and events seen, and the traffic share x probability behind them."""

    def observe(
        self, rows: Rows, value_nanos: Floats, events: Floats, passed: Floats, probability: Floats
    ) -> None:
        """Value that came while `passed` of a day's traffic went by, served with `probability`."""
        groups = self.groups
        groups.reserve(rows)
        kept = np.exp(-passed / _MEMORY_SHARE)
        groups.value_nanos[rows] = groups.value_nanos[rows] * kept + value_nanos
        groups.events[rows] = groups.events[rows] * kept + events
        groups.share[rows] = groups.share[rows] * kept + passed * probability

    def per_day(self, rows: Rows) -> Floats:
        """The potentials; 0 where too little is known."""
        groups = self.groups
        groups.reserve(rows)
        known = (groups.events[rows] >= _FEWEST_EVENTS) & (groups.share[rows] > 0)
        potential = groups.value_nanos[rows] / np.maximum(groups.share[rows], 1e-12)
        return np.where(known, potential, 0.0)

    def nanos_per_day(self, row: int) -> float:
        """The potential; 0 where too little is known."""
        return float(self.per_day(np.array([row]))[0])

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
    could = nanos_per_day * (budget.share_to_come - END_EARLY_SHARE)
    if could <= 0:
        return 1.0
    return float(np.clip(budget.left_nanos / could, LOWEST_PROBABILITY, 1.0))


def next_probability(
    current: float, wanted: float, relative_error: float, left_share: float
) -> float | None:
    """What to signal now, or None where the current probability is near enough.

    The dead band is wider where the potential is poorly known (noise must not cost signals) and
    where little of the budget is left (`left_share`): the same error then moves less money.
    """
    band = max(_DEAD_BAND, 0.5 * relative_error, _DEAD_BAND_OF_BUDGET / max(left_share, 1e-6))
    band = min(_WIDEST_BAND, band)
    if current > 0 and abs(wanted / current - 1.0) <= band:
        return None
    if current >= 1.0 and wanted >= 1.0:
        return None
    low, high = current / LONGEST_STEP, min(1.0, current * LONGEST_STEP)
    stepped = min(max(wanted, low), high) if current > 0 else wanted
    return float(np.clip(round(stepped, 4), LOWEST_PROBABILITY, 1.0))
