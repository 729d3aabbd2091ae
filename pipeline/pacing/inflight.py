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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.pacing import inflight_rows
from pipeline.pacing.columns import Columns
from pipeline.pacing.delays import DelayMixture
from pipeline.pacing.inflight_rows import TIME_CONSTANTS_S
from pipeline.pacing.observed import Seen

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

LONGEST_DELAY_MS: Final = 60_000.0
"""Ingest delays count up to here: a longer one is an outage, and the billing lag's business."""
_OFFER_SPREAD: Final = 0.6
"""Standard deviation of single prices over their mean."""
_PRIOR_CURVE: Final = np.array([0.1, 0.3, 0.4, 0.18, 0.02, 0.0001])
"""Before anything is known: most actions follow within a minute."""
_PRIOR_CURVE_ACTIONS: Final = 10.0
_FULL_CURVE: Final = 5_000.0
_ALL_KINDS: Final = np.arange(4)
"""Bases, each with a delay curve of its own."""
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
        self._basis = np.full((len(_ALL_KINDS), 2), [1_000.0, 20.0])
        """Impressions and actions by basis: before anything is known, 2 % act."""
        self._delays = DelayMixture(
            TIME_CONSTANTS_S, _PRIOR_CURVE, _PRIOR_CURVE_ACTIONS, _FULL_CURVE, kinds=len(_ALL_KINDS)
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
        size = len(rows)
        fallen, response = np.empty(size, dtype=np.int64), np.empty(size)
        faded = np.empty((size, len(TIME_CONSTANTS_S)))
        passed_s = np.empty(size)
        inflight_rows.times_passed_s(self.groups.rows, rows, seen.now_ms, passed_s)
        kept = (
            inflight_rows.slower_decays(passed_s),
            inflight_rows.slower_decays(seen.mean_age_ms / 1_000.0),
            np.exp(seen.impressions / -inflight_rows.NEWEST_OFFERS),
        )
        found = inflight_rows.learn(
            self.groups.rows,
            self.campaigns.rows,
            self._basis,
            rows,
            basis,
            campaign,
            seen.now_ms,
            (seen.impressions, seen.billable, seen.value_nanos, seen.offered_nanos),
            kept,
            fallen,
            response,
            faded,
            np.empty(1),
        )
        if found:
            # What comes now is all late: compare it with what each constant made expect.
            at = fallen[:found]
            self._delays.learn(basis[at], faded[:found], seen.billable[at], response[:found])
        since_ms = min(seen.now_ms - self._turn_ms, 2 * LONGEST_DELAY_MS)
        self._turn_ms = seen.now_ms
        self._learn_delay(seen, since_ms)
        self._follow_stops(seen, since_ms)

    def note_serving(self, rows: Rows, serves: npt.NDArray[np.bool_], now_ms: int) -> None:
        """From now on ad servers serve these ad groups, or do not."""
        self.serving.reserve(rows)
        inflight_rows.note_serving(self.serving.rows, rows, serves, now_ms)

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

    def offered_nanos(self, rows: Rows) -> Floats:
        """Mean price that the newest impressions were won at; 0 where none says one."""
        self.groups.reserve(rows)
        found = np.empty(len(rows))
        inflight_rows.offered_nanos(self.groups.rows, rows, found)
        return found

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
        self._reserve(rows)
        found = np.empty(len(rows))
        inflight_rows.rates(self.groups.rows, self.serving.rows, rows, now_ms, found)
        return found

    def price_nanos(self, rows: Rows) -> Floats:
        """What a billable event of each ad group costs now; 0 where nothing was seen.

        The price of what was billed, moved as the prices of impressions have moved since; before
        anything was billed, what impressions are won at.
        """
        self.groups.reserve(rows)
        found = np.empty(len(rows))
        inflight_rows.prices_nanos(self.groups.rows, rows, found)
        return found

    def predict(self, rows: Rows, basis: Rows, campaign: Rows, now_ms: int) -> Inflight:
        """What would still come of each ad group if it were paused now."""
        found = np.empty((4, len(rows)))
        asked = rows, basis, campaign
        self._foretell(inflight_rows.predict, asked, now_ms, found)
        return Inflight(*found)

    def late_nanos(self, rows: Rows, basis: Rows, campaign: Rows, now_ms: int) -> Floats:
        """Shape (n, time constants): what of that is of clicks or engagements, by the constant
        that they follow with; 0 for CPM."""
        found = np.empty((len(rows), len(TIME_CONSTANTS_S)))
        asked = rows, basis, campaign
        self._foretell(inflight_rows.late_nanos, asked, now_ms, found)
        return found

    def _foretell(
        self,
        formula: Callable[..., None],
        asked: tuple[Rows, Rows, Rows],
        now_ms: int,
        found: Floats,
    ) -> None:
        """Fill in what one of `inflight_rows` says of these rows, bases and campaigns."""
        rows, _, campaign = asked
        self._reserve(rows)
        self.campaigns.reserve(campaign)
        formula(
            self.groups.rows,
            self.serving.rows,
            self.campaigns.rows,
            self._basis,
            self._delays.shares(_ALL_KINDS),
            *asked,
            now_ms,
            self.ingest_s + self.stop_s,
            found,
        )

    def _reserve(self, rows: Rows) -> None:
        self.groups.reserve(rows)
        self.serving.reserve(rows)

    def unit_nanos(self, rows: Rows, basis: Rows, campaign: Rows) -> Floats:
        """What an impression of each ad group brings on average now; 0 before anything was
        billed."""
        self.groups.reserve(rows)
        self.campaigns.reserve(campaign)
        found = np.empty(len(rows))
        tables = self.groups.rows, self.campaigns.rows, self._basis
        inflight_rows.units_nanos(*tables, rows, basis, campaign, found)
        return found

    def unit_error(self, rows: Rows) -> Floats:
        """The relative standard error of that, by the events behind it."""
        self.groups.reserve(rows)
        billable, offers = (
            np.maximum(1.0, column[rows]) for column in (self.groups.billable, self.groups.offers)
        )
        return np.asarray(np.sqrt(1.0 / billable + _OFFER_SPREAD**2 / offers))
