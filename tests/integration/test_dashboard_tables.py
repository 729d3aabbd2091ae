"""What the dashboard shows of books made by engine and reporter."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest

from pipeline.dashboard import pages, queries
from pipeline.dashboard.figures import Budget
from pipeline.dashboard.queries import Query
from pipeline.dashboard.view import parse_view
from tests.integration.small_books import SmallBooks, at

UNIT = 1_000_000_000
DAY = date(2026, 3, 3)


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallBooks]:
    """Two closed days and an open one. Clicks of `k` and `l` are 30 units each, while limits last.

    One record of the open day is stamped some eighty years too late.
    """
    one = SmallBooks(tmp_path_factory.mktemp("dashboard_tables"))
    one.open("k", "traffic", campaign={"lifetime_spend_limit_micros": 100_000_000})
    lifetime = {"budget_type": "lifetime", "budget_micros": 100_000_000, "end_ms": at(300)}
    one.open("l", "traffic", group=lifetime)
    one.open("dear", "awareness", group={"bid_micros": 10**15})
    one.open("anew", "awareness", campaign={"daily_spend_limit_micros": 7_000_000})
    one.open("tardy", "traffic")
    thirty = 30_000_000
    one.judge(
        at(2),
        one.event("k", "click", at(2), thirty, event_id="credited"),
        one.event("l", "click", at(2), thirty),
        one.event("anew", "impression", at(2)),
    )
    recreated = {"campaign_id": "anew-c", "account_id": "anew", "objective": "awareness"}
    one.publish("campaign:anew-c", None, at(2, 15))
    one.publish("campaign:anew-c", recreated, at(2, 16))
    one.judge(at(3, 3))
    one.judge(
        at(3),
        one.event("k", "click", at(3), thirty),
        one.event("l", "click", at(3), thirty),
        one.event("anew", "impression", at(3)),
        *(one.event("dear", "impression", at(3), 10**15) for _ in range(12)),
    )
    one.judge(at(3, 13), one.event("tardy", "click", at(2, 20), 5_000_000, recorded_ms=at(3, 13)))
    one.report()
    one.credit("credited", at(3, 14))
    one.judge(at(4, 3))
    one.judge(
        at(4),
        one.event("k", "click", at(4), thirty),
        one.event("l", "click", at(4), thirty),
        one.event("l", "click", at(4), thirty),
        one.event("k", "click", at(4), recorded_ms=at(30_000)),
    )
    one.report()
    yield one
    one.store.close()


def rows(books: SmallBooks, query: Query) -> list[dict[str, Any]]:
    return books.store.dicts(query.sql, query.parameters)


def budgets(books: SmallBooks, level: str, day: str, *, live: bool = False) -> dict[str, Budget]:
    """The budget of each row of a page, by the row's own id."""
    view = parse_view({"level": level, "from": day, "to": day}, DAY)
    source = pages.Source(books.store, [])
    first, again = (asyncio.run(pages.table(source, view, live=live))["rows"] for _ in range(2))
    assert first == again
    return {row[view.ids[-1]]: budget for row, budget in again}


def test_the_books_behind_these_pages_are_right(books: SmallBooks) -> None:
    assert books.failed() == {}


def test_the_four_tables_agree_on_a_day_with_credits(books: SmallBooks) -> None:
    days = {str(row["day"]): row for row in rows(books, queries.closed_days(14))}
    assert all(day["agrees"] for day in days.values())
    clicks, late, credited, dear, anew = 2 * 30, 5, -30, 12 * 1_000_000, UNIT // 1_000
    spent = (clicks + late + credited + dear) * UNIT + anew
    assert days["2026-03-03"]["events_nanos"] == days["2026-03-03"]["closes_nanos"] == spent


def test_a_cpm_is_right_of_any_spend(books: SmallBooks) -> None:
    """12 impressions of a million units each: their nanos times 1,000 are beyond an Int64."""
    day = {"from": "2026-03-03", "to": "2026-03-03"}
    view = parse_view({"level": "campaigns", "campaign_id": "dear-c"} | day, DAY)
    [row] = rows(books, queries.figures(view, live=False))
    assert (row["cpm_nanos"], row["charged_impressions"]) == (10**9 * UNIT, 12)
    [total] = rows(books, queries.totals(view, live=False))
    assert total["cpm_nanos"] == row["cpm_nanos"]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(
    ("level", "id_", "used"), [("campaigns", "k-c", "90.0%"), ("ad-groups", "l-g", "100.0%")]
)
def test_a_lifetime_limit_is_used_by_all_that_was_charged_whatever_the_page_shows(
    books: SmallBooks, level: str, id_: str, used: str, live: bool
) -> None:
    """Clicks of 30 units in three days, one of them open. The credit of `k` gives none back."""
    day = "2026-03-04" if live else "2026-03-03"
    budget = budgets(books, level, day, live=live)[id_]
    assert (budget.text, budget.used_text) == ("100.00 lifetime", used)


def test_a_campaign_made_again_without_its_limit_has_none(books: SmallBooks) -> None:
    assert budgets(books, "campaigns", "2026-03-03")["anew-c"].text == "—"


def test_adjusted_spend_sums_to_spend_though_an_accounts_first_event_is_late(
    books: SmallBooks,
) -> None:
    late = 5 * UNIT
    found = books.store.rows(
        "SELECT toString(billing_day), spend_nanos, for_earlier_days_nanos, late_nanos, "
        "adjusted_spend_nanos FROM reporting.daily_adjusted WHERE account_id = 'tardy' "
        "ORDER BY billing_day"
    )
    assert [tuple(row) for row in found] == [
        ("2026-03-02", 0, 0, late, late),
        ("2026-03-03", late, late, 0, 0),
    ]


def test_a_record_stamped_far_in_the_future_hides_nothing(books: SmallBooks) -> None:
    """It has a row in the day of its stamp, as all that has no billing day of its own."""
    found = books.store.rows("SELECT max(posting_day) > '2100-01-01' FROM billing.events")
    assert [tuple(row) for row in found] == [(1,)]
    [free] = rows(books, queries.free_by_cause(14))
    assert (free["free_nanos"], free["limit"]) == (20 * UNIT, "ad_group_lifetime")
    counts = {row["disposition"]: row["events"] for row in rows(books, queries.dispositions())}
    assert counts == {"charged": 4, "expired": 1}
    assert [row["events"] for row in rows(books, queries.rates())] == [4]
    assert [str(row["adjusts_day"]) for row in rows(books, queries.adjustments(14))] == [
        "2026-03-02"
    ]
