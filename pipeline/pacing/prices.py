"""Prices by hour of an ad group's day: what coming impressions will cost, next to what they do now.

Hourly prices swing about a level far more than the level moves. So the price of the moment says
little of the rest of a day; the same hours of earlier days say more, with the hours beside them:
what happened at ten will happen at nine or eleven another day. What this hour and the last one
differ from that fades from hour to hour. Prices are those that impressions are won at, each for
one billable action: they are seen whatever is billed.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.native import compiled
from pipeline.pacing.columns import Columns

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Records = npt.NDArray[Any]

HOURS: Final = 24
_KEPT_OF_EARLIER_DAYS: Final = 0.5
_BESIDE: Final = 0.5
"""What the hour before and the hour after weigh in an hour's usual price, against itself ..."""
_USUAL: Final = 0.9
"""... of whose logarithm over the mean of all hours so much is expected."""
_LASTING: Final = (0.5, 0.2)
"""Of what this hour's price, and the last one's, differ from what is expected of them by the day
(logarithms): so much is left an hour later. These give about the least error one, two and four
hours ahead over all hours of the recorded series."""
_FURTHEST: Final = np.log(3.0)
"""More than this between now and earlier days, or now and later, is not believed (a logarithm)."""
_ENOUGH_OFFERS: Final = 100.0
"""Impressions of an hour by which its price is compared with what was foretold of it."""
_PRIOR_ERROR: Final = 0.2
_PRIOR_HOURS: Final = 50.0
_MOST_HOURS: Final = 5_000.0


def _left_over() -> Floats:
    """Shape (2, 24): of what this hour and the last one differ by, what is left so many hours
    later."""
    left = [np.array([0.0, 1.0]), np.array([1.0, 0.0])]
    while len(left) <= HOURS:
        left.append(_LASTING[0] * left[-1] + _LASTING[1] * left[-2])
    return np.array(left[1:]).T


_LEFT: Final = _left_over()


class HourlyPrices:
    """Mean prices by row of the ad group and local hour, of earlier days."""

    def __init__(self) -> None:
        self.groups = Columns(
            entered_hour=(0, -1.0),
            now_offers=(0, 0.0),
            now_offered_nanos=(0, 0.0),
            offers=(HOURS, 0.0),
            offered_nanos=(HOURS, 0.0),
            foretold=(0, 0.0),
            usual=(HOURS, np.nan),
            differed=(0, np.nan),
        )
        """Of hours that are over, and `now_*` of the local hour `entered_hour` since the epoch;
        `foretold`: logarithm of that hour's price as expected when it began, 0 where it was not;
        `usual`: logarithms of hourly prices on the days before that hour's, NaN where not known;
        `differed`: what the hour before differed from what these make expect, NaN likewise."""
        self.errors = np.array([_PRIOR_ERROR**2 * _PRIOR_HOURS, _PRIOR_HOURS])
        """Sum of the squared differences between logarithms of hourly prices and what was expected
        of them an hour before, and their number; of all ad groups."""

    def observe(self, rows: Rows, hour: Rows, offers: Floats, offered_nanos: Floats) -> None:
        """Impressions of ad groups in their current local hour (counted since the epoch), and the
        sum of the prices that they were won at."""
        groups = self.groups
        groups.reserve(rows)
        others = np.empty(len(rows), dtype=np.int64)
        entering = others[: _count(groups.rows, rows, hour, offers, offered_nanos, others)]
        if len(entering):
            self._end_hours(rows[entering], hour[entering])
            came = offers[entering], offered_nanos[entering]
            _count(groups.rows, rows[entering], hour[entering], *came, others)

    def _end_hours(self, rows: Rows, hour: Rows) -> None:
        """Take over the hours that these ad groups leave, and foretell the one they enter."""
        groups = self.groups
        entered = groups.entered_hour[rows].astype(np.int64)
        of_day = entered % HOURS
        offers, nanos = groups.now_offers[rows], groups.now_offered_nanos[rows]
        enough = (offers >= _ENOUGH_OFFERS) & (nanos > 0)
        price = np.log(np.where(enough, nanos, 1.0) / np.where(enough, offers, 1.0))
        compared = enough & (groups.foretold[rows] > 0)
        self.errors[0] += float(((price - groups.foretold[rows])[compared] ** 2).sum())
        self.errors[1] += float(compared.sum())
        if self.errors[1] > _MOST_HOURS:
            self.errors *= 0.5
        next_one = enough & (hour == entered + 1)
        follows = next_one & (of_day < HOURS - 1)
        coming = self.coming(rows, of_day, np.exp(price))
        at, following = np.arange(len(rows)), np.minimum(of_day + 1, HOURS - 1)
        groups.foretold[rows] = np.where(follows, price + np.log(coming[at, following]), 0.0)
        usual = groups.usual[rows]
        differed = price - _expected(usual)[at, of_day]
        known = next_one & np.isfinite(usual).any(axis=1)
        groups.differed[rows] = np.where(known, differed, np.nan)
        for column, now in ((groups.offers, offers), (groups.offered_nanos, nanos)):
            column[rows, of_day] = _KEPT_OF_EARLIER_DAYS * column[rows, of_day] + now
        groups.now_offers[rows] = groups.now_offered_nanos[rows] = 0.0
        groups.entered_hour[rows] = hour
        # The hours of a day that is going on would tell twice: as usual, and as what differs.
        another_day = rows[hour // HOURS != entered // HOURS]
        groups.usual[another_day] = self._usual(another_day)

    @property
    def error(self) -> float:
        """Standard deviation of the logarithm of the next hour's price from what is expected."""
        return float(np.sqrt(self.errors[0] / self.errors[1]))

    def coming(self, rows: Rows, hour: Rows, now_nanos: Floats) -> Floats:
        """Shape (rows, 24): the price expected in each hour of today over the price now; 1 up to
        `hour`, the current one (0 to 23), and where no earlier day is known of any hour to come:
        hours of today that are over say nothing of it. Hours never seen count as the mean."""
        groups = self.groups
        groups.reserve(rows)
        usual, ahead = groups.usual[rows], np.arange(HOURS) - hour[:, None]
        known = (np.isfinite(usual) & (ahead >= 0)).any(axis=1) & (now_nanos > 0)
        now = np.log(np.where(known, now_nanos, 1.0))
        expected = _expected(usual)
        here = now - expected[np.arange(len(rows)), hour]
        last = groups.differed[rows]
        follows = np.isfinite(last) & (groups.entered_hour[rows] % HOURS == hour)
        differs = np.stack((here, np.where(follows, last, here)))
        left = _LEFT[:, np.maximum(0, ahead)]
        for differ, of_it in zip(np.clip(differs, -_FURTHEST, _FURTHEST), left, strict=True):
            expected = expected + differ[:, None] * of_it
        relative = np.exp(np.clip(expected - now[:, None], -_FURTHEST, _FURTHEST))
        return np.where(known[:, None] & (ahead > 0), relative, 1.0)

    def usual(self, rows: Rows, now_nanos: Floats) -> Floats:
        """Shape (rows, 24): the price expected in each hour of a later day over the price now; 1
        where no hour is known."""
        usual = self._usual(rows)
        known = np.isfinite(usual).any(axis=1) & (now_nanos > 0)
        now = np.log(np.where(known, now_nanos, 1.0))[:, None]
        relative = np.exp(np.clip(_expected(usual) - now, -_FURTHEST, _FURTHEST))
        return np.where(known[:, None], relative, 1.0)

    def _usual(self, rows: Rows) -> Floats:
        """Shape (rows, 24): logarithms of the prices of each hour and those beside it, so far;
        NaN where none of them was seen."""
        groups = self.groups
        groups.reserve(rows)
        offers, nanos = groups.offers[rows], groups.offered_nanos[rows]
        seen = (offers > 0) & (nanos > 0)
        price = np.where(seen, np.log(np.where(seen, nanos, 1.0) / np.where(seen, offers, 1.0)), 0)
        weight = seen.astype(np.float64)
        price, weight = (
            own + _BESIDE * (np.roll(own, 1, axis=1) + np.roll(own, -1, axis=1))
            for own in (price, weight)
        )
        return np.where(weight > 0, price / np.maximum(weight, 1e-9), np.nan)

    def forget(self, rows: Rows) -> None:
        """The ad groups are another worker's now."""
        self.groups.clear(rows)


@compiled
def _count(
    groups: Records, rows: Rows, hour: Rows, offers: Floats, offered_nanos: Floats, others: Rows
) -> int:
    """Count what is of the hours that the ad groups are in; how many are in another one, the first
    of `others` tell which."""
    found = 0
    for at in range(len(rows)):
        one = groups[rows[at]]
        if one.entered_hour != hour[at]:
            others[found] = at
            found += 1
            continue
        one.now_offers += offers[at]
        one.now_offered_nanos += offered_nanos[at]
    return found


def _expected(usual: Floats) -> Floats:
    """Logarithms of the prices expected by these usual ones; hours not known count as the mean, all
    0 where none is."""
    seen = np.isfinite(usual)
    # Towards the mean of prices, not of their logarithms: a day costs what its prices sum to.
    price = np.where(seen, np.exp(np.where(seen, usual, 0.0)), 0.0)
    mean = price.sum(axis=1, keepdims=True) / np.maximum(1, seen.sum(axis=1, keepdims=True))
    mean = np.log(np.where(mean > 0, mean, 1.0))
    return np.asarray(mean + np.where(seen, _USUAL * (np.where(seen, usual, 0.0) - mean), 0.0))
