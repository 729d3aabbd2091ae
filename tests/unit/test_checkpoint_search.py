"""Where a fold begins once retention has deleted the journal's beginning."""

from __future__ import annotations

import pytest

from pipeline.billing.decide import Policy
from pipeline.billing.fold import StateError
from pipeline.pacing.serving import PlainLimits
from pipeline.streams.clock import StreamClock
from pipeline.streams.engine import Engine, EngineSettings
from pipeline.streams.recovery import _CheckpointSearch, _Fold, _Read
from tests.headers import a_header

HORIZON_MS = 7 * 86_400_000


def record(offset: int, previous: int, *, checkpoint: bytes = b"", now_ms: int = 0) -> _Read:
    return _Read(offset, a_header(previous, now_ms=now_ms, checkpoint=checkpoint), b"")


def counted(records: list[_Read]) -> list[int]:
    search = _CheckpointSearch(0, begin=records[0].offset)
    found = [search.take(read) for read in records]
    return [read.offset for read in found if read is not None]


def test_a_record_that_the_next_one_names_counts() -> None:
    assert counted([record(5, 4), record(6, 5), record(7, 6)]) == [5, 6]


def test_a_losers_checkpoint_does_not_count_even_where_its_winner_is_deleted() -> None:
    # 99 counted, 100 won (both deleted), 101 is a zombie's checkpoint upon 99, 102 follows 100.
    zombie = record(101, 99, checkpoint=b"state")
    assert counted([zombie, record(102, 100), record(103, 102), record(104, 103)]) == [102, 103]


def test_losers_between_two_records_that_count_are_passed_over() -> None:
    assert counted([record(5, 4), record(6, 5), record(7, 5), record(8, 6)]) == [5, 6]


def test_the_last_checkpoint_of_an_idle_shard_is_one_to_stand_on() -> None:
    search = _CheckpointSearch(0, begin=5)
    search.take(record(5, 4, checkpoint=b"state"))
    assert search.last().offset == 5


def test_a_last_checkpoint_that_may_have_lost_is_not() -> None:
    search = _CheckpointSearch(0, begin=5)
    search.take(record(5, 3, checkpoint=b"state"))
    with pytest.raises(StateError, match="holds no checkpoint to start from"):
        search.last()


def test_a_journal_of_which_nothing_is_left_is_an_error_and_not_a_new_one() -> None:
    with pytest.raises(StateError, match="begins at offset 5 and holds no checkpoint"):
        _CheckpointSearch(0, begin=5).last()


def test_a_shard_that_begins_counts_as_checkpointed_and_one_that_was_folded_does_not() -> None:
    """Else a worker's first turns would be all checkpoints of next to nothing."""
    engine = Engine(EngineSettings(2, Policy(7, b"0123456789abcdef"), 0), PlainLimits())
    clock = StreamClock()
    clock.observe(HORIZON_MS)
    begun, folded = _Fold(0, engine, clock), _Fold(1, engine, clock)
    begun.start_from(None, begin=0, end=0)
    folded.start_from(None, begin=0, end=1)
    folded._state.chain.extend(0, a_header(-1))
    assert begun.finish(0).state.checkpointed_ms == HORIZON_MS
    assert folded.finish(1).state.checkpointed_ms == 0
