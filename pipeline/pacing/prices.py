"""Prices by hour of an ad group's day: what coming impressions will cost, next to what they do now.

Hourly prices swing about a level far more than the level moves. So the price of the moment says
little of the rest of a day; the same hours of earlier days say more, but not all: they are
shrunken towards their mean. What this hour differs from that fades from hour to hour. Prices are
those that impressions are won at, each for one billable action: they are seen whatever is billed.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.pacing.columns import Columns

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

HOURS: Final = 24
_KEPT_OF_EARLIER_DAYS: Final = 0.5
_USUAL: Final = 0.6
"""Of the logarithm of an hour's usual price over the mean of all hours: so much is expected."""
_LASTING: Final = 0.65
"""Of the logarithm of this hour's price over what was expected of it: so much is left an hour
later. These give about the least error one, two and four hours ahead over all hours of the
recorded series."""
_FURTHEST: Final = np.log(3.0)
"""More than this between now and earlier days, or now and later, is not believed (a logarithm)."""
_ENOUGH_OFFERS: Final = 100.0
"""Impressions of an hour by which its price is compared with what was foretold of it."""
_PRIOR_ERROR: Final = 0.2
_PRIOR_HOURS: Final = 50.0
_MOST_HOURS: Final = 5_000.0


class HourlyPrices:
    """Mean prices by row of the ad group and local hour, of earlier days."""

    def __init__(self) -> None:
        self.groups = Columns(
            offers=(HOURS, 0.0),
            offered_nanos=(HOURS, 0.0),
            now_offers=(0, 0.0),
            now_offered_nanos=(0, 0.0),
            entered_hour=(0, -1.0),
            foretold=(0, 0.0),
        )
        """Of hours that are over, and `now_*` of the local hour `entered_hour` since the epoch;
        `foretold`: logarithm of that hour's price as expected when it began, 0 where it was not."""
        self.errors = np.array([_PRIOR_ERROR**2 * _PRIOR_HOURS, _PRIOR_HOURS])
        """Sum of the squared differences between logarithms of hourly prices and what was expected
        of them an hour before, and their number; of all ad groups."""

    def observe(self, rows: Rows, hour: Rows, offers: Floats, offered_nanos: Floats) -> None:
        """Impressions of ad groups in their current local hour (counted since the epoch), and the
        sum of the prices that they were won at."""
        groups = self.groups
        groups.reserve(rows)
        changed = groups.entered_hour[rows] != hour
        if changed.any():
            self._end_hours(rows[changed], hour[changed])
        groups.now_offers[rows] += offers
        groups.now_offered_nanos[rows] += offered_nanos

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
        follows = enough & (hour == entered + 1) & (of_day < HOURS - 1)
        coming = self.coming(rows, of_day, np.exp(price))
        at, following = np.arange(len(rows)), np.minimum(of_day + 1, HOURS - 1)
        groups.foretold[rows] = np.where(follows, price + np.log(coming[at, following]), 0.0)
        for column, now in ((groups.offers, offers), (groups.offered_nanos, nanos)):
            column[rows, of_day] = _KEPT_OF_EARLIER_DAYS * column[rows, of_day] + now
        groups.now_offers[rows] = groups.now_offered_nanos[rows] = 0.0
        groups.entered_hour[rows] = hour

    @property
    def error(self) -> float:
        """Standard deviation of the logarithm of the next hour's price from what is expected."""
        return float(np.sqrt(self.errors[0] / self.errors[1]))

    def coming(self, rows: Rows, hour: Rows, now_nanos: Floats) -> Floats:
        """Shape (rows, 24): the price expected in each hour of today over the price now; 1 up to
        `hour`, the current one (0 to 23), and where no earlier day is known of any hour to come:
        hours of today that are over say nothing of it. Hours never seen count as the mean."""
        usual, seen = self._usual(rows)
        ahead = np.arange(HOURS) - hour[:, None]
        known = (seen & (ahead >= 0)).any(axis=1) & (now_nanos > 0)
        now = np.log(np.where(known, now_nanos, 1.0))[:, None]
        differs = np.clip(now - np.take_along_axis(usual, hour[:, None], 1), -_FURTHEST, _FURTHEST)
        expected = usual + differs * _LASTING ** np.maximum(0, ahead)
        relative = np.exp(np.clip(expected - now, -_FURTHEST, _FURTHEST))
        return np.where(known[:, None] & (ahead > 0), relative, 1.0)

    def usual(self, rows: Rows, now_nanos: Floats) -> Floats:
        """Shape (rows, 24): the price expected in each hour of a later day over the price now; 1
        where no hour is known."""
        usual, seen = self._usual(rows)
        known = seen.any(axis=1) & (now_nanos > 0)
        now = np.log(np.where(known, now_nanos, 1.0))[:, None]
        relative = np.exp(np.clip(usual - now, -_FURTHEST, _FURTHEST))
        return np.where(known[:, None], relative, 1.0)

    def _usual(self, rows: Rows) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Logarithms of the prices expected of each hour by those of earlier days, and which hours
        were seen in these."""
        groups = self.groups
        groups.reserve(rows)
        offers, nanos = groups.offers[rows], groups.offered_nanos[rows]
        seen = (offers > 0) & (nanos > 0)
        price = np.where(seen, nanos, 0.0) / np.where(seen, offers, 1.0)
        # Towards the mean of prices, not of their logarithms: a day costs what its prices sum to.
        mean = price.sum(axis=1, keepdims=True) / np.maximum(1, seen.sum(axis=1, keepdims=True))
        mean = np.log(np.where(mean > 0, mean, 1.0))
        return mean + np.where(
            seen, _USUAL * (np.log(np.where(seen, price, 1.0)) - mean), 0.0
        ), seen

    def forget(self, rows: Rows) -> None:
        """The ad groups are another worker's now."""
        self.groups.clear(rows)
