"""What a turn showed of the ad groups: the one input of everything that pacing learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.contract.vocabulary import MS_PER_DAY

Rows = npt.NDArray[np.int64]
Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_HOUR_MS: Final = 3_600_000
_CHANGE_HOUR: Final = 2


@dataclass(frozen=True, slots=True)
class Events:
    """Events with a disposition of their own, in columns of one entry an event."""

    now_ms: int
    group: Rows
    is_impression: npt.NDArray[np.bool_]
    is_billable: npt.NDArray[np.bool_]
    """Charged, or free for a limit's sake only."""
    value_nanos: Int64s
    """Of billable events: what they cost, or would have without limits; else 0."""
    event_time_ms: Int64s
    price_nanos: Int64s
    """What a billable action would cost at the event's own price."""
    is_install: npt.NDArray[np.bool_]
    is_click: npt.NDArray[np.bool_]
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
    is_even: npt.NDArray[np.bool_]


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
    """A few group-bys; ages are cut off at 0 (clocks of ad servers run ahead)."""
    group, inverse = np.unique(events.group, return_inverse=True)
    size = len(group)
    impression = events.is_impression
    at = inverse[impression]
    times = events.event_time_ms[impression]
    last = np.zeros(size, dtype=np.int64)
    np.maximum.at(last, at, times)
    billable = events.is_billable
    values = events.value_nanos[billable].astype(np.float64)
    click = events.is_click & billable
    ages = np.maximum(0, events.now_ms - events.event_time_ms)
    return Seen(
        now_ms=events.now_ms,
        group=group,
        impressions=_count(inverse, impression, size),
        mean_age_ms=_mean(ages, inverse, impression, size),
        last_impression_ms=last,
        billable=np.bincount(inverse[billable], minlength=size).astype(np.float64),
        value_nanos=np.bincount(inverse[billable], values, size).astype(np.float64),
        offered_nanos=np.bincount(at, events.price_nanos[impression], size).astype(np.float64),
        clicks=_count(inverse, click, size),
        mean_click_age_ms=_mean(ages, inverse, click, size),
        installs=_count(inverse, events.is_install, size),
    )


def _count(inverse: Rows, chosen: npt.NDArray[np.bool_], size: int) -> Floats:
    return np.bincount(inverse[chosen], minlength=size).astype(np.float64)


def _mean(values: Int64s, inverse: Rows, chosen: npt.NDArray[np.bool_], size: int) -> Floats:
    """Of the chosen events of each group; 0 where it has none."""
    at = inverse[chosen]
    total = np.bincount(at, values[chosen], size)
    return np.asarray(total / np.maximum(1, np.bincount(at, minlength=size)))
