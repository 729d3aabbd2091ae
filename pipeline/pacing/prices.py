"""Prices by hour of an ad group's day: what coming impressions will cost, next to what they do now.

Hourly prices swing about a level far more than the level moves. So the price of the moment says
little of the rest of a day; the same hours of earlier days say more, with the hours beside them:
what happened at ten will happen at nine or eleven another day. What this hour and the last one
differ from that fades from hour to hour. Prices are those that impressions are won at, each for
one billable action: they are seen whatever is billed.
"""

from __future__ import annotations

from math import exp, isfinite, log
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
_FURTHEST: Final = log(3.0)
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
        self.groups.reserve(rows)
        came = offers, offered_nanos
        _observe(self.groups.rows, rows, hour, came, self.errors, np.empty(HOURS))
        # Not within a turn: at a full hour it ends more than so many, and all count.
        if self.errors[1] > _MOST_HOURS:
            self.errors *= 0.5

    @property
    def error(self) -> float:
        """Standard deviation of the logarithm of the next hour's price from what is expected."""
        return float(np.sqrt(self.errors[0] / self.errors[1]))

    def coming(self, rows: Rows, hour: Rows, now_nanos: Floats) -> Floats:
        """Shape (rows, 24): the price expected in each hour of today over the price now; 1 up to
        `hour`, the current one (0 to 23), and where no earlier day is known of any hour to come:
        hours of today that are over say nothing of it. Hours never seen count as the mean."""
        self.groups.reserve(rows)
        found = np.ones((len(rows), HOURS))
        _coming(self.groups.rows, rows, hour, now_nanos, found)
        return found

    def usual(self, rows: Rows, now_nanos: Floats) -> Floats:
        """Shape (rows, 24): the price expected in each hour of a later day over the price now; 1
        where no hour is known."""
        self.groups.reserve(rows)
        found = np.ones((len(rows), HOURS))
        _of_later_day(self.groups.rows, rows, now_nanos, found, np.empty(HOURS))
        return found

    def forget(self, rows: Rows) -> None:
        """The ad groups are another worker's now."""
        self.groups.clear(rows)


@compiled
def _observe(
    groups: Records,
    rows: Rows,
    hour: Rows,
    came: tuple[Floats, Floats],
    errors: Floats,
    usual: Floats,
) -> None:
    """As `HourlyPrices.observe`; `came` are the offers and the sums of their prices, `usual` is
    for the usual prices of one ad group."""
    offers, offered_nanos = came
    for at in range(len(rows)):
        one = groups[rows[at]]
        if one.entered_hour < 0:
            one.entered_hour = hour[at]  # nothing was seen of it before
        elif one.entered_hour != hour[at]:
            _end_hour(one, hour[at], errors, usual)
        one.now_offers += offers[at]
        one.now_offered_nanos += offered_nanos[at]


@compiled
def _end_hour(one: Any, hour: int, errors: Floats, usual: Floats) -> None:
    """Take over the hour that an ad group leaves, and foretell the one that it enters."""
    entered = int(one.entered_hour)
    of_day = entered % HOURS
    foretold, differed = 0.0, np.nan
    if one.now_offers >= _ENOUGH_OFFERS and one.now_offered_nanos > 0:
        price = log(one.now_offered_nanos / one.now_offers)
        if one.foretold > 0:
            errors[0] += (price - one.foretold) ** 2
            errors[1] += 1
        if hour == entered + 1:
            mean = _mean(one.usual)
            if of_day < HOURS - 1:
                foretold = price
                if _is_known(one.usual, of_day):
                    foretold += _relative(one, of_day, of_day + 1, price, mean)
            if _is_known(one.usual, 0):
                differed = price - _expected(one.usual, of_day, mean)
    one.foretold, one.differed = foretold, differed
    one.offers[of_day] = _KEPT_OF_EARLIER_DAYS * one.offers[of_day] + one.now_offers
    kept_nanos = _KEPT_OF_EARLIER_DAYS * one.offered_nanos[of_day]
    one.offered_nanos[of_day] = kept_nanos + one.now_offered_nanos
    one.now_offers = one.now_offered_nanos = 0.0
    one.entered_hour = hour
    # The hours of a day that is going on would tell twice: as usual, and as what differs.
    if hour // HOURS != entered // HOURS:
        _find_usual(one, usual)
        for at in range(HOURS):
            one.usual[at] = usual[at]


@compiled
def _coming(groups: Records, rows: Rows, hour: Rows, now_nanos: Floats, found: Floats) -> None:
    """As `HourlyPrices.coming`, where it is not 1."""
    for at in range(len(rows)):
        one = groups[rows[at]]
        if now_nanos[at] > 0 and _is_known(one.usual, hour[at]):
            now, mean = log(now_nanos[at]), _mean(one.usual)
            for later in range(hour[at] + 1, HOURS):
                found[at, later] = exp(_relative(one, hour[at], later, now, mean))


@compiled
def _of_later_day(
    groups: Records, rows: Rows, now_nanos: Floats, found: Floats, usual: Floats
) -> None:
    """As `HourlyPrices.usual`, where it is not 1; `usual` is for the prices of one ad group."""
    for at in range(len(rows)):
        _find_usual(groups[rows[at]], usual)
        if now_nanos[at] > 0 and _is_known(usual, 0):
            now, mean = log(now_nanos[at]), _mean(usual)
            for hour in range(HOURS):
                found[at, hour] = exp(_believed(_expected(usual, hour, mean) - now))


@compiled
def _relative(one: Any, hour: int, later: int, now: float, mean: float) -> float:
    """Logarithm of the price expected in a later hour of the day over the price of now; `now` and
    `mean` are logarithms too."""
    here = now - _expected(one.usual, hour, mean)
    follows = isfinite(one.differed) and one.entered_hour % HOURS == hour
    last = one.differed if follows else here
    expected = _expected(one.usual, later, mean)
    expected += _believed(here) * _LEFT[0, later - hour]
    expected += _believed(last) * _LEFT[1, later - hour]
    return _believed(expected - now)


@compiled
def _believed(difference: float) -> float:
    return min(max(difference, -_FURTHEST), _FURTHEST)


@compiled
def _find_usual(one: Any, found: Floats) -> None:
    """Logarithms of the prices of each hour and those beside it, so far; NaN where none of them
    was seen."""
    before, here = _price(one, HOURS - 1), _price(one, 0)
    for hour in range(HOURS):
        after = _price(one, (hour + 1) % HOURS)
        total, weight = 0.0, 0.0
        for price, its_weight in ((here, 1.0), (before, _BESIDE), (after, _BESIDE)):
            if isfinite(price):
                total += its_weight * price
                weight += its_weight
        found[hour] = total / weight if weight > 0 else np.nan
        before, here = here, after


@compiled
def _price(one: Any, hour: int) -> float:
    """Logarithm of the mean price in an hour of the day; NaN where it was not seen."""
    offers, nanos = one.offers[hour], one.offered_nanos[hour]
    return log(nanos / offers) if offers > 0 and nanos > 0 else np.nan


@compiled
def _is_known(usual: Floats, from_hour: int) -> bool:
    """Whether the usual price of any hour from this one on is known."""
    found = False
    for hour in range(from_hour, HOURS):
        found |= isfinite(usual[hour])
    return found


@compiled
def _mean(usual: Floats) -> float:
    """Logarithm of the mean of these usual prices; 0 where none is known. Not the mean of their
    logarithms: a day costs what its prices sum to."""
    total, known = 0.0, 0
    for price in usual:
        if isfinite(price):
            total += exp(price)
            known += 1
    return log(total / known) if total > 0 else 0.0


@compiled
def _expected(usual: Floats, hour: int, mean: float) -> float:
    """Logarithm of the price expected in an hour by these usual ones: towards their mean, which
    stands for an hour that is not known."""
    return mean + _USUAL * (usual[hour] - mean) if isfinite(usual[hour]) else mean
