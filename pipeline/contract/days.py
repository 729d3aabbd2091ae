"""Billing calendars: which day of an account's time zone a time belongs to.

A day is an int: days since 1970-01-01 of the local calendar date. A day begins at the first
instant of its date, so days have 23 or 25 hours where clocks change. Times are ms since the
epoch, UTC, and are clamped to the years that calendars have (1970 to 9998).

An account that changes its time zone keeps one unbroken row of days. The day that the change falls
in, D, ends where its own zone ends it; from D + 1 on a day ends where the new zone ends its date,
and no earlier than D ended. So days never overlap and none is left out: moving west makes D + 1
longer, moving east shorter, and a move over more than 24 hours (across the date line) can leave
D + 1 without an instant, but not without a close. Every account day ends with a day of some zone
(`mark`), which is why shards close days by zone and need not know of accounts that moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from functools import cache, lru_cache
from zoneinfo import ZoneInfo, available_timezones

import numpy as np
import numpy.typing as npt

_EPOCH = date(1970, 1, 1)
_MS_PER_DAY = 86_400_000
LAST_DAY = (date(9998, 12, 31) - _EPOCH).days
_FIRST_MS, _LAST_MS = 0, LAST_DAY * _MS_PER_DAY
_SPAN = 64
"""Days computed at a time."""


def iso(day: int) -> str:
    """`YYYY-MM-DD` of a day."""
    return (_EPOCH + timedelta(days=day)).isoformat()


def from_iso(text: str) -> int:
    """The day of a `YYYY-MM-DD`. Raises `ValueError` on anything else."""
    return (date.fromisoformat(text) - _EPOCH).days


@lru_cache(maxsize=1)
def _zone_names() -> frozenset[str]:
    # Some machines have `localtime` beside the zones: its days would be each machine's own.
    return frozenset(available_timezones() - {"localtime"})


def valid_zone(name: str) -> bool:
    """Whether this is the name of an IANA time zone."""
    return name in _zone_names()


class Calendar:
    """The billing days of one time zone."""

    def __init__(self, zone_name: str) -> None:
        if not valid_zone(zone_name):
            raise ValueError(f"{zone_name!r} is not an IANA time zone")
        self.zone_name = zone_name
        self._zone = ZoneInfo(zone_name)
        self._starts: dict[int, int] = {}

    def start_ms(self, day: int) -> int:
        """The first instant of a day."""
        start = self._starts.get(day)
        if start is None:
            local = datetime.combine(_EPOCH + timedelta(days=day), datetime.min.time())
            # fold=0 gives the first of two midnights, and where there is none (clocks go forward
            # at midnight) the instant of the change.
            start = round(local.replace(tzinfo=self._zone).timestamp() * 1_000)
            self._starts[day] = start
        return start

    def end_ms(self, day: int) -> int:
        """The first instant after a day."""
        return self.start_ms(day + 1)

    def day_of(self, time_ms: int) -> int:
        """The day that a time belongs to."""
        clamped = min(max(time_ms, _FIRST_MS), _LAST_MS)
        day = clamped // _MS_PER_DAY
        while clamped < self.start_ms(day):
            day -= 1
        while clamped >= self.end_ms(day):
            day += 1
        return day

    def days_of(self, times_ms: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The day of each time."""
        if len(times_ms) == 0:
            return np.empty(0, dtype=np.int64)
        clamped = np.clip(times_ms, _FIRST_MS, _LAST_MS)
        first, last = self.day_of(int(clamped.min())), self.day_of(int(clamped.max()))
        if first == last:
            return np.full(len(times_ms), first, dtype=np.int64)
        if last - first > _SPAN:
            # Far apart: look only at the days that are there, by their UTC neighbours.
            utc_days = np.unique(clamped // _MS_PER_DAY)
            days = np.unique(np.concatenate((utc_days - 1, utc_days, utc_days + 1, utc_days + 2)))
        else:
            days = np.arange(first, last + 2)
        starts = np.array([self.start_ms(day) for day in days.tolist()], dtype=np.int64)
        return days[np.searchsorted(starts, clamped, side="right") - 1]

    # -- closing ------------------------------------------------------------------------------

    @property
    def zone_names(self) -> tuple[str, ...]:
        """The zones whose closes close these days."""
        return (self.zone_name,)

    def mark(self, day: int) -> tuple[str, int]:
        """The zone and its day that this day ends with: closing that one closes this one."""
        return self.zone_name, day

    def closed_through(self, closed: Mapping[str, int]) -> int:
        """The last closed day, where `closed` is zone -> its last closed day; -1 for none."""
        return closed.get(self.zone_name, -1)


class ChangedCalendar(Calendar):
    """The billing days of an account that changed its time zone in the course of a day."""

    def __init__(self, before: Calendar, changed_in: int, zone_name: str) -> None:
        """`before` up to and including the day `changed_in`, the zone from the next day on."""
        super().__init__(zone_name)
        self._before = before
        self._changed_in = changed_in
        self._after = calendar(zone_name)
        self._turn_ms = before.end_ms(changed_in)
        self._last_with_it = changed_in
        """The last day that ends where `changed_in` does; a later one than it is empty."""
        while self._after.end_ms(self._last_with_it + 1) <= self._turn_ms:
            self._last_with_it += 1

    def start_ms(self, day: int) -> int:
        if day <= self._changed_in + 1:
            return self._before.start_ms(day)
        return max(self._after.start_ms(day), self._turn_ms)

    @property
    def zone_names(self) -> tuple[str, ...]:
        return (*self._before.zone_names, self.zone_name)

    def mark(self, day: int) -> tuple[str, int]:
        if day <= self._last_with_it:
            return self._before.mark(min(day, self._changed_in))
        return self.zone_name, day

    def closed_through(self, closed: Mapping[str, int]) -> int:
        before = self._before.closed_through(closed)
        if before < self._changed_in:
            return before
        return max(self._last_with_it, closed.get(self.zone_name, -1))


@cache
def calendar(zone_name: str) -> Calendar:
    """The calendar of a time zone. Raises `ValueError` where there is no such zone."""
    return Calendar(zone_name)


@cache
def changed_calendar(zone_name: str, changes: tuple[tuple[int, str], ...]) -> Calendar:
    """The calendar of an account that began in a zone and changed it: (day, zone to go on with).

    `changes` ascend by day, one a day at most. The same arguments give the same object.
    """
    if not changes:
        return calendar(zone_name)
    day, last_zone = changes[-1]
    return ChangedCalendar(changed_calendar(zone_name, changes[:-1]), day, last_zone)
