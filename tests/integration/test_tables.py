"""The tables are those of the contract: their columns, no NULLs, and the views over open days."""

from __future__ import annotations

import pytest

from tests.integration.product import Product, at, until

NOON_MS = at("2026-03-02T12:00")

COLUMNS = {
    "billing.events": "shard_seq source_topic source_partition source_offset event_id "
    "event_time_ms billing_day posting_day account_id campaign_id ad_group_id promoted_pin_id "
    "user_hash kind placement country device disposition limit price_micros amount_nanos "
    "free_nanos decided_at_ms journal_partition journal_offset",
    "billing.charges": "charge_id billing_day posting_day account_id campaign_id ad_group_id "
    "promoted_pin_id currency basis quantity amount_nanos is_adjustment adjusts_day event_id "
    "posted_at_ms",
    "billing.day_closes": "billing_day account_id currency amount_nanos charges events digest "
    "closed_at_ms",
    "billing.statements": "month account_id campaign_id currency amount carried_nanos",
    "reporting.daily": "billing_day account_id campaign_id ad_group_id promoted_pin_id placement "
    "country device impressions clicks closeups saves installs charged_impressions "
    "charged_clicks charged_engagements spend_nanos free_nanos",
    "reporting.dashboard_daily": "billing_day account_id campaign_id ad_group_id "
    "promoted_pin_id placement country device impressions clicks closeups saves installs ctr cpc "
    "cpm cpe",
    "reporting.live": "as_of_ms status billing_day account_id campaign_id ad_group_id "
    "promoted_pin_id impressions clicks spend_nanos free_nanos",
    "reporting.signals": "entity action reason serve_probability bid_micros limit limit_nanos "
    "spend_nanos inflight_nanos billing_day decided_at_ms resume_at_ms version",
    "reporting.changes": "entity field old new changed_by effective_ms",
}


@pytest.mark.parametrize("table", COLUMNS)
def test_a_table_has_the_contracts_columns_and_none_is_nullable(
    product: Product, table: str
) -> None:
    found = {row["name"]: row["type"] for row in product.query(f"DESCRIBE TABLE {table}")}
    assert set(COLUMNS[table].split()) - set(found) == set()
    assert [name for name, kind in found.items() if "Nullable" in kind] == []


def test_no_amount_and_no_time_is_a_float(product: Product) -> None:
    floats = product.query(
        "SELECT table, name, type FROM system.columns "
        "WHERE database IN ('billing', 'reporting') AND type LIKE '%Float%' ORDER BY table, name"
    )
    # A ratio of counts and a probability.
    assert [(row["table"], row["name"]) for row in floats] == [
        ("dashboard_daily", "ctr"),
        ("signals", "serve_probability"),
    ]


def test_no_event_is_without_a_day(product: Product) -> None:
    days = product.query(
        "SELECT DISTINCT disposition, billing_day, posting_day FROM billing.events "
        "WHERE billing_day < '2026-01-01' OR posting_day < '2026-01-01'"
    )
    assert days == []


def test_live_shows_open_days_provisionally(product: Product) -> None:
    ad = product.ad("live", "traffic", at("2026-02-10"), ad_group={"budget_micros": 1_500_000})
    product.publish(
        ad.impression("live-0", NOON_MS, country="US", device="phone"),
        ad.click("live-1", NOON_MS, country="US", device="phone"),
        ad.click("live-2", NOON_MS, country="US", device="phone"),
        ad.click("live-3", NOON_MS, country="CA", placement="search"),
        ad.click("live-3", NOON_MS, country="CA", placement="search"),
    )
    product.settle()
    rows = product.query(
        "SELECT * FROM reporting.live WHERE campaign_id = {c:String} ORDER BY country",
        c=ad.campaign_id,
    )
    known = {
        "account_id": ad.account_id,
        "campaign_id": ad.campaign_id,
        "ad_group_id": ad.ad_group_id,
        "promoted_pin_id": ad.promoted_pin_id,
        "billing_day": "2026-03-02",
        "status": "provisional",
        "currency": "USD",
    }
    none = {"closeups": 0, "saves": 0, "installs": 0, "charged_impressions": 0}
    none |= {"runs_out_ms": 0, "runs_out_low_ms": 0, "runs_out_high_ms": 0}
    for row in rows:
        assert row.pop("as_of_ms") >= NOON_MS
    # Duplicates are not counted twice; what was over the budget is, free of charge.
    assert rows == [
        known
        | none
        | {"country": "CA", "device": "", "placement": "search", "impressions": 0, "clicks": 1}
        | {"charged_clicks": 0, "charged_engagements": 0}
        | {"spend_nanos": 0, "free_nanos": 1_000_000_000},
        known
        | none
        | {"country": "US", "device": "phone", "placement": "browse", "impressions": 1}
        | {"clicks": 2, "charged_clicks": 2, "charged_engagements": 0}
        | {"spend_nanos": 1_500_000_000, "free_nanos": 500_000_000},
    ]


def test_signals_are_in_their_table_as_they_were_sent(product: Product) -> None:
    ad = product.ad("tabled", "traffic", at("2026-02-10"), ad_group={"budget_micros": 1_000_000})
    product.publish(ad.click("tabled-1", NOON_MS), ad.click("tabled-2", NOON_MS))
    entity = f"ad_group:{ad.ad_group_id}"
    until(lambda: product.signals(entity), "a pause on pacing.signals")
    product.settle()
    [sent] = product.signals(entity)
    [row] = product.query("SELECT * FROM reporting.signals WHERE entity = {e:String}", e=entity)
    assert sent.get("bid_micros", 0) == row["bid_micros"]
    for field, value in sent.items():
        assert row[field] == value, field


def test_nothing_that_the_shared_product_was_put_through_broke_an_identity(
    product: Product,
) -> None:
    product.settle()
    product.assert_reconciled()
    done = product.run("reconcile")
    assert (done.returncode, "every identity holds" in done.stdout) == (0, True)


def test_the_parts_logged_no_error_of_their_own(product: Product) -> None:
    for name in ("worker", "reporter"):
        text = (product.data_dir / f"{name}.log").read_text()
        assert "Traceback" not in text, text[-2000:]
        # Kafka's client calls a coordinator that is still starting an error.
        assert " ERROR pipeline" not in text, text[-2000:]
