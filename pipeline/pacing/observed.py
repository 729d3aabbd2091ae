"""What a turn showed of the ad groups: the one input of everything that pacing learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.contract.vocabulary import MS_PER_DAY
from pipeline.dense import numbered
from pipeline.native import compiled

Rows = npt.NDArray[np.int64]
Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

Mask = npt.NDArray[np.bool_]

_HOUR_MS: Final = 3_600_000
_CHANGE_HOUR: Final = 2


@dataclass(frozen=True, slots=True)
class Events:
    """Events with a disposition of their own, in columns of one entry an event."""

    now_ms: int
    group: Rows
    is_impression: Mask
    is_billable: Mask
    """Charged, or free for a limit's sake only."""
    value_nanos: Int64s
    """Of billable events: what they cost, or would have without limits; else 0."""
    event_time_ms: Int64s
    price_nanos: Int64s
    """What a billable action would cost at the event's own price."""
    is_install: Mask
    is_click: Mask
    """Of campaigns whose objective is app installs, as the installs."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The same by ad group; one entry for each ad group that has any event."""

    now_ms: int
    group: Rows
    impressions: Floats
    mean_age_ms: Floats
    """How long ago the impressions were, on average, when the turn saw them; 0 without any."""
    last_impression_ms: Int64s
    billable: Floats
    value_nanos: Floats
    offered_nanos: Floats
    """Sum of the prices that the impressions were won at, each for one billable action."""
    clicks: Floats
    """That can be charged, of campaigns for app installs; as the installs."""
    mean_click_age_ms: Floats
    """As `mean_age_ms`, of those clicks."""
    installs: Floats


@dataclass(frozen=True, slots=True)
class Facts:
    """What the catalog says of some ad groups; one entry each."""

    basis: Rows
    campaign: Rows
    """Row of the campaign."""
    zone: Rows
    """Position of the account's time zone in `Today`."""
    is_even: Mask


@dataclass(frozen=True, slots=True)
class Today:
    """The billing day that it is now, by time zone."""

    day: Rows
    start_ms: Int64s
    end_ms: Int64s

    def hours(self, zone: Rows, time_ms: Int64s | Floats | int) -> Floats:
        """The hour on the clock at these times, 0 to 24; days before and after are cut off.

        Where clocks change they do so within the first hours, as a rule at two.
        """
        elapsed = (time_ms - self.start_ms[zone]) / _HOUR_MS
        before_end = (self.end_ms[zone] - time_ms) / _HOUR_MS
        return np.clip(np.where(elapsed < _CHANGE_HOUR, elapsed, 24 - before_end), 0.0, 24.0)

    def times_ms(self, zone: Rows, hours: Floats) -> Floats:
        """When the clock shows these hours; of two such times, the later."""
        early = (hours < _CHANGE_HOUR) & (self.end_ms - self.start_ms <= MS_PER_DAY)[zone]
        from_start = self.start_ms[zone] + hours * _HOUR_MS
        return np.where(early, from_start, self.end_ms[zone] - (24 - hours) * _HOUR_MS)


def by_group(events: Events) -> Seen:
    """The events counted and summed up; ages are cut off at 0 (clocks of ad servers run ahead)."""
    group, inverse = numbered(events.group)
    sums = tuple(np.zeros((8, len(group)), dtype=np.float64))
    last_ms = np.zeros(len(group), dtype=np.int64)
    _sum_up(
        inverse,
        events.now_ms,
        (events.is_impression, events.is_billable, events.is_click, events.is_install),
        (events.event_time_ms, events.value_nanos, events.price_nanos),
        sums,
        last_ms,
    )
    impressions, ages_ms, billable, value, offered, clicks, click_ages_ms, installs = sums
    return Seen(
        now_ms=events.now_ms,
        group=group,
        impressions=impressions,
        mean_age_ms=ages_ms / np.maximum(1, impressions),
        last_impression_ms=last_ms,
        billable=billable,
        value_nanos=value,
        offered_nanos=offered,
        clicks=clicks,
        mean_click_age_ms=click_ages_ms / np.maximum(1, clicks),
        installs=installs,
    )


@compiled
def _sum_up(
    inverse: Rows,
    now_ms: int,
    flags: tuple[Mask, Mask, Mask, Mask],
    columns: tuple[Int64s, Int64s, Int64s],
    sums: tuple[Floats, ...],
    last_ms: Int64s,
) -> None:
    """One pass over the events; `inverse` is where each counts in the sums."""
    impressions, ages_ms, billable, value, offered, clicks, click_ages_ms, installs = sums
    is_impression, is_billable, is_click, is_install = flags
    time_ms, value_nanos, price_nanos = columns
    for event in range(len(inverse)):
        at = inverse[event]
        age_ms = max(0, now_ms - time_ms[event])
        if is_impression[event]:
            impressions[at] += 1
            ages_ms[at] += age_ms
            offered[at] += price_nanos[event]
            last_ms[at] = max(last_ms[at], time_ms[event])
        if is_billable[event]:
            billable[at] += 1
            value[at] += value_nanos[event]
            if is_click[event]:
                clicks[at] += 1
                click_ages_ms[at] += age_ms
        if is_install[event]:
            installs[at] += 1


def warm_up() -> None:
    """Compile what a turn needs, or load it, before the first one waits for it."""
    nothing, none = np.empty(0, np.int64), np.empty(0, np.bool_)
    by_group(Events(0, nothing, none, none, nothing, nothing, nothing, none, none))
