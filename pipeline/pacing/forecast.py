"""When a budget will have run out: traffic curve, potential, and the record of how right it was.

An ad group spends its potential (value per day's traffic at probability 1, at the price of now)
along its traffic curve and the prices expected of each hour: a cumulative curve of value, which
says when what is left of its limits will be reached. A campaign's limit is reached by all of its ad
groups together. The interval is that of what is known of these: of the counts behind the potential
and what an impression brings, of the events still to come, and of how well prices were foretold.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from pipeline.contract.days import iso
from pipeline.contract.pacing_notes import BOUND_DEVIATIONS, PacingNote
from pipeline.native import compiled
from pipeline.pacing.columns import Columns
from pipeline.pacing.even import PotentialModel
from pipeline.pacing.inflight import LONGEST_DELAY_MS
from pipeline.pacing.observed import Facts, Seen, Today
from pipeline.pacing.prices import HourlyPrices
from pipeline.pacing.traffic import HOUR_MS, HOURS, TrafficModel

Rows = npt.NDArray[np.int64]
Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Records = npt.NDArray[Any]

FEED_MS: Final = 30_000
NOTE_EVERY_MS: Final = 600_000
WORTH_A_NOTE_MS: Final = 300_000
"""A forecast is recorded again once it has moved by so much."""
NEAR_MS: Final = 7_200_000
NOTE_NEAR_EVERY_MS: Final = 120_000
WORTH_A_NOTE_NEAR_MS: Final = 120_000
"""The same where the end is so near."""
_UNKNOWN: Final = -1.0
_MOST_NOTES: Final = 240
"""Of an ad group's day, that are kept to be compared with what comes."""
_WIDEST: Final = 5.0
_MOST_SKEWED: Final = 0.5
"""No larger error moves the likeliest time."""
_CURVE_ERROR: Final = 0.03
"""Relative error of a curve's next hours."""
_ACTIVE_MS: Final = 1_800_000
PIECE: Final = 5_000
"""Ad groups that a turn forecasts, and at most those of one campaign more: some 25 ms. And whose
potentials it brings up to date."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """Ad groups whose exhaustion is asked for, one entry each; those of a campaign are asked for
    together, because its limit is reached by their sum."""

    rows: Rows
    own_nanos: Floats
    """What may still be spent before the tightest of the ad group's own limits stops it ..."""
    campaign_nanos: Floats
    """... and of its campaign's, by all ad groups of it."""
    campaign: Rows
    """Row of the campaign."""
    probability: Floats
    """That it is served with."""
    event_nanos: Floats
    """What a billable event costs."""
    offered_nanos: Floats
    """Price of the moment that impressions are won at, for one billable action."""
    unit_error: Floats
    """Relative error of what an impression brings."""
    plan_share: Floats
    """The share of the day's traffic by which an even plan uses the ad group's own limit up, if it
    can be; 0 where there is none."""


@dataclass(slots=True)
class _Day:
    """What was foretold of an ad group on a billing day, to be compared with what comes."""

    billing_day: str
    end_ms: int
    notes: list[PacingNote] = field(default_factory=list)
    """Since it last ran out; the first may be one that it lasts, which is not worth a record."""
    ran_out: bool = False


class Forecasts:
    """Learns curves and potentials, and predicts exhaustion; by row of the ad group."""

    def __init__(self) -> None:
        self.traffic = TrafficModel()
        self.potential = PotentialModel()
        self.prices = HourlyPrices()
        self._groups = Columns(
            zone=(0, -1.0),
            campaign=(0, -1.0),
            seen_ms=(0, 0.0),
            fed_ms=(0, 0.0),
            events=(0, 0.0),
            curve=(HOURS + 1, 0.0),
            curve_key=(0, -1.0),
            on_record_ms=(0, _UNKNOWN),
        )
        """`curve`: cumulative share of the day's traffic at each full hour, for `curve_key`.
        `on_record_ms`: the last forecast on record for the day; 0: that the budget lasts."""
        self._today = Today(*(np.empty(0, dtype=np.int64) for _ in range(3)))
        self._turn_ms = 0
        self._hour = -1
        self._next_feed_ms = 0
        self._next_note_ms = 0
        self._next_near_ms = 0
        self._near: Rows = np.empty(0, dtype=np.int64)
        """Ad groups that were last foretold to run out soon."""
        self._waiting: deque[Rows] = deque()
        """Pieces of a round of forecasts."""
        self._to_feed: deque[Rows] = deque()
        """Pieces of all ad groups whose potentials are to be brought up to date."""
        self._said: dict[int, _Day] = {}
        self._over: deque[int] = deque()
        """Ad groups whose day is over and may have to be settled."""
        self._notes: list[tuple[int, PacingNote]] = []

    # -- learning -----------------------------------------------------------------------------

    def observe(
        self, seen: Seen, facts: Facts, today: Today, probability: Floats, unit_nanos: Floats
    ) -> None:
        """Learn from a turn; `probability` is what `seen.group` was served with, `unit_nanos` what
        an impression of each brings on average.

        Potentials are counted in impressions times that, not in what was billed: there are many
        more of them, so they tell sooner and with less noise.
        """
        self._turn_days(today, seen.now_ms)
        if len(seen.group):
            self._groups.reserve(seen.group)
            self._observe_traffic(seen, facts, today, probability)
            self.potential.note_worth(seen.group, unit_nanos)
        if seen.now_ms // HOUR_MS != self._hour:
            self._hour = seen.now_ms // HOUR_MS
            self.traffic.fit()

    def _observe_traffic(self, seen: Seen, facts: Facts, today: Today, probability: Floats) -> None:
        zones = np.arange(len(today.day))
        hours = today.hours(zones, seen.now_ms)
        of_day = _whole(hours)
        # What an outage has held up is not of this hour, but for its first turn.
        latest_ms = LONGEST_DELAY_MS + seen.now_ms - self._turn_ms
        self._turn_ms = seen.now_ms
        size = len(seen.group)
        timely, served = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
        exposure_s = np.empty(size)
        counts = _note_turn(
            self._groups.rows,
            (seen.group, facts.zone, facts.campaign),
            (seen.impressions, seen.mean_age_ms, probability),
            seen.now_ms,
            latest_ms,
            seen.now_ms - (hours - of_day) * HOUR_MS,
            (timely, served),
            exposure_s,
        )
        timely, served = timely[: counts[0]], served[: counts[1]]
        hour, weekday = (of[facts.zone] for of in (today.day * HOURS + of_day, (today.day + 3) % 7))
        self.prices.observe(
            seen.group[timely], hour[timely], seen.impressions[timely], seen.offered_nanos[timely]
        )
        self.traffic.observe(
            seen.group[served],
            hour[served],
            weekday[served],
            seen.impressions[served],
            exposure_s[: counts[1]],
        )

    def feed_due(self, now_ms: int) -> Rows:
        """Ad groups whose potential is to be brought up to date in this turn; given out once,
        mostly none."""
        if not self._to_feed and now_ms >= self._next_feed_ms:
            self._next_feed_ms = now_ms + FEED_MS
            rows = np.flatnonzero(self._groups.events > 0)
            self._to_feed.extend(np.split(rows, range(PIECE, len(rows), PIECE)))
        return self._to_feed.popleft() if self._to_feed else np.empty(0, dtype=np.int64)

    def catch_up(self, row: int, now_ms: int, probability: float) -> None:
        """The same for one ad group, before its probability is decided."""
        rows = np.array([row])
        self._groups.reserve(rows)
        if self._groups.zone[row] >= 0:
            self.feed(rows, np.array([probability]), now_ms)

    def note_changes(self, rows: Rows, now_ms: int, probability: Floats) -> None:
        """The ad groups are served with other probabilities from now on; these were the last."""
        groups = self._groups
        groups.reserve(rows)
        known = groups.zone[rows] >= 0
        self.feed(rows[known], probability[known], now_ms)
        # Exposure under the new probability begins now, however long ago the last event was.
        groups.seen_ms[rows] = now_ms

    def feed(self, rows: Rows, probability: Floats, now_ms: int) -> None:
        """Bring potentials up to date; the ad groups were served with these probabilities."""
        groups = self._groups
        curve = self._curves(rows)
        zone = groups.zone[rows].astype(np.int64)
        until = _share_at(curve, self._today.hours(zone, now_ms))
        since = _share_at(curve, self._today.hours(zone, groups.fed_ms[rows]))
        passed = np.where(groups.fed_ms[rows] > 0, np.maximum(0.0, until - since), 0.0)
        counts = (probability > 0) & (groups.fed_ms[rows] > 0)
        self.potential.observe(
            rows[counts],
            groups.events[rows][counts],
            passed[counts],
            probability[counts],
        )
        groups.events[rows] = 0.0
        groups.fed_ms[rows] = now_ms

    def _curves(self, rows: Rows) -> Floats:
        """Shape (rows, 25): cumulative shares of today's traffic, fitted anew every hour."""
        groups = self._groups
        zones = groups.zone[rows].astype(np.int64)
        days = self._today.day[zones]
        keys = days * 100_000.0 + self._hour % 100_000
        stale = groups.curve_key[rows] != keys
        for day in np.unique(days[stale]).tolist():
            here = rows[stale & (days == day)]
            shape = self.traffic.shapes(here, (day + 3) % 7)
            groups.curve[here, 1:] = np.cumsum(shape, axis=1) / HOURS
        groups.curve_key[rows] = keys
        return np.asarray(groups.curve[rows])

    # -- predicting ---------------------------------------------------------------------------

    def shares_gone(self, row: int, now_ms: int, end_ms: int) -> tuple[float, float]:
        """The share of today's traffic that has gone by, and what will have gone by then."""
        rows = np.array([row, row])
        self._groups.reserve(rows)
        if self._groups.zone[row] < 0:
            return 0.0, 1.0
        hours = self._hours_at(rows, np.array([now_ms, end_ms]))
        now, end = _share_at(self._curves(rows), hours).tolist()
        return now, end

    def _hours_at(self, rows: Rows, time_ms: Int64s | int) -> Floats:
        return self._today.hours(self._groups.zone[rows].astype(np.int64), time_ms)

    def price_to_come(self, row: int, now_ms: int, ends_ms: int, now_nanos: float) -> float:
        """The mean price of today's traffic that is still to come until then, over the price
        now."""
        rows = np.array([row])
        self._groups.reserve(rows)
        if self._groups.zone[row] < 0:
            return 1.0
        hour, end = self._hours_at(rows, now_ms), self._hours_at(rows, ends_ms)
        ends = np.arange(1, HOURS + 1)
        left = np.clip(np.minimum(ends, end) - np.maximum(ends - 1, hour), 0.0, 1.0)
        prices = self.prices.coming(rows, _whole(hour), np.array([now_nanos]))[0]
        return _mean(prices, np.diff(self._curves(rows)[0]) * left)

    def usual_price(self, row: int, now_nanos: float) -> float:
        """The mean price of a later day's traffic, over the price now."""
        rows = np.array([row])
        self._groups.reserve(rows)
        if self._groups.zone[row] < 0:
            return 1.0
        prices = self.prices.usual(rows, np.array([now_nanos]))[0]
        return _mean(prices, np.diff(self._curves(rows)[0]))

    def exhaustion(self, asked: Outlook, now_ms: int) -> Int64s:
        """Shape (3, n): likeliest, earliest and latest time in ms at which a limit will stop each
        ad group (an interval of 80 %); 0 where not within its day."""
        rows = asked.rows
        self._groups.reserve(rows)
        found = np.zeros((3, len(rows)), dtype=np.int64)
        zones = self._groups.zone[rows].astype(np.int64)
        rate = self.potential.per_day(rows) * asked.probability
        able = np.flatnonzero(
            (zones >= 0) & (rate > 0) & (asked.own_nanos > 0) & (asked.campaign_nanos > 0)
        )
        if len(able) == 0:
            return found
        zone, end_ms = zones[able], self._today.end_ms[zones[able]]
        hours = self._hours(_at(asked, able), rate[able], self._today.hours(zone, now_ms))
        within = np.isfinite(hours)
        times = np.maximum(now_ms, self._today.times_ms(zone, np.where(within, hours, 0.0)))
        found[:, able] = np.where(within, times, 0).astype(np.int64)
        open_end = within[0] & ~within[2]
        found[2, able] = np.where(open_end, end_ms, found[2, able])
        return found

    def _hours(self, asked: Outlook, rate: Floats, now: Floats) -> Floats:
        """Shape (3, n): the same in hours of the local day, infinity where not within it; `now`
        is the hour that it is, `rate` what a day's traffic brings at the price of now."""
        traffic = self._curves(asked.rows)
        prices = self.prices.coming(asked.rows, _whole(now), asked.offered_nanos)
        value = np.zeros_like(traffic)
        value[:, 1:] = np.cumsum(np.diff(traffic, axis=1) * prices * rate[:, None], axis=1)
        value -= _share_at(value, now)[:, None]
        together = _by_campaign(np.minimum(value, asked.own_nanos[:, None]), asked.campaign)

        gone = _share_at(traffic, now)
        could = np.isfinite(_hour_of(value, asked.own_nanos * asked.probability))
        planned = (asked.plan_share > 0) & could

        def reached(factor: Floats) -> Floats:
            own = _hour_of(value, asked.own_nanos * factor)
            at_most = _hour_of(value, asked.own_nanos * asked.probability * factor)
            line = _hour_of(traffic, gone + np.maximum(0, asked.plan_share - gone) * factor)
            own = np.where(planned, np.maximum(line, at_most), own)
            return np.minimum(own, _hour_of(together, asked.campaign_nanos * factor))

        error = self._error(asked, reached(np.ones(len(now))), now)
        spread = np.minimum(_WIDEST, BOUND_DEVIATIONS * error)
        # The mode is before the median where the error is of the logarithm. A line's end is not.
        sooner = np.where(planned, 0.0, np.minimum(error, _MOST_SKEWED) ** 2)
        times = (reached(np.exp(-sooner)), reached(np.exp(-spread)), reached(np.exp(spread)))
        return np.stack(times)

    def _error(self, asked: Outlook, likeliest: Floats, now: Floats) -> Floats:
        """The relative error of what is spent until the likeliest hour."""
        known = self.potential.relative_error(asked.rows)
        still = asked.event_nanos / np.minimum(asked.own_nanos, asked.campaign_nanos)
        end = np.minimum(likeliest, HOURS)
        later = np.clip((end - _whole(now) - 1) / np.maximum(end - now, 1e-9), 0.0, 1.0)
        prices = self.prices.error * later
        return np.sqrt(known**2 + asked.unit_error**2 + still + prices**2 + _CURVE_ERROR**2)

    # -- the record ---------------------------------------------------------------------------

    def due(self, now_ms: int) -> Rows:
        """Ad groups whose forecast is to be recorded in this turn; given out once, mostly none. A
        round is of all that had events of late; in between of those that will run out soon, with
        all that share a campaign with them."""
        if not self._waiting:
            self._begin_round(now_ms)
        return self._waiting.popleft() if self._waiting else np.empty(0, dtype=np.int64)

    def _begin_round(self, now_ms: int) -> None:
        campaign = self._groups.campaign
        if now_ms >= self._next_note_ms:
            self._next_note_ms = now_ms + NOTE_EVERY_MS
            rows = self._active(now_ms)
        elif now_ms >= self._next_near_ms and len(self._near):
            active = self._active(now_ms)
            beside = active[np.isin(campaign[active], campaign[self._near])]
            rows = np.union1d(self._near, beside)
        else:
            return
        self._next_near_ms = now_ms + NOTE_NEAR_EVERY_MS
        rows = rows[np.argsort(campaign[rows], kind="stable")]
        starts = np.flatnonzero(np.diff(campaign[rows], prepend=-np.inf))
        _, cuts = np.unique(starts // PIECE, return_index=True)
        self._waiting.extend(np.split(rows, starts[cuts[1:]]))

    def _active(self, now_ms: int) -> Rows:
        return np.flatnonzero(self._groups.seen_ms > now_ms - _ACTIVE_MS)

    def record(
        self,
        rows: Rows,
        names: list[str],
        predicted: Int64s,
        has_run_out: npt.NDArray[np.bool_],
        now_ms: int,
    ) -> None:
        """Record forecasts that are new or have moved; shapes as of `exhaustion`. What was foretold
        of what has run out stays."""
        near = rows[(predicted[0] > 0) & (predicted[0] < now_ms + NEAR_MS)]
        self._near = np.concatenate((self._near[~np.isin(self._near, rows)], near))
        for at in np.flatnonzero(~has_run_out & (self._groups.zone[rows] >= 0)).tolist():
            self._record_one(int(rows[at]), names[at], predicted[:, at].tolist(), now_ms)

    def _record_one(self, row: int, entity: str, times_ms: list[int], now_ms: int) -> None:
        day, on_record_ms = self._day_of(row, now_ms), float(self._groups.on_record_ms[row])
        time_ms = times_ms[0]
        worth_ms = WORTH_A_NOTE_MS if time_ms > now_ms + NEAR_MS else WORTH_A_NOTE_NEAR_MS
        moved = on_record_ms == _UNKNOWN or abs(on_record_ms - time_ms) >= worth_ms
        if day.notes and not moved:
            return
        note = PacingNote(entity, "exhaustion", day.billing_day, now_ms, *times_ms)
        day.notes.append(note)
        del day.notes[:-_MOST_NOTES]
        if moved:
            self._groups.on_record_ms[row] = time_ms
            self._notes.append((row, note))

    def _day_of(self, row: int, now_ms: int) -> _Day:
        day = self._said.get(row)
        if day is not None and day.end_ms <= now_ms:
            self._end_day(row)
            day = None
        if day is None:
            zone = int(self._groups.zone[row])
            number, end_ms = int(self._today.day[zone]), int(self._today.end_ms[zone])
            day = self._said[row] = _Day(iso(number), end_ms)
        return day

    def ran_out(self, row: int, now_ms: int) -> None:
        """An ad group was stopped by a limit: compare with what was said an hour before."""
        day = self._said.get(row)
        if day is None or day.end_ms <= now_ms:
            return
        day.ran_out = True
        early = [note for note in day.notes if note.made_at_ms <= now_ms - HOUR_MS]
        if early:
            realised = replace(early[-1], realised=now_ms, realised_at_ms=now_ms)
            self._notes.append((row, realised))
            day.notes.clear()

    def _turn_days(self, today: Today, now_ms: int) -> None:
        """Take over the days that it is. Nothing is on record yet for those that begin; what was
        said for those that are over is settled, in pieces."""
        begun = np.flatnonzero(self._today.day != today.day[: len(self._today.day)])
        self._today = today
        if len(begun):
            groups = self._groups
            groups.on_record_ms[np.isin(groups.zone, begun)] = 0.0
            self._over.extend(row for row, day in self._said.items() if day.end_ms <= now_ms)
        for _ in range(min(PIECE, len(self._over))):
            row = self._over.popleft()
            if row in self._said and self._said[row].end_ms <= now_ms:
                self._end_day(row)

    def _end_day(self, row: int) -> None:
        """A day is over: what was last foretold, an hour or more ahead, has come or has not."""
        day = self._said.pop(row)
        ahead = [note for note in day.notes if note.made_at_ms <= note.predicted - HOUR_MS]
        if day.ran_out or not ahead:
            return
        last = ahead[-1]
        is_taken_back = any(
            note.predicted == 0 and last.made_at_ms < note.made_at_ms <= last.predicted - HOUR_MS
            for note in day.notes
        )
        if not is_taken_back:
            self._notes.append((row, replace(last, realised=0, realised_at_ms=day.end_ms)))

    def take_notes(self) -> list[tuple[int, PacingNote]]:
        """What is to be recorded; given out once."""
        notes, self._notes = self._notes, []
        return notes

    def forget(self, rows: Rows) -> None:
        """The ad groups are another worker's now."""
        self._groups.clear(rows)
        self.traffic.forget(rows)
        self.potential.forget(rows)
        self.prices.forget(rows)
        self._near = self._near[~np.isin(self._near, rows)]
        for pieces in (self._waiting, self._to_feed):
            for at, piece in enumerate(pieces):
                pieces[at] = piece[~np.isin(piece, rows)]
        for row in rows.tolist():
            self._said.pop(row, None)


@compiled
def _note_turn(
    groups: Records,
    of_groups: tuple[Rows, Rows, Rows],
    came: tuple[Floats, Floats, Floats],
    now_ms: int,
    latest_ms: float,
    hour_began_ms: Floats,
    found: tuple[Rows, Rows],
    exposure_s: Floats,
) -> tuple[int, int]:
    """Take a turn over: rows, zones and campaigns of its ad groups, impressions, their mean ages
    and the probabilities that they were served with. How many of them were no later than
    `latest_ms`, and how many of these were served on since they were seen before: the first of
    `found` tell which, and `exposure_s` how long of the present hour, times the probability."""
    rows, zones, campaigns = of_groups
    impressions, mean_age_ms, probability = came
    timely, served = 0, 0
    for at in range(len(rows)):
        one = groups[rows[at]]
        if mean_age_ms[at] <= latest_ms:
            found[0][timely] = at
            timely += 1
            if one.seen_ms > 0 and probability[at] > 0:
                since_ms = max(one.seen_ms, hour_began_ms[zones[at]])
                exposure_s[served] = max(0.0, now_ms - since_ms) / 1_000.0 * probability[at]
                found[1][served] = at
                served += 1
        one.zone, one.campaign = zones[at], campaigns[at]
        one.events += impressions[at]
        one.seen_ms = now_ms
    return timely, served


def _at(asked: Outlook, rows: Rows) -> Outlook:
    """Some of them."""
    return Outlook(*(getattr(asked, field.name)[rows] for field in fields(Outlook)))


def _by_campaign(value: Floats, campaign: Rows) -> Floats:
    """The sum over the ad groups of the same campaign, for each of them."""
    _, at = np.unique(campaign, return_inverse=True)
    total = np.zeros((int(at.max()) + 1, value.shape[1]))
    np.add.at(total, at, value)
    return np.asarray(total[at])


def _mean(prices: Floats, shares: Floats) -> float:
    """The mean price by these shares of traffic; 1 where there is none."""
    total = float(shares.sum())
    return float((shares * prices).sum()) / total if total > 0 else 1.0


def _whole(hours: Floats) -> Rows:
    """The full hour of the day that it is, 0 to 23."""
    return np.clip(hours.astype(np.int64), 0, HOURS - 1)


def _share_at(curve: Floats, hours: Floats) -> Floats:
    """The cumulative share at these times of the day, one a row of the curve."""
    clipped = np.clip(hours, 0.0, HOURS)
    whole = np.minimum(clipped.astype(np.int64), HOURS - 1)
    at = np.arange(len(curve))
    low, high = curve[at, whole], curve[at, whole + 1]
    return np.asarray(low + (high - low) * (clipped - whole))


def _hour_of(curve: Floats, share: Floats) -> Floats:
    """When the cumulative share will be this, one a row of the curve; infinity where never."""
    whole = np.clip((curve <= share[:, None]).sum(axis=1) - 1, 0, HOURS - 1)
    at = np.arange(len(curve))
    low, high = curve[at, whole], curve[at, whole + 1]
    hours = whole + (share - low) / np.maximum(high - low, 1e-12)
    return np.where(share > curve[:, -1], np.inf, hours)
