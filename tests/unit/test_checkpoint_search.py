"""Where a fold begins once retention has deleted the journal's beginning."""

from __future__ import annotations

import pytest

from pipeline.billing import fold
from pipeline.billing.books import Shard
from pipeline.billing.decide import Policy
from pipeline.billing.fold import StateError
from pipeline.billing.id_runs import MemoryShelf
from pipeline.billing.journal import EMPTY_DIGEST, seal
from pipeline.contract.log import LogRecord
from pipeline.contract.vocabulary import JOURNAL
from pipeline.pacing.serving import PlainLimits
from pipeline.streams.clock import StreamClock
from pipeline.streams.engine import Engine, EngineSettings
from pipeline.streams.recovery import _CheckpointSearch, _Fold, _Read
from tests.headers import a_header

DAY_MS = 86_400_000
HORIZON_MS = 7 * DAY_MS


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
    begun.begin(range(0, 0))
    folded.begin(range(0, 1))
    folded._state.chain.extend(0, a_header(-1))
    assert begun.finish(0).state.checkpointed_ms == HORIZON_MS
    assert folded.finish(1).state.checkpointed_ms == 0


def searched(last_log_ms: int) -> tuple[_CheckpointSearch, Shard]:
    """A journal from day 100 to day 109, by its decisions; the last one's events are of this log
    time."""
    search, shard = _CheckpointSearch(0, begin=5), Shard.new(0, 7, 0, MemoryShelf())
    for offset, day in ((5, 100), (6, 109)):
        read = record(offset, offset - 1, now_ms=day * DAY_MS)
        search.note(read)
        search.take(read)
    shard.chain.seq, shard.log_time_ms = 10, last_log_ms
    return search, shard


def test_where_events_are_judged_as_they_come_the_ids_that_are_left_do() -> None:
    search, shard = searched(last_log_ms=109 * DAY_MS)
    search.check_ids(shard, HORIZON_MS)
    assert search.judges_from_ms(shard, HORIZON_MS) == 0


def test_after_an_outage_the_ids_that_are_left_may_not_do_for_what_waits() -> None:
    """Ids age by log time: what was recorded on day 106 may repeat events of 99, which are gone."""
    search, shard = searched(last_log_ms=106 * DAY_MS)
    search.check_ids(shard, HORIZON_MS)
    # An event may come 5 min before its time, and rule 8 knows a billing day of 26 h to its end.
    from_ms = 107 * DAY_MS + 5 * 60_000 + 26 * 3_600_000
    assert search.judges_from_ms(shard, HORIZON_MS) == from_ms


def test_a_shard_that_has_judged_nothing_has_forgotten_nothing() -> None:
    search, shard = searched(last_log_ms=0)
    shard.chain.seq = 0
    assert search.judges_from_ms(shard, HORIZON_MS) == 0


def test_a_journal_that_begins_within_the_horizon_is_an_error() -> None:
    search, shard = searched(last_log_ms=109 * DAY_MS)
    with pytest.raises(StateError, match="within the acceptance horizon"):
        search.check_ids(shard, 10 * DAY_MS)


def test_a_shard_is_taken_over_with_what_it_may_judge() -> None:
    def engine() -> Engine:
        return Engine(EngineSettings(1, Policy(7, b"0123456789abcdef"), 0), PlainLimits())

    before = engine()
    before.new_shard(0)
    before.shards[0].chain.seq = 10
    packed = fold.pack(before.shards[0], before.balances, before.terms, with_ids=False)
    one = _Fold(0, engine(), StreamClock())
    one.begin(range(5, 7))
    digest = EMPTY_DIGEST
    for offset, now_ms, log_time_ms, checkpoint in (
        (5, 100 * DAY_MS, 100 * DAY_MS, packed),
        (6, 109 * DAY_MS, 106 * DAY_MS, b""),
    ):
        header = a_header(
            offset - 1, seq=10, now_ms=now_ms, log_time_ms=log_time_ms, checkpoint=checkpoint
        )
        sealed, value = seal(header, b"", digest)
        digest = sealed.digest
        one.take(LogRecord(JOURNAL, 0, offset, now_ms, None, value))
    taken = one.finish(7)
    assert taken.judges_from_ms > 107 * DAY_MS
    assert taken.since_snapshot == 2, "so far from a snapshot, one is due the sooner"


def test_a_snapshot_that_the_journal_does_not_bear_out_is_refused() -> None:
    """For good: another one is tried in its place, or the journal's beginning."""
    engine = Engine(EngineSettings(1, Policy(7, b"0123456789abcdef"), 0), PlainLimits())
    one = _Fold(0, engine, StreamClock())
    chain = engine.shards[0].chain
    chain.last_offset, chain.digest = 5, b"of another journal".ljust(32)
    one.stand_on(fold.pack(engine.shards[0], engine.balances, engine.terms, with_ids=True))
    assert one.begin(range(3, 9)) == 5
    _, value = seal(a_header(4, seq=1), b"", EMPTY_DIGEST)
    one.take(LogRecord(JOURNAL, 0, 5, 0, None, value))
    assert one.is_to_begin_anew
    assert one.refused == {b"of another journal".ljust(32)}
    assert engine.shards[0].chain.last_offset == -1
    assert one.begin(range(3, 9)) == 3
    assert not one.is_to_begin_anew
