"""Prices by hour of an ad group's day: what coming impressions will cost, next to what they do now.

Hourly prices swing about a level far more than the level moves. So the price of the moment says
little of the rest of a day; the same hours of earlier days say more, moved by a part of how much
this hour differs from what it was. Prices are those that impressions are won at, each for one
billable action: they are seen whatever is billed.
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
_LASTING: Final = 0.5
"""Of the logarithm of this hour's price over that of earlier days: so much is expected to stay."""
_FURTHEST: Final = 3.0
"""More than this factor between now and earlier days, or now and later, is not believed."""


class HourlyPrices:
    """Mean prices by row of the ad group and local hour, of earlier days."""

    def __init__(self) -> None:
        self.groups = Columns(
            offers=(HOURS, 0.0),
            offered_nanos=(HOURS, 0.0),
            now_offers=(0, 0.0),
            now_offered_nanos=(0, 0.0),
            entered_hour=(0, -1.0),
        )
        """Of hours that are over, and `now_*` of the local hour `entered_hour` since the epoch."""

    def observe(self, rows: Rows, hour: Rows, offers: Floats, offered_nanos: Floats) -> None:
        """Impressions of ad groups in their current local hour (counted since the epoch), and the
        sum of the prices that they were won at."""
        groups = self.groups
        groups.reserve(rows)
        left = rows[groups.entered_hour[rows] != hour]
        of_day = groups.entered_hour[left].astype(np.int64) % HOURS
        for column, now in (
            (groups.offers, groups.now_offers),
            (groups.offered_nanos, groups.now_offered_nanos),
        ):
            column[left, of_day] = _KEPT_OF_EARLIER_DAYS * column[left, of_day] + now[left]
            now[left] = 0.0
        groups.entered_hour[rows] = hour
        groups.now_offers[rows] += offers
        groups.now_offered_nanos[rows] += offered_nanos

    def to_come(self, row: int, shares: Floats, now_nanos: float) -> float:
        """The mean price of the traffic to come over the price now (`now_nanos`); 1 where no
        earlier day is known of it: hours of today that are over say nothing of it. `shares`, shape
        (24,), is today's traffic that is still to come; its first hour with any is the current
        one. Hours never seen count as the others' mean."""
        groups = self.groups
        groups.reserve(np.array([row]))
        offers, nanos = groups.offers[row], groups.offered_nanos[row]
        seen, coming = (offers > 0) & (nanos > 0), np.flatnonzero(shares > 0)
        if now_nanos <= 0 or len(coming) == 0 or not seen[coming].any():
            return 1.0
        prices = nanos / np.where(seen, offers, 1.0)
        prices = np.where(seen, prices, prices[seen].mean())
        level = np.clip(now_nanos / prices[coming[0]], 1.0 / _FURTHEST, _FURTHEST)
        later = float((shares * prices).sum() / shares.sum()) * level**_LASTING
        return float(np.clip(later / now_nanos, 1.0 / _FURTHEST, _FURTHEST))

    def forget(self, rows: Rows) -> None:
        """The ad groups are another worker's now."""
        self.groups.clear(rows)
