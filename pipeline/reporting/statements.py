"""Monthly statements: written by the reporter once a month's days are closed, never changed.

A statement states what billing.charges posted in the days of the month, credits taken off. Its
lines, one a campaign, are in cents; nanos under a cent are not lost but carried:

    total in cents = (charges of the month + carried from the month before) rounded down to cents
    carried on     = what that leaves, 0 <= carried < 1 cent

so that, exactly and for every month,

    sum(amount) + sum(carried_nanos) = sum(charges) + sum(carried_nanos of the month before)

The cents go to the campaigns by the largest remainder: each gets its own nanos rounded down, and
the cents that are still missing from the total go one each to the campaigns with the largest
remainders (of equal ones, the lesser campaign_id). `carried_nanos` is the account's, not a
campaign's: it stands on the account's own line, whose campaign_id is empty and whose amount is 0,
and is 0 on all others. So a month without charges has a statement too, of that one line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Final

import pyarrow as pa

from pipeline.contract.money import NANOS_PER_UNIT
from pipeline.errors import UserError
from pipeline.reporting.clickhouse import Store, in_pieces
from pipeline.reporting.daybook import ONE_DAY, DayBook, next_month

NANOS_PER_CENT: Final = NANOS_PER_UNIT // 100
ACCOUNTS_AT_ONCE: Final = 500
ACCOUNT_LINE: Final = ""
"""campaign_id of the account's own line."""

STATEMENT_SCHEMA: Final = pa.schema(
    [
        ("month", pa.date32()),
        ("account_id", pa.string()),
        ("campaign_id", pa.string()),
        ("currency", pa.string()),
        ("amount", pa.decimal128(38, 2)),
        ("carried_nanos", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an account's month, as billing.statements has it."""

    month: date
    account_id: str
    campaign_id: str
    currency: str
    amount: Decimal
    """With 2 decimals."""
    carried_nanos: int


class StatementError(UserError):
    """There is no statement to show; the text says why and what to do."""


def in_cents(nanos: Mapping[str, int], carried_nanos: int) -> tuple[dict[str, int], int]:
    """Campaign -> its cents, and the nanos carried on. `carried_nanos`: of the month before."""
    total_cents, carried_on = divmod(sum(nanos.values()) + carried_nanos, NANOS_PER_CENT)
    cents = {campaign: amount // NANOS_PER_CENT for campaign, amount in nanos.items()}
    missing = total_cents - sum(cents.values())
    largest_first = sorted(
        nanos, key=lambda campaign: (-(nanos[campaign] % NANOS_PER_CENT), campaign)
    )
    for campaign in largest_first[:missing]:
        cents[campaign] += 1
    return cents, carried_on


def lines_of(
    month: date, account_id: str, currency: str, nanos: Mapping[str, int], carried_nanos: int
) -> list[Line]:
    """An account's statement: a line for each campaign that was charged, and its own."""
    cents, carried_on = in_cents(nanos, carried_nanos)
    lines = [
        Line(month, account_id, campaign, currency, Decimal(amount).scaleb(-2), 0)
        for campaign, amount in sorted(cents.items())
    ]
    own = Line(month, account_id, ACCOUNT_LINE, currency, Decimal("0.00"), carried_on)
    return [own, *lines]


def state_months(store: Store, book: DayBook, confirm: Callable[[], None]) -> None:
    """Write the statements that are due. May be repeated, and cut off anywhere.

    An insert holds whole statements and is atomic. `confirm` raises where this reporter may not
    write any more.
    """
    for month, account_ids in book.months_due():
        for accounts in in_pieces(account_ids, ACCOUNTS_AT_ONCE):
            confirm()
            currencies = {name: book.accounts[name].currency for name in accounts}
            lines = expected_lines(store, month, currencies)
            names = hashlib.sha256("\0".join(accounts).encode()).hexdigest()
            stated = {name for (name,) in store.rows(_STATED, _of(month, accounts))}
            missing = [line for line in lines if line.account_id not in stated]
            if missing:
                store.insert("billing.statements", to_table(missing), f"stated:{month}:{names}")
            for name in accounts:
                book.accounts[name].stated_through = month


_STATED: Final = (
    "SELECT DISTINCT account_id FROM billing.statements "
    "WHERE month = {month:Date} AND account_id IN {accounts:Array(String)}"
)


def _of(month: date, accounts: Sequence[str]) -> dict[str, object]:
    return {"month": month, "accounts": list(accounts)}


def expected_lines(store: Store, month: date, currencies: Mapping[str, str]) -> list[Line]:
    """What the charges make of a month's statements, for accounts (-> currency) sorted by id."""
    accounts = list(currencies)
    last = next_month(month) - ONE_DAY
    charged: dict[str, dict[str, int]] = {name: {} for name in accounts}
    for account_id, campaign_id, nanos in store.rows(
        "SELECT account_id, campaign_id, sum(amount_nanos) FROM billing.charges "
        "WHERE posting_day BETWEEN {month:Date} AND {last:Date} "
        "AND account_id IN {accounts:Array(String)} GROUP BY account_id, campaign_id",
        _of(month, accounts) | {"last": last},
    ):
        charged[account_id][campaign_id] = int(nanos)
    before = (month - timedelta(days=1)).replace(day=1)
    carried = dict(
        store.rows(
            "SELECT account_id, sum(carried_nanos) FROM billing.statements "
            "WHERE month = {month:Date} AND account_id IN {accounts:Array(String)} "
            "GROUP BY account_id",
            _of(before, accounts),
        )
    )
    return [
        line
        for name in accounts
        for line in lines_of(
            month, name, currencies[name], charged[name], int(carried.get(name, 0))
        )
    ]


def to_table(lines: Sequence[Line]) -> pa.Table:
    """The lines as rows of billing.statements."""
    columns = {name: [getattr(line, name) for line in lines] for name in STATEMENT_SCHEMA.names}
    return pa.table(columns, schema=STATEMENT_SCHEMA)


def stored_lines(store: Store, month: date, accounts: Sequence[str]) -> list[Line]:
    """The lines in billing.statements, by account and campaign."""
    return [
        Line(*row)
        for row in store.rows(
            f"SELECT {', '.join(STATEMENT_SCHEMA.names)} FROM billing.statements "
            "WHERE month = {month:Date} AND account_id IN {accounts:Array(String)} "
            "ORDER BY account_id, campaign_id",
            _of(month, accounts),
        )
    ]


def read_statement(store: Store, account_id: str, month: date) -> list[Line]:
    """The statement of an account's month. Raises `StatementError` where there is none yet."""
    lines = stored_lines(store, month, [account_id])
    if lines:
        return lines
    found = store.rows(
        "SELECT min(first_day) FROM reporting.accounts WHERE account_id = {account:String} "
        "HAVING count() > 0",
        {"account": account_id},
    )
    if not found:
        raise StatementError(f"account {account_id} has no events in the books")
    first_day = found[0][0]
    last = next_month(month) - ONE_DAY
    if last < first_day:
        raise StatementError(f"account {account_id} has no events before {first_day}")
    closed = {
        day
        for (day,) in store.rows(
            "SELECT billing_day FROM billing.day_closes WHERE account_id = {account:String} "
            "AND billing_day BETWEEN {month:Date} AND {last:Date}",
            {"account": account_id, "month": month, "last": last},
        )
    }
    day, missing = max(month, first_day), []
    while day <= last:
        if day not in closed:
            missing.append(day)
        day += ONE_DAY
    if missing:
        raise StatementError(
            f"{month:%Y-%m} of account {account_id} is not closed: {_ranges(missing)} "
            f"({len(missing)} days) are missing. A month is stated when its last day closes"
        )
    raise StatementError(
        f"{month:%Y-%m} of account {account_id} is closed and being stated: try again in a moment"
    )


def _ranges(days: Sequence[date]) -> str:
    """Consecutive days as `FIRST to LAST`."""
    runs: list[list[date]] = []
    for day in days:
        if runs and day - runs[-1][-1] == ONE_DAY:
            runs[-1].append(day)
        else:
            runs.append([day])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
