"""Ids are other systems' texts: commands print them as they are, whatever they look like."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from pipeline.cli.catalog import show_entities
from pipeline.cli.catalog_edit import show_edits
from pipeline.cli.common import err, out
from pipeline.cli.finance import CreditPlan, StatementFormat, show_plan, write_statement
from pipeline.cli.replay import show_tallies
from pipeline.cli.reports import show_ad_group, show_occurrence, show_report
from pipeline.contract.catalog_entities import AdGroup, Credit
from pipeline.contract.edits import Edited
from pipeline.reporting.reconcile import Check, Report
from pipeline.reporting.statements import lines_of
from pipeline.streams.replay import Tally

IDS = ["a[/b]c", "[red]sale", "x:dog:1", "[spring]", "[bold]"]


@pytest.fixture(autouse=True)
def _wide_enough_not_to_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    for console in (out, err):
        monkeypatch.setattr(console, "_width", 200)


@pytest.fixture(params=IDS)
def an_id(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_of_an_event(an_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    row: dict[str, Any] = {
        "currency": "USD",
        "amount_nanos": 10,
        "free_nanos": 0,
        "kind": "click",
        "event_id": an_id,
        "disposition": "not_serving",
        "ad": {"account_id": an_id, "campaign_id": an_id},
        "source": "ads.clicks-0 offset 1",
        "event_time": "noon",
        "journal": {"decided_at": "noon", "record": "0-0"},
        "posting_day": "2026-03-01",
        "billing_day": "2026-03-01",
        "rules": [{"rule": 5, "says": "had been judged", "judged_before": an_id}],
    }
    show_occurrence(row)
    printed = capsys.readouterr().out
    assert f"not_serving: click {an_id}, " in printed
    assert f"{an_id} > {an_id}" in printed
    assert f"judged before {an_id}" in printed


def test_of_an_ad_group(an_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = {
        "entity": f"ad_group:{an_id}",
        "campaign_id": an_id,
        "state": "serving",
        "stopped_by": [],
        "limits": [],
        "inflight_nanos": {f"campaign:{an_id}": 1},
        "forecast": None,
        "predictions": [],
        "figures": [],
    }
    show_ad_group(found)
    printed = capsys.readouterr().out
    assert f"ad_group:{an_id} of campaign {an_id}: serving" in printed
    assert f"campaign:{an_id}: " in printed


def test_of_a_statement(an_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(date(2026, 3, 1), an_id, "USD", {f"c-{an_id}": 1_000_000_000}, 0)
    write_statement(lines, StatementFormat.TABLE, None)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"Account {an_id}, 2026-03" in printed
    assert f"c-{an_id}" in printed


def test_of_a_credit(an_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    credit = Credit(
        event_id="e",
        account_id=f"a-{an_id}",
        campaign_id=f"c-{an_id}",
        ad_group_id="g",
        promoted_pin_id="p",
        placement="browse",
        country="US",
        device="ios",
        basis="cpc",
        currency="USD",
        billing_day="2026-03-01",
        charged_day="2026-03-01",
        amount_nanos=1,
        reason="a test",
    )
    show_plan(CreditPlan([credit], [], {f"e-{an_id}": "was charged 0"}), posted=False)
    printed = capsys.readouterr()
    assert f"a-{an_id}" in printed.out
    assert f"c-{an_id}" in printed.out
    assert f"e-{an_id}: was charged 0" in printed.err


def test_of_the_catalog(an_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    later = {"effective_ms": 7, "value": {"account_id": f"later {an_id}"}}
    value = {"account_id": f"now {an_id}"}
    show_entities([{"entity": an_id, "versions": 2, "value": value, "scheduled": [later]}])
    printed = capsys.readouterr().out
    assert an_id in printed
    assert f"now {an_id}" in printed
    assert f"later {an_id}" in printed


def test_of_an_edit(an_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    def group(bid_micros: int) -> AdGroup:
        return AdGroup(
            ad_group_id=f"g-{an_id}",
            campaign_id="c",
            budget_type="daily",
            budget_micros=1,
            bid_micros=1,
            keyword_bids_micros={an_id: bid_micros},
        )

    show_edits([Edited(group(1), group(2))], {an_id: 7})
    printed = capsys.readouterr()
    assert f"g-{an_id}" in printed.out
    assert f"'{an_id}': 2" in printed.out
    assert f"ad_group:{an_id}: " in printed.err


def test_of_a_replay(an_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    show_tallies({an_id: Tally()})
    assert an_id in capsys.readouterr().out


def test_of_a_check_that_fails(an_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    show_report(Report([Check("a_check", f"says {an_id}", False, [{"id": an_id}], "")], 1))
    printed = capsys.readouterr()
    assert f"says {an_id}" in printed.out
    assert " NO " in printed.out
    assert an_id in printed.err
