"""The engine alone, in this process: chunks in, journal bytes out, no Kafka."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from bench.workload import Message
from pipeline.billing import decide
from pipeline.billing.batch import Assembler, Chunk
from pipeline.billing.texts import Packed
from pipeline.contract.catalog import Accepted
from pipeline.contract.log import LogRecord
from pipeline.contract.partitioning import partition_of
from pipeline.contract.vocabulary import CATALOG, EVENT_TOPICS
from pipeline.pacing.serving import Policy
from pipeline.streams.engine import Engine, EngineSettings
from pipeline.streams.memory import tune_memory
from pipeline.streams.writer import prepare

EVENTS_A_TURN = 20_000
"""What a worker of few shards takes at full load."""
_GRACE_MS = 2 * 3_600_000


def make_engine(
    partitions: int,
    catalog: Iterable[tuple[bytes, bytes]],
    created_ms: int,
    pacing: Policy | None = None,
) -> Engine:
    """An engine that owns all shards and knows this catalog; without a policy it paces by plain
    limits. Raises `ValueError` on a bad one."""
    tune_memory()  # as a worker does
    judging = decide.Policy(acceptance_horizon_days=7, user_hash_key=b"a key of 16 bytes")
    engine = Engine(EngineSettings(partitions, judging, _GRACE_MS), pacing)
    for shard in range(partitions):
        engine.new_shard(shard)
    for offset, (key, value) in enumerate(catalog):
        record = LogRecord(CATALOG, 0, offset, created_ms, key, value)
        result = engine.apply_catalog(record, created_ms)
        if not isinstance(result, Accepted):
            raise ValueError(f"the catalog's {key.decode()} was refused: {result}")
    return engine


def turns_of(
    messages: Iterable[Message], partitions: int, events_a_turn: int = EVENTS_A_TURN
) -> Iterator[list[Chunk]]:
    """The messages as the chunks that a worker would be given, a list for each turn."""
    next_offset: dict[tuple[int, int], int] = {}
    for taken in _batched(messages, events_a_turn):
        by_place: dict[tuple[int, int], list[Message]] = {}
        for message in taken:
            source = EVENT_TOPICS.index(message.topic)
            place = source, partition_of(message.key.decode(), partitions)
            by_place.setdefault(place, []).append(message)
        chunks = []
        for place, of_place in sorted(by_place.items()):
            start = next_offset.get(place, 0)
            next_offset[place] = start + len(of_place)
            chunks.append(_chunk(place, start, of_place))
        yield chunks


def _chunk(place: tuple[int, int], start: int, messages: Sequence[Message]) -> Chunk:
    source, shard = place
    end = start + len(messages)
    return Chunk(
        source=source,
        shard=shard,
        start=start,
        end=end,
        offsets=np.arange(start, end),
        timestamps_ms=np.array([message.timestamp_ms for message in messages]),
        values=Packed.of(message.value for message in messages),
        keys=Packed.of(message.key for message in messages),
    )


class EngineAlone:
    """An engine with what a worker keeps beside it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._assembler = Assembler()
        self.journal_bytes = 0

    def take(self, turns: Iterable[list[Chunk]]) -> float:
        """Decode, judge, post and encode; the CPU seconds that it took."""
        started_s = time.process_time()
        for chunks in turns:
            batch = self._assembler.assemble(chunks)
            turn = self._engine.turn(batch, int(batch.order_ms.max()), {})
            entries = prepare(self._engine, turn)
            self.journal_bytes += sum(len(entry.body) for entry in entries)
        return time.process_time() - started_s


def _batched(messages: Iterable[Message], size: int) -> Iterator[list[Message]]:
    """As itertools.batched, which Python 3.11 has not."""
    taken: list[Message] = []
    for message in messages:
        taken.append(message)
        if len(taken) == size:
            yield taken
            taken = []
    if taken:
        yield taken
