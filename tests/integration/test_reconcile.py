"""What reconciling holds to be right, and what it finds, over books made by engine and reporter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.integration.small_books import SmallBooks, at


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallBooks]:
    """Late impressions of a closed day and the open day's own, none of them in a block yet.

    And two clicks, the first one credited, of an account that had no event in the day between, and
    an account that moved to the far east after its only click.
    """
    one = SmallBooks(tmp_path_factory.mktemp("reconcile"))
    one.open("seen", "awareness")
    one.open("clicked", "traffic")
    one.open("moved", "traffic")
    one.judge(
        at(1),
        one.event("clicked", "click", at(1), event_id="credited"),
        one.event("moved", "click", at(1)),
    )
    there = {"account_id": "moved", "country": "US", "currency": "USD"}
    one.publish("account:moved", there | {"time_zone": "Pacific/Kiritimati"}, at(1, 13))
    one.judge(at(2, 3))
    one.report()
    one.judge(at(2), one.event("seen", "impression", at(2)))
    one.credit("credited", at(2, 13))
    one.judge(at(3, 3))
    late = [one.event("seen", "impression", at(2), recorded_ms=at(3)) for _ in range(600)]
    own = [one.event("seen", "impression", at(3)) for _ in range(600)]
    one.judge(at(3), *late, *own, one.event("clicked", "click", at(3)))
    one.report()
    yield one
    one.store.close()


def test_an_open_day_may_hold_an_open_block_for_each_day_that_it_adjusts(
    books: SmallBooks,
) -> None:
    assert books.failed() == {}


def test_an_account_that_moved_east_may_have_closed_more_than_its_old_zone(
    books: SmallBooks,
) -> None:
    closed = books.store.rows(
        "SELECT account_id, toString(max(billing_day)) FROM billing.day_closes "
        "WHERE account_id IN ('clicked', 'moved') GROUP BY account_id ORDER BY account_id"
    )
    assert [tuple(row) for row in closed] == [("clicked", "2026-03-02"), ("moved", "2026-03-03")]
    assert books.failed() == {}


@dataclass(frozen=True)
class Extra:
    """A row of a table, written once more with some columns changed."""

    table: str
    where: str
    changes: dict[str, str]
    found_by: str = "rows_are_of_read_records"


A_CLICK = "account_id = 'clicked' AND posting_day = '2026-03-03'"
EXTRAS = {
    "an event of a shard that there is not": Extra(
        "billing.events",
        A_CLICK,
        {"journal_partition": "99", "shard_seq": "0", "disposition": "'duplicate'"}
        | {"source_partition": "99", "basis": "''", "amount_nanos": "0"},
    ),
    "an event of a partition that there is not": Extra(
        "billing.events", A_CLICK, {"source_partition": "99"}
    ),
    "a charge of nothing of a shard that there is not": Extra(
        "billing.charges",
        A_CLICK,
        {"journal_partition": "99", "amount_nanos": "0", "charge_id": "'9'", "event_id": "'9'"},
    ),
    "a charge of nothing of a record that there is not": Extra(
        "billing.charges",
        A_CLICK,
        {"journal_offset": "99", "amount_nanos": "0", "charge_id": "'9'", "event_id": "'9'"},
    ),
    "a refused credit of a shard that there is not": Extra(
        "billing.credits",
        "1",
        {"journal_partition": "99", "amount_nanos": "0", "refused": "'so'", "charge_id": "''"},
    ),
    "a close of a day that no shard has closed": Extra(
        "billing.day_closes",
        "account_id = 'clicked' AND billing_day = '2026-03-02'",
        {"billing_day": "toDate('2026-03-03')", "amount_nanos": "0", "charges": "0", "events": "0"},
        "days_without_gaps",
    ),
    "a close of another time than its last shard's": Extra(
        "billing.day_closes",
        "account_id = 'clicked' AND billing_day = '2026-03-02'",
        {"closed_at_ms": "1"},
        "closes_are_the_shards'",
    ),
}


@pytest.mark.parametrize("what", EXTRAS)
def test_a_row_that_no_record_gave_is_found(books: SmallBooks, what: str) -> None:
    extra = EXTRAS[what]
    columns = ", ".join(
        f"accurateCast({value}, toTypeName({name})) AS {name}"
        for name, value in extra.changes.items()
    )
    books.store.command(
        f"INSERT INTO {extra.table} SETTINGS insert_deduplicate = 0 "
        f"SELECT * REPLACE ({columns}) FROM (SELECT * FROM {extra.table} WHERE {extra.where})"
    )
    try:
        assert extra.found_by in books.failed()
    finally:
        only_it = " AND ".join(f"{name} = {value}" for name, value in extra.changes.items())
        books.store.command(f"DELETE FROM {extra.table} WHERE {only_it}")
    assert books.failed() == {}
