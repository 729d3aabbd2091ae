"""Inflight: the value that has been served, or will be before ad servers stop, and is not billed.

Three parts, each learned from what turns show:

- impressions on their way to the worker: rate x ingest delay (the rate while serving: what was
  stopped for a while is soon served as much as before);
- impressions that will be served after a pause: rate x pause-to-stop, measured at each pause as
  the impressions that came after it over the rate before it;
- where clicks or engagements are paid for: those to come from impressions served already.

The last is a delay curve for each basis (`delays.py`). Steady traffic says nothing of delays; so
only the time after serving stopped or fell is learned from, when what comes is all late. How many
actions an impression brings is learned for each ad group and shrunken towards its campaign's
figure, and that towards the basis'.

Figures here are predictions: they decide when signals go out, never what is charged, so they are
floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.contract.vocabulary import CPM
from pipeline.pacing.columns import Columns
from pipeline.pacing.delays import DelayMixture
from pipeline.pacing.observed import Seen

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

TIME_CONSTANTS_S: Final = np.array([2.0, 8.0, 30.0, 120.0, 600.0, 3_600.0])
_HOUR_MS: Final = 3_600_000
_RATE_CONSTANT: Final = 3
"""Position of the constant over which an impression rate is smoothed (two minutes)."""
_LEAST_SERVED: Final = 0.1
"""Of that time an ad group counts as served for so much at least: after five minutes without, its
rate fades; and where a fleet goes on serving after a pause, it is ten times too large at most."""
LONGEST_DELAY_MS: Final = 60_000.0
"""Ingest delays count up to here: a longer one is an outage, and the billing lag's business."""
_FULL_BILLABLE: Final = 4_000.0
"""Responses, and what is billed over what impressions are won at, forget by halving when so many
billable events stand behind them: a day or two of an ad group of some size."""
_NEWEST_OFFERS: Final = 1_500.0
"""Impressions that the price of the moment is averaged over, but ..."""
_OFFERS_OF_LAST_HOUR: Final = 20.0
"""... what was seen before the present hour weighs as much as so many: hourly prices differ by some
20 %, single ones by 60 %."""
_OFFER_SPREAD: Final = 0.6
"""Standard deviation of single prices over their mean."""
_PRIOR_BILLABLE: Final = 8.0
"""What a prior weighs against an ad group's own events."""
_PRIOR_CURVE: Final = np.array([0.1, 0.3, 0.4, 0.18, 0.02, 0.0001])
"""Before anything is known: most actions follow within a minute."""
_PRIOR_CURVE_ACTIONS: Final = 10.0
_FULL_CURVE: Final = 5_000.0
_FALLEN: Final = 0.2
"""Serving has fallen where the newest rate is under this share of the smoothed one."""
ENOUGH_BILLABLE: Final = 50.0
"""Billable events of an ad group before anything is predicted of it: at a few events a prediction
would be a guess, and the plain limit is as good."""
PRIOR_STOP_S: Final = 3.0
_PRIOR_STOPS: Final = 2.0
_PRIOR_DELAYS: Final = 20.0
STOP_WINDOW_MS: Final = 60_000
_NOT_OBEYED: Final = 0.3
"""A pause after whose first half window more than this share of the rate goes on is not obeyed
(a backfill, a lost signal): it says nothing of reaction times."""


@dataclass(frozen=True, slots=True)
class Inflight:
    """Predictions for some ad groups; nanos, one entry each. All 0 where too little is known."""

    mean: Floats
    """Of what is inflight now: of stopped ones nothing is on its way."""
    if_served: Floats
    """Of what would be, were they all being served."""
    variance: Floats
    """Of that."""
    price: Floats
    """Of one billable event."""


class InflightModel:
    """What is learned, by row of the ad group; campaigns by their own row."""

    def __init__(self) -> None:
        constants = len(TIME_CONSTANTS_S)
        self.groups = Columns(
            at_ms=(0, 0.0),
            recent=(constants, 0.0),
            impressions=(0, 0.0),
            actions=(0, 0.0),
            billable=(0, 0.0),
            value_nanos=(0, 0.0),
            offers=(0, 0.0),
            offered_nanos=(0, 0.0),
            offered_then=(0, 0.0),
            offered_hour=(0, -1.0),
            known=(0, 0.0),
            stop_from_ms=(0, 0.0),
            stop_rate=(0, 0.0),
            stop_early=(0, 0.0),
            stop_late=(0, 0.0),
        )
        """`recent`: impressions decayed by each constant, as of `at_ms`. `impressions` and
        `actions`: for the response rate. `billable` and `value_nanos`: for the price. `offers`
        and `offered_nanos`: newest impressions and the prices that they were won at;
        `offered_then`: that price's mean at each billable event, summed; `offered_hour`: when the
        newest were seen, in hours since the epoch. `known`: billable events ever seen. `stop_*`: a
        pause whose stopping is being measured."""
        self.serving = Columns(now=(0, 1.0), mean=(0, 1.0), as_of_ms=(0, 0.0))
        """`now`: 1, or 0 while ad servers are told to stop; `mean`: of that over the time that a
        rate is smoothed over. Not to be kept: after a restart the signals tell."""
        self.campaigns = Columns(impressions=(0, 0.0), actions=(0, 0.0))
        self._basis = np.full((4, 2), [1_000.0, 20.0])
        """Impressions and actions by basis: before anything is known, 2 % act."""
        self._delays = DelayMixture(
            TIME_CONSTANTS_S, _PRIOR_CURVE, _PRIOR_CURVE_ACTIONS, _FULL_CURVE, kinds=4
        )
        """Of actions after impressions, by basis."""
        self._delay = np.array([1_000.0 * _PRIOR_DELAYS, _PRIOR_DELAYS])
        """Sum of ingest delays in ms, and their number."""
        self._turn_ms = 0
        """When events were seen last."""
        self._stops = np.array([PRIOR_STOP_S * _PRIOR_STOPS, _PRIOR_STOPS])
        """Impressions after pauses and the rates before them, weighted by the pauses."""
        self._measuring: dict[int, None] = {}
        """Rows with a `stop_from_ms`, the oldest pause first."""

    # -- learning -----------------------------------------------------------------------------

    def observe(self, seen: Seen, basis: Rows, campaign: Rows) -> None:
        """Learn from a turn; `basis` and `campaign` are those of `seen.group`."""
        rows = seen.group
        self.groups.reserve(rows)
        self.campaigns.reserve(campaign)
        faded = self._add_and_decay(seen)
        self._learn_curve(seen, basis, campaign, faded)
        self._learn_rates(seen, basis, campaign)
        since_ms = min(seen.now_ms - self._turn_ms, 2 * LONGEST_DELAY_MS)
        self._turn_ms = seen.now_ms
        self._learn_delay(seen, since_ms)
        self._follow_stops(seen, since_ms)

    def note_serving(self, rows: Rows, serves: npt.NDArray[np.bool_], now_ms: int) -> None:
        """From now on ad servers serve these ad groups, or do not."""
        self.serving.reserve(rows)
        self.serving.mean[rows] = self._served(rows, now_ms)
        self.serving.as_of_ms[rows] = now_ms
        self.serving.now[rows] = serves

    def note_pauses(self, rows: Rows, now_ms: int) -> None:
        """The ad groups were served until now and told to stop: measure how soon they do."""
        groups = self.groups
        groups.reserve(rows)
        rates = self.impressions_per_s(rows, now_ms)
        for row, rate in zip(rows.tolist(), rates.tolist(), strict=True):
            if rate > 0 and self.serving.now[row] and row not in self._measuring:
                groups.stop_from_ms[row], groups.stop_rate[row] = now_ms, rate
                groups.stop_early[row] = groups.stop_late[row] = 0.0
                self._measuring[row] = None

    def forget(self, rows: Rows) -> None:
        """The ad groups are another worker's now."""
        self.groups.clear(rows)
        self.serving.clear(rows)
        for row in rows.tolist():
            self._measuring.pop(row, None)

    @property
    def is_new(self) -> bool:
        """Whether nothing has been observed yet."""
        return not self.groups.known.any() and self._delay[1] == _PRIOR_DELAYS

    def common(self) -> dict[str, Floats]:
        """What holds for all ad groups: to be kept, or filled with what was kept."""
        return {
            "basis": self._basis,
            "came": self._delays.came,
            "expected": self._delays.expected,
            "delay": self._delay,
            "stops": self._stops,
        }

    def _add_and_decay(self, seen: Seen) -> Floats:
        """Bring `recent` up to now; returns what of it has decayed since the last look."""
        groups, rows = self.groups, seen.group
        passed_s = np.maximum(0.0, seen.now_ms - groups.at_ms[rows]) / 1_000.0
        before = groups.recent[rows]
        ages_s = seen.mean_age_ms[:, None] / 1_000.0
        fresh = seen.impressions[:, None] * np.exp(-ages_s / TIME_CONSTANTS_S)
        after = self._delays.decayed(before, passed_s) + fresh
        groups.recent[rows] = after
        groups.at_ms[rows] = np.maximum(seen.now_ms, groups.at_ms[rows])
        return np.asarray(np.maximum(0.0, before + seen.impressions[:, None] - after))

    def _learn_curve(self, seen: Seen, basis: Rows, campaign: Rows, faded: Floats) -> None:
        """Compare the actions that came with what each constant made expect."""
        rates = self.groups.recent[seen.group] / TIME_CONSTANTS_S
        fallen = rates[:, 0] < _FALLEN * rates[:, _RATE_CONSTANT]
        enough = self.groups.known[seen.group] >= ENOUGH_BILLABLE
        known = np.flatnonzero((basis != CPM) & fallen & enough)
        if len(known) == 0:
            return
        at, rows = basis[known], seen.group[known]
        response = self._response(rows, at, campaign[known])
        self._delays.learn(at, faded[known], seen.billable[known], response)

    def _learn_rates(self, seen: Seen, basis: Rows, campaign: Rows) -> None:
        groups, campaigns = self.groups, self.campaigns
        rows = seen.group
        groups.impressions[rows] += seen.impressions
        groups.actions[rows] += seen.billable
        np.add.at(campaigns.impressions, campaign, seen.impressions)
        np.add.at(campaigns.actions, campaign, seen.billable)
        np.add.at(self._basis, basis, np.column_stack((seen.impressions, seen.billable)))
        self._learn_offers(seen)
        groups.billable[rows] += seen.billable
        groups.value_nanos[rows] += seen.value_nanos
        groups.known[rows] += seen.billable
        full = rows[groups.billable[rows] > _FULL_BILLABLE]
        groups.billable[full] *= 0.5
        groups.value_nanos[full] *= 0.5
        groups.offered_then[full] *= 0.5
        full = rows[groups.actions[rows] > _FULL_BILLABLE]
        groups.actions[full] *= 0.5
        groups.impressions[full] *= 0.5

    def _learn_offers(self, seen: Seen) -> None:
        """Prices move with the hour; impressions tell of it sooner than what is billed."""
        groups, rows = self.groups, seen.group
        hour = seen.now_ms // _HOUR_MS
        kept = np.exp(-seen.impressions / _NEWEST_OFFERS)
        few = np.minimum(1.0, _OFFERS_OF_LAST_HOUR / np.maximum(groups.offers[rows], 1e-9))
        kept *= np.where(groups.offered_hour[rows] == hour, 1.0, few)
        groups.offered_hour[rows] = hour
        groups.offers[rows] = groups.offers[rows] * kept + seen.impressions
        groups.offered_nanos[rows] = groups.offered_nanos[rows] * kept + seen.offered_nanos
        groups.offered_then[rows] += seen.billable * self.offered_nanos(rows)

    def offered_nanos(self, rows: Rows) -> Floats:
        """Mean price that the newest impressions were won at; 0 where none says one."""
        self.groups.reserve(rows)
        offers = np.maximum(self.groups.offers[rows], 1e-9)
        return np.asarray(self.groups.offered_nanos[rows] / offers)

    def _learn_delay(self, seen: Seen, since_ms: float) -> None:
        """How old impressions are when they arrive: when a turn begins, all that has arrived is
        seen, so what it waited for the turn is not on its way then. `since_ms`: from the turn
        before."""
        impressions = float(seen.impressions.sum())
        if impressions == 0:
            return
        # One of yesterday is no reason to take all of this turn for as late.
        ages_ms = np.minimum(seen.mean_age_ms, LONGEST_DELAY_MS + since_ms)
        age_ms = float((ages_ms * seen.impressions).sum()) / impressions
        newest_ms = max(0, seen.now_ms - int(seen.last_impression_ms.max()))
        # Half the time between turns, as a rule; less where they came all at once.
        waited_ms = min(since_ms / 2, max(0.0, age_ms - newest_ms))
        delay_ms = min(age_ms - waited_ms, LONGEST_DELAY_MS)
        self._delay += (delay_ms * impressions, impressions)
        if self._delay[1] > 10_000.0:
            self._delay *= 0.5

    def _follow_stops(self, seen: Seen, since_ms: float) -> None:
        """Count the impressions served after pauses; settle those whose window is over."""
        if not self._measuring:
            return
        groups = self.groups
        longest_ms = 2 * (since_ms + 1_000 * self.ingest_s)
        for at in np.flatnonzero(groups.stop_from_ms[seen.group] > 0).tolist():
            row = int(seen.group[at])
            after_ms = seen.last_impression_ms[at] - groups.stop_from_ms[row]
            if 0 < after_ms <= STOP_WINDOW_MS / 2:
                # Spread evenly around their mean: some of them were served before the pause.
                before_last_ms = seen.last_impression_ms[at] - (seen.now_ms - seen.mean_age_ms[at])
                spread_ms = min(2 * before_last_ms, longest_ms)
                share = min(1.0, after_ms / max(1.0, spread_ms))
                groups.stop_early[row] += share * seen.impressions[at]
            elif after_ms > STOP_WINDOW_MS / 2:
                groups.stop_late[row] += seen.impressions[at]
        while self._measuring:
            row = next(iter(self._measuring))
            if seen.now_ms - groups.stop_from_ms[row] < STOP_WINDOW_MS:
                break
            del self._measuring[row]
            groups.stop_from_ms[row] = 0.0
            rate = float(groups.stop_rate[row])
            if groups.stop_late[row] <= _NOT_OBEYED * rate * STOP_WINDOW_MS / 2_000:
                self._stops += (float(groups.stop_early[row]), rate)
        if self._stops[1] > 1_000.0:
            self._stops *= 0.5

    # -- predicting ---------------------------------------------------------------------------

    @property
    def ingest_s(self) -> float:
        """How long after it happened an event is judged, on average."""
        return float(self._delay[0] / self._delay[1]) / 1_000.0

    @property
    def stop_s(self) -> float:
        """How long serving goes on after a pause: impressions after it over the rate before."""
        return float(self._stops[0] / self._stops[1])

    def impressions_per_s(self, rows: Rows, now_ms: int) -> Floats:
        """The smoothed rate of each ad group while it is served."""
        return self._rate(rows, self._recent(rows, now_ms), now_ms)

    def price_nanos(self, rows: Rows) -> Floats:
        """What a billable event of each ad group costs now; 0 where nothing was seen.

        The price of what was billed, moved as the prices of impressions have moved since; before
        anything was billed, what impressions are won at.
        """
        now = self.offered_nanos(rows)
        count = np.maximum(self.groups.billable[rows], 1e-9)
        then = self.groups.offered_then[rows] / count
        known = (then > 0) & (now > 0)
        moved = np.where(known, now / np.maximum(then, 1e-9), 1.0)
        billed = self.groups.value_nanos[rows] / count * np.clip(moved, 0.2, 5.0)
        return np.where(self.groups.billable[rows] > 0, billed, now)

    def predict(self, rows: Rows, basis: Rows, campaign: Rows, now_ms: int) -> Inflight:
        """What would still come of each ad group if it were paused now."""
        self.groups.reserve(rows)
        self.campaigns.reserve(campaign)
        price = self.price_nanos(rows)
        recent = self._recent(rows, now_ms)
        coming = self._coming(rows, recent, now_ms)
        pending = self._delays.pending(basis, recent)
        response = np.where(basis == CPM, 1.0, self._response(rows, basis, campaign))
        known = self.groups.known[rows] >= ENOUGH_BILLABLE
        price = np.where(known, price, 0.0)
        late = np.where(basis == CPM, 0.0, pending)
        each = response * price
        if_served = each * (coming + late)
        mean = each * (coming * self.serving.now[rows] + late)
        return Inflight(mean, if_served, if_served * price, price)

    def late_nanos(self, rows: Rows, basis: Rows, campaign: Rows, now_ms: int) -> Floats:
        """Shape (n, time constants): what of that is of clicks or engagements, by the constant
        that they follow with; 0 for CPM."""
        recent = self._recent(rows, now_ms)
        coming = self._coming(rows, recent, now_ms)
        causes = self._delays.shares(basis) * (recent + coming[:, None])
        response = self._response(rows, basis, campaign)
        each = np.where(basis == CPM, 0.0, response * self.price_nanos(rows))
        return np.asarray(causes * each[:, None])

    def _coming(self, rows: Rows, recent: Floats, now_ms: int) -> Floats:
        """Impressions that were not seen yet, or will be served before ad servers stop."""
        return self._rate(rows, recent, now_ms) * (self.ingest_s + self.stop_s)

    def _rate(self, rows: Rows, recent: Floats, now_ms: int) -> Floats:
        """Impressions a second while served, of which an ad group that was stopped has had less."""
        served = np.maximum(self._served(rows, now_ms), _LEAST_SERVED)
        return np.asarray(recent[:, _RATE_CONSTANT] / (TIME_CONSTANTS_S[_RATE_CONSTANT] * served))

    def _served(self, rows: Rows, now_ms: int) -> Floats:
        """The share of the smoothing's time that each was served."""
        serving = self.serving
        serving.reserve(rows)
        passed_s = np.maximum(0.0, now_ms - serving.as_of_ms[rows]) / 1_000.0
        kept = np.exp(-passed_s / TIME_CONSTANTS_S[_RATE_CONSTANT])
        return np.asarray(serving.mean[rows] * kept + serving.now[rows] * (1.0 - kept))

    def unit_nanos(self, rows: Rows, basis: Rows, campaign: Rows) -> Floats:
        """What an impression of each ad group brings on average now; 0 before anything was
        billed."""
        response = np.where(basis == CPM, 1.0, self._response(rows, basis, campaign))
        return np.asarray(response * self.price_nanos(rows))

    def unit_error(self, rows: Rows) -> Floats:
        """The relative standard error of that, by the events behind it."""
        self.groups.reserve(rows)
        billable, offers = (
            np.maximum(1.0, column[rows]) for column in (self.groups.billable, self.groups.offers)
        )
        return np.asarray(np.sqrt(1.0 / billable + _OFFER_SPREAD**2 / offers))

    def _recent(self, rows: Rows, now_ms: int) -> Floats:
        self.groups.reserve(rows)
        passed_s = np.maximum(0.0, now_ms - self.groups.at_ms[rows]) / 1_000.0
        return self._delays.decayed(self.groups.recent[rows], passed_s)

    def _response(self, rows: Rows, basis: Rows, campaign: Rows) -> Floats:
        """Billable actions an impression, shrunken."""
        prior = self._basis[basis, 1] / self._basis[basis, 0]
        for columns, at in ((self.campaigns, campaign), (self.groups, rows)):
            prior = (columns.actions[at] + _PRIOR_BILLABLE) / (
                columns.impressions[at] + _PRIOR_BILLABLE / prior
            )
        return np.asarray(prior)
