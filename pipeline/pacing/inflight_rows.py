"""The formulas of `pipeline.pacing.inflight`, in compiled loops over its ad groups.

`groups`, `serving` and `campaigns` are the records of its columns, `common` its impressions and
actions by basis. Times without a unit of their own are in seconds, because rates are.
"""

from __future__ import annotations

from math import exp
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.contract.vocabulary import CPM
from pipeline.native import compiled

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Records = npt.NDArray[Any]

TIME_CONSTANTS_S: Final = np.array([2.0, 8.0, 30.0, 120.0, 600.0, 3_600.0])
"""Each second one is a whole number of times the one before it: see `_all_decays`."""
_NEWEST: Final = 0
_SMOOTHED: Final = 3
"""Positions of the constants of the newest impression rate, and of the smoothed one (two
minutes)."""
_SMOOTHED_S: Final = float(TIME_CONSTANTS_S[_SMOOTHED])
_HOUR_MS: Final = 3_600_000
_LEAST_SERVED: Final = 0.1
"""Of that time an ad group counts as served for so much at least: after five minutes without, its
rate fades; and where a fleet goes on serving after a pause, it is ten times too large at most."""
_FULL_BILLABLE: Final = 4_000.0
"""Responses, and what is billed over what impressions are won at, forget by halving when so many
billable events stand behind them: a day or two of an ad group of some size."""
NEWEST_OFFERS: Final = 1_500.0
"""Impressions that the price of the moment is averaged over, but ..."""
_OFFERS_OF_LAST_HOUR: Final = 20.0
"""... what was seen before the present hour weighs as much as so many: hourly prices differ by some
20 %, single ones by 60 %."""
_PRIOR_BILLABLE: Final = 8.0
"""What a prior weighs against an ad group's own events."""
_FALLEN: Final = 0.2
"""Serving has fallen where the newest rate is under this share of the smoothed one."""
ENOUGH_BILLABLE: Final = 50.0
"""Billable events of an ad group before anything is predicted of it: at a few events a prediction
would be a guess, and the plain limit is as good."""
_BLOCK: Final = 32
"""Ad groups whose records are read together."""
_LOWEST_MOVE, _LARGEST_MOVE = 0.2, 5.0


@compiled
def _decays(passed_s: float) -> tuple[float, float, float, float, float, float]:
    """What is left after so long, by constant."""
    return _all_decays(exp(-passed_s / 8.0), exp(-passed_s / 120.0), exp(-passed_s / 3_600.0))


@compiled
def _all_decays(
    of_8: float, of_120: float, of_3600: float
) -> tuple[float, float, float, float, float, float]:
    """The decays by constant, from those of each second one: the others are powers of them."""
    return of_8**4, of_8, of_120**4, of_120, of_3600**6, of_3600


def slower_decays(passed_s: Floats) -> Floats:
    """Shape (3, n): what is left after these times, by each second constant. By numpy, which takes
    several exponentials at once, a compiled loop one after the other: a fifth of learning."""
    return np.asarray(np.exp(passed_s / -TIME_CONSTANTS_S[1::2, None]))


# -- learning ---------------------------------------------------------------------------------


@compiled
def learn(
    groups: Records,
    campaigns: Records,
    common: Floats,
    rows: Rows,
    basis: Rows,
    campaign: Rows,
    now_ms: int,
    came: tuple[Floats, Floats, Floats, Floats],
    kept: tuple[Floats, Floats, Floats],
    fallen: Rows,
    response: Floats,
    faded: Floats,
    fetched: Floats,
) -> int:
    """Take a turn over. `came` are its impressions, billable events, their value and the
    impressions' prices summed, by ad group. `kept` is what is left: of what was there and of the
    new impressions by their age (both `slower_decays`), and of the offers before.

    How many have fallen of those that delays are learned from; the first of `fallen` tell which,
    of `response` how many actions an impression of each had brought, and of `faded` what of its
    impressions has decayed since the last look, by constant. `fetched` takes what means nothing.
    """
    impressions, billable, value_nanos, offered_nanos = came
    of_before, of_new, offers_kept = kept
    hour = now_ms // _HOUR_MS
    found = 0
    for at in range(len(rows)):
        if at % _BLOCK == 0:
            # So no ad group's record is waited for while another one is learned of.
            fetched[0] = _fetch(groups, rows[at : at + _BLOCK])
        one = groups[rows[at]]
        left = _all_decays(of_before[0, at], of_before[1, at], of_before[2, at])
        left_of_new = _all_decays(of_new[0, at], of_new[1, at], of_new[2, at])
        for k in range(len(TIME_CONSTANTS_S)):
            before = one.recent[k]
            after = before * left[k] + impressions[at] * left_of_new[k]
            one.recent[k] = after
            faded[found, k] = max(0.0, before + impressions[at] - after)
        one.at_ms = max(float(now_ms), one.at_ms)
        newest = one.recent[_NEWEST] / TIME_CONSTANTS_S[_NEWEST]
        smoothed = one.recent[_SMOOTHED] / TIME_CONSTANTS_S[_SMOOTHED]
        if newest < _FALLEN * smoothed and basis[at] != CPM and one.known >= ENOUGH_BILLABLE:
            response[found] = _response(one, campaigns[campaign[at]], common, basis[at])
            fallen[found] = at
            found += 1
        _learn_offers(one, impressions[at], offered_nanos[at], billable[at], offers_kept[at], hour)
        _learn_actions(one, impressions[at], billable[at], value_nanos[at])
    for at in range(len(rows)):
        above = campaigns[campaign[at]]
        above.impressions += impressions[at]
        above.actions += billable[at]
        common[basis[at], 0] += impressions[at]
        common[basis[at], 1] += billable[at]
    return found


@compiled
def _fetch(groups: Records, rows: Rows) -> float:
    """Read something of each cache line of their records. The sum means nothing."""
    total = 0.0
    for row in rows:
        one = groups[row]
        total += one.at_ms + one.actions + one.known
    return total


@compiled
def _learn_offers(
    one: Any, impressions: float, offered_nanos: float, billable: float, kept: float, hour: int
) -> None:
    """Prices move with the hour; impressions tell of it sooner than what is billed."""
    if one.offered_hour != hour:
        kept *= min(1.0, _OFFERS_OF_LAST_HOUR / max(one.offers, 1e-9))
        one.offered_hour = hour
    one.offers = one.offers * kept + impressions
    one.offered_nanos = one.offered_nanos * kept + offered_nanos
    one.offered_then += billable * _offered_nanos(one)


@compiled
def _learn_actions(one: Any, impressions: float, billable: float, value_nanos: float) -> None:
    one.impressions += impressions
    one.actions += billable
    one.billable += billable
    one.value_nanos += value_nanos
    one.known += billable
    if one.billable > _FULL_BILLABLE:
        one.billable *= 0.5
        one.value_nanos *= 0.5
        one.offered_then *= 0.5
    if one.actions > _FULL_BILLABLE:
        one.actions *= 0.5
        one.impressions *= 0.5


# -- one ad group -----------------------------------------------------------------------------


@compiled
def _response(one: Any, above: Any, common: Floats, basis: int) -> float:
    """Billable actions an impression, shrunken."""
    prior = common[basis, 1] / common[basis, 0]
    prior = (above.actions + _PRIOR_BILLABLE) / (above.impressions + _PRIOR_BILLABLE / prior)
    return float((one.actions + _PRIOR_BILLABLE) / (one.impressions + _PRIOR_BILLABLE / prior))


@compiled
def _offered_nanos(one: Any) -> float:
    return float(one.offered_nanos / max(one.offers, 1e-9))


@compiled
def _price_nanos(one: Any) -> float:
    now = _offered_nanos(one)
    if one.billable <= 0:
        return now
    count = max(one.billable, 1e-9)
    then = one.offered_then / count
    moved = now / max(then, 1e-9) if then > 0 and now > 0 else 1.0
    return float(one.value_nanos / count * min(max(moved, _LOWEST_MOVE), _LARGEST_MOVE))


@compiled
def _rate(one: Any, served: Any, now_ms: int) -> float:
    """Impressions a second while served, of which an ad group that was stopped has had less."""
    recent = one.recent[_SMOOTHED] * exp(-_passed_s(one.at_ms, now_ms) / _SMOOTHED_S)
    return float(recent / (_SMOOTHED_S * max(_served(served, now_ms), _LEAST_SERVED)))


@compiled
def _served(served: Any, now_ms: int) -> float:
    """The share of the smoothing's time that it was served."""
    kept = exp(-_passed_s(served.as_of_ms, now_ms) / _SMOOTHED_S)
    return float(served.mean * kept + served.now * (1.0 - kept))


@compiled
def times_passed_s(groups: Records, rows: Rows, now_ms: int, found: Floats) -> None:
    """How long ago each was learned of last."""
    for at in range(len(rows)):
        found[at] = _passed_s(groups[rows[at]].at_ms, now_ms)


@compiled
def _passed_s(since_ms: float, now_ms: int) -> float:
    return max(0.0, now_ms - since_ms) / 1_000.0


# -- all of them ------------------------------------------------------------------------------


@compiled
def predict(
    groups: Records,
    serving: Records,
    campaigns: Records,
    common: Floats,
    shares: Floats,
    rows: Rows,
    basis: Rows,
    campaign: Rows,
    now_ms: int,
    coming_s: float,
    found: Floats,
) -> None:
    """Into `found`, shape (4, n), the columns of `inflight.Inflight`. `shares` are those of the
    delays, shape (kinds, constants); `coming_s` how long impressions are on their way and served
    after a pause."""
    for at in range(len(rows)):
        one = groups[rows[at]]
        if one.known < ENOUGH_BILLABLE:
            found[:, at] = 0.0
            continue
        served, price = serving[rows[at]], _price_nanos(one)
        coming = _rate(one, served, now_ms) * coming_s
        late, response = 0.0, 1.0
        if basis[at] != CPM:
            for k, kept in enumerate(_decays(_passed_s(one.at_ms, now_ms))):
                late += shares[basis[at], k] * one.recent[k] * kept
            response = _response(one, campaigns[campaign[at]], common, basis[at])
        each = response * price
        found[0, at] = each * (coming * served.now + late)
        found[1, at] = each * (coming + late)
        found[2, at] = each * (coming + late) * price
        found[3, at] = price


@compiled
def late_nanos(
    groups: Records,
    serving: Records,
    campaigns: Records,
    common: Floats,
    shares: Floats,
    rows: Rows,
    basis: Rows,
    campaign: Rows,
    now_ms: int,
    coming_s: float,
    found: Floats,
) -> None:
    """Into `found`, shape (n, constants), what of a prediction is of clicks or engagements to come
    with each constant; arguments as of `predict`."""
    for at in range(len(rows)):
        one = groups[rows[at]]
        each = 0.0
        if basis[at] != CPM:
            each = _response(one, campaigns[campaign[at]], common, basis[at]) * _price_nanos(one)
        coming = _rate(one, serving[rows[at]], now_ms) * coming_s
        for k, kept in enumerate(_decays(_passed_s(one.at_ms, now_ms))):
            found[at, k] = shares[basis[at], k] * (one.recent[k] * kept + coming) * each


@compiled
def rates(groups: Records, serving: Records, rows: Rows, now_ms: int, found: Floats) -> None:
    """Impressions a second of each while it is served."""
    for at in range(len(rows)):
        found[at] = _rate(groups[rows[at]], serving[rows[at]], now_ms)


@compiled
def note_serving(serving: Records, rows: Rows, serves: npt.NDArray[np.bool_], now_ms: int) -> None:
    """From now on these are served, or are not."""
    for at in range(len(rows)):
        one = serving[rows[at]]
        one.mean = _served(one, now_ms)
        one.as_of_ms = now_ms
        one.now = serves[at]


@compiled
def offered_nanos(groups: Records, rows: Rows, found: Floats) -> None:
    """The mean price that the newest impressions of each were won at."""
    for at in range(len(rows)):
        found[at] = _offered_nanos(groups[rows[at]])


@compiled
def prices_nanos(groups: Records, rows: Rows, found: Floats) -> None:
    """What a billable event of each costs now."""
    for at in range(len(rows)):
        found[at] = _price_nanos(groups[rows[at]])


@compiled
def units_nanos(
    groups: Records,
    campaigns: Records,
    common: Floats,
    rows: Rows,
    basis: Rows,
    campaign: Rows,
    found: Floats,
) -> None:
    """What an impression of each brings on average now."""
    for at in range(len(rows)):
        one = groups[rows[at]]
        response = 1.0
        if basis[at] != CPM:
            response = _response(one, campaigns[campaign[at]], common, basis[at])
        found[at] = response * _price_nanos(one)
