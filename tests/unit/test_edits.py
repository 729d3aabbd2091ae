"""Bulk edits: what amounts become, what is left alone, and what the command's texts mean."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from pipeline.cli.catalog import in_force
from pipeline.cli.catalog_edit import check_edits, followers, parse_amount
from pipeline.cli.common import CommandError
from pipeline.contract.catalog import Catalog
from pipeline.contract.edits import AmountEdit, Edit, EditError, GroupSelection, edited
from pipeline.contract.log import LogRecord


@pytest.mark.parametrize(
    ("text", "ceiling", "old", "new"),
    [
        ("500000", None, 100_000, 500_000),
        ("+50000", None, 100_000, 150_000),
        ("-50000", None, 150_000, 100_000),
        ("+10%", None, 100_005, 110_006),  # half up to a whole micro
        ("-10%", None, 100_005, 90_004),
        ("+0.1%", None, 1_000_000, 1_001_000),
        ("+50%", 140_000, 100_000, 140_000),
        ("+50%", 90_000, 100_000, 100_000),  # a ceiling lowers nothing
        ("500000", 400_000, 100_000, 400_000),
    ],
)
def test_what_an_amount_becomes(text: str, ceiling: int | None, old: int, new: int) -> None:
    edit = parse_amount(text, ceiling, "bid")
    assert edit is not None
    assert edit.of(old) == new


@pytest.mark.parametrize("text", ["", "ten", "1.5", "10%", "+NaN%", "+-5", "+ten%"])
def test_a_text_that_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(CommandError, match="is none of 500000"):
        parse_amount(text, None, "bid")


def test_a_ceiling_without_a_change_is_refused() -> None:
    with pytest.raises(CommandError, match="--max-bid bounds a change"):
        parse_amount(None, 5, "bid")


def test_an_edit_says_one_thing() -> None:
    with pytest.raises(EditError, match="exactly one"):
        AmountEdit("raise", micros=1, percent=Decimal(1))
    with pytest.raises(EditError, match="turn it round"):
        AmountEdit("lower", micros=-1)


def catalog() -> Catalog:
    found = Catalog()
    entities = [
        ("account:a", {"account_id": "a", "country": "US", "currency": "USD"}),
        ("campaign:c", {"campaign_id": "c", "account_id": "a", "objective": "traffic"}),
        ("campaign:d", {"campaign_id": "d", "account_id": "a", "objective": "traffic"}),
        *(
            (
                f"ad_group:{name}",
                {
                    "ad_group_id": name,
                    "campaign_id": campaign,
                    "budget_type": "daily",
                    "budget_micros": 1_000_000,
                    "bid_micros": 200_000,
                    "status": status,
                }
                | ({"keyword_bids_micros": {"shoes": 300_000}} if name == "g1" else {}),
            )
            for name, campaign, status in (
                ("g1", "c", "active"),
                ("g2", "c", "paused"),
                ("g3", "c", "archived"),
                ("g4", "d", "active"),
            )
        ),
    ]
    for offset, (key, value) in enumerate(entities):
        record = LogRecord("ads.catalog", 0, offset, 1, key.encode(), json.dumps(value).encode())
        found.apply(record)
    return found


def test_a_selection_leaves_out_what_is_archived_and_other_campaigns() -> None:
    ids = [group.ad_group_id for group in GroupSelection(campaign_id="c").of(catalog(), 77)]
    assert ids == ["g1", "g2"]
    some = GroupSelection(account_id="a", ad_group_ids=frozenset({"g1", "g4"}))
    assert [group.ad_group_id for group in some.of(catalog(), 77)] == ["g1", "g4"]


def test_an_edit_shows_old_and_new_and_says_who_and_when() -> None:
    edit = Edit(bid=AmountEdit("raise", percent=Decimal(10)), status="paused")
    first, second = edited(GroupSelection(campaign_id="c").of(catalog(), 77), edit, "ana", 77)
    assert first.changes() == [
        ("status", "active", "paused"),
        ("bid_micros", 200_000, 220_000),
        ("keyword_bids_micros", {"shoes": 300_000}, {"shoes": 330_000}),
    ]
    assert second.changes() == [("bid_micros", 200_000, 220_000)]
    assert (first.new.changed_by, first.new.effective_ms) == ("ana", 77)


def test_what_an_edit_does_not_change_is_not_published() -> None:
    groups = GroupSelection(account_id="a").of(catalog(), 77)
    found = edited(groups, Edit(status="paused"), "ana", 77)
    assert [one.old.ad_group_id for one in found] == ["g1", "g4"]


def test_an_edit_that_the_catalog_would_refuse_is_said_before() -> None:
    known = catalog()
    groups = list(GroupSelection(campaign_id="d").of(known, 77))
    low = edited(groups, Edit(bid=AmountEdit("set", micros=99_999)), "ana", 77)
    _, [refusal] = check_edits(known, low, 77)
    assert refusal.startswith("ad_group:g4: bid_too_low: bid_micros 99999 is under the minimum")


# -- what is scheduled ------------------------------------------------------------------------

NEXT_WEEK_MS = 7 * 86_400_000


def with_a_scheduled_change() -> Catalog:
    """g4 has a budget of 5 and a bid of 2 from next week on."""
    found = catalog()
    [group] = GroupSelection(campaign_id="d").of(found, 77)
    changed = {
        "ad_group_id": "g4",
        "campaign_id": "d",
        "budget_type": group.budget_type,
        "budget_micros": 5_000_000,
        "bid_micros": 2_000_000,
        "effective_ms": NEXT_WEEK_MS,
    }
    value = json.dumps(changed).encode()
    found.apply(LogRecord("ads.catalog", 0, found.end_offset, 2, b"ad_group:g4", value))
    return found


def test_an_edit_is_made_to_what_is_in_force_then_and_says_what_follows() -> None:
    known = with_a_scheduled_change()
    edit = Edit(bid=AmountEdit("raise", percent=Decimal(10)))
    [now] = edited(GroupSelection(campaign_id="d").of(known, 77), edit, "ana", 77)
    assert now.changes() == [("bid_micros", 200_000, 220_000)]
    assert (now.new.budget_micros, now.new.effective_ms) == (1_000_000, 77)
    assert followers(known, [now], 77) == {"g4": NEXT_WEEK_MS}

    later_ms = NEXT_WEEK_MS + 1
    [later] = edited(GroupSelection(campaign_id="d").of(known, later_ms), edit, "ana", later_ms)
    assert later.changes() == [("bid_micros", 2_000_000, 2_200_000)]
    assert followers(known, [later], later_ms) == {}


def test_what_is_scheduled_is_left_as_it_is() -> None:
    known = with_a_scheduled_change()
    edits = edited(GroupSelection(campaign_id="d").of(known, 77), Edit(status="paused"), "ana", 77)
    assert check_edits(known, edits, 77)[1] == []
    history = known.ad_groups["g4"]
    assert [(v.effective_ms, v.entity.bid_micros, v.entity.status) for v in history.versions] == [
        (1, 200_000, "active"),
        (77, 200_000, "paused"),
        (NEXT_WEEK_MS, 2_000_000, "active"),
    ]


def test_the_catalog_is_shown_as_it_is_in_force_with_what_is_scheduled() -> None:
    known = with_a_scheduled_change()
    [shown] = in_force(known, "ad_group:g4", 77)
    assert (shown["versions"], shown["value"]["bid_micros"]) == (2, 200_000)
    [scheduled] = shown["scheduled"]
    assert (scheduled["effective_ms"], scheduled["value"]["bid_micros"]) == (
        NEXT_WEEK_MS,
        2_000_000,
    )
    [next_week] = in_force(known, "ad_group:g4", NEXT_WEEK_MS)
    assert (next_week["value"]["bid_micros"], "scheduled" in next_week) == (2_000_000, False)


def test_rates_are_shown_too() -> None:
    known = catalog()
    rates = {"fx_day": "2026-03-01", "usd_per_unit": {"GBP": "1.25"}}
    record = LogRecord(
        "ads.catalog", 0, known.end_offset, 2, b"fx:2026-03-01", json.dumps(rates).encode()
    )
    known.apply(record)
    assert [one["value"] for one in in_force(known, "fx:2026-03-01", 77)] == [rates]
    assert "fx:2026-03-01" in [one["entity"] for one in in_force(known, None, 77)]
