"""The day's traffic curve of each ad group, learned from what it could serve.

A multiplicative model: impressions that ad group g could win in an hour = its level x the hour's
factor x the weekday-hour's factor x the ad group's own factor for that hour. What is observed is
divided by exposure (the time served, times the serve probability), so hours in which an ad group
was throttled or stopped do not look quiet. Hours nobody has been seen in have factor 1 (flat).

The common factors are fitted once an hour over all ad groups by alternating the two sums of a
Poisson model; an ad group's own factors are its observations over what the common ones expect,
shrunken towards 1. Hours are those of the account's local day, counted from its first instant.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.pacing.columns import Columns

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

HOURS: Final = 24
HOUR_MS: Final = 3_600_000
_KEPT_OF_EARLIER_DAYS: Final = 0.5
_OWN_PRIOR: Final = 30.0
"""Impressions that the common curve weighs against an ad group's own hour."""
_WEEKDAY_PRIOR: Final = 2_000.0
_FIT_ROUNDS: Final = 4
_LOWEST_FACTOR: Final = 0.02


class TrafficModel:
    """Hourly counts and exposures by row of the ad group, and the factors fitted to them."""

    def __init__(self) -> None:
        self.groups = Columns(
            counts=(HOURS, 0.0), exposure_s=(HOURS, 0.0), entered_hour=(0, -1.0), level=(0, 0.0)
        )
        self.hour_factors = np.ones(HOURS)
        self._weekday_counts = np.zeros((7, HOURS))
        self._weekday_expected = np.zeros((7, HOURS))

    def observe(
        self, rows: Rows, hour: Rows, weekday: Rows, impressions: Floats, exposure_s: Floats
    ) -> None:
        """Impressions of ad groups in their current local hour, and the exposure behind them.

        `hour` counts local hours since the epoch. When an ad group enters an hour of the day
        again, what it saw there on earlier days loses half its weight.
        """
        self.groups.reserve(rows)
        groups, of_day = self.groups, hour % HOURS
        entered = rows[groups.entered_hour[rows] != hour]
        at = of_day[groups.entered_hour[rows] != hour]
        groups.counts[entered, at] *= _KEPT_OF_EARLIER_DAYS
        groups.exposure_s[entered, at] *= _KEPT_OF_EARLIER_DAYS
        groups.entered_hour[rows] = hour
        groups.counts[rows, of_day] += impressions
        groups.exposure_s[rows, of_day] += exposure_s
        expected = groups.level[rows] * self.hour_factors[of_day] * exposure_s
        known = groups.level[rows] > 0
        np.add.at(self._weekday_counts, (weekday[known], of_day[known]), impressions[known])
        np.add.at(self._weekday_expected, (weekday[known], of_day[known]), expected[known])

    def fit(self) -> None:
        """Fit levels and common factors to all that was seen; for once an hour."""
        counts, exposure = self.groups.counts, self.groups.exposure_s
        by_hour, by_group = counts.sum(axis=0), counts.sum(axis=1)
        factors = self.hour_factors.copy()
        seen = (exposure.sum(axis=0) > 0) & (by_hour > 0)
        level = np.zeros(len(counts))
        for _ in range(_FIT_ROUNDS):
            level = by_group / np.maximum(exposure @ factors, 1e-9)
            level[by_group == 0] = 0.0
            expected = level @ exposure
            factors[seen] = (by_hour / np.maximum(expected, 1e-9))[seen]
            factors = np.maximum(factors / factors.mean(), _LOWEST_FACTOR)
        self.hour_factors = factors
        self.groups.level[:] = level

    def shapes(self, rows: Rows, weekday: int) -> Floats:
        """Shape (rows, 24): relative traffic of each hour of a weekday, mean 1."""
        self.groups.reserve(rows)
        groups = self.groups
        common = self.hour_factors * self._weekday_factors(weekday)
        expected = groups.level[rows, None] * self.hour_factors * groups.exposure_s[rows]
        own = (groups.counts[rows] + _OWN_PRIOR) / (expected + _OWN_PRIOR)
        shape = np.where(groups.level[rows, None] > 0, common * own, common)
        return np.asarray(shape / shape.mean(axis=1, keepdims=True))

    def _weekday_factors(self, weekday: int) -> Floats:
        """Of each hour, relative to the same hour on all weekdays; not normalised over the day."""
        total = self._weekday_counts[weekday].sum() + _WEEKDAY_PRIOR
        scale = (self._weekday_expected[weekday].sum() + _WEEKDAY_PRIOR) / total
        counts = self._weekday_counts[weekday] * scale + _WEEKDAY_PRIOR
        return np.asarray(counts / (self._weekday_expected[weekday] + _WEEKDAY_PRIOR))

    def forget(self, rows: Rows) -> None:
        """The ad groups are another worker's now."""
        self.groups.clear(rows)
