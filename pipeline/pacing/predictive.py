"""The predictive policy: stop before the limit by what is inflight, pace evenly where asked.

States and transitions: `pipeline.pacing.serving`. Beside the limits of the plain rule it has
- a reserve before each limit: mean inflight, plus a margin for its uncertainty that never costs
  more than a small share of the limit. What is left when less than most of one billable event's
  price remains is not worth another event: most of it would be free;
- hysteresis: an `inflight` pause is taken back only after a while, where the reserve has become
  clearly smaller than what is left, and no more than a few times an hour;
- a repeated pause where events keep coming in spite of it, ever more seldom: some ad server has
  lost it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.contract.days import iso
from pipeline.contract.pacing_notes import PacingNote
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import MS_PER_DAY
from pipeline.pacing import even, memory, predictive_rows
from pipeline.pacing.columns import Columns
from pipeline.pacing.forecast import Forecasts, Outlook
from pipeline.pacing.inflight import Inflight, InflightModel
from pipeline.pacing.lag import BILLING_LAG
from pipeline.pacing.observed import Facts, Seen, Today
from pipeline.pacing.serving import (
    LIMIT_FREE,
    LIMIT_REACHED,
    LimitUse,
    Standing,
    is_paused_for,
    pause,
    reached_limit,
    serving,
)
from pipeline.pacing.settling import Settlements
from pipeline.pacing.target_cpi import Estimate, InstallRates

Rows = npt.NDArray[np.int64]
Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

INFLIGHT: Final = "inflight"
INFLIGHT_SMALLER: Final = "inflight_smaller"
EVEN_PACING: Final = "even_pacing"

NEVER: Final = float(2**62)


@dataclass(frozen=True, slots=True)
class Tuning:
    """The policy's constants; docs/pacing.md tells what each was chosen by."""

    margin_deviations: float = 2.5
    """How many standard deviations of inflight the margin covers ..."""
    margin_share: float = 0.005
    """... but no more than this share of the limit."""
    last_piece: float = 0.9
    """Stop where less than this share of one billable event's price is left ..."""
    last_piece_share: float = 0.02
    """... and that is no more than this share of the limit."""
    resume_room: float = 1.5
    """Resume where what is left is at least this many times the reserve ..."""
    resume_after_ms: int = 60_000
    """... and no sooner than this after the pause."""
    resumes_an_hour: int = 3
    look_ms: int = 30_000
    """How often what inflight has stopped is looked at again."""
    even_look_ms: int = 150_000
    """How often evenly paced ones are."""
    even_apart_ms: int = 900_000
    """Least time between two throttles of an ad group, unless the need is plain."""
    again_first_ms: int = 5_000
    again_stops: float = 3.0
    """A pause is sent again where events are served this many usual pause-to-stops (and no less
    than that time) after it; doubled each time."""
    settle_ms: int = 900_000
    """How long after a pause its inflight is compared with what came, if it is not served again
    sooner."""


_PAUSED: Final = {
    "paused_at_ms": (0, 0.0),
    "again_ms": (0, 0.0),
    "served_at_ms": (0, 0.0),
    "probability": (0, 1.0),
}
"""When an entity was paused, how long after that serving makes the pause be sent again (0: it is
not paused), when it was last served, and the probability that its last signal says."""


class Predictive:
    """Inflight, even pacing and forecasts over columns by ad group. See the module."""

    predicts = True

    def __init__(self, tuning: Tuning | None = None) -> None:
        self.tuning = tuning or Tuning()
        self.model = InflightModel()
        self.forecasts = Forecasts()
        self.installs = InstallRates()
        self._settlements = Settlements(self.model, self.tuning.settle_ms)
        self._groups = Columns(
            basis=(0, 0.0),
            campaign=(0, -1.0),
            even=(0, 0.0),
            throttled_at_ms=(0, 0.0),
            resumed_ms=(self.tuning.resumes_an_hour, 0.0),
            active=(0, 1.0),
            **_PAUSED,
        )
        self._campaigns = Columns(resumed_ms=(self.tuning.resumes_an_hour, 0.0), **_PAUSED)
        """`resumed_ms`: when inflight pauses were last taken back."""
        self._campaign_groups: dict[int, list[int]] = {}
        self._looks = {level: Columns(next_ms=(0, NEVER)) for level in ("ad_group", "campaign")}
        """When each is to be reviewed whatever happens. Apart: looked through as a whole."""
        self._next_look_ms = NEVER
        self._lines: dict[int, tuple[int, even.Line]] = {}
        """Row -> billing day and the plan of it, where pacing is even."""
        self._last_prediction: tuple[tuple[str, bytes, int], Inflight] | None = None
        self._changed: dict[int, float] = {}
        """Ad groups that are served otherwise since this turn, and the probabilities before."""
        self._paused: list[int] = []
        """Those that it pauses, those of paused campaigns among them ..."""
        self._expected: list[tuple[Standing, str]] = []
        """... and without them, with their billing days."""
        self._notes: list[tuple[int, PacingNote]] = []

    # -- learning -----------------------------------------------------------------------------

    def observe(self, seen: Seen, facts: Facts, today: Today) -> None:
        rows = seen.group
        self._last_prediction = None
        probability = self._note(rows, facts, seen.last_impression_ms)
        if len(rows):
            self.model.observe(seen, facts.basis, facts.campaign)
            self.installs.observe(seen, facts.campaign)
            self._look_at(seen, facts)
        unit = self.model.unit_nanos(rows, facts.basis, facts.campaign)
        self.forecasts.observe(seen, facts, today, probability, unit)
        due = self.forecasts.feed_due(seen.now_ms)
        if len(due):
            self.forecasts.feed(due, self._probabilities(due), seen.now_ms)
        self._settlements.observe(seen)

    def _note(self, rows: Rows, facts: Facts, served_at_ms: Int64s) -> Floats:
        """Take over what the catalog says of them and when they were last served; what each is
        served with."""
        self._groups.reserve(rows)
        self._campaigns.reserve(facts.campaign)
        moved, probability = np.empty(len(rows), dtype=np.int64), np.empty(len(rows))
        found = predictive_rows.note(
            self._groups.rows,
            self._campaigns.rows,
            rows,
            (facts.basis, facts.campaign, facts.is_even),
            served_at_ms,
            moved,
            probability,
        )
        for at in moved[:found].tolist():
            self._campaign_groups.setdefault(int(facts.campaign[at]), []).append(int(rows[at]))
        return probability

    def _probabilities(self, rows: Rows) -> Floats:
        self._groups.reserve(rows)
        found = np.empty(len(rows))
        predictive_rows.probabilities(self._groups.rows, self._campaigns.rows, rows, found)
        return found

    def _look_at(self, seen: Seen, facts: Facts) -> None:
        """Evenly paced ad groups are looked after from their first event on; and a paused one
        is looked at where it is still being served."""
        rows, own, above = seen.group, *np.empty((2, len(seen.group)), dtype=np.int64)
        looks = self._looks["ad_group"]
        looks.reserve(rows)
        self._looks["campaign"].reserve(facts.campaign)
        found = predictive_rows.look_at(
            self._groups.rows,
            self._campaigns.rows,
            self.model.groups.rows,
            looks.next_ms,
            NEVER,
            rows,
            facts.campaign,
            own,
            above,
        )
        for level, some in (("ad_group", own[: found[0]]), ("campaign", above[: found[1]])):
            for row in some.tolist():
                self._look_later(level, row, seen.now_ms)

    def _look_later(self, level: str, row: int, at_ms: float) -> None:
        self._looks[level].next_ms[row] = at_ms
        self._next_look_ms = min(self._next_look_ms, at_ms)

    def _of_level(self, level: str) -> Columns:
        return self._groups if level == "ad_group" else self._campaigns

    # -- predictions --------------------------------------------------------------------------

    def inflight(self, level: str, rows: Rows, now_ms: int) -> Int64s:
        return self._predict(level, rows, now_ms).mean.astype(np.int64)

    def reserve(self, level: str, rows: Rows, now_ms: int, limit_nanos: Int64s) -> Int64s:
        return self._reserve(self._predict(level, rows, now_ms), limit_nanos).astype(np.int64)

    def _reserve(self, inflight: Inflight, limit_nanos: Int64s) -> Floats:
        tuning = self.tuning
        # One more event may always be on its way: the margin is never that of nothing at all.
        deviation = np.sqrt(inflight.variance + inflight.if_served * inflight.price)
        margin = np.minimum(tuning.margin_deviations * deviation, tuning.margin_share * limit_nanos)
        piece = np.minimum(
            tuning.last_piece * inflight.price, tuning.last_piece_share * limit_nanos
        )
        return np.asarray(np.maximum(inflight.if_served + margin, piece))

    def _predict(self, level: str, rows: Rows, now_ms: int) -> Inflight:
        # A review asks several times in a row of the same entities.
        asked = (level, rows.tobytes(), now_ms)
        if self._last_prediction is None or self._last_prediction[0] != asked:
            self._last_prediction = asked, self._predict_anew(level, rows, now_ms)
        return self._last_prediction[1]

    def _predict_anew(self, level: str, rows: Rows, now_ms: int) -> Inflight:
        if level == "ad_group":
            return self._of_groups(rows, now_ms)
        members = [self._campaign_groups.get(row, []) for row in rows.tolist()]
        sizes = [len(of_campaign) for of_campaign in members]
        flat = np.array([row for of_campaign in members for row in of_campaign], dtype=np.int64)
        each = self._of_groups(flat, now_ms)
        at = np.repeat(np.arange(len(rows)), sizes)
        price = np.zeros(len(rows))
        np.maximum.at(price, at, each.price)
        mean, if_served, variance = (
            np.bincount(at, values, len(rows)).astype(np.float64)
            for values in (each.mean, each.if_served, each.variance)
        )
        return Inflight(mean, if_served, variance, price)

    def _of_groups(self, rows: Rows, now_ms: int) -> Inflight:
        return self.model.predict(rows, *self._of_catalog(rows), now_ms)

    def _of_catalog(self, rows: Rows) -> tuple[Rows, Rows]:
        """The basis and the row of the campaign of each."""
        self._groups.reserve(rows)
        basis = self._groups.basis[rows].astype(np.int64)
        return basis, np.maximum(0, self._groups.campaign[rows].astype(np.int64))

    def exhaustion(self, rows: Rows, room_nanos: Int64s, now_ms: int) -> Int64s:
        self._groups.reserve(rows)
        own, campaign = room_nanos.astype(np.float64)
        asked = Outlook(
            rows=rows,
            own_nanos=own,
            campaign_nanos=campaign,
            campaign=self._groups.campaign[rows].astype(np.int64),
            probability=self._probabilities(rows),
            event_nanos=self.model.price_nanos(rows),
            offered_nanos=self.model.offered_nanos(rows),
            unit_error=self.model.unit_error(rows),
            plan_share=self._plan_share(rows),
        )
        return self.forecasts.exhaustion(asked, now_ms)

    def _plan_share(self, rows: Rows) -> Floats:
        """By when even pacing reaches these limits: an ad group's own of a day; 0 where it does
        not."""
        lines = [self._lines.get(row) for row in rows.tolist()]
        shares = np.array([0.0 if line is None else line[1].to_share for line in lines])
        return np.where(self._groups.even[rows] > 0, shares, 0.0)

    # -- what is due --------------------------------------------------------------------------

    def is_due(self, now_ms: int) -> bool:
        return self._next_look_ms <= now_ms

    def due(self, level: str, now_ms: int) -> Rows:
        if self._next_look_ms > now_ms:
            return np.empty(0, dtype=np.int64)
        looks = self._looks[level].next_ms
        rows = np.flatnonzero(looks <= now_ms)
        looks[rows] = NEVER
        both = self._looks.values()
        self._next_look_ms = min(float(of.next_ms.min(initial=NEVER)) for of in both)
        return rows

    # -- serving ------------------------------------------------------------------------------

    def review(self, standing: Standing, now_ms: int) -> Signal | None:
        for of_level in (self._of_level(standing.level), self._looks[standing.level]):
            of_level.reserve(np.array([standing.row]))
        signal = self._decide(standing, now_ms)
        newest = signal or standing.last
        stopped = newest is not None and newest.action == "pause"
        if stopped and self._may_resume(standing):
            self._look_later(standing.level, standing.row, now_ms + self.tuning.look_ms)
        elif standing.is_even:
            self._look_later(standing.level, standing.row, now_ms + self.tuning.even_look_ms)
        if signal is not None:
            self._note_signal(standing, signal, now_ms)
        return signal

    def _decide(self, standing: Standing, now_ms: int) -> Signal | None:
        stopping = reached_limit(standing)
        reason = LIMIT_REACHED
        if stopping is None:
            stopping = next((use for use in standing.uses if _is_near(use)), None)
            reason = INFLIGHT
        if stopping is not None:
            if is_paused_for(standing, stopping, reason):
                return self._again(standing, now_ms)
            return pause(standing, stopping, now_ms, reason)
        last = standing.last
        if last is not None and last.action == "pause":
            return self._resume(standing, last, now_ms)
        if standing.is_even:
            return self._pace(standing, now_ms)
        if last is None or last.serve_probability >= 1.0 or last.reason == BILLING_LAG:
            return None  # the lag's throttle ends with the lag
        return serving(standing, now_ms, LIMIT_FREE, 1.0)

    def _may_resume(self, standing: Standing) -> bool:
        """Whether time alone may free what is stopped: inflight that turns out smaller."""
        return reached_limit(standing) is None

    def _resume(self, standing: Standing, last: Signal, now_ms: int) -> Signal | None:
        """Serve again: at once where a limit has moved, with hysteresis after an inflight pause."""
        tuning = self.tuning
        reason = LIMIT_FREE
        same_day = last.billing_day == iso(standing.billing_day)
        if last.reason == INFLIGHT and same_day and _same_limit(standing, last):
            room = min(use.limit_nanos - use.spend_nanos for use in standing.uses)
            reserve = max(use.reserve_nanos for use in standing.uses)
            early = now_ms - last.decided_at_ms < tuning.resume_after_ms
            if early or room < tuning.resume_room * reserve or not self._allowed(standing, now_ms):
                return None
            reason = INFLIGHT_SMALLER
        probability = 1.0
        if standing.is_even:
            probability = self._wanted(standing, now_ms)
        return serving(standing, now_ms, reason, probability)

    def _allowed(self, standing: Standing, now_ms: int) -> bool:
        """The bound on resumes an hour, so that serving never flaps."""
        times = self._of_level(standing.level).resumed_ms[standing.row]
        oldest = int(times.argmin())
        if now_ms - times[oldest] < MS_PER_DAY // 24:
            return False
        times[oldest] = now_ms
        return True

    def _again(self, standing: Standing, now_ms: int) -> Signal | None:
        """The same pause once more, where ad servers have gone on long after it."""
        of_level, row = self._of_level(standing.level), standing.row
        times = of_level.again_ms[row], of_level.paused_at_ms[row], of_level.served_at_ms[row]
        if standing.last is None or not predictive_rows.is_served_on(*times):
            return None
        use = next(use for use in standing.uses if use.limit == standing.last.limit)
        return pause(standing, use, now_ms, standing.last.reason)

    def _note_signal(self, standing: Standing, signal: Signal, now_ms: int) -> None:
        row, groups = standing.row, self._groups
        if not standing.is_ad_group:
            members = self._campaign_groups.get(row, [])
            self._note_change(np.array(members, dtype=np.int64))
            self._campaigns.probability[row] = signal.serve_probability
            if self._is_first_pause(self._campaigns, row, signal, now_ms):
                self._paused += members
                for member in members:
                    if groups.probability[member] > 0 and groups.active[member]:
                        self.forecasts.ran_out(member, now_ms)
            return
        self._note_change(np.array([row]))
        groups.probability[row] = signal.serve_probability
        first = self._is_first_pause(groups, row, signal, now_ms)
        if signal.action != "pause":
            groups.throttled_at_ms[row] = now_ms
            self._settlements.serves_again(row, now_ms)
        if first:
            self._paused.append(row)
            self._expected.append((standing, signal.billing_day))
            self.forecasts.ran_out(row, now_ms)

    def note_active(self, rows: Rows, active: npt.NDArray[np.bool_]) -> None:
        self._groups.reserve(rows)
        changed = self._groups.active[rows] != active
        self._note_change(rows[changed])
        self._groups.active[rows] = active

    def _note_change(self, rows: Rows) -> None:
        """These are about to be served otherwise."""
        before = self._probabilities(rows).tolist()
        for row, probability in zip(rows.tolist(), before, strict=True):
            self._changed.setdefault(row, probability)

    def end_reviews(self, now_ms: int) -> None:
        # What is learned of the signals costs as much for one as for all.
        changed = np.array(list(self._changed), dtype=np.int64)
        if len(changed):
            before = np.array(list(self._changed.values()))
            self.forecasts.note_changes(changed, now_ms, before)
        if self._paused:
            self.model.note_pauses(np.array(self._paused), now_ms)
        if self._expected:
            paused = np.array([standing.row for standing, _ in self._expected])
            self._settlements.expect(self._expected, *self._of_catalog(paused), now_ms)
        if len(changed):
            self.model.note_serving(changed, self._probabilities(changed) > 0, now_ms)
        self._changed, self._paused, self._expected = {}, [], []

    def _is_first_pause(self, of_level: Columns, row: int, signal: Signal, now_ms: int) -> bool:
        """Whether serving ends with this signal; how long to wait until it is sent again."""
        if signal.action != "pause":
            of_level.again_ms[row] = 0.0
            return False
        first = bool(of_level.again_ms[row] <= 0)
        usual_ms = self.tuning.again_stops * 1_000 * self.model.stop_s
        patience_ms = max(self.tuning.again_first_ms, usual_ms)
        of_level.again_ms[row] = patience_ms if first else of_level.again_ms[row] * 2
        if first:
            of_level.paused_at_ms[row] = now_ms
        return first

    # -- even pacing --------------------------------------------------------------------------

    def _pace(self, standing: Standing, now_ms: int) -> Signal | None:
        row = standing.row
        if not (standing.is_alive and self._probabilities(np.array([row]))[0]):
            return None  # it is not served, whatever it is told
        current = 1.0 if standing.last is None else standing.last.serve_probability
        since_ms = now_ms - float(self._groups.throttled_at_ms[row])
        wanted = self._wanted(standing, now_ms)
        at = np.array([row])
        known = self.forecasts.potential.relative_error(at)[0]
        error = float(np.hypot(known, self.model.unit_error(at)[0]))
        if since_ms < self.tuning.even_apart_ms and 0.5 < wanted / max(current, 1e-9) < 2.0:
            return None
        left = min(1 - use.spend_nanos / max(1, use.limit_nanos) for use in standing.uses)
        probability = even.next_probability(current, wanted, error, left, float(known))
        if probability is None:
            return None
        return serving(standing, now_ms, EVEN_PACING, probability)

    def _wanted(self, standing: Standing, now_ms: int) -> float:
        uses = [use for use in standing.uses if use.limit.startswith("ad_group")]
        if not uses:
            return 1.0
        use = min(uses, key=lambda use: use.limit_nanos - use.spend_nanos)
        left = use.limit_nanos - use.spend_nanos - use.inflight_nanos
        probability = float(self._probabilities(np.array([standing.row]))[0])
        self.forecasts.catch_up(standing.row, now_ms, probability)
        end_ms = standing.day_end_ms
        if standing.ends_ms:
            end_ms = min(end_ms, standing.ends_ms)
        share, end_share = self.forecasts.shares_gone(standing.row, now_ms, end_ms)
        to_come = max(0.0, end_share - share)
        # What is to come is judged by the prices to come: it may be worth much less than now.
        offered = float(self.model.offered_nanos(np.array([standing.row]))[0])
        worth = to_come * self.forecasts.price_to_come(standing.row, now_ms, end_ms, offered)
        potential = self.forecasts.potential
        if use.limit == "ad_group_daily":
            wanted = self._along_the_line(standing, use, share, end_share, worth)
        else:
            if standing.ends_ms > standing.day_end_ms:
                days = (standing.ends_ms - standing.day_end_ms) / MS_PER_DAY
                worth += days * self.forecasts.usual_price(standing.row, offered)
            budget = even.Budget(left, worth)
            wanted = even.wanted_probability(budget, potential.nanos_per_day(standing.row))
        if potential.is_known(standing.row):
            return wanted
        # A pause says nothing of how much is to be served after it.
        current = standing.last.serve_probability if standing.last else 0.0
        return max(wanted, min(current or 1.0, even.FIRST_PROBABILITY))

    def _along_the_line(
        self,
        standing: Standing,
        use: LimitUse,
        share: float,
        end_share: float,
        worth_to_come: float,
    ) -> float:
        row, spend, limit = standing.row, float(use.spend_nanos), float(use.limit_nanos)
        day, line = self._lines.get(row, (0, None))
        if day != standing.billing_day:
            # A day that has just begun is planned from its beginning.
            line = even.Line(0.0, 0.0, limit)
        price = float(self.model.price_nanos(np.array([row]))[0])
        to_share = end_share - even.end_early(limit, price)
        if line is not None:
            line = replace(line, to_share=to_share)
        if line is None or not line.holds(share, spend, limit, price):
            line = even.Line(share, spend, limit, to_share)
        self._lines[row] = standing.billing_day, line
        nanos = spend + use.inflight_nanos
        ahead = even.look_ahead(limit, price)
        potential = self.forecasts.potential.nanos_per_day(row)
        wanted = even.probability_along(line, share, nanos, potential, ahead)
        budget = even.Budget(limit - nanos, worth_to_come)
        known = float(self.forecasts.potential.relative_error(np.array([row]))[0])
        return even.with_scarce_traffic(wanted, budget, potential, known)

    # -- target CPI ---------------------------------------------------------------------------

    def estimate_installs(self, row: int, campaign: int, now_ms: int) -> Estimate | None:
        return self.installs.estimate(row, campaign, now_ms)

    def note_bid(
        self,
        entity: str,
        row: int,
        campaign: int,
        billing_day: int,
        estimate: Estimate,
        now_ms: int,
    ) -> None:
        made = self.installs.decided(entity, row, campaign, billing_day, estimate, now_ms)
        self._notes += [(row, note) for note in made]

    # -- ownership ----------------------------------------------------------------------------

    def note_recalled(self, rows: Rows, facts: Facts) -> None:
        # A campaign's reserve is that of its ad groups: known before any of them is seen again.
        self.model.groups.reserve(rows)
        known = np.flatnonzero(self.model.groups.known[rows] > 0)
        of_known = (getattr(facts, of.name)[known] for of in fields(Facts))
        not_served = np.zeros(len(known), dtype=np.int64)
        self._note(rows[known], Facts(*of_known), not_served)

    def note_standing(self, level: str, row: int, signal: Signal) -> None:
        at, of_level = np.array([row]), self._of_level(level)
        for columns in (of_level, self._looks[level]):
            columns.reserve(at)
        of_level.probability[row] = signal.serve_probability
        if level == "ad_group" or signal.action == "pause":
            self._look_later(level, row, 0.0)
        if level != "ad_group":
            return
        serves = np.array([signal.serve_probability > 0])
        self.model.note_serving(at, serves, signal.decided_at_ms)

    def remember(
        self, groups: tuple[Rows, Sequence[str]], campaigns: tuple[Rows, Sequence[str]]
    ) -> bytes:
        rows, names = groups
        if len(rows) > memory.MOST_GROUPS:
            self.model.groups.reserve(rows)
            most = np.sort(np.argsort(-self.model.groups.known[rows])[: memory.MOST_GROUPS])
            rows, names = rows[most], [names[at] for at in most.tolist()]
        return memory.remember(self._columns(), self._common(), (rows, names), campaigns)

    def recall(
        self,
        learned: bytes,
        group_row: Callable[[str], int],
        campaign_row: Callable[[str], int],
    ) -> bool:
        # What holds for all ad groups is taken from one shard, and only before this worker has
        # seen anything itself.
        common = self._common() if self.model.is_new else {}
        return memory.recall(learned, self._columns(), common, group_row, campaign_row)

    def _columns(self) -> dict[str, Columns]:
        return {
            "inflight": self.model.groups,
            "campaigns_inflight": self.model.campaigns,
            "traffic": self.forecasts.traffic.groups,
            "potential": self.forecasts.potential.groups,
            "prices": self.forecasts.prices.groups,
            "installs": self.installs.groups,
            "campaigns_installs": self.installs.campaigns,
        }

    def _common(self) -> dict[str, Floats]:
        others = {
            "price_errors": self.forecasts.prices.errors,
            "installs_came": self.installs.delays.came,
            "installs_expected": self.installs.delays.expected,
        }
        return self.model.common() | self.forecasts.traffic.common() | others

    def forecasts_due(self, now_ms: int) -> Rows:
        return self.forecasts.due(now_ms)

    def record(self, rows: Rows, names: list[str], predicted: Int64s, now_ms: int) -> None:
        is_active = self._groups.active[rows] > 0
        # One that its advertiser has stopped will not run out, however much has been foretold.
        predicted = np.where(is_active, predicted, 0)
        has_run_out = is_active & (self._probabilities(rows) <= 0)
        self.forecasts.record(rows, names, predicted, has_run_out, now_ms)

    def take_notes(self) -> list[tuple[int, PacingNote]]:
        notes, self._notes = self._notes, []
        return notes + self._settlements.take_notes() + self.forecasts.take_notes()

    def forget(self, groups: Rows, campaigns: Rows) -> None:
        self._last_prediction = None
        for level, gone in (("ad_group", groups), ("campaign", campaigns)):
            self._of_level(level).clear(gone)
            self._looks[level].clear(gone)
        self.model.forget(groups)
        self.forecasts.forget(groups)
        for group in groups.tolist():
            self._lines.pop(group, None)
        self.installs.forget(groups, campaigns)
        for campaign in campaigns.tolist():
            self._campaign_groups.pop(campaign, None)
        self._settlements.forget(groups)


def _is_near(use: LimitUse) -> bool:
    return use.reserve_nanos > 0 and use.spend_nanos + use.reserve_nanos >= use.limit_nanos


def _same_limit(standing: Standing, last: Signal) -> bool:
    """Whether the limit that stopped it still has the same bound."""
    return any(
        use.limit == last.limit and use.limit_nanos == last.limit_nanos for use in standing.uses
    )


def warm_up() -> None:
    """Compile what a turn needs, or load it, before the first one waits for it."""
    policy, row, one, day = Predictive(), np.zeros(1, np.int64), np.ones(1), np.arange(1)
    seen = Seen(1, row, one, one, row, one, one, one, one, one, one)
    facts = Facts(basis=row, campaign=row, zone=row, is_even=row > 0)
    policy.observe(seen, facts, Today(day=day, start_ms=day, end_ms=day + MS_PER_DAY))
    policy.reserve("ad_group", row, 1, row)
    policy.exhaustion(row, np.ones((2, 1), np.int64), 1)
    policy.model.late_nanos(row, row, row, 1)
    policy.model.impressions_per_s(row, 1)
    policy.model.note_serving(row, row > 0, 1)
    policy.forecasts.traffic.observe(row, row, row, one, one)
    policy.forecasts.traffic.shapes(row, 0)
    policy.forecasts.prices.coming(row, row, one)
    policy.forecasts.prices.usual(row, one)
    predictive_rows.is_served_on(*np.ones(3))
