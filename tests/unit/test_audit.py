"""Rows of a record, in the journal and in a table: every difference has a name."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.billing import fold
from pipeline.billing.journal import seal
from pipeline.contract.log import LogRecord
from pipeline.contract.vocabulary import JOURNAL
from pipeline.reporting.audit import _CheckpointStart, compare_rows
from tests.headers import a_header
from tests.property.worlds import make_engine

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


# -- where retention has deleted the beginning ------------------------------------------------


def journal_record(offset: int, previous: int, *, checkpoint: bool = False) -> LogRecord:
    packed = b""
    if checkpoint:
        engine = make_engine()
        engine.shards[0].chain.seq = 77
        packed = fold.pack(engine.shards[0], engine.balances, engine.terms, with_ids=False)
    header = a_header(previous, seq=77, checkpoint=packed)
    return LogRecord(JOURNAL, 0, offset, 0, None, seal(header, b"", bytes(32))[1])


def offsets_given(*records: LogRecord) -> list[list[int]]:
    start = _CheckpointStart()
    return [[given.offset for given in start.take(record)] for record in records]


def test_an_audit_begins_behind_a_checkpoint_that_a_later_record_names() -> None:
    start = _CheckpointStart()
    records = [journal_record(7, 6), journal_record(8, 7, checkpoint=True), journal_record(9, 8)]
    assert [len(start.take(record)) for record in records] == [0, 0, 1]
    assert start.chain is not None
    assert (start.chain.last_offset, start.chain.seq) == (8, 77)


def test_a_checkpoint_that_nobody_names_is_a_losers_and_passed_over() -> None:
    assert offsets_given(
        journal_record(7, 5, checkpoint=True),
        journal_record(8, 6, checkpoint=True),
        journal_record(9, 6),
        journal_record(10, 8),
        journal_record(11, 10),
    ) == [[], [], [], [9, 10], [11]]


def test_rows_that_agree_give_no_finding_whatever_their_order() -> None:
    assert compare_rows([ROW, OTHER], [OTHER, ROW], "shard_seq") == []
