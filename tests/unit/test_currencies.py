"""All six currencies: their minimum bids, the USD peg, and what holds where a rate is missing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.contract.catalog import Accepted, Catalog, Refused
from pipeline.contract.days import from_iso
from pipeline.contract.log import LogRecord
from pipeline.contract.money import COUNTRY_CURRENCY
from pipeline.contract.vocabulary import MS_PER_DAY

TODAY = "2026-03-10"
PEGGED = ["CAD", "GBP", "EUR", "AUD", "NZD"]

MINIMUM_BIDS = [
    # currency, traffic and app_install, engagement, awareness (None: pegged), video_awareness
    ("USD", 100_000, 100_000, 2_000_000, 6_000_000),
    ("GBP", 80_000, 80_000, None, 4_630_000),
    ("CAD", 150_000, 150_000, None, 8_150_000),
    ("EUR", 110_000, 110_000, None, 5_380_000),
    ("AUD", 150_000, 150_000, None, 8_070_000),
    ("NZD", 160_000, 160_000, None, 8_670_000),
]


def day_ms(day: str) -> int:
    return from_iso(day) * MS_PER_DAY


class Published:
    """A catalog with an account and a campaign, to bid in."""

    def __init__(self, currency: str, objective: str) -> None:
        self.catalog = Catalog()
        [country] = [c for c, money in COUNTRY_CURRENCY.items() if money == currency]
        account = {"account_id": "a", "country": country, "currency": currency}
        campaign = {"campaign_id": "c", "account_id": "a", "objective": objective}
        assert isinstance(self.publish("account:a", account), Accepted)
        assert isinstance(self.publish("campaign:c", campaign), Accepted)

    def publish(self, key: str, value: dict[str, Any] | None, day: str = TODAY) -> Any:
        encoded = None if value is None else json.dumps(value).encode()
        offset = self.catalog.end_offset
        return self.catalog.apply(
            LogRecord("ads.catalog", 0, offset, day_ms(day), key.encode(), encoded)
        )

    def rates(self, day: str, **usd_per_unit: str) -> None:
        value = {"fx_day": day, "usd_per_unit": usd_per_unit}
        assert isinstance(self.publish(f"fx:{day}", value), Accepted)

    def takes(self, bid_micros: int, day: str = TODAY) -> bool:
        group = {
            "ad_group_id": "g",
            "campaign_id": "c",
            "budget_type": "daily",
            "budget_micros": 10**9,
            "bid_micros": bid_micros,
        }
        result = self.publish("ad_group:g", group, day)
        assert isinstance(result, Accepted) or result.reason == "bid_too_low"
        return not isinstance(result, Refused)

    def assert_minimum(self, micros: int, day: str = TODAY) -> None:
        assert self.takes(micros, day)
        assert not self.takes(micros - 1, day)


@pytest.mark.parametrize(("currency", "cpc", "cpe", "cpm", "video"), MINIMUM_BIDS)
def test_the_minimum_bids_are_the_contracts(
    currency: str, cpc: int, cpe: int, cpm: int | None, video: int
) -> None:
    of_objective = {"traffic": cpc, "app_install": cpc, "engagement": cpe, "video_awareness": video}
    for objective, micros in (of_objective | ({"awareness": cpm} if cpm else {})).items():
        Published(currency, objective).assert_minimum(micros)


@pytest.mark.parametrize("currency", PEGGED)
def test_a_pegged_minimum_is_two_dollars_at_the_days_rate_rounded_up(currency: str) -> None:
    published = Published(currency, "awareness")
    published.rates(TODAY, **{currency: "0.7"})
    published.assert_minimum(2_857_143)


@pytest.mark.parametrize("currency", PEGGED)
def test_without_any_rate_a_pegged_minimum_is_two_units(currency: str) -> None:
    Published(currency, "awareness").assert_minimum(2_000_000)


def test_where_the_days_rate_is_missing_the_last_one_before_it_holds() -> None:
    published = Published("GBP", "awareness")
    published.rates("2026-03-07", GBP="1.25")
    published.rates("2026-03-08", EUR="1.1")  # has no rate of the pound
    published.rates("2026-03-11", GBP="2")  # not yet
    published.assert_minimum(1_600_000)
    published.assert_minimum(1_000_000, day="2026-03-12")


def test_where_only_later_rates_are_known_the_last_one_read_holds() -> None:
    published = Published("GBP", "awareness")
    published.rates("2026-03-12", GBP="1.25")
    published.rates("2026-03-11", GBP="1")
    published.assert_minimum(2_000_000)


def test_a_rate_that_was_deleted_is_as_if_it_had_never_been_for_its_day() -> None:
    published = Published("GBP", "awareness")
    published.rates("2026-03-09", GBP="1.25")
    published.rates("2026-03-10", GBP="1")
    published.publish("fx:2026-03-10", None)
    published.assert_minimum(1_600_000)


def test_a_later_rate_that_has_nothing_for_the_currency_changes_nothing() -> None:
    published = Published("GBP", "awareness")
    published.rates("2026-03-12", GBP="1.25")
    published.rates("2026-03-13", EUR="1.1")
    published.assert_minimum(1_600_000)


def test_when_all_rates_are_deleted_there_is_none() -> None:
    published = Published("GBP", "awareness")
    published.rates("2026-03-12", GBP="4")
    published.publish("fx:2026-03-12", None)
    published.assert_minimum(2_000_000)


def test_rates_of_other_currencies_are_passed_over() -> None:
    published = Published("GBP", "awareness")
    published.rates(TODAY, GBP="1.25", JPY="one")
    published.assert_minimum(1_600_000)


def test_a_bid_is_held_against_the_objective_of_its_own_time() -> None:
    published = Published("USD", "awareness")
    campaign = {"campaign_id": "c", "account_id": "a", "objective": "video_awareness"}
    later = campaign | {"effective_ms": day_ms("2026-03-20")}
    assert isinstance(published.publish("campaign:c", later), Accepted)
    published.assert_minimum(2_000_000)
    published.assert_minimum(6_000_000, day="2026-03-20")


def test_a_new_rate_does_not_touch_bids_that_were_accepted() -> None:
    published = Published("GBP", "awareness")
    published.rates("2026-03-09", GBP="1.25")
    assert published.takes(1_600_000)
    published.rates("2026-03-10", GBP="1")
    assert published.catalog.ad_groups["g"].latest.bid_micros == 1_600_000


@pytest.mark.parametrize("rate", ["0", "-1", "NaN", "Infinity", "one", ""])
def test_what_is_no_rate_is_refused(rate: str) -> None:
    value = {"fx_day": TODAY, "usd_per_unit": {"GBP": rate}}
    refused = Published("GBP", "awareness").publish(f"fx:{TODAY}", value)
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.field) == ("malformed", "usd_per_unit")
