"""Closing account days: reporting.daily, then billing.day_closes, each exactly once.

Runs after everything that the shards decided before their closes is in billing.events and
billing.charges. An insert holds whole accounts and is atomic, so after a crash the accounts that
have rows are done and the others have none. A closed day never changes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

import polars as pl

from pipeline import failpoints
from pipeline.reporting.clickhouse import Store, in_pieces
from pipeline.reporting.daybook import DueClose
from pipeline.reporting.digest import day_digests
from pipeline.reporting.rows import OWN_DAY, to_arrow

log = logging.getLogger(__name__)

ACCOUNTS_AT_ONCE: Final = 500
EVENTS_AT_ONCE: Final = 20_000_000
"""Events summed up by one insert: an upper bound of its rows' memory, beside one huge account."""

_OWN_DAY_LIST: Final = ", ".join(f"'{name}'" for name in OWN_DAY)

DAILY_COUNTERS: Final = {
    "impressions": "toInt64(countIf(kind = 'impression'))",
    "clicks": "toInt64(countIf(kind = 'click'))",
    "closeups": "toInt64(countIf(kind = 'closeup'))",
    "saves": "toInt64(countIf(kind = 'save'))",
    "installs": "toInt64(countIf(kind = 'install'))",
    "charged_impressions": "toInt64(countIf(disposition = 'charged' AND basis = 'cpm'))",
    "charged_clicks": "toInt64(countIf(disposition = 'charged' AND basis = 'cpc'))",
    "charged_engagements": "toInt64(countIf(disposition = 'charged' AND basis = 'cpe'))",
    "spend_nanos": "sum(amount_nanos)",
    "free_nanos": "sum(free_nanos)",
    "credit_nanos": "sum(if(disposition = 'credited', amount_nanos, 0))",
}
"""Columns of reporting.daily, as sums over billing.events and billing.credits."""

_DAILY_KEY: Final = (
    "account_id, campaign_id, ad_group_id, promoted_pin_id, placement, country, device, currency"
)

_INSERT_DAILY: Final = f"""
INSERT INTO reporting.daily (billing_day, {_DAILY_KEY}, {", ".join(DAILY_COUNTERS)})
SELECT posting_day, {_DAILY_KEY}, {", ".join(DAILY_COUNTERS.values())}
FROM
(
    SELECT posting_day, {_DAILY_KEY}, kind, disposition, basis, amount_nanos, free_nanos
    FROM billing.events
    WHERE posting_day = {{day:Date}} AND account_id IN {{accounts:Array(String)}}
      AND disposition IN ({_OWN_DAY_LIST})
    UNION ALL
    SELECT posting_day, {_DAILY_KEY}, '', 'credited', '', amount_nanos, 0
    FROM billing.credits
    WHERE posting_day = {{day:Date}} AND account_id IN {{accounts:Array(String)}}
      AND refused = ''
)
GROUP BY posting_day, {_DAILY_KEY}
ORDER BY {_DAILY_KEY}
"""

_ONE_BLOCK: Final = {
    # Sorted by one thread and written as one block: atomic, and the same whenever it is repeated.
    "max_insert_threads": 1,
    "max_bytes_before_external_group_by": 1_000_000_000,
    "max_bytes_before_external_sort": 1_000_000_000,
    "insert_select_deduplicate": 1,
}

DAY_CLOSE_SCHEMA: Final[dict[str, pl.DataType]] = {
    "billing_day": pl.Date(),
    "account_id": pl.String(),
    "currency": pl.String(),
    "amount_nanos": pl.Int64(),
    "charges": pl.Int64(),
    "events": pl.Int64(),
    "digest": pl.String(),
    "closed_at_ms": pl.Int64(),
}


@dataclass(frozen=True, slots=True)
class _Totals:
    events: int = 0
    accrued_nanos: int = 0
    """Of events, credits taken off."""
    charges: int = 0
    posted_nanos: int = 0


def close_day(
    store: Store,
    due: DueClose,
    currencies: Mapping[str, str],
    confirm: Callable[[], None],
) -> dict[str, str]:
    """Close a day for its accounts. May be repeated, and cut off anywhere.

    `confirm` raises where this reporter may not write any more. Returns the accounts that were
    refused, with the reason: a day whose charges are not its events' amounts stays open, because
    a closed one could not be put right.
    """
    refused: dict[str, str] = {}
    for accounts in in_pieces(due.account_ids, ACCOUNTS_AT_ONCE):
        confirm()
        closed = _accounts_in(store, "billing.day_closes", due.day, accounts)
        missing = [account for account in accounts if account not in closed]
        totals = _totals(store, due.day, missing)
        wrong = _unbalanced(due.day, totals)
        refused |= wrong
        right = [account for account in missing if account not in wrong]
        if right:
            _write_daily(store, due.day, right, totals)
            confirm()
            _write_closes(store, due, right, totals, currencies)
            failpoints.reach("day_closed")
    return refused


def _write_daily(
    store: Store, day: date, accounts: Sequence[str], totals: Mapping[str, _Totals]
) -> None:
    done = _accounts_in(store, "reporting.daily", day, accounts)
    active = [
        account
        for account in accounts
        if (totals[account].events or totals[account].charges) and account not in done
    ]
    for group in _by_events(active, totals):
        store.insert_select(
            _INSERT_DAILY,
            {"day": day, "accounts": group},
            _token("reporting.daily", day, group),
            _ONE_BLOCK,
        )


def _write_closes(
    store: Store,
    due: DueClose,
    accounts: Sequence[str],
    totals: Mapping[str, _Totals],
    currencies: Mapping[str, str],
) -> None:
    digests = day_digests(
        store, due.day, {account: totals[account].charges for account in accounts}
    )
    rows = [
        (
            due.day,
            account,
            currencies[account],
            totals[account].posted_nanos,
            totals[account].charges,
            totals[account].events,
            digests[account],
            due.closed_at_ms,
        )
        for account in accounts
    ]
    frame = pl.DataFrame(rows, schema=DAY_CLOSE_SCHEMA, orient="row")
    token = _token("billing.day_closes", due.day, accounts)
    store.insert("billing.day_closes", to_arrow(frame), token)


def _accounts_in(store: Store, table: str, day: date, accounts: Sequence[str]) -> set[str]:
    found = store.rows(
        f"SELECT DISTINCT account_id FROM {table} "
        "WHERE billing_day = {day:Date} AND account_id IN {accounts:Array(String)}",
        {"day": day, "accounts": list(accounts)},
    )
    return {account for (account,) in found}


def _totals(store: Store, day: date, accounts: Sequence[str]) -> dict[str, _Totals]:
    if not accounts:
        return {}
    parameters = {"day": day, "accounts": list(accounts)}
    events = store.rows(
        "SELECT account_id, count(), sum(amount_nanos) FROM billing.events "
        "WHERE posting_day = {day:Date} AND account_id IN {accounts:Array(String)} "
        f"AND disposition IN ({_OWN_DAY_LIST}) GROUP BY account_id",
        parameters,
    )
    charges = store.rows(
        "SELECT account_id, count(), sum(amount_nanos) FROM billing.charges "
        "WHERE posting_day = {day:Date} AND account_id IN {accounts:Array(String)} "
        "GROUP BY account_id",
        parameters,
    )
    given_back = dict(
        store.rows(
            "SELECT account_id, sum(amount_nanos) FROM billing.credits "
            "WHERE posting_day = {day:Date} AND account_id IN {accounts:Array(String)} "
            "GROUP BY account_id",
            parameters,
        )
    )
    accrued = {account: (count, nanos) for account, count, nanos in events}
    for account, nanos in given_back.items():
        count, before = accrued.get(account, (0, 0))
        accrued[account] = (count, before + nanos)
    posted = {account: (count, nanos) for account, count, nanos in charges}
    return {
        account: _Totals(*accrued.get(account, (0, 0)), *posted.get(account, (0, 0)))
        for account in accounts
    }


def _unbalanced(day: date, totals: Mapping[str, _Totals]) -> dict[str, str]:
    wrong = {}
    for account, total in totals.items():
        if total.accrued_nanos != total.posted_nanos:
            wrong[account] = (
                f"account {account!r} cannot close {day}: its events and credits come to "
                f"{total.accrued_nanos} nanos, its charges to {total.posted_nanos}"
            )
            log.error(wrong[account])
    return wrong


def _by_events(accounts: Sequence[str], totals: Mapping[str, _Totals]) -> Iterator[list[str]]:
    group: list[str] = []
    held = 0
    for account in accounts:
        if group and held + totals[account].events > EVENTS_AT_ONCE:
            yield group
            group, held = [], 0
        group.append(account)
        held += totals[account].events
    if group:
        yield group


def _token(table: str, day: date, accounts: Sequence[str]) -> str:
    members = hashlib.sha256("\0".join(accounts).encode()).hexdigest()
    return f"{table}:{day}:{members}"
