"""Which account days are due: all shards, in order, and over a move to another time zone."""

from __future__ import annotations

from datetime import date

from pipeline.billing.daylife import DayState
from pipeline.contract.days import Calendar, changed_calendar, from_iso
from pipeline.reporting.daybook import Account, DayBook

NEW_YORK, LONDON = "America/New_York", "Europe/London"


def book(time_zone: str, first_day: str, closes: dict[str, list[str]]) -> DayBook:
    """A book of one account; `closes`: zone -> the last closed day of shard 0, 1, ..."""
    found = DayBook(partitions=2)
    found.accounts["a"] = Account("USD", time_zone, date.fromisoformat(first_day))
    for zone, days in closes.items():
        found.closes[zone] = {
            shard: [(date.fromisoformat(day), 1_000 + shard)] for shard, day in enumerate(days)
        }
    return found


def due(found: DayBook, days: Calendar | None = None) -> list[str]:
    return [str(one.day) for one in found.due(lambda account_id: days)]


def test_a_day_is_due_when_the_last_shard_has_closed_it() -> None:
    assert due(book("UTC", "2026-01-01", {"UTC": ["2026-01-03"]})) == []
    found = book("UTC", "2026-01-01", {"UTC": ["2026-01-03", "2026-01-02"]})
    assert due(found) == ["2026-01-01", "2026-01-02"]
    assert found.due()[0].closed_at_ms == 1_001


def test_a_day_that_some_shards_have_closed_is_closing() -> None:
    found = book("UTC", "2026-01-01", {"UTC": ["2026-01-03", "2026-01-02"]})
    found.note_closed(["a"], date(2026, 1, 1))
    states = [found.state_of("a", date(2026, 1, day), lambda _: None) for day in (1, 3, 4)]
    assert states == [DayState.CLOSED, DayState.CLOSING, DayState.OPEN]


def test_days_after_a_move_wait_for_the_day_of_the_move_in_the_zone_that_was_left() -> None:
    """London is a day ahead of New York: its closes of the 11th do not close an account's 10th."""
    moved = changed_calendar(NEW_YORK, ((from_iso("2026-01-10"), LONDON),))
    closes = {NEW_YORK: ["2026-01-09"] * 2, LONDON: ["2026-01-11"] * 2}
    assert due(book(LONDON, "2026-01-09", closes), moved) == ["2026-01-09"]
    closes[NEW_YORK] = ["2026-01-10"] * 2
    assert due(book(LONDON, "2026-01-09", closes), moved) == [
        "2026-01-09",
        "2026-01-10",
        "2026-01-11",
    ]


def test_months_are_due_in_order_once_their_last_day_is_closed() -> None:
    found = book("UTC", "2026-01-30", {})
    assert found.months_due() == []
    found.accounts["a"].closed_through = date(2026, 2, 27)
    assert found.months_due() == [(date(2026, 1, 1), ["a"])]
    found.accounts["a"].closed_through = date(2026, 2, 28)
    assert [month for month, _ in found.months_due()] == [date(2026, 1, 1), date(2026, 2, 1)]
    found.accounts["a"].stated_through = date(2026, 1, 1)
    assert [month for month, _ in found.months_due()] == [date(2026, 2, 1)]
