"""Limits and what is used of them, against looking each up by itself."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing.books import Balances
from pipeline.billing.limits import LIMITS_OF, NO_DAY, columns_of, limits_on, zones_of
from pipeline.billing.terms import UNLIMITED, Terms
from pipeline.contract.catalog import Catalog

GROUPS, CAMPAIGNS, ACCOUNTS = 40, 9, 4
DAYS = (20_000, 20_001, 20_002)


def some_terms(rng: np.random.Generator) -> Terms:
    terms = Terms(Catalog(), 4)
    for level, size in ((terms.group, GROUPS), (terms.campaign, CAMPAIGNS)):
        level.reserve(size)
        for column in (level.daily_nanos, level.lifetime_nanos):
            column[:size] = np.where(rng.random(size) < 0.5, UNLIMITED, rng.integers(0, 99, size))
    terms.account.reserve(ACCOUNTS)
    terms.account.zone[:ACCOUNTS] = rng.integers(0, 3, ACCOUNTS)
    terms.group.campaign[:GROUPS] = rng.integers(-1, CAMPAIGNS, GROUPS)
    terms.campaign.account[:CAMPAIGNS] = rng.integers(-1, ACCOUNTS, CAMPAIGNS)
    return terms


@pytest.mark.parametrize(("level", "size"), [("ad_group", GROUPS), ("campaign", CAMPAIGNS)])
@given(st.integers(0, 2**32), st.integers(0, 60))
def test_limits_are_those_of_each_row_and_day(level: str, size: int, seed: int, asked: int) -> None:
    rng = np.random.default_rng(seed)
    terms, balances = some_terms(rng), Balances(3)
    daily, lifetime = LIMITS_OF[level]
    for day in DAYS[:2]:  # nothing is charged on the last one
        balances.to_post(daily, day).post(rng.integers(0, size, 9), rng.integers(1, 9, 9))
    balances.to_post(lifetime, 0).post(rng.integers(0, size, 9), rng.integers(1, 9, 9))
    rows = rng.integers(0, size, asked)
    days = rng.choice(np.array([*DAYS, NO_DAY]), asked)

    found = limits_on(level, rows, days, terms, balances)

    columns = columns_of(level, terms)
    for at, (row, day) in enumerate(zip(rows, days.tolist(), strict=True)):
        one = np.array([row])
        bound = columns.daily_nanos[row] if day != NO_DAY else UNLIMITED
        assert found.bounds[:, at].tolist() == [bound, columns.lifetime_nanos[row]]
        spent = [balances.get(daily, day).of(one)[0], balances.get(lifetime, 0).of(one)[0]]
        assert found.spent[:, at].tolist() == spent


@given(st.integers(0, 2**32))
def test_zones_are_those_of_the_accounts_where_these_are_known(seed: int) -> None:
    terms = some_terms(np.random.default_rng(seed))
    all_of = SimpleNamespace(ad_group=np.arange(GROUPS), campaign=np.arange(CAMPAIGNS))
    of_campaign = [
        -1 if account < 0 else terms.account.zone[account]
        for account in terms.campaign.account[:CAMPAIGNS]
    ]
    assert zones_of("campaign", all_of.campaign, terms).tolist() == of_campaign
    of_group = [
        -1 if campaign < 0 else of_campaign[campaign] for campaign in terms.group.campaign[:GROUPS]
    ]
    assert zones_of("ad_group", all_of.ad_group, terms).tolist() == of_group
