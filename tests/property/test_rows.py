"""Rows that are sorted here are in the order in which the table keeps them, and none is lost."""

from __future__ import annotations

from datetime import date
from unittest.mock import patch

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing.journal import Ad
from pipeline.reporting import rows as rows_module
from pipeline.reporting.rows import CountedRecord, by_day, in_table_order
from tests.headers import a_header

ID = st.text(st.sampled_from("aZ0é\uffff\U0001f600"), max_size=2)
ADS = st.lists(st.builds(Ad, ID, ID, ID, ID), min_size=1, max_size=4)
RECORD = ADS.flatmap(
    lambda ads: st.tuples(st.just(ads), st.lists(st.integers(0, len(ads) - 1), max_size=6))
)


@given(st.lists(RECORD, max_size=5))
def test_rows_are_sorted_as_the_table_is(drawn: list[tuple[list[Ad], list[int]]]) -> None:
    """By the bytes of the ids, then by shard_seq, which two shards' records may have in common."""
    records, rows = [], []
    for number, (ads, ad_of_event) in enumerate(drawn):
        events = pl.DataFrame({"ad": pl.Series(ad_of_event, dtype=pl.UInt32)})
        header = a_header(ads=ads, events=len(ad_of_event))
        records.append(CountedRecord(number, 0, header, events))
        rows += [(ads[ad], number % 2 * 3 + place) for place, ad in enumerate(ad_of_event)]
    frame = pl.DataFrame(
        {
            "ad": pl.Series([list(_ids(ad)) for ad, _ in rows], dtype=pl.List(pl.String)),
            "shard_seq": pl.Series([seq for _, seq in rows], dtype=pl.Int64),
        }
    )
    with patch.object(rows_module, "_EVENTS_AN_AD", 0):
        found = [(tuple(ad), seq) for ad, seq in in_table_order(frame, records).iter_rows()]
    expected = sorted(((_ids(ad), seq) for ad, seq in rows), key=_as_bytes)
    assert found == expected


def _ids(ad: Ad) -> tuple[str, ...]:
    return (ad.account_id, ad.campaign_id, ad.ad_group_id)


def _as_bytes(row: tuple[tuple[str, ...], int]) -> tuple[tuple[bytes, ...], int]:
    ids, seq = row
    return tuple(text.encode() for text in ids), seq


@given(st.lists(st.integers(1, 3), max_size=8))
def test_days_are_apart_and_each_keeps_its_order(days: list[int]) -> None:
    dates = [date(2026, 3, day) for day in days]
    frame = pl.DataFrame(
        {"day": pl.Series(dates, dtype=pl.Date), "row": pl.Series(range(len(days)), dtype=pl.Int64)}
    )
    found = {day: table["row"].to_pylist() for day, table in by_day(frame, "day")}
    assert list(found) == sorted(set(dates))
    assert found == {day: [row for row, at in enumerate(dates) if at == day] for day in found}
