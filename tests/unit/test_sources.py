"""A source that has lost records at either end stops its shard, whenever that is found out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.billing.batch import Chunk
from pipeline.billing.decide import Policy
from pipeline.billing.texts import Packed
from pipeline.contract.vocabulary import CLICKS, EVENT_TOPICS
from pipeline.streams.clock import StreamClock
from pipeline.streams.engine import EngineSettings
from pipeline.streams.recovery import Owned
from pipeline.streams.sources import Source
from pipeline.streams.worker import Worker, WorkerSettings

READ_UP_TO = 1_000


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    """One that owns two shards, all their sources read up to offset 1,000."""
    settings = EngineSettings(2, Policy(7, b"0123456789abcdef"), 0)
    one = Worker(WorkerSettings(settings, {}, "127.0.0.1:1", tmp_path), StreamClock())
    for shard in range(2):
        one.engine.new_shard(shard)
        one.engine.adopt(shard)
        taken = dict.fromkeys(EVENT_TOPICS, READ_UP_TO)
        one.owned[shard] = Owned(one.engine.shards[shard], taken=taken)
    yield one
    await one._writer.stop()
    await one._feed._reader.stop()


def chunk(start: int, end: int, shard: int = 0) -> Chunk:
    """Records of ads.clicks, whatever is in them."""
    times = np.zeros(end - start, np.int64)
    texts = Packed(np.zeros(1, np.uint8), times, times)
    return Chunk(
        EVENT_TOPICS.index(CLICKS), shard, start, end, np.arange(start, end), times, texts, texts
    )


def in_place(worker: Worker, *chunks: Chunk) -> list[tuple[int, int, int]]:
    return [(one.shard, one.start, one.end) for one in worker._in_place(list(chunks))]


async def test_chunks_that_follow_on_one_another_are_judged(worker: Worker) -> None:
    chunks = [chunk(1_000, 1_010), chunk(1_010, 1_011)]
    assert in_place(worker, *chunks) == [(0, 1_000, 1_010), (0, 1_010, 1_011)]
    assert not worker.stopped


@pytest.mark.parametrize(
    ("again", "text"),
    [
        (chunk(0, 900), "read up to offset 1000, and is read from 0 again"),
        (chunk(0, 1_100), "fill it up to offset 1000 and publish again"),
        (chunk(1_005, 1_010), "records 1000 to 1004 are gone, and were not judged"),
    ],
    ids=["end lost", "end lost and grown again", "beginning lost"],
)
async def test_a_chunk_that_does_not_follow_stops_its_shard_alone(
    worker: Worker, again: Chunk, text: str
) -> None:
    """The client goes on with the first record that there is where the one it wants is not there:
    what is judged already is passed over then, and so would be what is new at those offsets."""
    assert in_place(worker, again, chunk(1_000, 1_010, shard=1)) == [(1, 1_000, 1_010)]
    assert list(worker.owned) == [1]
    assert text in worker.stopped[0]


async def test_what_came_before_in_the_same_turn_is_not_judged_either(worker: Worker) -> None:
    assert in_place(worker, chunk(1_000, 1_010), chunk(0, 900)) == []
    assert list(worker.stopped) == [0]


@pytest.mark.parametrize(("end", "is_read"), [(1_001, False), (1_000, True), (950, False)])
async def test_a_source_that_ends_before_what_was_read_is_not_read_to_its_end(
    worker: Worker, end: int, is_read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else days would close, though events at offsets that were read before are left out."""

    async def ends(shards: list[int]) -> dict[tuple[int, str], int]:
        return {(shard, CLICKS): end for shard in shards}

    monkeypatch.setattr(worker, "_source_ends", ends)
    assert bool(await worker._at_end([0])) == is_read


def test_a_source_that_ends_before_its_position_is_in_trouble() -> None:
    trouble = Source(CLICKS, 0, position=1_000, end=950).trouble()
    assert "ads.clicks-0 was judged up to offset 1000, and ends at 950" in trouble
    assert "fill it up to offset 1000" in trouble


def test_records_that_may_repeat_forgotten_events_are_trouble() -> None:
    assert not Source(CLICKS, 0, position=1_000, end=1_100, judged_from=1_000).trouble()
    trouble = Source(CLICKS, 0, position=1_000, end=1_100, judged_from=1_001).trouble()
    assert "ads.clicks-0: records from 1000 on have waited for too long" in trouble
    assert "shorten the acceptance horizon" in trouble


@pytest.mark.parametrize("end", [1_000, 2_000])
def test_a_source_that_has_all_that_was_not_judged_is_in_none(end: int) -> None:
    assert not Source(CLICKS, 0, position=1_000, end=end).trouble()
