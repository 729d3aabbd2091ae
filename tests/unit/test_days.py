"""Billing days: their lengths over clock changes, and an account that changes its time zone."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.contract.catalog import Accepted, Catalog
from pipeline.contract.catalog_entities import Account, to_record
from pipeline.contract.days import Calendar, calendar, changed_calendar, from_iso, iso
from pipeline.contract.log import LogRecord

HOUR_MS = 3_600_000


def hours(days: Calendar, day: str) -> float:
    return (days.end_ms(from_iso(day)) - days.start_ms(from_iso(day))) / HOUR_MS


def utc_ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1_000)


@pytest.mark.parametrize(
    ("zone", "day", "length_h"),
    [
        ("America/New_York", "2026-03-08", 23),  # clocks go forward at two
        ("America/New_York", "2026-11-01", 25),
        ("Australia/Lord_Howe", "2026-04-05", 24.5),  # half an hour
        ("America/Santiago", "2026-09-06", 23),  # forward at midnight: no 00:00
        ("Asia/Kathmandu", "2026-03-08", 24),
        ("Pacific/Apia", "2011-12-30", 0),  # the date that Samoa left out
    ],
)
def test_a_day_has_the_hours_that_its_date_has(zone: str, day: str, length_h: float) -> None:
    assert hours(calendar(zone), day) == length_h


def test_half_hour_offsets_begin_their_days_at_their_own_midnight() -> None:
    assert calendar("Asia/Kathmandu").start_ms(from_iso("2026-03-08")) == utc_ms("2026-03-07T18:15")
    assert calendar("Asia/Kolkata").start_ms(from_iso("2026-03-08")) == utc_ms("2026-03-07T18:30")


@pytest.mark.parametrize(
    ("before", "after", "length_h"),
    [
        ("America/New_York", "America/Los_Angeles", 27),  # west: longer
        ("America/New_York", "Europe/London", 19),  # east: shorter
        ("Asia/Kolkata", "UTC", 29.5),
        ("Pacific/Pago_Pago", "Pacific/Kiritimati", 0),  # east over the date line: empty
        ("Pacific/Kiritimati", "Pacific/Pago_Pago", 49),
    ],
)
def test_the_day_after_a_change_of_zone_takes_up_the_difference(
    before: str, after: str, length_h: float
) -> None:
    days = changed_calendar(before, ((from_iso("2026-01-10"), after),))
    assert hours(days, "2026-01-10") == 24
    assert hours(days, "2026-01-11") == length_h
    day = from_iso("2026-01-10")
    assert days.start_ms(day) == calendar(before).start_ms(day)
    assert days.end_ms(day + 2) == calendar(after).end_ms(day + 2)


ZONES = ["America/New_York", "Asia/Tokyo", "Pacific/Kiritimati", "Pacific/Pago_Pago", "UTC"]
changes = st.lists(
    st.tuples(st.integers(20_500, 20_540), st.sampled_from(ZONES)),
    max_size=4,
    unique_by=lambda change: change[0],
).map(lambda found: tuple(sorted(found)))


@given(st.sampled_from(ZONES), changes, st.integers(-12, 1_200))
def test_no_instant_is_in_two_days_or_none(
    zone: str, changed: tuple[tuple[int, str], ...], hour: int
) -> None:
    days = changed_calendar(zone, changed)
    time_ms = 20_498 * 24 * HOUR_MS + hour * HOUR_MS
    day = days.day_of(time_ms)
    assert days.start_ms(day) <= time_ms < days.end_ms(day)
    assert days.days_of(np.array([time_ms])).tolist() == [day]


@given(st.sampled_from(ZONES), changes)
def test_a_day_ends_when_the_zone_day_that_marks_it_does(
    zone: str, changed: tuple[tuple[int, str], ...]
) -> None:
    days = changed_calendar(zone, changed)
    for day in range(20_498, 20_545):
        marking_zone, marking_day = days.mark(day)
        assert days.end_ms(day) == calendar(marking_zone).end_ms(marking_day)


@given(st.sampled_from(ZONES), changes, st.integers(0, 1_100))
def test_days_are_closed_as_far_as_their_zones_are(
    zone: str, changed: tuple[tuple[int, str], ...], hour: int
) -> None:
    days = changed_calendar(zone, changed)
    time_ms = 20_498 * 24 * HOUR_MS + hour * HOUR_MS
    closed = {name: calendar(name).day_of(time_ms) - 1 for name in days.zone_names}
    through = days.closed_through(closed)
    assert days.end_ms(through) <= time_ms < days.end_ms(through + 1)


def account_record(offset: int, timestamp: str, zone: str, effective: str = "") -> LogRecord:
    effective_ms = utc_ms(effective) if effective else None
    account = Account(
        account_id="a", country="US", currency="USD", time_zone=zone, effective_ms=effective_ms
    )
    key, value = to_record(account)
    return LogRecord("ads.catalog", 0, offset, utc_ms(timestamp), key, value)


def catalog_of(*records: LogRecord) -> Catalog:
    catalog = Catalog()
    for record in records:
        assert isinstance(catalog.apply(record), Accepted)
    return catalog


def turns(catalog: Catalog) -> list[tuple[str, float]]:
    """The days of the account that do not have 24 hours, in January 2026."""
    days = catalog.calendar_of("a")
    assert days is not None
    first = from_iso("2026-01-01")
    lengths = [(iso(day), hours(days, iso(day))) for day in range(first, first + 30)]
    return [(day, length) for day, length in lengths if length != 24]


def test_a_change_takes_effect_at_the_next_day_of_the_account() -> None:
    catalog = catalog_of(
        account_record(0, "2026-01-01T00:00", "America/New_York"),
        account_record(1, "2026-01-11T03:00", "Europe/London"),  # still the 10th in New York
    )
    assert turns(catalog) == [("2026-01-11", 19)]


def test_a_change_announced_for_later_waits_for_its_time() -> None:
    catalog = catalog_of(
        account_record(0, "2026-01-01T00:00", "America/New_York"),
        account_record(1, "2026-01-02T12:00", "Europe/London", effective="2026-01-20T12:00"),
    )
    assert turns(catalog) == [("2026-01-21", 19)]


def test_a_change_dated_back_moves_no_day_that_is_past() -> None:
    catalog = catalog_of(
        account_record(0, "2026-01-01T00:00", "America/New_York"),
        account_record(1, "2026-01-15T12:00", "Europe/London", effective="2026-01-03T12:00"),
    )
    assert turns(catalog) == [("2026-01-16", 19)]


def test_a_second_word_on_the_same_day_replaces_the_first() -> None:
    catalog = catalog_of(
        account_record(0, "2026-01-01T00:00", "America/New_York"),
        account_record(1, "2026-01-15T12:00", "Europe/London"),
        account_record(2, "2026-01-15T13:00", "America/New_York"),
    )
    assert turns(catalog) == []
