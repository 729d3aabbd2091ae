"""What pacing is told of a turn: columns of the outcome and facts of the catalog, nothing more."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.billing.decide import Outcome
from pipeline.billing.terms import Terms
from pipeline.contract.catalog import Catalog
from pipeline.contract.vocabulary import (
    CHARGED,
    CLICK,
    CPM,
    IMPRESSION,
    INSTALL,
    NANOS_PER_MICRO,
    NOT_SERVING,
    OVER_BUDGET,
)
from pipeline.native import compiled
from pipeline.pacing.observed import Events, Facts, Seen, Today, by_group

Rows = npt.NDArray[np.int64]
Records = npt.NDArray[Any]


def seen_of(outcome: Outcome, terms: Terms) -> Seen:
    """The events that reached rule 6, by ad group. Only numeric columns are read."""
    rows = np.flatnonzero(outcome.disposition >= NOT_SERVING)
    disposition = outcome.disposition[rows]
    value = outcome.amount_nanos[rows] + outcome.free_nanos[rows]
    group, kind = outcome.group[rows], outcome.batch.kind[rows]
    for_installs = terms.campaign.for_installs[outcome.campaign[rows]]
    price = np.minimum(outcome.batch.price_micros[rows], terms.group.bid_micros[group])
    return by_group(
        Events(
            now_ms=outcome.now_ms,
            group=group,
            is_impression=kind == IMPRESSION,
            is_billable=(disposition == CHARGED) | (disposition == OVER_BUDGET),
            value_nanos=value,
            event_time_ms=outcome.batch.event_time_ms[rows],
            price_nanos=price * np.where(outcome.basis[rows] == CPM, 1, NANOS_PER_MICRO),
            is_install=for_installs & (kind == INSTALL),
            is_click=for_installs & (kind == CLICK),
        )
    )


def facts_of(terms: Terms, groups: Rows) -> Facts:
    """What the catalog says of these ad groups."""
    campaign = terms.group.campaign[groups].astype(np.int64)
    basis, zone = np.empty((2, len(groups)), dtype=np.int64)
    is_even = np.empty(len(groups), dtype=np.bool_)
    tables = terms.group.rows, terms.campaign.rows, terms.account.rows
    _fill_facts(*tables, groups, campaign, basis, zone, is_even)
    return Facts(basis, campaign, zone, is_even)


@compiled
def _fill_facts(
    groups: Records,
    campaigns: Records,
    accounts: Records,
    rows: Rows,
    campaign: Rows,
    basis: Rows,
    zone: Rows,
    is_even: npt.NDArray[np.bool_],
) -> None:
    for at in range(len(rows)):
        above = campaigns[campaign[at]]
        basis[at], zone[at] = above.basis, accounts[above.account].zone
        is_even[at] = groups[rows[at]].even


def today_of(terms: Terms, now_ms: int) -> Today:
    """The billing day that it is, in every time zone in use."""
    days = [zone.day_of(now_ms) for zone in terms.zones]
    bounds = zip(terms.zones, days, strict=True)
    both = [(zone.start_ms(day), zone.end_ms(day)) for zone, day in bounds]
    return Today(
        day=np.array(days, dtype=np.int64),
        start_ms=np.array([start for start, _ in both], dtype=np.int64),
        end_ms=np.array([end for _, end in both], dtype=np.int64),
    )


def warm_up() -> None:
    """Compile what a turn needs, or load it, before the first one waits for it."""
    facts_of(Terms(Catalog(), 1), np.zeros(1, np.int64))
