"""The limits of ad groups and campaigns, and what is used of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.billing.books import Balances
from pipeline.billing.terms import UNLIMITED, Columns, Terms
from pipeline.contract.catalog import Catalog
from pipeline.contract.vocabulary import (
    AD_GROUP_DAILY,
    AD_GROUP_LIFETIME,
    CAMPAIGN_DAILY,
    CAMPAIGN_LIFETIME,
)
from pipeline.dense import few
from pipeline.native import compiled

Rows = npt.NDArray[np.int64]
Int64s = npt.NDArray[np.int64]
Records = npt.NDArray[Any]

LIMITS_OF: Final = {
    "ad_group": (AD_GROUP_DAILY, AD_GROUP_LIFETIME),
    "campaign": (CAMPAIGN_DAILY, CAMPAIGN_LIFETIME),
}
"""The daily and the lifetime limit of each level."""
NO_DAY: Final = np.iinfo(np.int64).min
"""Of what belongs to no account that is known."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of some ad groups or campaigns on some days; nanos, shape (2, n): daily, lifetime."""

    bounds: Int64s
    """UNLIMITED where there is none."""
    spent: Int64s


def limits_on(level: str, rows: Rows, days: Rows, terms: Terms, balances: Balances) -> Limits:
    """The limits in force now, and what has been charged against them; of the daily ones on each
    row's day since the epoch. Where that is NO_DAY there is no daily limit."""
    daily, lifetime = LIMITS_OF[level]
    columns = columns_of(level, terms)
    size = int(rows.max(initial=-1)) + 1
    found = Limits(*np.empty((2, 2, len(rows)), dtype=np.int64))
    all_time = balances.get(lifetime, 0).up_to(size)
    for day in few(days):
        on_day = balances.get(daily, day).up_to(size)
        _fill(columns.rows, rows, days, day, on_day, all_time, found.bounds, found.spent)
    return found


def columns_of(level: str, terms: Terms) -> Columns:
    """What the terms say of a level."""
    return terms.group if level == "ad_group" else terms.campaign


def zones_of(level: str, rows: Rows, terms: Terms) -> Rows:
    """The row of each one's time zone; -1 where its account is not known."""
    campaigns = terms.group.campaign[rows] if level == "ad_group" else rows
    found = np.empty(len(rows), dtype=np.int64)
    _fill_zones(terms.campaign.rows, terms.account.rows, campaigns, found)
    return found


@compiled
def _fill(
    records: Records,
    rows: Rows,
    days: Rows,
    day: int,
    on_day: Int64s,
    all_time: Int64s,
    bounds: Int64s,
    spent: Int64s,
) -> None:
    """Fill in those of this day."""
    for at in range(len(rows)):
        if days[at] == day:
            row = rows[at]
            one = records[row]
            bounds[0, at] = one.daily_nanos if day != NO_DAY else UNLIMITED
            bounds[1, at] = one.lifetime_nanos
            spent[0, at] = on_day[row]
            spent[1, at] = all_time[row]


@compiled
def _fill_zones(
    campaigns: Records, accounts: Records, rows: npt.NDArray[np.integer], found: Rows
) -> None:
    for at in range(len(rows)):
        account = campaigns[rows[at]].account if rows[at] >= 0 else -1
        found[at] = accounts[account].zone if account >= 0 else -1


def warm_up() -> None:
    """Compile what judging needs, or load it, before the first event waits for it."""
    terms, balances, row = Terms(Catalog(), 1), Balances(1), np.zeros(1, np.int64)
    for level in LIMITS_OF:
        limits_on(level, row, row, terms, balances)
        zones_of(level, row, terms)
