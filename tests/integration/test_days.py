"""Billing days: posted, closed with a digest, adjusted later, and never changed.

One story of four days (2026-03-06 to 09, the clocks of New York change on the 8th) told once, and
looked at from all sides.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import pytest

from tests.integration.product import HOUR_MS, Ad, Product, at, entities_of, http_query

CREATED_MS = at("2026-03-01")
UNIT = 1_000_000_000
DAYS = ("2026-03-06", "2026-03-07", "2026-03-08", "2026-03-09")
OPEN_DAY = "2026-03-10"
NOTHING = hashlib.sha256().hexdigest()

DIGEST_QUERY = (
    "SELECT charge_id, billing_day, posting_day, account_id, campaign_id, ad_group_id, "
    "promoted_pin_id, currency, basis, quantity, amount_nanos, is_adjustment, adjusts_day, "
    "event_id, posted_at_ms FROM billing.charges WHERE posting_day = {day:Date} "
    "AND account_id = {account:String} "
    "ORDER BY journal_partition, journal_offset, charge_number FORMAT TSV"
)
"""As the documentation of the digest gives it."""


@dataclass(frozen=True)
class Story:
    """The ads, and what was to be seen between its days."""

    clicks: Ad
    """UTC, CPC, a budget of 2.5 units a day."""
    blocks: Ad
    """UTC, CPM: 2,345 impressions on the 6th, three late ones on the 7th."""
    quiet: Ad
    """UTC, CPC: one click on the 6th, and nothing more."""
    saves: Ad
    """UTC, CPE."""
    new_york: Ad
    before_the_close: list[dict[str, Any]]
    """Charges by CPM while the 6th was open."""
    closed_6th: list[list[dict[str, Any]]]
    """What the tables said of the 6th when it was closed."""
    closed_accounts: int
    """How many accounts `close-day` said it closed."""


def impression_price_micros(number: int) -> int:
    return 1_000_001 + number


@pytest.fixture(scope="module")
def story(own_product: Product) -> Story:
    product = own_product
    ads: list[Ad] = []
    entities: list[dict[str, Any]] = []
    for name, objective, differences in (
        ("clicks", "traffic", {"ad_group": {"budget_micros": 2_500_000}}),
        ("blocks", "awareness", {}),
        ("quiet", "traffic", {}),
        ("saves", "engagement", {}),
        ("new-york", "traffic", {"account": {"time_zone": "America/New_York"}}),
    ):
        ad, own = entities_of(name, objective, **differences)
        ads.append(ad)
        entities += own
    clicks, blocks, quiet, saves, new_york = ads
    product.publish_catalog(*entities, timestamp_ms=CREATED_MS)

    on_6th_ms = at("2026-03-06T12:00")
    product.publish(
        *(
            blocks.impression(f"i-{n}", on_6th_ms, price_micros=impression_price_micros(n))
            for n in range(2_345)
        ),
        clicks.click("c-1", on_6th_ms, country="US"),
        clicks.click("c-2", on_6th_ms, country="US"),
        clicks.impression("c-seen", on_6th_ms, country="US"),
        quiet.click("q-1", on_6th_ms),
        saves.engagement("save", "s-1", on_6th_ms, user_id="ann"),
        new_york.click("ny-6th", on_6th_ms),
    )
    product.settle()
    before = product.query("SELECT quantity FROM billing.charges WHERE basis = 'cpm'")
    accounts = close_day(product, "2026-03-06")
    closed_6th = what_is_said_of(product, "2026-03-06")

    on_7th_ms = at("2026-03-07T08:00")
    product.publish(
        *(
            blocks.impression(f"i-late-{n}", on_6th_ms, price_micros=7, record_ms=on_7th_ms)
            for n in range(3)
        ),
        blocks.impression("i-7th", on_7th_ms, price_micros=11),
        clicks.click("c-late-1", on_6th_ms, record_ms=on_7th_ms),
        clicks.click("c-late-2", on_6th_ms, record_ms=on_7th_ms),
        clicks.click("c-7th", on_7th_ms),
        saves.engagement("save", "s-late", on_6th_ms, user_id="ann", record_ms=on_7th_ms),
        saves.engagement("save", "s-7th", on_7th_ms, user_id="ann"),
    )
    product.settle()
    product.publish(
        new_york.click("ny-last-of-7th", at("2026-03-08T05:00") - 1),
        new_york.click("ny-first-of-8th", at("2026-03-08T05:00")),
        new_york.click("ny-last-of-8th", at("2026-03-09T04:00") - 1),
        new_york.click("ny-first-of-9th", at("2026-03-09T04:00")),
    )
    close_day(product, "2026-03-09")
    product.publish(clicks.click("c-open", at("2026-03-10T12:00")))
    product.settle()
    return Story(clicks, blocks, quiet, saves, new_york, before, closed_6th, accounts)


def close_day(product: Product, day: str) -> int:
    done = product.run("close-day", day)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split("closed for ")[1].split()[0])


def what_is_said_of(product: Product, day: str) -> list[list[dict[str, Any]]]:
    """All rows that a closed day has anywhere, in a fixed order."""
    return [
        product.query(f"SELECT * FROM {table} WHERE {column} = {{day:Date}} ORDER BY ALL", day=day)
        for table, column in (
            ("billing.day_closes", "billing_day"),
            ("billing.charges", "posting_day"),
            ("billing.events", "posting_day"),
            ("reporting.daily", "billing_day"),
            ("reporting.dashboard_daily", "billing_day"),
        )
    ]


def charges_of(product: Product, ad: Ad) -> list[tuple[Any, ...]]:
    rows = product.query(
        "SELECT billing_day, posting_day, basis, quantity, amount_nanos, "
        "toUInt8(is_adjustment) AS adjusts, adjusts_day, event_id FROM billing.charges "
        "WHERE account_id = {a:String} ORDER BY journal_offset, charge_number",
        a=ad.account_id,
    )
    return [tuple(row.values()) for row in rows]


def test_blocks_of_impressions_are_posted_when_full_and_when_the_day_closes(
    own_product: Product, story: Story
) -> None:
    nanos = [impression_price_micros(number) for number in range(2_345)]
    none = "1970-01-01"
    assert [row["quantity"] for row in story.before_the_close] == [1_000, 1_000]
    assert charges_of(own_product, story.blocks) == [
        ("2026-03-06", "2026-03-06", "cpm", 1_000, sum(nanos[:1_000]), 0, none, ""),
        ("2026-03-06", "2026-03-06", "cpm", 1_000, sum(nanos[1_000:2_000]), 0, none, ""),
        ("2026-03-06", "2026-03-06", "cpm", 345, sum(nanos[2_000:]), 0, none, ""),
        ("2026-03-06", "2026-03-07", "cpm", 3, 21, 1, "2026-03-06", ""),
        ("2026-03-07", "2026-03-07", "cpm", 1, 11, 0, none, ""),
    ]


def test_a_late_event_is_judged_by_its_own_days_limits_and_posted_in_the_open_day(
    own_product: Product, story: Story
) -> None:
    rows = own_product.judged(
        story.clicks,
        *("event_id", "disposition", "limit", "amount_nanos", "free_nanos"),
        *("billing_day", "posting_day"),
    )
    sixth, seventh, tenth = "2026-03-06", "2026-03-07", "2026-03-10"
    assert [row for row in rows if row[0] != "c-seen"] == [
        ("c-1", "charged", "", UNIT, 0, sixth, sixth),
        ("c-2", "charged", "", UNIT, 0, sixth, sixth),
        ("c-late-1", "charged", "ad_group_daily", UNIT // 2, UNIT // 2, sixth, seventh),
        ("c-late-2", "over_budget", "ad_group_daily", 0, UNIT, sixth, seventh),
        ("c-7th", "charged", "", UNIT, 0, seventh, seventh),
        ("c-open", "charged", "", UNIT, 0, tenth, tenth),
    ]
    none = "1970-01-01"
    assert charges_of(own_product, story.clicks) == [
        (sixth, sixth, "cpc", 1, UNIT, 0, none, "c-1"),
        (sixth, sixth, "cpc", 1, UNIT, 0, none, "c-2"),
        (sixth, seventh, "cpc", 1, UNIT // 2, 1, sixth, "c-late-1"),
        (seventh, seventh, "cpc", 1, UNIT, 0, none, "c-7th"),
        (tenth, tenth, "cpc", 1, UNIT, 0, none, "c-open"),
    ]


def test_an_engagement_is_unique_within_its_own_billing_day(
    own_product: Product, story: Story
) -> None:
    assert own_product.judged(story.saves, "event_id", "disposition", "posting_day") == [
        ("s-1", "charged", "2026-03-06"),
        ("s-late", "repeat", "2026-03-07"),
        ("s-7th", "charged", "2026-03-07"),
    ]


def test_a_day_of_23_hours_is_one_day(own_product: Product, story: Story) -> None:
    assert own_product.judged(story.new_york, "event_id", "billing_day", "posting_day") == [
        ("ny-6th", "2026-03-06", "2026-03-06"),
        ("ny-last-of-7th", "2026-03-07", "2026-03-07"),
        ("ny-first-of-8th", "2026-03-08", "2026-03-08"),
        ("ny-last-of-8th", "2026-03-08", "2026-03-08"),
        ("ny-first-of-9th", "2026-03-09", "2026-03-09"),
    ]


def closes_of(product: Product, ad: Ad) -> list[tuple[Any, ...]]:
    rows = product.query(
        "SELECT billing_day, currency, amount_nanos, charges, events FROM billing.day_closes "
        "WHERE account_id = {a:String} ORDER BY billing_day",
        a=ad.account_id,
    )
    return [tuple(row.values()) for row in rows]


def test_an_account_has_a_row_for_each_day_from_its_first_event_on(
    own_product: Product, story: Story
) -> None:
    assert story.closed_accounts == 5
    assert closes_of(own_product, story.quiet) == [
        ("2026-03-06", "USD", UNIT, 1, 1),
        ("2026-03-07", "USD", 0, 0, 0),
        ("2026-03-08", "USD", 0, 0, 0),
        ("2026-03-09", "USD", 0, 0, 0),
    ]
    assert closes_of(own_product, story.clicks) == [
        ("2026-03-06", "USD", 2 * UNIT, 2, 3),
        ("2026-03-07", "USD", UNIT // 2 + UNIT, 2, 3),
        ("2026-03-08", "USD", 0, 0, 0),
        ("2026-03-09", "USD", 0, 0, 0),
    ]
    assert closes_of(own_product, story.new_york) == [
        ("2026-03-06", "USD", UNIT, 1, 1),
        ("2026-03-07", "USD", UNIT, 1, 1),
        ("2026-03-08", "USD", 2 * UNIT, 2, 2),
        ("2026-03-09", "USD", UNIT, 1, 1),
    ]


def test_a_day_closes_only_after_its_end_and_the_grace(own_product: Product, story: Story) -> None:
    ends_ms = {
        ("new-york-account", "2026-03-07"): at("2026-03-08T05:00"),
        ("new-york-account", "2026-03-08"): at("2026-03-09T04:00"),
        ("quiet-account", "2026-03-07"): at("2026-03-08"),
        ("quiet-account", "2026-03-08"): at("2026-03-09"),
    }
    rows = own_product.query("SELECT account_id, billing_day, closed_at_ms FROM billing.day_closes")
    closed = {(row["account_id"], row["billing_day"]): row["closed_at_ms"] for row in rows}
    for account_day, end_ms in ends_ms.items():
        assert closed[account_day] >= end_ms + 2 * HOUR_MS, account_day


def test_anyone_can_check_a_days_digest(own_product: Product, story: Story) -> None:
    closes = own_product.query("SELECT * FROM billing.day_closes ORDER BY billing_day, account_id")
    assert len(closes) == 5 * len(DAYS)
    for close in closes:
        lines = http_query(
            own_product.clickhouse,
            DIGEST_QUERY,
            day=close["billing_day"],
            account=close["account_id"],
        )
        assert hashlib.sha256(lines).hexdigest() == close["digest"]
        assert lines.count(b"\n") == close["charges"]
        assert (close["digest"] == NOTHING) == (close["charges"] == 0)


def test_a_closed_day_never_changes(own_product: Product, story: Story) -> None:
    assert all(story.closed_6th)
    assert what_is_said_of(own_product, "2026-03-06") == story.closed_6th


def test_closing_a_closed_day_again_changes_nothing(own_product: Product, story: Story) -> None:
    before = what_is_said_of(own_product, "2026-03-08")
    assert close_day(own_product, "2026-03-08") == 5
    assert what_is_said_of(own_product, "2026-03-08") == before


def test_daily_figures_are_of_closed_days_by_ad_and_place(
    own_product: Product, story: Story
) -> None:
    rows = own_product.query(
        "SELECT billing_day, country, impressions, clicks, charged_clicks, spend_nanos, "
        "free_nanos FROM reporting.daily WHERE account_id = {a:String} "
        "ORDER BY billing_day, country",
        a=story.clicks.account_id,
    )
    assert [tuple(row.values()) for row in rows] == [
        ("2026-03-06", "US", 1, 2, 2, 2 * UNIT, 0),
        ("2026-03-07", "", 0, 3, 2, UNIT + UNIT // 2, UNIT + UNIT // 2),
    ]
    [cpm] = own_product.query(
        "SELECT impressions, charged_impressions, spend_nanos FROM reporting.daily "
        "WHERE account_id = {a:String} AND billing_day = '2026-03-06'",
        a=story.blocks.account_id,
    )
    accrued = sum(impression_price_micros(number) for number in range(2_345))
    assert tuple(cpm.values()) == (2_345, 2_345, accrued)


def test_the_dashboard_has_closed_days_alone_in_units_and_ratios(
    own_product: Product, story: Story
) -> None:
    rows = own_product.query(
        "SELECT billing_day, toString(spend) AS spend, toString(overdelivery) AS free, ctr, "
        "toString(cpc) AS cpc FROM reporting.dashboard_daily WHERE account_id = {a:String} "
        "ORDER BY billing_day",
        a=story.clicks.account_id,
    )
    assert [tuple(row.values()) for row in rows] == [
        ("2026-03-06", "2", "0", 2, "1"),
        ("2026-03-07", "1.5", "1.5", 0, "0.75"),
    ]
    [cpm] = own_product.query(
        "SELECT toString(cpm) AS cpm, toString(spend) AS spend FROM reporting.dashboard_daily "
        "WHERE account_id = {a:String} AND billing_day = '2026-03-06'",
        a=story.blocks.account_id,
    )
    accrued = sum(impression_price_micros(number) for number in range(2_345))
    assert cpm["spend"] == f"{accrued // UNIT}.{accrued % UNIT:09d}".rstrip("0")
    assert cpm["cpm"].startswith("1.001173")  # the mean price of 1,000 impressions


def test_the_open_day_is_live_and_nowhere_else(own_product: Product, story: Story) -> None:
    live = own_product.query("SELECT billing_day, spend_nanos, status FROM reporting.live")
    assert live == [{"billing_day": OPEN_DAY, "spend_nanos": UNIT, "status": "provisional"}]
    for table in ("billing.day_closes", "reporting.daily", "reporting.dashboard_daily"):
        days = own_product.query(f"SELECT max(billing_day) AS last FROM {table}")
        assert days[0]["last"] <= "2026-03-09", table


def test_every_identity_holds_on_every_day(own_product: Product, story: Story) -> None:
    own_product.assert_reconciled(events=2_345 + 6 + 9 + 4 + 1)
    for day in DAYS:
        done = own_product.run("reconcile", "--day", day, "--json")
        report = json.loads(done.stdout)
        assert (done.returncode, report["ok"]) == (0, True)
    sums = own_product.query(
        "SELECT day, sum(nanos) AS total FROM ("
        "SELECT 'events' AS what, posting_day AS day, amount_nanos AS nanos FROM billing.events "
        "UNION ALL SELECT 'charges', posting_day, amount_nanos FROM billing.charges "
        "UNION ALL SELECT 'daily', billing_day, spend_nanos FROM reporting.daily "
        "UNION ALL SELECT 'closes', billing_day, amount_nanos FROM billing.day_closes) "
        "WHERE day <= '2026-03-09' GROUP BY day, what ORDER BY day"
    )
    for day in DAYS:
        totals = [row["total"] for row in sums if row["day"] == day]
        assert len(totals) == 4 or set(totals) == {0}
        assert len(set(totals)) == 1, (day, totals)


def test_a_day_can_be_forced_to_close_without_its_grace(own_product: Product, story: Story) -> None:
    done = own_product.run("close-day", OPEN_DAY, "--force")
    assert done.returncode == 0, done.stderr
    rows = own_product.query(
        "SELECT account_id, closed_at_ms FROM billing.day_closes WHERE billing_day = {d:Date}",
        d=OPEN_DAY,
    )
    assert len(rows) == 5
    last_end_ms = at("2026-03-11", "America/New_York")
    assert max(row["closed_at_ms"] for row in rows) == last_end_ms
