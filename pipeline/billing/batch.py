"""Chunks of source records, and the batch that a worker decides in one pass.

A chunk is what one fetch brought of one topic partition. A batch holds the chunks of all shards
and topics: shard by shard, and within each in the order of judgement, which is by the running
maximum of the record timestamps of each partition (so offset order holds within each), then
impressions, clicks, engagements. Nothing that is judged hangs on another shard's events.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.billing.brief import Brief
from pipeline.billing.decode import Columns, Decoded, Decoder, decode_plain
from pipeline.billing.texts import Packed, Texts, lines_of
from pipeline.contract.vocabulary import (
    CLICK,
    ENGAGEMENTS,
    EVENT_TOPICS,
    IMPRESSION,
)
from pipeline.native import compiled

Int64s = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive records of one event topic partition, `start` <= offset < `end`.

    Offsets may have gaps (transaction markers); `offsets`, `timestamps_ms`, `values` and `keys`
    have one entry a record.
    """

    source: int
    """The topic's position in EVENT_TOPICS."""
    shard: int
    start: int
    end: int
    offsets: Int64s
    timestamps_ms: Int64s
    values: Packed
    keys: Packed
    headers: Mapping[int, tuple[tuple[str, bytes], ...]] = field(default_factory=dict)
    """Offset -> record headers, where a record has any."""


@dataclass(frozen=True, slots=True)
class Batch(Columns):
    """Events of many shards, one shard's after the other's, each in the order of judgement; all
    columns have the same length."""

    source: npt.NDArray[np.uint8]
    shard: npt.NDArray[np.int32]
    """Never falls along the batch."""
    offset: Int64s
    record_ms: Int64s
    order_ms: Int64s
    """Running maximum of the partition's record timestamps: never falls along a shard's rows."""
    came_as: Int64s
    """The record's number in `chunks`, these one after the other."""
    malformed: Mask
    texts: Texts
    """With the names of EVENT_TEXTS."""
    brief: Brief | None
    """Of the same events, where it could be made."""
    chunks: tuple[Chunk, ...]
    chunk_ends: Int64s
    """By chunk, the numbers of records up to its last."""
    ranges: dict[int, dict[str, tuple[int, int]]]
    """Shard -> topic -> the source offsets that the batch takes: from, up to but not including."""
    spans: dict[int, slice]
    """Shard -> its rows, one after the other; those that have some, ascending."""

    def __len__(self) -> int:
        return len(self.offset)

    def by_shard(self, rows: Int64s) -> Iterator[tuple[int, slice]]:
        """Each shard, and where its rows are among these, which ascend."""
        ends = np.searchsorted(rows, [span.stop for span in self.spans.values()]).tolist()
        for shard, (start, end) in zip(self.spans, pairwise([0, *ends]), strict=True):
            if end > start:
                yield shard, slice(start, end)

    def original(
        self, row: int
    ) -> tuple[bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]:
        """The record's key, value and headers as they came."""
        number = int(self.came_as[row])
        at = int(np.searchsorted(self.chunk_ends, number, side="right"))
        chunk = self.chunks[at]
        position = number - int(self.chunk_ends[at]) + len(chunk.values)
        headers = chunk.headers.get(int(self.offset[row]), ())
        return chunk.keys[position], chunk.values[position], headers


class Assembler:
    """Decodes chunks and puts them in the order of judgement."""

    def __init__(self) -> None:
        self._decoders = [Decoder(topic) for topic in EVENT_TOPICS]
        self._running_max: dict[tuple[int, int], int] = {}

    def assemble(self, chunks: Iterable[Chunk]) -> Batch:
        """One batch of all chunks; those of one partition must be given in offset order."""
        taken = tuple(sorted(chunks, key=lambda chunk: (chunk.shard, chunk.source)))
        sizes = [len(chunk.values) for chunk in taken]
        record_ms = _joined([chunk.timestamps_ms for chunk in taken])
        came_ms, order = self._put_in_order(taken, sizes, record_ms)
        source = np.repeat([chunk.source for chunk in taken], sizes).astype(np.uint8)[order]
        decoded = self._decode(taken, source, order)
        ranges: dict[int, dict[str, tuple[int, int]]] = {}
        for chunk in taken:
            topics = ranges.setdefault(chunk.shard, {})
            topic = EVENT_TOPICS[chunk.source]
            topics[topic] = (topics.get(topic, (chunk.start, 0))[0], chunk.end)
        return Batch(
            source=source,
            shard=np.repeat([chunk.shard for chunk in taken], sizes).astype(np.int32),
            offset=_joined([chunk.offsets for chunk in taken])[order],
            record_ms=record_ms[order],
            order_ms=came_ms[order],
            came_as=order,
            **event_columns(decoded, source),
            chunks=taken,
            chunk_ends=np.cumsum(sizes, dtype=np.int64),
            ranges=ranges,
            spans=_spans((chunk.shard, size) for chunk, size in zip(taken, sizes, strict=True)),
        )

    def _decode(self, chunks: tuple[Chunk, ...], source: Codes, order: Int64s) -> Decoded:
        """All messages in their order; `source` is of it.

        All at once; where that fails, each chunk by itself, so that one does not slow the others.
        """
        full = [chunk for chunk in chunks if len(chunk.values)]
        if len(full) > 1:
            lines = lines_of([chunk.values for chunk in full], order)
            engaged = source == EVENT_TOPICS.index(ENGAGEMENTS)
            together = None if lines is None else decode_plain(lines, engaged)
            if together is not None:
                return together
        each = Decoded.joined([self._decoders[chunk.source].decode(chunk.values) for chunk in full])
        return each if len(full) <= 1 else each.in_order(order)

    def _put_in_order(
        self, chunks: tuple[Chunk, ...], sizes: list[int], record_ms: Int64s
    ) -> tuple[Int64s, Int64s]:
        """By record as the chunks have them, the running maximum of its partition's timestamps; and
        the records in the order of judgement."""
        partitions: dict[tuple[int, int], int] = {}
        for chunk, size in zip(chunks, sizes, strict=True):
            place = chunk.shard, chunk.source
            partitions[place] = partitions.get(place, 0) + size
        ends = np.cumsum([0, *partitions.values()])
        shards = np.array([shard for shard, _ in partitions], dtype=np.int64)
        latest_ms = np.array([self.read_up_to_ms(*place) for place in partitions], dtype=np.int64)
        came_ms, order = np.empty_like(record_ms), np.empty_like(record_ms)
        _put_in_order(record_ms, ends, ends[:-1].copy(), shards, latest_ms, came_ms, order)
        self._running_max |= zip(partitions, latest_ms.tolist(), strict=True)
        return came_ms, order

    def read_up_to_ms(self, shard: int, source: int) -> int:
        """Running maximum of the record timestamps read of a partition; 0 before the first."""
        return self._running_max.get((shard, source), 0)

    def forget(self, shard: int) -> None:
        """The shard is another worker's now."""
        for partition in [p for p in self._running_max if p[0] == shard]:
            del self._running_max[partition]


@compiled
def _put_in_order(
    record_ms: Int64s,
    ends: Int64s,
    at: Int64s,
    shards: Int64s,
    latest_ms: Int64s,
    came_ms: Int64s,
    order: Int64s,
) -> None:
    """As `Assembler._put_in_order`. The records of the n-th partition, which is of the n-th of
    `shards`, are those from the n-th of `ends` up to the next; a shard's partitions are side by
    side. `at` is where each begins, `latest_ms` its running maximum until now and from now on."""
    for n in range(len(shards)):
        for row in range(ends[n], ends[n + 1]):
            latest_ms[n] = max(latest_ms[n], record_ms[row])
            came_ms[row] = latest_ms[n]
    first = 0
    while first < len(shards):
        after = first
        while after < len(shards) and shards[after] == shards[first]:
            after += 1
        # Each partition's records are in order: take the one that came first, again and again.
        for row in range(ends[first], ends[after]):
            next_one = -1
            for n in range(first, after):
                if at[n] < ends[n + 1] and (next_one < 0 or came_ms[at[n]] < came_ms[at[next_one]]):
                    next_one = n
            order[row] = at[next_one]
            at[next_one] += 1
        first = after


def in_steps(batch: Batch, now_ms: int, boundaries_ms: Sequence[int]) -> list[tuple[Batch, int]]:
    """A batch that is not empty, cut before each of these times, and what is now for each part.

    `now_ms` is the time before the batch, the boundaries are after it and ascend. At each of them
    stands an empty part: what falls due then is settled before any later event is judged. Of those
    before the first event the last one settles what the others would.
    """
    if not boundaries_ms:
        return [(batch, max(now_ms, int(batch.order_ms.max())))]
    before_all = bisect_right(boundaries_ms, int(batch.order_ms.min()))
    times_ms = boundaries_ms[max(0, before_all - 1) :]
    part_of = np.searchsorted(times_ms, batch.order_ms, side="right")
    done: dict[tuple[int, str], int] = {}
    empty = _part(batch, np.empty(0, np.int64), last=False, done=done)
    steps = []
    for number in range(len(times_ms) + 1):
        if number:
            now_ms = times_ms[number - 1]
            steps.append((empty, now_ms))
        last = number == len(times_ms)
        part = _part(batch, np.flatnonzero(part_of == number), last=last, done=done)
        if part.ranges:
            now_ms = int(part.order_ms.max(initial=now_ms))
            steps.append((part, now_ms))
    return steps


def _part(batch: Batch, rows: Int64s, *, last: bool, done: dict[tuple[int, str], int]) -> Batch:
    """These rows of a batch; `done` holds how far each source was taken by earlier parts."""
    columns = {name: getattr(batch, name)[rows] for name in _ROW_COLUMNS}
    spans = _spans((shard, here.stop - here.start) for shard, here in batch.by_shard(rows))
    ranges: dict[int, dict[str, tuple[int, int]]] = {}
    for shard, topics in batch.ranges.items() if last or len(rows) else ():
        here = spans.get(shard, slice(0, 0))
        source, offset = columns["source"][here], columns["offset"][here]
        for topic, (first, after) in topics.items():
            begin = done.get((shard, topic), first)
            offsets = offset[source == EVENT_TOPICS.index(topic)]
            until = after if last else int(offsets[-1]) + 1 if len(offsets) else begin
            if until > begin:
                ranges.setdefault(shard, {})[topic] = (begin, until)
                done[shard, topic] = until
    texts = batch.texts.of_rows(rows)
    brief = None if batch.brief is None else batch.brief.of_rows(rows)
    return replace(batch, ranges=ranges, spans=spans, texts=texts, brief=brief, **columns)


def event_columns(decoded: Decoded, source: Codes) -> dict[str, Any]:
    """What a batch has of its events, by field; `source` is of the same rows."""
    columns = {field.name: getattr(decoded.columns, field.name) for field in fields(Columns)}
    columns["kind"] = _kinds(source, decoded.malformed, decoded.columns.kind)
    others = {name: getattr(decoded, name) for name in ("malformed", "texts", "brief")}
    return columns | others


def _spans(sizes: Iterable[tuple[int, int]]) -> dict[int, slice]:
    """Shard -> its rows, of the numbers of rows that come of each; a shard may come again."""
    spans: dict[int, slice] = {}
    end = 0
    for shard, size in sizes:
        if size:
            start = spans[shard].start if shard in spans else end
            end += size
            spans[shard] = slice(start, end)
    return spans


def _joined(columns: Sequence[Int64s]) -> Int64s:
    return np.concatenate(columns) if columns else np.empty(0, np.int64)


def _kinds(source: Codes, malformed: Mask, engagement: Codes) -> Codes:
    """The kind of each event: its topic's own, or what the engagement says."""
    of_topic = np.array([IMPRESSION, CLICK, 0], dtype=np.uint8)[source]
    of_topic[malformed] = 0
    return np.maximum(of_topic, engagement)


_ROW_COLUMNS = tuple(
    field.name
    for field in fields(Batch)
    if field.name not in ("texts", "brief", "chunks", "chunk_ends", "ranges", "spans")
)


def warm_up() -> None:
    """Compile what assembling needs, or load it, before the first event waits for it."""
    Assembler().assemble([])
