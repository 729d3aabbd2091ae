"""Rows of a record, in the journal and in a table: every difference has a name."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.reporting.audit import compare_rows

ROW = {"shard_seq": "1", "event_id": "e1", "amount_nanos": "5"}
OTHER = {"shard_seq": "2", "event_id": "e2", "amount_nanos": "7"}
E1 = {"shard_seq": "1", "event_id": "e1"}


@pytest.mark.parametrize(
    ("in_table", "finding"),
    [
        ([OTHER], E1 | {"what": "row missing"}),
        ([ROW, ROW, OTHER], E1 | {"what": "row more than once", "times": 2}),
        (
            [ROW | {"amount_nanos": "6"}, OTHER],
            E1 | {"what": "row changed", "amount_nanos": "5 in the journal, 6 in the table"},
        ),
        (
            [ROW, OTHER, OTHER | {"shard_seq": "3"}],
            {"shard_seq": "3", "what": "row that no record gives"},
        ),
    ],
)
def test_a_difference_is_named(in_table: list[dict[str, str]], finding: dict[str, Any]) -> None:
    assert compare_rows([ROW, OTHER], in_table, "shard_seq") == [finding]


def test_rows_that_agree_give_no_finding_whatever_their_order() -> None:
    assert compare_rows([ROW, OTHER], [OTHER, ROW], "shard_seq") == []
