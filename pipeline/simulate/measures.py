"""What the bench measures of a run: money given away and left unspent, evenness, signals, delays.

Days are the billing days of each ad group's own account. A day counts where it lies whole within
the simulated time after the warm-up.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.billing.decide import Outcome
from pipeline.contract.pacing_notes import PacingNote
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import (
    IMPRESSION,
    MS_PER_DAY,
    OVER_BUDGET,
)
from pipeline.simulate.market import BILLED_KINDS, Demand, Market
from pipeline.streams.engine import Engine

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

BIN_MS: Final = 600_000
BINS: Final = MS_PER_DAY // BIN_MS
_HOUR_MS: Final = 3_600_000
_FORECAST_EVERY_MS: Final = 300_000
_UNBOUNDED: Final = 2.0**62


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one run. Shares are of the limits unless they say otherwise."""

    overdelivery: float
    """Free value over limits, all ad groups and days together."""
    utilisation: float
    """Spend over min(limit, demand), together; of ad groups with a daily budget."""
    unevenness: float
    """Mean absolute deviation of the cumulative spend from the target curve, share of budget;
    of ad groups with a daily budget that demand could use up."""
    used_where_demand: float
    """Spend over budget of those same ad groups."""
    signals_median: float
    """Signals of an ad group in a day."""
    signals_most: int
    stop_s_median: float
    """Seconds from the limit (or the pause before it) to the last impression served."""
    stop_s_p95: float
    ran_out: int
    """Ad group days that ran out and had a forecast an hour ahead."""
    forecast_hit: float
    """Of these, the share whose forecast was within ten minutes."""
    recorded_hit: float
    """The same of the forecast last recorded an hour before: what the tables showed then."""
    inside_interval: float
    """Of these, the share that ran out within the forecast's interval of 80 %."""
    informed_hit: float
    """The same of one who knows the true traffic and response of every hour and the prices of
    this one: what prices that move and chance leave to be foretold, where nothing is throttled."""
    oracle_hit: float
    """The same of one who knows the coming prices too: what chance alone leaves."""
    lost_signals: int
    days: int
    """Ad group days measured."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(slots=True)
class Recorder:
    """Follows a run; arrays are by ad group, then local day, then bin of the day."""

    market: Market
    engine: Engine
    start_ms: int
    days: int
    curve_nanos: Floats = field(init=False)
    """Spend by group, day and bin of event time."""
    free_nanos: Floats = field(init=False)
    demand_nanos: Floats = field(init=False)
    signals: Int64s = field(init=False)
    first_stop_ms: Int64s = field(init=False)
    stop_ms: Int64s = field(init=False)
    """The last pause of the day that ended serving; one that only repeats it does not count."""
    last_served_ms: Int64s = field(init=False)
    _last_action: dict[int, str] = field(default_factory=dict)
    forecasts: dict[tuple[int, int], list[tuple[int, ...]]] = field(default_factory=dict)
    """(group, day) -> (made at, predicted exhaustion or 0, earliest, latest, the informed one's,
    the oracle's)."""
    recorded: dict[tuple[int, int], list[tuple[int, int]]] = field(default_factory=dict)
    """(group, day) -> (made at, predicted exhaustion or 0) of what was put on record."""
    _expected: Floats = field(init=False)
    """Shape (2, groups, hours + 1): expected impressions, and value, of all traffic up to each
    hour."""
    _row_of: Int64s = field(init=False)
    _rows: dict[str, int] = field(init=False)
    _billed: npt.NDArray[np.bool_] = field(init=False)
    _next_forecast_ms: int = 0
    _engine_rows: Int64s = field(init=False)
    _campaign_rows: Int64s = field(init=False)

    def __post_init__(self) -> None:
        groups = len(self.market.group_ids)
        shape = (groups, self.days + 1)
        self.curve_nanos = np.zeros((*shape, BINS))
        self.demand_nanos = np.zeros(shape)
        self.free_nanos = np.zeros(shape)
        self.signals = np.zeros(shape, dtype=np.int64)
        self.first_stop_ms = np.zeros(shape, dtype=np.int64)
        self.stop_ms = np.zeros(shape, dtype=np.int64)
        self.last_served_ms = np.zeros(shape, dtype=np.int64)
        self._expected = self._expected_traffic()
        terms = self.engine.terms
        self._engine_rows = np.array(
            [terms.group_row(name) for name in self.market.group_ids], dtype=np.int64
        )
        self._campaign_rows = terms.group.campaign[self._engine_rows].astype(np.int64)
        self._row_of = np.full(len(terms.group_ids), -1, dtype=np.int64)
        self._row_of[self._engine_rows] = np.arange(groups)
        self._rows = {f"ad_group:{name}": row for row, name in enumerate(self.market.group_ids)}
        self._billed = np.zeros((groups, 6), dtype=np.bool_)
        for row, objective in enumerate(self.market.objective):
            self._billed[row, list(BILLED_KINDS[objective])] = True

    # -- while it runs ------------------------------------------------------------------------

    def note_demand(self, demand: Demand) -> None:
        """What could have been spent in a minute without any limit."""
        group = demand.group
        impressions = self._billed[group, IMPRESSION]
        actions = self._billed[group, demand.action] & (demand.action > 0)
        nanos = np.where(impressions, demand.price_micros, 0)
        nanos = nanos + np.where(actions, demand.price_micros * 1_000, 0)
        time_ms = demand.time_ms + np.where(actions, demand.action_delay_ms, 0)
        day = self._slot(group, time_ms)
        np.add.at(self.demand_nanos, (group, day), nanos)

    def note_served(self, group: Int64s, time_ms: Int64s) -> None:
        """Impressions that ad servers let through."""
        day = self._slot(group, time_ms)
        np.maximum.at(self.last_served_ms, (group, day), time_ms)

    def note_outcome(self, outcome: Outcome, now_ms: int) -> None:
        """What the engine made of a batch."""
        rows = np.flatnonzero(outcome.disposition >= OVER_BUDGET)
        group = self._row_of[outcome.group[rows]]
        time_ms = outcome.batch.event_time_ms[rows]
        day = self._slot(group, time_ms)
        local = time_ms + self.market.utc_offset_ms[group]
        bins = local % MS_PER_DAY // BIN_MS
        np.add.at(self.curve_nanos, (group, day, bins), outcome.amount_nanos[rows])
        np.add.at(self.free_nanos, (group, day), outcome.free_nanos[rows])
        if now_ms >= self._next_forecast_ms:
            self._next_forecast_ms = now_ms + _FORECAST_EVERY_MS
            self._note_forecasts(now_ms)

    def note_signal(self, signal: Signal) -> None:
        """A signal that the engine decided."""
        row = self._rows.get(signal.entity)
        if row is None:
            return
        at = np.array([row])
        day = int(self._day(at, np.array([signal.decided_at_ms]))[0])
        if not 0 <= day <= self.days:
            return
        self.signals[row, day] += 1
        before, self._last_action[row] = self._last_action.get(row, ""), signal.action
        if signal.action == "pause" and before != "pause":
            self.stop_ms[row, day] = signal.decided_at_ms
        if signal.action == "pause" and self.first_stop_ms[row, day] == 0:
            self.first_stop_ms[row, day] = signal.decided_at_ms

    def note_predictions(self, notes: list[PacingNote]) -> None:
        """What pacing put on record in a turn."""
        for note in notes:
            row = self._rows.get(note.entity)
            if row is None or note.kind != "exhaustion" or note.realised_at_ms:
                continue
            day = int(self._day(np.array([row]), np.array([note.made_at_ms]))[0])
            made = self.recorded.setdefault((row, day), [])
            made.append((note.made_at_ms, note.predicted))

    def room_nanos(self, now_ms: int) -> Floats:
        """What each ad group may spend before it is stopped."""
        both = self.engine.room_nanos(self._engine_rows, now_ms, before_stop=True)
        return np.asarray(both.min(axis=0).astype(np.float64))

    def _day(self, group: Int64s, time_ms: Int64s) -> Int64s:
        """Local day of each time, counted from the first simulated UTC day."""
        local = time_ms + self.market.utc_offset_ms[group]
        return local // MS_PER_DAY - self.start_ms // MS_PER_DAY

    def _slot(self, group: Int64s, time_ms: Int64s) -> Int64s:
        """The day's position in the arrays; days outside share the last one, never measured."""
        day = self._day(group, time_ms)
        return np.where((day >= 0) & (day < self.days), day, self.days)

    def _note_forecasts(self, now_ms: int) -> None:
        found = self.engine.predicted_exhaustion_ms(self._engine_rows, now_ms)
        informed, oracle = self._oracles_ms(now_ms)
        days = self._day(np.arange(len(oracle)), np.full(len(oracle), now_ms))
        for row in np.flatnonzero((found[0] > now_ms) | (oracle > now_ms)).tolist():
            made = self.forecasts.setdefault((row, int(days[row])), [])
            made.append((now_ms, *found[:, row].tolist(), int(informed[row]), int(oracle[row])))

    def _expected_traffic(self) -> Floats:
        market, hours = self.market, (self.days + 2) * 24
        expected = np.zeros((2, len(market.group_ids), hours + 1))
        for hour in range(hours):
            at_ms = self.start_ms + hour * _HOUR_MS
            impressions = market.impressions_per_ms(at_ms) * _HOUR_MS
            value = impressions * market.nanos_per_impression_at(at_ms)
            expected[:, :, hour + 1] = expected[:, :, hour] + np.stack((impressions, value))
        return expected

    def _oracles_ms(self, now_ms: int) -> tuple[Int64s, Int64s]:
        """When each ad group will have run out if from now on exactly the expected comes: at the
        prices of this hour, and at those that will be."""
        room = self.engine.room_nanos(self._engine_rows, now_ms, before_stop=False)
        own, campaign = room.astype(np.float64)
        members = self.market.campaign[:, None] == self.market.campaign[None, :]
        impressions, value = self._expected
        found = []
        for expected in (
            impressions * self.market.nanos_per_impression_at(now_ms)[:, None],
            value,
        ):
            together = members.astype(np.float64) @ expected
            of_own = self._reached_ms(expected, own, now_ms)
            of_campaign = self._reached_ms(together, campaign, now_ms)
            found.append(np.minimum(of_own, of_campaign).astype(np.int64))
        return found[0], found[1]

    def _reached_ms(self, expected: Floats, room: Floats, now_ms: int) -> Floats:
        hour = (now_ms - self.start_ms) / _HOUR_MS
        hours = np.arange(expected.shape[1])
        found = [
            np.interp(np.interp(hour, hours, row) + left, row, hours)
            for row, left in zip(expected, room, strict=True)
        ]
        return self.start_ms + np.array(found) * _HOUR_MS

    # -- afterwards ---------------------------------------------------------------------------

    def figures(self, warmup_days: int, lost_signals: int) -> Figures:
        """The figures over all whole local days after the warm-up."""
        whole = np.arange(warmup_days, self.days)
        limits = self._limits(whole)
        demand, free = self.demand_nanos[:, whole], self.free_nanos[:, whole]
        spend = self.curve_nanos[:, whole].sum(axis=2)
        # A lifetime budget has no limit of a day: how much of it a day should use is not defined.
        daily = ~self.market.is_lifetime[:, None]
        could = self._within_campaigns(np.where(daily, np.minimum(limits, demand), 0.0))
        used = self._within_campaigns(np.where(daily, spend, 0.0))
        uneven, used_where = self._evenness(whole)
        stops = self._stop_seconds(whole)
        ran_out, hits = self._forecast_hits(whole)
        signals = self.signals[:, whole]
        return Figures(
            overdelivery=float(free.sum() / self._within_campaigns(limits)),
            utilisation=used / could if could else 1.0,
            unevenness=uneven,
            used_where_demand=used_where,
            signals_median=float(np.median(signals)),
            signals_most=int(signals.max()),
            stop_s_median=float(np.median(stops)) if len(stops) else 0.0,
            stop_s_p95=float(np.quantile(stops, 0.95)) if len(stops) else 0.0,
            ran_out=ran_out,
            forecast_hit=float(hits[0]),
            informed_hit=float(hits[1]),
            oracle_hit=float(hits[2]),
            recorded_hit=float(hits[3]),
            inside_interval=float(hits[4]),
            lost_signals=lost_signals,
            days=int(signals.size),
        )

    def _limits(self, whole: Int64s) -> Floats:
        """The budget of each ad group and day; of a lifetime budget what earlier days left."""
        budget = self.market.budget_micros * 1_000.0
        limits = np.repeat(budget[:, None], len(whole), axis=1)
        lifetime = np.flatnonzero(self.market.is_lifetime)
        spend = self.curve_nanos.sum(axis=2)
        for at, day in enumerate(whole.tolist()):
            limits[lifetime, at] -= spend[lifetime, :day].sum(axis=1)
        return np.maximum(limits, 0.0)

    def _within_campaigns(self, nanos: Floats) -> float:
        """The sum of these nanos by ad group and day, cut off at each campaign's daily limit."""
        by_campaign = np.zeros((len(self.market.campaign_ids), nanos.shape[1]))
        np.add.at(by_campaign, self.market.campaign, nanos)
        terms = self.engine.terms
        rows = [terms.campaign_row(name) for name in self.market.campaign_ids]
        bounds = terms.campaign.daily_nanos[rows].astype(np.float64)
        return float(np.minimum(by_campaign, bounds[:, None]).sum())

    def _could_run_out(self, whole: Int64s) -> list[tuple[int, int]]:
        """(ad group, day) with a daily budget, no other limit, and demand to use it up."""
        budget = self.market.budget_micros * 1_000.0
        bounded = self.engine.terms.campaign.daily_nanos[self._campaign_rows] < _UNBOUNDED
        return [
            (row, day)
            for row in np.flatnonzero(~self.market.is_lifetime & ~bounded).tolist()
            for day in whole.tolist()
            if self.demand_nanos[row, day] >= budget[row] * 1.05
        ]

    def _curve(self, row: int, day: int) -> Floats:
        """Cumulative spend over budget at the end of each bin."""
        budget = float(self.market.budget_micros[row]) * 1_000.0
        return np.asarray(np.cumsum(self.curve_nanos[row, day]) / budget)

    def _evenness(self, whole: Int64s) -> tuple[float, float]:
        measured = self._could_run_out(whole)
        if not measured:
            return 0.0, 1.0
        budgets = np.array([float(self.market.budget_micros[row]) for row, _ in measured])
        ends = np.array([float(self._curve(row, day)[-1]) for row, day in measured])
        deviations = [
            np.abs(self._curve(row, day) - self.target(row, day)).mean() for row, day in measured
        ]
        return float(np.mean(deviations)), float((ends * budgets).sum() / budgets.sum())

    def mean_curves(self, warmup_days: int) -> tuple[Floats, Floats]:
        """Mean spend curve and mean target, of the ad groups that evenness is measured of."""
        measured = self._could_run_out(np.arange(warmup_days, self.days))
        if not measured:
            return np.zeros(BINS), np.zeros(BINS)
        curves = [self._curve(row, day) for row, day in measured]
        targets = [self.target(row, day) for row, day in measured]
        return np.asarray(np.mean(curves, axis=0)), np.asarray(np.mean(targets, axis=0))

    def target(self, row: int, day: int) -> Floats:
        """The true cumulative traffic curve of an ad group's local day, at the end of each bin."""
        market = self.market
        weekday = (self.start_ms // MS_PER_DAY + day + 3) % 7
        hours = market.curves.traffic[market.traffic_curve[row], weekday]
        shares = np.repeat(hours, BINS // 24)
        return np.asarray(np.cumsum(shares) / shares.sum())

    def _stop_seconds(self, whole: Int64s) -> Floats:
        stopped = self.stop_ms[:, whole]
        last = self.last_served_ms[:, whole]
        return ((last - stopped)[stopped > 0] / 1_000.0).astype(np.float64)

    def _forecast_hits(self, whole: Int64s) -> tuple[int, Floats]:
        """Ad group days that ran out later than an hour after midnight, and the share of them
        whose last forecast an hour ahead was right, and the oracles'; of the forecast on record;
        and the share within the interval. One that foretold no end was wrong."""
        hits = []
        for row, day in np.argwhere(self.first_stop_ms > 0).tolist():
            stop_ms = int(self.first_stop_ms[row, day])
            local_ms = (stop_ms + int(self.market.utc_offset_ms[row])) % MS_PER_DAY
            if day not in whole or local_ms < _HOUR_MS + _FORECAST_EVERY_MS:
                continue
            made_ms = stop_ms - _HOUR_MS
            early = [
                foretold
                for at_ms, *foretold in self.forecasts.get((row, day), [])
                if made_ms - 2 * _FORECAST_EVERY_MS <= at_ms <= made_ms
            ]
            likeliest, low, high, informed, oracle = early[-1] if early else [0] * 5
            shown = [when for at, when in self.recorded.get((row, day), []) if at <= made_ms]
            times = (likeliest, informed, oracle, shown[-1] if shown else 0)
            # An interval without an end reaches into the next day.
            inside = 0 < low <= stop_ms and (stop_ms <= high or not high)
            hits.append([*(abs(time_ms - stop_ms) <= BIN_MS for time_ms in times), inside])
        share = np.array(hits, dtype=np.float64).reshape(-1, 5)
        return len(hits), share.mean(axis=0) if hits else np.zeros(5)
