"""Predictions in the tables: rows, their quality, and the exhaustion in reporting.live."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pipeline.contract.catalog import Accepted, Catalog
from pipeline.contract.log import LogRecord
from pipeline.contract.pacing_notes import PacingNote
from pipeline.reporting import schema
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.explain import Sources, explain_ad_group
from pipeline.reporting.rows import CountedRecord, pacing_rows, to_arrow
from tests.headers import a_header

DAY = "2026-03-02"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    # One engine for the module: a process can open one directory only.
    found = Store(f"chdb://{tmp_path_factory.mktemp('pacing')}/clickhouse")
    schema.apply(found)
    yield found
    found.close()


def catalog() -> Catalog:
    """An account, a campaign and the ad group g."""
    entities = (
        ("account:a", {"account_id": "a", "country": "US", "currency": "USD"}),
        ("campaign:c", {"campaign_id": "c", "account_id": "a", "objective": "traffic"}),
        (
            "ad_group:g",
            {"ad_group_id": "g", "campaign_id": "c", "budget_type": "daily"}
            | {"budget_micros": 10_000_000, "bid_micros": 500_000},
        ),
    )
    found = Catalog()
    for offset, (key, entity) in enumerate(entities):
        record = LogRecord("ads.catalog", 0, offset, 0, key.encode(), json.dumps(entity).encode())
        assert isinstance(found.apply(record), Accepted)
    return found


def rows_of(*notes: PacingNote) -> list[CountedRecord]:
    sealed = a_header(pacing=list(notes))
    return [CountedRecord(0, 7, sealed, None)]  # type: ignore[arg-type]


def test_predictions_and_their_quality_can_be_read(store: Store) -> None:
    records = rows_of(
        PacingNote("ad_group:g", "inflight", DAY, 1_000, 100, 50, 150, 90, 2_000),
        PacingNote("ad_group:g", "inflight", DAY, 5_000, 100, 50, 150, 200, 9_000),
        PacingNote("ad_group:g", "exhaustion", DAY, 5_000, 70_000, 60_000, 80_000),
        PacingNote("ad_group:g", "exhaustion", DAY, 6_000, 75_000, 65_000, 85_000),
    )
    store.insert("reporting.pacing", to_arrow(pacing_rows(records)), "1")
    [quality] = store.dicts("SELECT * FROM reporting.pacing_quality")
    assert (quality["predictions"], quality["within_interval"]) == (2, 1)
    assert (quality["error_q10"], quality["error_q90"]) == (-10, 100)
    found = explain_ad_group(Sources(store, catalog(), 0), "g")
    assert found is not None
    assert found["forecast"]["runs_out_ms"] == 75_000
    assert found["predictions"][0]["realised_total"] == 290


def test_what_came_unforetold_or_never_is_told_apart(store: Store) -> None:
    """Of exhaustion, 0 is no time: it is in no total and no quantile."""
    end = 90_000
    predicted_low_high_realised_at = (
        (70_000, 60_000, 80_000, 75_000, 75_000),
        (70_000, 60_000, 80_000, 0, end),  # it lasted, which was thought unlikely
        (70_000, 60_000, end, 0, end),  # and which was not
        (0, 0, 0, 80_000, 80_000),
        (0, 70_000, 0, 80_000, 80_000),  # from 70,000 on was not thought unlikely
    )
    records = rows_of(
        *(
            PacingNote("ad_group:q", "exhaustion", DAY, 1_000 + made, *figures)
            for made, figures in enumerate(predicted_low_high_realised_at)
        )
    )
    store.insert("reporting.pacing", to_arrow(pacing_rows(records)), "q")
    [quality] = store.dicts("SELECT * FROM reporting.pacing_quality WHERE entity = 'ad_group:q'")
    assert (quality["predictions"], quality["within_interval"]) == (5, 3)
    assert (quality["only_foretold"], quality["only_came"]) == (2, 2)
    assert (quality["predicted_total"], quality["realised_total"]) == (70_000, 75_000)
    assert (quality["error_q10"], quality["error_q90"]) == (5_000, 5_000)


def test_live_shows_when_a_budget_runs_out_and_has_no_nulls(store: Store) -> None:
    for group, shard_seq in (("live", 0), ("other", 1)):
        store.command(
            "INSERT INTO billing.events (posting_day, billing_day, account_id, campaign_id, "
            "ad_group_id, kind, disposition, shard_seq, decided_at_ms) VALUES "
            f"('{DAY}', '{DAY}', 'a', 'c', '{group}', 'impression', 'counted', {shard_seq}, 9)"
        )
    store.command(
        "INSERT INTO reporting.accounts (account_id, currency, time_zone, first_day) "
        f"VALUES ('a', 'USD', 'UTC', '{DAY}')"
    )
    note = PacingNote("ad_group:live", "exhaustion", DAY, 5_000, 70_000, 60_000, 80_000)
    store.insert("reporting.pacing", to_arrow(pacing_rows(rows_of(note))), "2")
    rows = store.rows(
        "SELECT ad_group_id, impressions, status, runs_out_ms, runs_out_low_ms "
        "FROM reporting.live ORDER BY ad_group_id SETTINGS join_use_nulls = 1"
    )
    assert [tuple(row) for row in rows] == [
        ("live", 1, "provisional", 70_000, 60_000),
        ("other", 1, "provisional", 0, 0),
    ]
    [[kind]] = store.rows("SELECT any(toTypeName(runs_out_ms)) FROM reporting.live")
    assert kind == "Int64"
