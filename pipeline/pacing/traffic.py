"""The day's traffic curve of each ad group, learned from what it could serve.

A multiplicative model: impressions that ad group g could win in an hour = its level x the hour's
factor x the weekday-hour's factor x the ad group's own factor for that hour. What is observed is
divided by exposure (the time served, times the serve probability), so hours in which an ad group
was throttled or stopped do not look quiet. Hours nobody has been seen in have factor 1 (flat).

A curve is of whole days: today's hours count from tomorrow on, and relative to what today brought
over all. Were they counted at once, a day with more traffic than the one before would seem to
have passed sooner than it does. Only an ad group's first day is its own curve as it goes.

The common factors are fitted once an hour over all ad groups by alternating the two sums of a
Poisson model; an ad group's own factors are its observations over what the common ones expect,
shrunken towards 1. Hours are those of the account's local day, counted from its first instant.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.native import compiled
from pipeline.pacing.columns import Columns

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Records = npt.NDArray[Any]

HOURS: Final = 24
HOUR_MS: Final = 3_600_000
_KEPT_OF_EARLIER_DAYS: Final = 0.5
_OWN_PRIOR: Final = 30.0
"""Impressions that the common curve weighs against an ad group's own hour."""
_BESIDE: Final = 0.25
"""What the hour before and the hour after weigh in an ad group's own factor, against the hour
itself: what an ad group differs in from the others lasts for hours, what a single hour differed
in hardly comes again."""
_WEEKDAY_PRIOR: Final = 2_000.0
_FIT_ROUNDS: Final = 4
_LOWEST_FACTOR: Final = 0.02


class TrafficModel:
    """Hourly counts and exposures by row of the ad group, and the factors fitted to them."""

    def __init__(self) -> None:
        self.groups = Columns(
            entered_day=(0, -1.0),
            level=(0, 0.0),
            now_counts=(HOURS, 0.0),
            now_exposure_s=(HOURS, 0.0),
            counts=(HOURS, 0.0),
            exposure_s=(HOURS, 0.0),
        )
        """Of the days before `entered_day`, and `now_*` of that day itself."""
        self.hour_factors = np.ones(HOURS)
        self._weekday_counts = np.zeros((7, HOURS))
        self._weekday_expected = np.zeros((7, HOURS))
        self._now_weekday_counts = np.zeros((7, HOURS))
        self._now_weekday_expected = np.zeros((7, HOURS))
        self._hours_over = np.zeros(HOURS, dtype=np.bool_)
        """Which hours some ad group has seen on a day that is over for it ..."""
        self._first_day_over = False
        """... and whether all, at the end of a day."""

    def observe(
        self, rows: Rows, hour: Rows, weekday: Rows, impressions: Floats, exposure_s: Floats
    ) -> None:
        """Impressions of ad groups in their current local hour, and the exposure behind them.

        `hour` counts local hours since the epoch. When an ad group enters a new day, what it saw
        on earlier ones loses half its weight.
        """
        self.groups.reserve(rows)
        others = np.empty(len(rows), dtype=np.int64)
        where, came = (rows, hour, weekday), (impressions, exposure_s)
        entering = others[: self._count(where, came, others)]
        if len(entering):
            self._end_days(rows[entering], weekday[entering])
            self.groups.entered_day[rows[entering]] = hour[entering] // HOURS
            where = rows[entering], hour[entering], weekday[entering]
            self._count(where, (impressions[entering], exposure_s[entering]), others)

    def _count(
        self, where: tuple[Rows, Rows, Rows], came: tuple[Floats, Floats], others: Rows
    ) -> int:
        """Count what is of the days that the ad groups are in; how many are in another one, the
        first of `others` tell which."""
        return _count(
            self.groups.rows,
            where,
            came,
            self.hour_factors,
            self._now_weekday_counts,
            self._now_weekday_expected,
            # Against factors that are still being found, a weekday would seem special.
            self._first_day_over,
            others,
        )

    def _end_days(self, rows: Rows, weekday: Rows) -> None:
        """Take over what these ad groups saw on the day that they leave."""
        seen = np.zeros(HOURS, dtype=np.bool_)
        _end_days(self.groups.rows, rows, self.hour_factors, seen, np.empty(HOURS))
        if not self._first_day_over:
            self._hours_over |= seen
            self._first_day_over = bool(self._hours_over.all())
        for day in np.unique(weekday).tolist():
            # Somewhere the day before, or the day after, may still be going on.
            over = [past for past in range(7) if (day - past) % 7 not in (0, 1, 6)]
            self._weekday_counts[over] += self._now_weekday_counts[over]
            self._weekday_expected[over] += self._now_weekday_expected[over]
            self._now_weekday_counts[over] = self._now_weekday_expected[over] = 0.0

    def fit(self) -> None:
        """Fit levels and common factors to all that was seen; for once an hour (some 50 ms for
        200,000 ad groups)."""
        counts, exposure = self._known(np.arange(len(self.groups)))
        by_hour, by_group = counts.sum(axis=0), counts.sum(axis=1)
        factors = self.hour_factors.copy()
        if not self._first_day_over:  # what was recalled counts too
            self._hours_over |= (self.groups.exposure_s > 0).any(axis=0)
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

    def _known(self, rows: Rows) -> tuple[Floats, Floats]:
        """Counts and exposures: of earlier days, or of the first day as far as it has come."""
        groups = self.groups
        counts, exposure_s = groups.counts[rows], groups.exposure_s[rows]
        first = counts.sum(axis=1) <= 0
        counts[first] = groups.now_counts[rows[first]]
        exposure_s[first] = groups.now_exposure_s[rows[first]]
        return counts, exposure_s

    def shapes(self, rows: Rows, weekday: int) -> Floats:
        """Shape (rows, 24): relative traffic of each hour of a weekday, mean 1."""
        self.groups.reserve(rows)
        groups = self.groups
        common = self.hour_factors * self._weekday_factors(weekday)
        counts, exposure_s = self._known(rows)
        expected = groups.level[rows, None] * self.hour_factors * exposure_s
        own = np.empty_like(counts)
        _fill_own_factors(counts, expected, own)
        shape = np.where(groups.level[rows, None] > 0, common * own, common)
        return np.asarray(shape / shape.mean(axis=1, keepdims=True))

    def _weekday_factors(self, weekday: int) -> Floats:
        """Of each hour, relative to the same hour on all weekdays; not normalised over the day."""
        total = self._weekday_counts[weekday].sum() + _WEEKDAY_PRIOR
        scale = (self._weekday_expected[weekday].sum() + _WEEKDAY_PRIOR) / total
        counts = self._weekday_counts[weekday] * scale + _WEEKDAY_PRIOR
        return np.asarray(counts / (self._weekday_expected[weekday] + _WEEKDAY_PRIOR))

    def common(self) -> dict[str, Floats]:
        """What holds for all ad groups: to be kept, or filled with what was kept."""
        return {
            "hour_factors": self.hour_factors,
            "weekday_counts": self._weekday_counts,
            "weekday_expected": self._weekday_expected,
        }

    def forget(self, rows: Rows) -> None:
        """The ad groups are another worker's now."""
        self.groups.clear(rows)


@compiled
def _count(
    groups: Records,
    where: tuple[Rows, Rows, Rows],
    came: tuple[Floats, Floats],
    hour_factors: Floats,
    weekday_counts: Floats,
    weekday_expected: Floats,
    counts_weekdays: bool,
    others: Rows,
) -> int:
    """`TrafficModel._count` over its records; `where` are rows, hours and weekdays."""
    rows, hour, weekday = where
    impressions, exposure_s = came
    found = 0
    for at in range(len(rows)):
        one, of_day = groups[rows[at]], hour[at] % HOURS
        if one.entered_day != hour[at] // HOURS:
            others[found] = at
            found += 1
            continue
        one.now_counts[of_day] += impressions[at]
        one.now_exposure_s[of_day] += exposure_s[at]
        if counts_weekdays and one.level > 0:
            expected = one.level * hour_factors[of_day] * exposure_s[at]
            weekday_counts[weekday[at], of_day] += impressions[at]
            weekday_expected[weekday[at], of_day] += expected
    return found


@compiled
def _end_days(
    groups: Records, rows: Rows, hour_factors: Floats, seen: Mask, expected: Floats
) -> None:
    """Take over what these ad groups saw on the day that they leave; `seen` gets the hours that any
    of them has been seen in. `expected` is for the impressions of one ad group."""
    for at in range(len(rows)):
        one = groups[rows[at]]
        if one.entered_day < 0:
            continue  # nothing was seen of it before
        before, came, foreseen = 0.0, 0.0, 0.0
        for hour in range(HOURS):
            expected[hour] = one.level * hour_factors[hour] * one.exposure_s[hour]
        for hour in range(HOURS):
            before += one.counts[hour]
            came += one.now_counts[hour]
            own = _own_factor(one.counts, expected, hour)
            foreseen += one.level * hour_factors[hour] * own * one.now_exposure_s[hour]
        # The day's own level is taken out: it is told by the potential, and curves are relative.
        enough = before > 0 and foreseen > 0 and came >= _OWN_PRIOR
        relative = came / foreseen if enough else 1.0
        for hour in range(HOURS):
            counts = _KEPT_OF_EARLIER_DAYS * one.counts[hour]
            exposure_s = _KEPT_OF_EARLIER_DAYS * one.exposure_s[hour]
            one.counts[hour] = counts + one.now_counts[hour]
            one.exposure_s[hour] = exposure_s + relative * one.now_exposure_s[hour]
            one.now_counts[hour] = one.now_exposure_s[hour] = 0.0
            seen[hour] |= one.exposure_s[hour] > 0


@compiled
def _fill_own_factors(counts: Floats, expected: Floats, found: Floats) -> None:
    """Shape (rows, 24) each: the own factors of ad groups that saw these counts where the common
    curve expects so many."""
    for at in range(len(counts)):
        for hour in range(HOURS):
            found[at, hour] = _own_factor(counts[at], expected[at], hour)


@compiled
def _own_factor(counts: Floats, expected: Floats, hour: int) -> float:
    """What an ad group saw in an hour, and in those beside it, over what the common curve expects
    there; a day's last hour is beside its first."""
    before, after = (hour - 1) % HOURS, (hour + 1) % HOURS
    seen = counts[hour] + _BESIDE * (counts[before] + counts[after])
    common = expected[hour] + _BESIDE * (expected[before] + expected[after])
    return float((seen + _OWN_PRIOR) / (common + _OWN_PRIOR))
