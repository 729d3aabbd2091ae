"""The offsets of the sources: what was consumed, what the tables have of it, what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl
import pytest

from pipeline.contract.vocabulary import CLICKS, ENGAGEMENTS, EVENT_TOPICS
from pipeline.reporting import schema
from pipeline.reporting.audit import outside
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.plans import Plan, PlanBook, Position
from pipeline.reporting.reached import Ends, is_reported
from pipeline.reporting.reconcile import Check, reconcile
from pipeline.reporting.rows import CountedRecord
from tests.headers import a_header


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    one = Store(f"chdb://{tmp_path_factory.mktemp('offsets')}")
    schema.apply(one)
    yield one
    one.close()  # a process has one engine at a time


@pytest.fixture
def store(engine: Store) -> Store:
    engine.command("TRUNCATE TABLE billing.events")
    engine.command("TRUNCATE TABLE reporting.reporter_batches")
    return engine


def fill(store: Store, offsets: Sequence[int], consumed_to: int, judged: int | None = None) -> None:
    """Rows of clicks of shard 0, and the batch that claims what was consumed and judged."""
    values = ", ".join(f"(0, {seq}, '{CLICKS}', 0, {at})" for seq, at in enumerate(offsets))
    if values:
        store.command(
            "INSERT INTO billing.events (journal_partition, shard_seq, source_topic, "
            f"source_partition, source_offset) VALUES {values}"
        )
    seq = len(offsets) if judged is None else judged
    position = Position(1, 0, {CLICKS: consumed_to}, seq)
    PlanBook(store, 1, "test").write(Plan(0, {0: position}, owner="test"))


def offsets_check(store: Store, ends: Ends) -> Check:
    [check] = [check for check in reconcile(store, ends=ends).checks if check.name == "offsets"]
    return check


def test_offsets_without_events_are_no_missing_rows_and_are_told(store: Store) -> None:
    """Two clicks, their marker, two that were aborted and their marker, one and its marker."""
    fill(store, [0, 1, 6], consumed_to=8)
    ends = {(CLICKS, 0): (0, 8), (ENGAGEMENTS, 0): (0, 0)}
    check = offsets_check(store, ends)
    assert (check.ok, check.note.split(" offsets ")[0]) == (True, "4")
    assert is_reported(store, ends)


def test_without_transactions_there_is_nothing_to_tell(store: Store) -> None:
    fill(store, [3, 4, 5], consumed_to=6)
    for begin in (3, 5):  # retention goes on
        check = offsets_check(store, {(CLICKS, 0): (begin, 6)})
        assert (check.ok, check.note) == (True, "")


def test_what_is_not_consumed_yet_is_awaited(store: Store) -> None:
    fill(store, [0, 1], consumed_to=2)
    ends = {(CLICKS, 0): (0, 5)}
    check = offsets_check(store, ends)
    assert (check.ok, check.note) == (True, "3 offsets are not in the tables yet")
    assert not is_reported(store, ends)


def test_a_batch_whose_rows_are_not_written_yet_is_awaited(store: Store) -> None:
    fill(store, [0, 1], consumed_to=5, judged=5)
    assert not is_reported(store, {(CLICKS, 0): (0, 5)})


def test_what_was_deleted_before_the_first_start_is_not_awaited(store: Store) -> None:
    assert is_reported(store, {(CLICKS, 0): (7, 7)})


@pytest.mark.parametrize("offsets", [[0, 1, 8], [0, 1, 1, 2]], ids=["not consumed", "twice"])
def test_rows_of_other_offsets_are_found(store: Store, offsets: list[int]) -> None:
    fill(store, offsets, consumed_to=8)
    check = offsets_check(store, {(CLICKS, 0): (0, 8)})
    assert not check.ok
    assert check.differing[0]["rows"] == len(offsets)


def test_a_row_that_is_lost_is_found_by_the_numbers_of_the_shard(store: Store) -> None:
    fill(store, [0, 1, 2], consumed_to=4, judged=4)
    failed = [check.name for check in reconcile(store, ends={}).checks if not check.ok]
    assert failed == ["rows_are_the_journal's"]


@pytest.mark.parametrize(
    ("offsets", "wrong"),
    [([4, 7], False), ([], False), ([3, 4], True), ([4, 8], True), ([5, 5], True)],
)
def test_a_record_holds_events_of_the_offsets_that_it_took(offsets: list[int], wrong: bool) -> None:
    code = EVENT_TOPICS.index(CLICKS)
    events = pl.DataFrame(
        {"source": [code] * len(offsets), "source_offset": offsets},
        schema={"source": pl.UInt8, "source_offset": pl.Int64},
    )
    record = CountedRecord(0, 9, a_header(sources={CLICKS: (4, 8)}), events)
    assert [found["source_topic"] for found in outside(record)] == [CLICKS] * wrong
