"""A day's life is the tables' and nothing else: everything that is not in them raises."""

from __future__ import annotations

from datetime import date
from itertools import product

import pytest

from pipeline.billing.books import Shard
from pipeline.billing.daylife import (
    ACCOUNT_DAY,
    SHARD_DAY,
    DayEvent,
    DayState,
    IllegalTransitionError,
    Table,
    step,
)
from pipeline.reporting.daybook import Account

EVERYTHING = list(product(DayState, DayEvent))


@pytest.mark.parametrize("table", [SHARD_DAY, ACCOUNT_DAY])
def test_what_is_not_in_the_table_raises(table: Table) -> None:
    for state, event in EVERYTHING:
        if (state, event) in table:
            assert step(table, state, event, "a day") == table[state, event]
        else:
            with pytest.raises(IllegalTransitionError, match=f"a day is {state}"):
                step(table, state, event, "a day")


@pytest.mark.parametrize("table", [SHARD_DAY, ACCOUNT_DAY])
def test_nothing_leads_out_of_closed_and_everything_leads_to_it(table: Table) -> None:
    assert all(state is not DayState.CLOSED for state, _ in table)
    reached = {DayState.OPEN}
    for _ in DayState:
        reached |= {after for (state, _), after in table.items() if state in reached}
    assert reached == set(DayState)


def test_a_shard_closes_no_day_twice_and_none_that_is_not_over() -> None:
    shard = Shard.new(0, horizon_days=7, keep_at_most_ids=1_000)
    shard.close_through("UTC", 100, ended_through=101)
    with pytest.raises(IllegalTransitionError, match="shard 0: 1970-04-11 of UTC is closed"):
        shard.close_through("UTC", 100, ended_through=101)
    with pytest.raises(IllegalTransitionError, match="is open"):
        shard.close_through("UTC", 102, ended_through=101)
    assert shard.closed == {"UTC": 100}


def test_an_accounts_days_close_in_order() -> None:
    account = Account("USD", "UTC", first_day=date(2026, 1, 1))
    account.close(date(2026, 1, 1), "a")
    with pytest.raises(IllegalTransitionError, match="2026-01-01 is closed"):
        account.close(date(2026, 1, 1), "a")
    with pytest.raises(IllegalTransitionError, match="2026-01-03 is open"):
        account.close(date(2026, 1, 3), "a")
    account.close(date(2026, 1, 2), "a")
    assert account.closed_through == date(2026, 1, 2)
