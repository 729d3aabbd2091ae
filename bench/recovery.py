"""How fast a shard is taken over: its journal folded, or its ids brought from a snapshot's copy.

    python -m bench.recovery [--events N] [--sizes 20000 2000 300] [--ids N]

Folding is decoding, checking the chain, posting, remembering: on one core, the journal in memory,
so what a takeover costs beside Kafka's bytes. Prints for each size of record the journal's events a
second (of CPU time: the machine may be shared). Bringing ids is copying their files from where all
workers see them, here the same disk, and reading them whole; prints ids a second by the clock, the
copies not in the page cache.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from bench import workload
from bench.site import BenchError
from bench.state import ANY_OFFSET, HORIZON_DAYS
from pipeline.billing.batch import Assembler, Chunk
from pipeline.billing.books import Balances, Shard
from pipeline.billing.chain import Chain
from pipeline.billing.decide import Policy
from pipeline.billing.fold import Counted, pack, unpack
from pipeline.billing.journal import decode_events, decode_header, seal
from pipeline.billing.terms import Terms
from pipeline.billing.texts import Packed
from pipeline.contract.catalog import Catalog
from pipeline.contract.log import LogRecord
from pipeline.contract.vocabulary import EVENT_TOPICS
from pipeline.streams.engine import Engine, EngineSettings
from pipeline.streams.recovery import EVENTS_AT_ONCE
from pipeline.streams.snapshot_files import SnapshotFiles
from pipeline.streams.snapshots import SnapshotStore
from pipeline.streams.writer import prepare

CAMPAIGNS = 200
DEDUPE_MEMORY_MIB = 256
IDS_A_TURN = 20_000
COPIED_WITHIN_S = 600.0
START_MS = 1_772_323_200_000


def engine() -> Engine:
    """One that owns the only shard, and knows the catalog."""
    policy = Policy(acceptance_horizon_days=7, user_hash_key=b"0123456789abcdef")
    made = Engine(EngineSettings(partitions=1, judging=policy, grace_ms=7_200_000))
    for offset, (key, value) in enumerate(workload.catalog(CAMPAIGNS, START_MS)):
        record = LogRecord("ads.catalog", 0, offset, START_MS, key, value)
        made.apply_catalog(record, START_MS)
    made.new_shard(0)
    return made


def chunks(messages: list[workload.Message], ends: dict[str, int]) -> list[Chunk]:
    """The messages by topic; moves the topics' ends on."""
    made = []
    for source, topic in enumerate(EVENT_TOPICS):
        of_topic = [message for message in messages if message.topic == topic]
        start, end = ends[topic], ends[topic] + len(of_topic)
        ends[topic] = end
        made.append(
            Chunk(
                source=source,
                shard=0,
                start=start,
                end=end,
                offsets=np.arange(start, end),
                timestamps_ms=np.array([message.timestamp_ms for message in of_topic]),
                values=Packed.of(message.value for message in of_topic),
                keys=Packed.of(message.key for message in of_topic),
            )
        )
    return made


def journal(events: int, size: int) -> list[bytes]:
    """The records of a journal with so many events, in records of this size."""
    decided, chain, assembler = engine(), Chain(0), Assembler()
    ends = dict.fromkeys(EVENT_TOPICS, 0)
    messages = workload.messages(events, CAMPAIGNS, START_MS)
    records: list[bytes] = []
    while batch := list(islice(messages, size)):
        assembled = assembler.assemble(chunks(batch, ends))
        turn = decided.turn(assembled, batch[-1].timestamp_ms, {})
        for entry in prepare(decided, turn):
            placed = msgspec.structs.replace(
                entry.header, previous=chain.last_offset, seq=chain.seq
            )
            header, value = seal(placed, entry.body, chain.digest)
            chain.extend(len(records), header)
            records.append(value)
    return records


def fold(records: list[bytes]) -> tuple[int, float]:
    """Fold a journal as a takeover does: (events, CPU seconds)."""
    folding = engine()
    chain = folding.shards[0].chain
    began_s = time.process_time()
    counted: list[Counted] = []
    waiting = 0
    for offset, value in enumerate(records):
        header, body = decode_header(value)
        if chain.admit(offset, header, value):
            counted.append((header, decode_events(header, body)))
            waiting += header.events
        if waiting >= EVENTS_AT_ONCE:
            folding.fold(0, counted)
            counted, waiting = [], 0
    folding.fold(0, counted)
    return chain.seq, time.process_time() - began_s


def bring(ids: int) -> tuple[int, int, float]:
    """Take a shard with so many remembered ids over from the copy of its snapshot, onto an empty
    disk: (ids, bytes of their files, seconds by the clock)."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory, memory_bytes = Path(name), DEDUPE_MEMORY_MIB << 20
        copies = directory / "copies"
        copies.mkdir()
        owner = SnapshotStore(directory / "owner", memory_bytes, copies)
        shard = Shard.new(0, HORIZON_DAYS, ids, owner.open(0))
        random = np.random.default_rng(1)
        for _ in range(ids // IDS_A_TURN):
            shard.ids.add(random.integers(0, 2**64 - 1, (IDS_A_TURN, 2), np.uint64), START_MS)
        packed = pack(shard, Balances(HORIZON_DAYS), Terms(Catalog(), 1), with_ids=True)
        owner.save(0, packed).result()
        _await_copy(copies)
        owner.stop()
        files = list(copies.rglob("*.ids"))
        for path in files:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        other = SnapshotStore(directory / "other", memory_bytes, copies)
        began_s = time.perf_counter()
        fresh = Shard.new(0, HORIZON_DAYS, ids, other.open(0))
        loaded = asyncio.run(other.load(0, ANY_OFFSET))
        if loaded is None:
            raise BenchError(f"no copy came back from {copies}")
        unpack(loaded, fresh, Balances(HORIZON_DAYS), Terms(Catalog(), 1))
        seconds = time.perf_counter() - began_s
        other.stop()
        return len(fresh.ids), sum(path.stat().st_size for path in files), seconds


def _await_copy(directory: Path) -> None:
    """Raises `BenchError` where it does not come."""
    until_s = time.monotonic() + COPIED_WITHIN_S
    while not SnapshotFiles(directory).path(0).exists():
        if time.monotonic() > until_s:
            raise BenchError(f"no copy came to {directory}: is the disk full?")
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=400_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 2_000, 300])
    parser.add_argument("--ids", type=int, default=20_000_000)
    given = parser.parse_args()
    for size in given.sizes:
        records = journal(given.events, size)
        rates = []
        for _ in range(3):
            events, seconds = fold(records)
            rates.append(events / seconds)
        print(f"records of {size:6,} events: {max(rates):9,.0f} events/s", flush=True)
    ids, size_bytes, seconds = bring(given.ids)
    print(
        f"{ids:,} ids, {size_bytes / 2**20:,.0f} MiB, from a copy: {seconds:.1f} s, "
        f"{ids / seconds:,.0f} ids/s"
    )


if __name__ == "__main__":
    main()
