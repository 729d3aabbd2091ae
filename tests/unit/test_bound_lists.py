"""No list that a query binds is larger than ClickHouse takes over HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

import polars as pl
import pytest
from clickhouse_connect.driver.binding import format_bind_value
from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing.journal import CreditPosting
from pipeline.reporting import schema
from pipeline.reporting.clickhouse import LIST_BYTES, Store, in_pieces
from pipeline.reporting.closes import close_day
from pipeline.reporting.credits import charged_in_tables
from pipeline.reporting.daybook import DueClose
from pipeline.reporting.rows import CountedRecord
from tests.headers import a_header

HTTP_MAX_FIELD_VALUE_SIZE = 131_072
"""ClickHouse's own default; the embedded engine does not look at it."""


class Measured(Store):
    """Notes the lists that are bound."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.lists: list[list[str]] = []

    def rows(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> list[tuple[Any, ...]]:
        for value in (parameters or {}).values():
            assert len(str(format_bind_value(value)).encode()) <= HTTP_MAX_FIELD_VALUE_SIZE
            if isinstance(value, list) and isinstance(value[0], str):
                self.lists.append(value)
        return super().rows(sql, parameters, settings)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    one = Measured(f"chdb://{tmp_path_factory.mktemp('lists')}")
    schema.apply(one)
    yield one
    one.close()


def a_credit(event_id: str) -> CreditPosting:
    texts = dict.fromkeys(CreditPosting.__struct_fields__, "2026-03-02")
    return CreditPosting(**texts | {"event_id": event_id, "amount_nanos": 1})  # type: ignore[arg-type]


def test_the_events_of_very_many_credits_are_looked_up_in_parts(store: Measured) -> None:
    ids = [str(uuid.uuid4()) for _ in range(12_000)]
    header = a_header(credits=[a_credit(event_id) for event_id in ids])
    store.lists.clear()
    charged_in_tables(store, [CountedRecord(0, 0, header, pl.DataFrame())])
    assert [event_id for some in store.lists for event_id in some] == ids


def test_a_day_closes_for_accounts_with_the_longest_ids(store: Measured) -> None:
    accounts = [f"{n:\U0001f4cc>256}" for n in range(500)]
    due = DueClose(date(2026, 3, 1), accounts, 0)
    close_day(store, due, dict.fromkeys(accounts, "USD"), lambda: None)
    assert store.rows("SELECT count() FROM billing.day_closes") == [(500,)]


@given(st.lists(st.text(max_size=8) | st.sampled_from(["é" * 9_000, "x" * 40_000])))
def test_pieces_are_the_list(texts: list[str]) -> None:
    pieces = list(in_pieces(texts, 5))
    assert [text for piece in pieces for text in piece] == texts
    assert all(0 < len(piece) <= 5 for piece in pieces)
    assert all(sum(len(text.encode()) for text in piece) <= LIST_BYTES for piece in pieces)
