"""What was charged of a day counts against its limits, however old the day."""

from __future__ import annotations

import numpy as np

from pipeline.billing.books import Balances
from pipeline.contract.vocabulary import AD_GROUP_DAILY

ONE = np.array([0])


def charge(balances: Balances, row: int, day: int) -> None:
    balances.post(np.array([row]), ONE, np.array([day]), np.array([1_000]))


def test_a_day_is_known_after_many_newer_ones() -> None:
    balances = Balances(days_kept=10)
    for day in range(400):
        charge(balances, 0, day)
    charge(balances, 0, 3)
    assert balances.get(AD_GROUP_DAILY, 3).of(ONE).tolist() == [2_000]


def test_many_days_of_many_ad_groups_are_not_kept_for_ever() -> None:
    balances = Balances(days_kept=10)
    for day in range(100):
        charge(balances, 10_000, day)
    days = [day for limit, day, _ in balances.all() if limit == AD_GROUP_DAILY]
    assert days == list(range(68, 100))
