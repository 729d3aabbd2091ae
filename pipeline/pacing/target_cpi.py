"""Target CPI: once a day, what to bid for a click so that an install costs what was asked for.

    bid = target CPI x estimated installs a click,
    at least the minimum bid, at most three times yesterday's and never more than the target

The estimate is the ad group's installs over its clicks, remembered over about a week, shrunken
towards its campaign's, and that towards all that this worker knows. Nothing is bid before its
campaign has seen enough installs: until then the ad group's own bid, the target, is in force.
Installs come later than their clicks (`delays.py`): a click counts as it ripens, by the share of
its installs that should have come by now.

The bid is money, so it is computed in integers: the estimate enters as installs a million clicks.
"""

from __future__ import annotations

from math import exp
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from pipeline.contract.days import iso
from pipeline.contract.pacing_notes import BOUND_DEVIATIONS, PacingNote
from pipeline.contract.signals import Signal
from pipeline.dense import numbered
from pipeline.native import compiled
from pipeline.pacing.columns import Columns
from pipeline.pacing.delays import DelayMixture
from pipeline.pacing.observed import Seen

Rows = npt.NDArray[np.int64]
Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Records = npt.NDArray[Any]
Estimate = tuple[int, int, int]
"""Installs a million clicks: likeliest, and bounds of 80 %."""

TARGET_CPI: Final = "target_cpi"
TARGET_CPI_OVER: Final = "target_cpi_over"
MILLION: Final = 1_000_000
LARGEST_STEP: Final = 3
"""A day's bid is at most so many times the last one."""
ENOUGH_INSTALLS: Final = 20.0
"""Of a campaign, before its ad groups' bids are decided."""
_PRIOR_INSTALLS: Final = 8.0
"""What a prior weighs against an ad group's, or a campaign's, own installs."""
_KEPT_A_DAY: Final = 0.85
"""Of what is remembered, at each day's decision: about a week."""
_HOUR_MS: Final = 3_600_000
_CONSTANTS_S: Final = np.array([600.0, 3_600.0, 14_400.0, 86_400.0])
_PRIOR_CURVE: Final = np.array([0.4, 0.4, 0.15, 0.05])
"""Before anything is known: most installs follow within an hour."""
_PRIOR_CURVE_INSTALLS: Final = 20.0
_FULL_CURVE: Final = 5_000.0


class InstallRates:
    """Clicks and installs by row of the ad group and of the campaign, and what they foretell."""

    def __init__(self) -> None:
        self.groups = Columns(
            clicks=(0, 0.0),
            installs=(0, 0.0),
            day_clicks=(0, 0.0),
            day_installs=(0, 0.0),
            predicted=(0, 0.0),
            low=(0, 0.0),
            high=(0, 0.0),
            made_at_ms=(0, 0.0),
            at_hours=(0, 0.0),
            recent=(len(_CONSTANTS_S), 0.0),
        )
        """`recent`: clicks decayed by each constant, as of `at_hours` since the epoch (in hours, so
        that it is kept with them, to a minute or two). `clicks`: what of them has decayed, by the
        shares of the constants: as many as should have had their installs by then. `day_*`: since
        the last decision, whose estimate is `predicted`, `low` and `high`."""
        self.campaigns = Columns(
            clicks=(0, 0.0),
            installs=(0, 0.0),
            faded_day=(0, 0.0),
            at_hours=(0, 0.0),
            looked_at_ms=(0, 0.0),
            recent=(len(_CONSTANTS_S), 0.0),
        )
        """As of the ad groups. `looked_at_ms`: when, by this process."""
        self.delays = DelayMixture(
            _CONSTANTS_S, _PRIOR_CURVE, _PRIOR_CURVE_INSTALLS, _FULL_CURVE, kinds=1
        )
        """Of installs after clicks."""

    def observe(self, seen: Seen, campaign: Rows) -> None:
        """Learn from a turn; `campaign` is that of `seen.group`."""
        acted = np.flatnonzero((seen.clicks > 0) | (seen.installs > 0))
        if len(acted) == 0:
            return
        rows, clicks, installs = seen.group[acted], seen.clicks[acted], seen.installs[acted]
        ages_s = seen.mean_click_age_ms[acted] / 1_000.0
        recent = self.delays.decayed(np.repeat(clicks[:, None], len(_CONSTANTS_S), axis=1), ages_s)
        self._learn(rows, campaign[acted], clicks, recent, installs, seen.now_ms)
        self.groups.day_clicks[rows] += clicks
        self.groups.day_installs[rows] += installs

    def _learn(
        self,
        rows: Rows,
        campaign: Rows,
        clicks: Floats,
        recent: Floats,
        installs: Floats,
        now_ms: int,
    ) -> None:
        self._count(self.groups, rows, clicks, recent, installs, now_ms)
        above, at = numbered(campaign)
        clicks, installs = (
            np.bincount(at, counts).astype(np.float64) for counts in (clicks, installs)
        )
        recent_above = np.zeros((len(above), len(_CONSTANTS_S)))
        np.add.at(recent_above, at, recent)
        ripe = self._count(self.campaigns, above, clicks, recent_above, installs, now_ms)
        rate = self.campaigns.installs[above] / np.maximum(1.0, self.campaigns.clicks[above])
        # Of clicks that were recalled, installs may have come that nobody has seen.
        known = self.campaigns.looked_at_ms[above] > 0
        self.campaigns.looked_at_ms[above] = now_ms
        kind = _one_kind(above[known])
        self.delays.learn(kind, ripe[known], installs[known], np.minimum(1.0, rate[known]))

    def _count(
        self,
        level: Columns,
        rows: Rows,
        clicks: Floats,
        recent: Floats,
        installs: Floats,
        now_ms: int,
    ) -> Floats:
        """Add clicks, of which `recent` has not decayed yet, and installs. Returns what has
        decayed since the last look."""
        level.reserve(rows)
        ripe = np.empty_like(recent)
        shares = self.delays.shares(np.zeros(1, dtype=np.int64))[0]
        _count(level.rows, rows, (clicks, installs), recent, now_ms / _HOUR_MS, shares, ripe)
        return ripe

    def _decayed(self, level: Columns, rows: Rows, now_ms: int) -> Floats:
        """What of `recent` has decayed since the last look."""
        passed_s = np.maximum(0.0, now_ms / _HOUR_MS - level.at_hours[rows]) * 3_600.0
        recent = level.recent[rows]
        return np.asarray(recent - self.delays.decayed(recent, passed_s))

    def _ripe(self, level: Columns, row: int, now_ms: int) -> float:
        """Clicks of this row that should have had their installs by now."""
        at = np.array([row])
        level.reserve(at)
        decayed = self._decayed(level, at, now_ms)
        return float((level.clicks[at] + self.delays.pending(_one_kind(at), decayed))[0])

    def estimate(self, row: int, campaign: int, now_ms: int) -> Estimate | None:
        """Installs a million clicks: likeliest, and bounds of 80 %. None where too little is
        known of the campaign."""
        groups, campaigns = self.groups, self.campaigns
        own_clicks, clicks = (
            self._ripe(level, at, now_ms) for level, at in ((groups, row), (campaigns, campaign))
        )
        installs = float(campaigns.installs[campaign])
        if installs < ENOUGH_INSTALLS or clicks <= 0:
            return None
        others = float(campaigns.clicks.sum() - campaigns.clicks[campaign])
        everyone = min(1.0, float(campaigns.installs.sum()) / (others + clicks))
        above = min(1.0, (installs + _PRIOR_INSTALLS) / (clicks + _PRIOR_INSTALLS / everyone))
        own = float(groups.installs[row]) + _PRIOR_INSTALLS
        rate = min(1.0, own / (own_clicks + _PRIOR_INSTALLS / above))
        spread = BOUND_DEVIATIONS / np.sqrt(own)
        bounds = (rate, max(0.0, rate * (1 - spread)), min(1.0, rate * (1 + spread)))
        likeliest, low, high = (round(MILLION * bound) for bound in bounds)
        return likeliest, low, high

    def decided(
        self,
        entity: str,
        row: int,
        campaign: int,
        billing_day: int,
        estimate: Estimate,
        now_ms: int,
    ) -> list[PacingNote]:
        """A day's bid was decided by this estimate. Returns what to record: the estimate, and
        how right the last one was."""
        groups = self.groups
        # What is ripe by now fades; what is not will, with its installs, count in full.
        at, none = np.array([row]), np.zeros(1)
        self._learn(at, np.array([campaign]), none, np.zeros_like(_CONSTANTS_S)[None], none, now_ms)
        made_at_ms, notes = int(groups.made_at_ms[row]), []
        if made_at_ms and groups.day_clicks[row] > 0:
            came = round(MILLION * float(groups.day_installs[row] / groups.day_clicks[row]))
            last = (int(groups.predicted[row]), int(groups.low[row]), int(groups.high[row]))
            notes.append(
                PacingNote(entity, "bid", iso(billing_day), made_at_ms, *last, came, now_ms)
            )
        notes.append(PacingNote(entity, "bid", iso(billing_day), now_ms, *estimate))
        groups.predicted[row], groups.low[row], groups.high[row] = estimate
        groups.made_at_ms[row] = now_ms
        groups.clicks[row] *= _KEPT_A_DAY
        groups.installs[row] *= _KEPT_A_DAY
        groups.day_clicks[row] = groups.day_installs[row] = 0.0
        if self.campaigns.faded_day[campaign] != billing_day:
            self.campaigns.faded_day[campaign] = billing_day
            self.campaigns.clicks[campaign] *= _KEPT_A_DAY
            self.campaigns.installs[campaign] *= _KEPT_A_DAY
        return notes

    def forget(self, groups: Rows, campaigns: Rows) -> None:
        """They are another worker's now."""
        self.groups.clear(groups)
        self.campaigns.clear(campaigns)


@compiled
def _count(
    level: Records,
    rows: Rows,
    came: tuple[Floats, Floats],
    recent: Floats,
    now_hours: float,
    shares: Floats,
    ripe: Floats,
) -> None:
    """As `InstallRates._count`; `came` are clicks and installs, `shares` those of the delays'
    constants. Fills in `ripe`, of the shape of `recent`."""
    clicks, installs = came
    for at in range(len(rows)):
        one = level[rows[at]]
        passed_s = max(0.0, now_hours - one.at_hours) * 3_600.0
        of_shares = 0.0
        for k in range(len(shares)):
            decayed = one.recent[k] * (1.0 - exp(-passed_s / _CONSTANTS_S[k]))
            ripe[at, k] = decayed + clicks[at] - recent[at, k]
            one.recent[k] += recent[at, k] - decayed
            of_shares += shares[k] * ripe[at, k]
        one.at_hours = max(one.at_hours, now_hours)
        one.clicks += of_shares
        one.installs += installs[at]


def _one_kind(rows: Rows) -> Rows:
    return np.zeros(len(rows), dtype=np.int64)


def daily_bid_micros(
    target_micros: int, installs_per_million: int, minimum_micros: int, last_micros: int | None
) -> int:
    """The day's bid in micros: within the minimum bid and three times the last day's."""
    bid = target_micros * installs_per_million // MILLION
    if last_micros is not None:
        bid = min(bid, LARGEST_STEP * last_micros)
    return min(max(bid, minimum_micros), target_micros)


def bid_signal(
    entity: str, bid_micros: int, last: Signal | None, version: int, billing_day: int, now_ms: int
) -> Signal:
    """The signal of a day's bid. It says the whole state, so it repeats the probability."""
    return Signal(
        entity=entity,
        action="bid",
        reason=TARGET_CPI,
        serve_probability=1.0 if last is None else last.serve_probability,
        bid_micros=bid_micros,
        limit="",
        limit_nanos=0,
        spend_nanos=0,
        inflight_nanos=0,
        billing_day=iso(billing_day),
        decided_at_ms=now_ms,
        version=version,
    )


def bid_over_signal(
    entity: str, last: Signal | None, version: int, billing_day: int, now_ms: int
) -> Signal:
    """The signal of an ad group whose bid is no longer decided: its state, without a bid."""
    if last is not None and last.action != "bid":
        return replace(last, bid_micros=None, decided_at_ms=now_ms, version=version)
    level = bid_signal(entity, 0, last, version, billing_day, now_ms)
    action = "resume" if level.serve_probability >= 1.0 else "throttle"
    return replace(level, action=action, reason=TARGET_CPI_OVER, bid_micros=None)
