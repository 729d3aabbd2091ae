"""Every rule of "How an event is judged", by rows written by hand, through the running product.

All on one UTC day. Prices are round: a click at `price_micros` 1,000,000 costs one unit of the
currency, 1,000,000,000 nanos; an impression at 1,000,000 costs 1,000,000 nanos (CPM).
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.product import (
    CLICKS,
    DAY_MS,
    EVENT_TOPICS,
    HOUR_MS,
    MINUTE_MS,
    Ad,
    Message,
    Product,
    at,
    until,
)

DAY = "2026-03-02"
CREATED_MS = at("2026-02-10")
NOON_MS = at(f"{DAY}T12:00")
UNIT = 1_000_000_000

VERDICT = ("event_id", "disposition", "limit", "amount_nanos", "free_nanos")
DISPOSITION = ("event_id", "disposition")

OBJECTIVES = ("traffic", "engagement", "awareness", "video_awareness", "app_install")
BILLABLE = {
    "traffic": {"click"},
    "app_install": {"click"},
    "engagement": {"closeup", "save", "click"},
    "awareness": {"impression"},
    "video_awareness": {"impression"},
}
BASIS = {
    "traffic": "cpc",
    "app_install": "cpc",
    "engagement": "cpe",
    "awareness": "cpm",
    "video_awareness": "cpm",
}
KINDS = ("impression", "click", "closeup", "save", "install")


def message_of(ad: Ad, kind: str, event_id: str, time_ms: int, **fields: Any) -> Message:
    if kind == "impression":
        return ad.impression(event_id, time_ms, **fields)
    if kind == "click":
        return ad.click(event_id, time_ms, **fields)
    return ad.engagement(kind, event_id, time_ms, **fields)


# -- rules 7, 9 and 10: what each objective pays for, and how much --------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_objective_pays_for_its_own_kinds_alone(product: Product, objective: str) -> None:
    ad = product.ad(f"pays-{objective}", objective, CREATED_MS)
    product.publish(
        *(message_of(ad, kind, f"{objective}-{kind}", NOON_MS, country="US") for kind in KINDS)
    )
    columns = ("kind", "disposition", "amount_nanos", "basis", "price_micros")
    days = ("billing_day", "posting_day")
    rows = product.judged(ad, *columns, *days, "account_id", "currency", "country")
    each = UNIT if BASIS[objective] != "cpm" else UNIT // 1_000
    own = (1_000_000, DAY, DAY, ad.account_id, "USD", "US")
    assert sorted(rows) == sorted(
        (kind, "charged", each, BASIS[objective], *own)
        if kind in BILLABLE[objective]
        else (kind, "counted", 0, "", *own)
        for kind in KINDS
    )


def test_clicks_and_engagements_are_posted_at_once_impressions_are_not(product: Product) -> None:
    ads = [
        product.ad(f"posted-{name}", name, CREATED_MS)
        for name in ("traffic", "engagement", "awareness")
    ]
    product.publish(
        ads[0].click("posted-click", NOON_MS),
        ads[1].engagement("save", "posted-save", NOON_MS),
        ads[2].impression("posted-impression", NOON_MS),
    )
    product.settle()
    charges = product.query(
        "SELECT account_id, basis, quantity, amount_nanos, event_id, promoted_pin_id, currency, "
        "toString(is_adjustment) AS adjusts, billing_day, posting_day, adjusts_day "
        "FROM billing.charges WHERE startsWith(account_id, 'posted-') ORDER BY basis"
    )
    for charge, ad, basis, event_id in zip(
        charges, ads[:2], ("cpc", "cpe"), ("posted-click", "posted-save"), strict=True
    ):
        assert charge == {
            "account_id": ad.account_id,
            "basis": basis,
            "quantity": 1,
            "amount_nanos": UNIT,
            "event_id": event_id,
            "promoted_pin_id": ad.promoted_pin_id,
            "currency": "USD",
            "adjusts": "false",
            "billing_day": DAY,
            "posting_day": DAY,
            "adjusts_day": "1970-01-01",
        }


def test_the_price_is_the_auctions_or_the_bid_whichever_is_less(product: Product) -> None:
    ad = product.ad(
        "bids",
        "traffic",
        CREATED_MS,
        ad_group={
            "bid_micros": 2_000_000,
            "keyword_bids_micros": {"shoes": 3_000_000, "hats": 500_000},
        },
    )
    product.publish(
        ad.click("bids-price", NOON_MS, price_micros=1_500_000),
        ad.click("bids-group", NOON_MS, price_micros=9_000_000),
        ad.click("bids-shoes", NOON_MS, price_micros=9_000_000, keyword="shoes"),
        ad.click("bids-hats", NOON_MS, price_micros=9_000_000, keyword="hats"),
        ad.click("bids-other", NOON_MS, price_micros=9_000_000, keyword="socks"),
        ad.click("bids-free", NOON_MS, price_micros=0),
        ad.click("bids-largest", NOON_MS, price_micros=2**63 - 1),
    )
    assert product.judged(ad, *VERDICT, "price_micros") == [
        ("bids-price", "charged", "", 1_500_000_000, 0, 1_500_000),
        ("bids-group", "charged", "", 2_000_000_000, 0, 9_000_000),
        ("bids-shoes", "charged", "", 3_000_000_000, 0, 9_000_000),
        ("bids-hats", "charged", "", 500_000_000, 0, 9_000_000),
        ("bids-other", "charged", "", 2_000_000_000, 0, 9_000_000),
        ("bids-free", "charged", "", 0, 0, 0),
        ("bids-largest", "charged", "", 2_000_000_000, 0, 2**63 - 1),
    ]


def test_a_bid_is_that_of_the_events_time_whenever_it_was_told(product: Product) -> None:
    ad = product.ad("history", "traffic", CREATED_MS, ad_group={"bid_micros": 1_000_000})
    raised = {
        "ad_group_id": ad.ad_group_id,
        "campaign_id": ad.campaign_id,
        "budget_type": "daily",
        "budget_micros": 10**12,
        "bid_micros": 4_000_000,
        "start_ms": at("2000-01-01"),
        "effective_ms": NOON_MS,
    }
    # Told before it takes effect, and one between told after it.
    product.publish_catalog(raised, timestamp_ms=CREATED_MS)
    between = raised | {"bid_micros": 2_000_000, "effective_ms": NOON_MS - HOUR_MS}
    product.publish_catalog(between, timestamp_ms=CREATED_MS)
    late_ms = NOON_MS + 2 * HOUR_MS
    times_ms = {
        "history-first": NOON_MS - HOUR_MS - 1,
        "history-between": NOON_MS - HOUR_MS,
        "history-last-ms": NOON_MS - 1,
        "history-raised": NOON_MS,
    }
    product.publish(
        *(
            ad.click(event_id, time_ms, price_micros=9_000_000, record_ms=late_ms)
            for event_id, time_ms in times_ms.items()
        )
    )
    assert product.judged(ad, "event_id", "amount_nanos") == [
        ("history-first", 1 * UNIT),
        ("history-between", 2 * UNIT),
        ("history-last-ms", 2 * UNIT),
        ("history-raised", 4 * UNIT),
    ]


LIMITED: dict[str, dict[str, Any]] = {
    "ad_group_daily": {"ad_group": {"budget_micros": 2_500_000}},
    "ad_group_lifetime": {
        "ad_group": {
            "budget_type": "lifetime",
            "budget_micros": 2_500_000,
            "end_ms": at("2026-12-31"),
        }
    },
    "campaign_daily": {"campaign": {"daily_spend_limit_micros": 2_500_000}},
    "campaign_lifetime": {"campaign": {"lifetime_spend_limit_micros": 2_500_000}},
}


@pytest.mark.parametrize("limit", LIMITED)
def test_the_charge_that_reaches_a_limit_is_cut_at_it(product: Product, limit: str) -> None:
    ad = product.ad(f"cut-{limit}", "traffic", CREATED_MS, **LIMITED[limit])
    product.publish(*(ad.click(f"{limit}-{n}", NOON_MS) for n in range(5)))
    assert product.judged(ad, *VERDICT) == [
        (f"{limit}-0", "charged", "", UNIT, 0),
        (f"{limit}-1", "charged", "", UNIT, 0),
        (f"{limit}-2", "charged", limit, UNIT // 2, UNIT // 2),
        (f"{limit}-3", "over_budget", limit, 0, UNIT),
        (f"{limit}-4", "over_budget", limit, 0, UNIT),
    ]


def test_a_campaigns_limit_counts_all_its_ad_groups(product: Product) -> None:
    first = product.ad(
        "shared",
        "traffic",
        CREATED_MS,
        campaign={"daily_spend_limit_micros": 3_000_000},
        ad_group={"budget_micros": 2_000_000},
    )
    second = Ad(first.account_id, first.campaign_id, "shared-group-2", "shared-pin-2")
    product.publish_catalog(
        {
            "ad_group_id": second.ad_group_id,
            "campaign_id": second.campaign_id,
            "budget_type": "daily",
            "budget_micros": 10**9,
            "bid_micros": 10**7,
            "start_ms": at("2000-01-01"),
        },
        {
            "promoted_pin_id": second.promoted_pin_id,
            "ad_group_id": second.ad_group_id,
            "review": "approved",
        },
        timestamp_ms=CREATED_MS,
    )
    product.publish(
        *(first.click(f"shared-a{n}", NOON_MS) for n in range(3)),
        *(second.click(f"shared-b{n}", NOON_MS) for n in range(2)),
    )
    assert product.judged(first, *VERDICT) == [
        ("shared-a0", "charged", "", UNIT, 0),
        ("shared-a1", "charged", "", UNIT, 0),
        ("shared-a2", "over_budget", "ad_group_daily", 0, UNIT),
        ("shared-b0", "charged", "", UNIT, 0),
        ("shared-b1", "over_budget", "campaign_daily", 0, UNIT),
    ]


def test_impressions_accrue_to_the_nano_and_are_cut_at_the_nano(product: Product) -> None:
    ad = product.ad("nanos", "awareness", CREATED_MS, ad_group={"budget_micros": 7_000})
    product.publish(
        *(ad.impression(f"nanos-{n}", NOON_MS, price_micros=3_333_333) for n in range(4))
    )
    assert product.judged(ad, *VERDICT) == [
        ("nanos-0", "charged", "", 3_333_333, 0),
        ("nanos-1", "charged", "", 3_333_333, 0),
        ("nanos-2", "charged", "ad_group_daily", 333_334, 2_999_999),
        ("nanos-3", "over_budget", "ad_group_daily", 0, 3_333_333),
    ]


def test_limits_are_those_in_force_when_the_event_is_judged(product: Product) -> None:
    ad = product.ad("raised", "traffic", CREATED_MS, ad_group={"budget_micros": 1_000_000})
    product.publish(ad.click("raised-1", NOON_MS), ad.click("raised-2", NOON_MS))
    product.settle()
    group = {
        "ad_group_id": ad.ad_group_id,
        "campaign_id": ad.campaign_id,
        "budget_type": "daily",
        "bid_micros": 10_000_000,
        "start_ms": at("2000-01-01"),
    }
    product.publish_catalog(group | {"budget_micros": 1_250_000}, timestamp_ms=NOON_MS)
    # Of before the raise, and judged after it.
    product.publish(ad.click("raised-3", NOON_MS - HOUR_MS, record_ms=NOON_MS + 1))
    product.settle()
    product.publish_catalog(group | {"budget_micros": 500_000}, timestamp_ms=NOON_MS + 2)
    product.publish(ad.click("raised-4", NOON_MS, record_ms=NOON_MS + 3))
    assert product.judged(ad, *VERDICT) == [
        ("raised-1", "charged", "", UNIT, 0),
        ("raised-2", "over_budget", "ad_group_daily", 0, UNIT),
        ("raised-3", "charged", "ad_group_daily", UNIT // 4, 3 * UNIT // 4),
        ("raised-4", "over_budget", "ad_group_daily", 0, UNIT),
    ]


# -- rule 2 ---------------------------------------------------------------------------------------


def test_a_stray_is_sent_home_unchanged_and_judged_there(product: Product) -> None:
    ad = product.ad("stray", "traffic", CREATED_MS)
    [home] = product.publish(ad.click("stray-before", NOON_MS))
    stray = Message(
        CLICKS,
        b' {"kept": "as it is",' + (ad.click("stray", NOON_MS - 7).encoded or b"")[1:],
        NOON_MS + 5,
        key=b"another key",
        partition=1 - home.partition,
        headers=(("trace", b"\x00\xff"),),
    )
    [published] = product.publish(stray)
    rows = product.judged(
        ad, "source_partition", "source_offset", "disposition", "amount_nanos", "account_id"
    )
    found = [
        record
        for record in product.kafka.read(CLICKS)
        if record.value == stray.encoded and record.partition == home.partition
    ]
    assert len(found) == 1
    assert found[0].timestamp == stray.timestamp_ms
    assert (found[0].key, found[0].headers) == (stray.key, stray.headers)
    assert sorted(rows) == sorted(
        [
            (home.partition, home.offset, "charged", UNIT, ad.account_id),
            (published.partition, published.offset, "misrouted", 0, ""),
            (home.partition, found[0].offset, "charged", UNIT, ad.account_id),
        ]
    )


# -- rule 3 ---------------------------------------------------------------------------------------


def test_the_bounds_of_time_are_read_off_the_record(product: Product) -> None:
    ad = product.ad("time", "traffic", CREATED_MS)
    cases = {
        "time-future": (NOON_MS + 5 * MINUTE_MS + 1, "future"),
        "time-just-not-future": (NOON_MS + 5 * MINUTE_MS, "charged"),
        "time-oldest": (NOON_MS - 7 * DAY_MS, "charged"),
        "time-expired": (NOON_MS - 7 * DAY_MS - 1, "expired"),
        "time-zero": (0, "expired"),
        "time-before-the-epoch": (-(2**63), "expired"),
        "time-end-of-int64": (2**63 - 1, "future"),
    }
    product.publish(
        *(
            ad.click(event_id, time_ms, record_ms=NOON_MS)
            for event_id, (time_ms, _) in cases.items()
        )
    )
    rows = product.judged(ad, *DISPOSITION)
    assert rows == [(event_id, disposition) for event_id, (_, disposition) in cases.items()]
    free = product.query(
        "SELECT DISTINCT account_id, amount_nanos, free_nanos, billing_day, posting_day "
        "FROM billing.events WHERE campaign_id = {c:String} AND disposition != 'charged'",
        c=ad.campaign_id,
    )
    nothing = {"account_id": "", "amount_nanos": 0, "free_nanos": 0}
    assert free == [nothing | {"billing_day": DAY, "posting_day": DAY}]
    rejected = {r["message_key"]: r for r in product.rejects() if r["source"] == CLICKS}
    futures = [
        r for r in rejected.values() if r["reason"] == "future" and r["timestamp_ms"] == NOON_MS
    ]
    assert [r["field"] for r in futures] == ["event_time_ms"] * 2


# -- rules 4 and 5 --------------------------------------------------------------------------------


def test_an_ad_that_is_not_the_catalogs_is_unknown_until_it_is(product: Product) -> None:
    ad = product.ad("known", "traffic", CREATED_MS)
    other = product.ad("other", "traffic", CREATED_MS)
    new_pin = Ad(ad.account_id, ad.campaign_id, ad.ad_group_id, "known-new-pin")
    places = product.publish(
        new_pin.click("unknown-pin", NOON_MS),
        Ad("", ad.campaign_id, other.ad_group_id, other.promoted_pin_id).click(
            "unknown-group", NOON_MS
        ),
        Ad("", ad.campaign_id, ad.ad_group_id, other.promoted_pin_id).click(
            "unknown-others-pin", NOON_MS
        ),
    )
    product.settle()
    product.publish_catalog(
        {
            "promoted_pin_id": new_pin.promoted_pin_id,
            "ad_group_id": new_pin.ad_group_id,
            "review": "approved",
        },
        timestamp_ms=NOON_MS,
    )
    product.publish(new_pin.click("unknown-pin", NOON_MS), new_pin.click("unknown-pin", NOON_MS))
    assert product.judged(ad, *DISPOSITION, "account_id") == [
        ("unknown-pin", "unknown", ""),
        ("unknown-group", "unknown", ""),
        ("unknown-others-pin", "unknown", ""),
        ("unknown-pin", "charged", ad.account_id),
        ("unknown-pin", "duplicate", ad.account_id),
    ]
    until(lambda: len(rejects_at(product, CLICKS)) >= 3, "the rejects of unknown ads")
    rejects = rejects_at(product, CLICKS)
    for place in places:
        assert rejects[place.partition, place.offset]["reason"] == "unknown"


def rejects_at(product: Product, topic: str) -> dict[tuple[int, int], dict[str, Any]]:
    found = [reject for reject in product.rejects() if reject["source"] == topic]
    return {(reject["partition"], reject["offset"]): reject for reject in found}


def test_an_event_id_counts_once_across_topics_and_after_every_judgement(
    product: Product,
) -> None:
    ad = product.ad("once", "engagement", CREATED_MS, ad_group={"budget_micros": 1_000_000})
    late_ms = at("1999-12-31")
    product.publish(ad.click("once-charged", NOON_MS), ad.click("once-over", NOON_MS))
    product.settle()
    product.publish(
        ad.impression("once-counted", NOON_MS),
        ad.impression("once-expired", late_ms, record_ms=NOON_MS),
    )
    product.settle()
    again = [
        ad.engagement("save", event_id, NOON_MS + 1)
        for event_id in ("once-charged", "once-over", "once-counted", "once-expired")
    ]
    product.publish(*again)
    assert product.judged(ad, *DISPOSITION) == [
        ("once-charged", "charged"),
        ("once-over", "over_budget"),
        ("once-counted", "counted"),
        ("once-expired", "expired"),
        ("once-charged", "duplicate"),
        ("once-over", "duplicate"),
        ("once-counted", "duplicate"),
        ("once-expired", "over_budget"),
    ]


# -- rule 6 ---------------------------------------------------------------------------------------

NOT_SERVED: dict[str, dict[str, Any]] = {
    "paused-campaign": {"campaign": {"status": "paused"}},
    "archived-campaign": {"campaign": {"status": "archived"}},
    "paused-group": {"ad_group": {"status": "paused"}},
    "archived-group": {"ad_group": {"status": "archived"}},
    "paused-pin": {"pin": {"status": "paused"}},
    "archived-pin": {"pin": {"status": "archived"}},
    "pending-pin": {"pin": {"review": "pending"}},
    "rejected-pin": {"pin": {"review": "rejected"}},
    "not-started": {"ad_group": {"start_ms": NOON_MS + 1}},
    "at-the-end": {"ad_group": {"end_ms": NOON_MS}},
}


def test_what_was_not_serving_is_free(product: Product) -> None:
    ads = {
        name: product.ad(name, "traffic", CREATED_MS, **differences)
        for name, differences in NOT_SERVED.items()
    }
    product.publish(
        *(
            message
            for name, ad in ads.items()
            for message in (ad.click(f"{name}-click", NOON_MS), ad.impression(name, NOON_MS))
        )
    )
    for name, ad in ads.items():
        rows = product.judged(ad, "disposition", "amount_nanos", "free_nanos", "account_id")
        assert rows == [("not_serving", 0, 0, ad.account_id)] * 2, name


def test_the_dates_of_an_ad_group_are_from_its_start_to_before_its_end(product: Product) -> None:
    ad = product.ad(
        "dates",
        "traffic",
        CREATED_MS,
        ad_group={"start_ms": NOON_MS, "end_ms": NOON_MS + HOUR_MS},
    )
    record_ms = NOON_MS + HOUR_MS
    times_ms = (NOON_MS - 1, NOON_MS, NOON_MS + HOUR_MS - 1, NOON_MS + HOUR_MS)
    product.publish(
        *(ad.click(f"dates-{n}", ms, record_ms=record_ms) for n, ms in enumerate(times_ms))
    )
    assert product.judged(ad, "disposition") == [
        ("not_serving",),
        ("charged",),
        ("charged",),
        ("not_serving",),
    ]


def test_a_continuous_ad_group_starts_at_the_next_utc_midnight(product: Product) -> None:
    ad = product.ad(
        "continuous",
        "traffic",
        at("2026-03-01T15:00"),
        ad_group={"start_ms": None},
        account={"time_zone": "America/New_York"},
    )
    midnight_ms = at(DAY)
    product.publish(
        ad.click("continuous-before", midnight_ms - 1, record_ms=midnight_ms + 1),
        ad.click("continuous-after", midnight_ms, record_ms=midnight_ms + 1),
    )
    # In New York it is still the day before.
    assert product.judged(ad, *DISPOSITION, "billing_day") == [
        ("continuous-before", "not_serving", "2026-03-01"),
        ("continuous-after", "charged", "2026-03-01"),
    ]


def test_a_pause_holds_for_the_time_it_was_in_effect(product: Product) -> None:
    ad = product.ad("pause", "traffic", CREATED_MS)
    campaign = {
        "campaign_id": ad.campaign_id,
        "account_id": ad.account_id,
        "objective": "traffic",
    }
    product.publish_catalog(
        campaign | {"status": "paused", "effective_ms": NOON_MS},
        campaign | {"status": "active", "effective_ms": NOON_MS + HOUR_MS},
        timestamp_ms=NOON_MS + HOUR_MS,
    )
    record_ms = NOON_MS + HOUR_MS + 1
    times_ms = (NOON_MS - 1, NOON_MS, NOON_MS + HOUR_MS - 1, NOON_MS + HOUR_MS)
    product.publish(
        *(ad.click(f"pause-{n}", ms, record_ms=record_ms) for n, ms in enumerate(times_ms))
    )
    assert product.judged(ad, "disposition") == [
        ("charged",),
        ("not_serving",),
        ("not_serving",),
        ("charged",),
    ]


# -- rule 8 ---------------------------------------------------------------------------------------


def test_an_engagement_is_charged_once_a_pin_pinner_kind_and_day(product: Product) -> None:
    ad = product.ad("unique", "engagement", CREATED_MS)
    second = Ad(ad.account_id, ad.campaign_id, ad.ad_group_id, "unique-pin-2")
    product.publish_catalog(
        {
            "promoted_pin_id": second.promoted_pin_id,
            "ad_group_id": second.ad_group_id,
            "review": "approved",
        },
        timestamp_ms=CREATED_MS,
    )
    product.publish(
        ad.engagement("save", "unique-1", NOON_MS, user_id="ann"),
        ad.engagement("save", "unique-2", NOON_MS + HOUR_MS, user_id="ann"),
        ad.engagement("closeup", "unique-3", NOON_MS, user_id="ann"),
        ad.engagement("save", "unique-4", NOON_MS, user_id="bob"),
        second.engagement("save", "unique-5", NOON_MS, user_id="ann"),
        ad.engagement("install", "unique-6", NOON_MS, user_id="ann"),
    )
    assert product.judged(ad, *VERDICT) == [
        ("unique-1", "charged", "", UNIT, 0),
        ("unique-2", "repeat", "", 0, 0),
        ("unique-3", "charged", "", UNIT, 0),
        ("unique-4", "charged", "", UNIT, 0),
        ("unique-5", "charged", "", UNIT, 0),
        ("unique-6", "counted", "", 0, 0),
    ]


def test_a_click_is_charged_once_an_impression(product: Product) -> None:
    ad = product.ad("clicked", "app_install", CREATED_MS, ad_group={"budget_micros": 2_000_000})
    product.publish(
        ad.click("clicked-1", NOON_MS, impression_id="clicked-i"),
        ad.click("clicked-2", NOON_MS, impression_id="clicked-i", user_id="another"),
        ad.click("clicked-3", NOON_MS, impression_id="clicked-j"),
        ad.click("clicked-4", NOON_MS, impression_id="clicked-k"),
        ad.click("clicked-5", NOON_MS, impression_id="clicked-k"),
        ad.click("clicked-6", NOON_MS, impression_id="clicked-j"),
    )
    # Only a charge makes a repeat: the click that was over the budget leaves its insertion free.
    assert product.judged(ad, *VERDICT) == [
        ("clicked-1", "charged", "", UNIT, 0),
        ("clicked-2", "repeat", "", 0, 0),
        ("clicked-3", "charged", "", UNIT, 0),
        ("clicked-4", "over_budget", "ad_group_daily", 0, UNIT),
        ("clicked-5", "over_budget", "ad_group_daily", 0, UNIT),
        ("clicked-6", "repeat", "", 0, 0),
    ]


# -- days and places ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "first_ms"),
    [
        ("America/Los_Angeles", at("2026-03-02T08:00")),
        ("Asia/Kathmandu", at("2026-03-01T18:15")),
        ("Pacific/Kiritimati", at("2026-03-01T10:00")),
    ],
)
def test_a_billing_day_is_the_accounts_own(product: Product, zone: str, first_ms: int) -> None:
    name = zone.replace("/", "-")
    ad = product.ad(name, "traffic", CREATED_MS, account={"time_zone": zone})
    product.publish(
        ad.click(f"{name}-before", first_ms - 1, record_ms=NOON_MS),
        ad.click(f"{name}-first", first_ms, record_ms=NOON_MS),
    )
    assert product.judged(ad, "disposition", "billing_day") == [
        ("charged", "2026-03-01"),
        ("charged", DAY),
    ]


def test_a_row_says_where_its_event_came_from_and_never_who_the_pinner_is(
    product: Product,
) -> None:
    ad = product.ad("places", "traffic", CREATED_MS)
    places = product.publish(
        ad.impression("places-0", NOON_MS, user_id="secret-pinner"),
        ad.click("places-1", NOON_MS, user_id="secret-pinner", device="phone"),
        ad.engagement("save", "places-2", NOON_MS, user_id="someone", placement="search"),
    )
    rows = product.judged(
        ad,
        *("event_id", "source_topic", "source_partition", "source_offset"),
        *("user_hash", "placement", "device", "journal_partition", "decided_at_ms"),
    )
    by_id = {row[0]: row[1:] for row in rows}
    for number, place in enumerate(places):
        topic, partition, offset, *_ = by_id[f"places-{number}"]
        assert (topic, partition, offset) == (place.topic, place.partition, place.offset)
    shards = {row[6] for row in by_id.values()}
    assert shards == {places[0].partition}
    hashes = [by_id[f"places-{number}"][3] for number in range(3)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert len(hashes[0]) == 32
    assert by_id["places-1"][4:6] == ("browse", "phone")
    assert by_id["places-2"][4:6] == ("search", "")
    assert all(row[7] >= NOON_MS for row in by_id.values())
    everything = product.query(
        "SELECT count() AS n FROM (SELECT formatRow('TSV', *) AS line FROM billing.events) "
        "WHERE position(line, 'secret-pinner') > 0"
    )
    assert everything == [{"n": 0}]


def test_the_order_of_judgement_has_no_gaps(product: Product) -> None:
    ad = product.ad("order", "traffic", CREATED_MS)
    product.publish(*(ad.click(f"order-{n}", NOON_MS) for n in range(50)))
    assert [event_id for (event_id,) in product.judged(ad, "event_id")] == [
        f"order-{n}" for n in range(50)
    ]
    shards = product.query(
        "SELECT count() AS rows, min(shard_seq) AS first, max(shard_seq) AS last, "
        "uniqExact(shard_seq) AS numbers FROM billing.events GROUP BY journal_partition"
    )
    assert shards
    for shard in shards:
        assert (shard["first"], shard["last"] + 1, shard["numbers"]) == (
            0,
            shard["rows"],
            shard["rows"],
        )
    sources = product.query(
        "SELECT source_topic, source_partition, count() AS rows, max(source_offset) + 1 AS end, "
        "uniqExact(source_offset) AS offsets FROM billing.events "
        "GROUP BY source_topic, source_partition"
    )
    assert {source["source_topic"] for source in sources} <= set(EVENT_TOPICS)
    assert all(source["rows"] == source["end"] == source["offsets"] for source in sources)
