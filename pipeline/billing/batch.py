"""Chunks of source records, and the batch that a worker decides in one pass.

A chunk is what one fetch brought of one topic partition. A batch holds the chunks of all shards
and topics, in the order of judgement: by the running maximum of the record timestamps of each
partition (so offset order holds within each), then impressions, clicks, engagements.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.billing.decode import Columns, Decoded, Decoder, decode_plain
from pipeline.billing.texts import Bytes, Packed, Texts, lines_of
from pipeline.contract.vocabulary import (
    CLICK,
    ENGAGEMENTS,
    EVENT_TOPICS,
    IMPRESSION,
)

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
    """Events of many shards in the order of judgement; all columns have the same length."""

    source: npt.NDArray[np.uint8]
    shard: npt.NDArray[np.int32]
    offset: Int64s
    record_ms: Int64s
    order_ms: Int64s
    """Running maximum of the partition's record timestamps: never falls along the batch."""
    chunk: npt.NDArray[np.int32]
    """Position in `chunks` of the chunk that the row is from."""
    position: npt.NDArray[np.int32]
    """Position of the row within its chunk."""
    malformed: Mask
    came_as: Int64s
    """The row of `as_they_came`."""
    as_they_came: Texts
    """The events' texts in the order of the messages: they are not moved, for few are needed. Read
    them by `texts` and `gathered`."""
    chunks: tuple[Chunk, ...]
    ranges: dict[int, dict[str, tuple[int, int]]]
    """Shard -> topic -> the source offsets that the batch takes: from, up to but not including."""

    def __len__(self) -> int:
        return len(self.offset)

    def texts(self, name: str, rows: Int64s) -> list[str | None]:
        """A field of the events in these rows, one of EVENT_TEXTS."""
        return self.as_they_came.column(name, self.came_as[rows])

    def gathered(self, name: str, rows: Int64s) -> tuple[Int64s, Bytes]:
        """The same as `Texts.gathered` gives it."""
        return self.as_they_came.gathered(name, self.came_as[rows])

    def original(self, row: int) -> tuple[bytes | None, bytes | None]:
        """The record's key and value as they came."""
        chunk, position = self.chunks[self.chunk[row]], int(self.position[row])
        return chunk.keys[position], chunk.values[position]

    def headers(self, row: int) -> tuple[tuple[str, bytes], ...]:
        """The record's headers as they came."""
        chunk: Chunk = self.chunks[self.chunk[row]]
        return chunk.headers.get(int(self.offset[row]), ())


class Assembler:
    """Decodes chunks and puts them in the order of judgement."""

    def __init__(self) -> None:
        self._decoders = [Decoder(topic) for topic in EVENT_TOPICS]
        self._running_max: dict[tuple[int, int], int] = {}

    def assemble(self, chunks: Iterable[Chunk]) -> Batch:
        """One batch of all chunks; those of one partition must be given in offset order."""
        # By topic, so that one call decodes all that came of it; partitions keep their order.
        taken = tuple(sorted(chunks, key=lambda chunk: chunk.source))
        sizes = [len(chunk.values) for chunk in taken]
        decoded = self._decode(taken)
        source = np.repeat([chunk.source for chunk in taken], sizes).astype(np.uint8)
        order_ms = self._order_ms(taken)
        order = np.argsort(order_ms, kind="stable")
        ranges: dict[int, dict[str, tuple[int, int]]] = {}
        for chunk in taken:
            topics = ranges.setdefault(chunk.shard, {})
            topic = EVENT_TOPICS[chunk.source]
            topics[topic] = (topics.get(topic, (chunk.start, 0))[0], chunk.end)
        return Batch(
            source=source[order],
            shard=np.repeat([chunk.shard for chunk in taken], sizes).astype(np.int32)[order],
            offset=_joined([chunk.offsets for chunk in taken])[order],
            record_ms=_joined([chunk.timestamps_ms for chunk in taken])[order],
            order_ms=order_ms[order],
            chunk=np.repeat(np.arange(len(taken)), sizes).astype(np.int32)[order],
            position=_joined([np.arange(size) for size in sizes]).astype(np.int32)[order],
            **event_columns(decoded, source, order),
            chunks=taken,
            ranges=ranges,
        )

    def _decode(self, chunks: tuple[Chunk, ...]) -> Decoded:
        """All messages, in the order of the chunks (which is by topic).

        All at once; where that fails, each chunk by itself, so that one does not slow the others.
        """
        full = [chunk for chunk in chunks if len(chunk.values)]
        if len(full) > 1:
            size = sum(len(chunk.values) for chunk in full)
            plain = sum(len(c.values) for c in full if EVENT_TOPICS[c.source] != ENGAGEMENTS)
            lines = lines_of([chunk.values for chunk in full])
            together = None if lines is None else decode_plain(lines, size, plain)
            if together is not None:
                return together
        return Decoded.joined([self._decoders[chunk.source].decode(chunk.values) for chunk in full])

    def _order_ms(self, chunks: tuple[Chunk, ...]) -> Int64s:
        columns = []
        for chunk in chunks:
            if len(chunk.values) == 0:
                continue
            partition = (chunk.source, chunk.shard)
            column = np.maximum.accumulate(chunk.timestamps_ms)
            column = np.maximum(column, self._running_max.get(partition, 0))
            self._running_max[partition] = int(column[-1])
            columns.append(column)
        return np.concatenate(columns) if columns else np.empty(0, np.int64)

    def read_up_to_ms(self, source: int, shard: int) -> int:
        """Running maximum of the record timestamps read of a partition; 0 before the first."""
        return self._running_max.get((source, shard), 0)

    def forget(self, shard: int) -> None:
        """The shard is another worker's now."""
        for partition in [p for p in self._running_max if p[1] == shard]:
            del self._running_max[partition]


def in_steps(batch: Batch, now_ms: int, boundaries_ms: Sequence[int]) -> list[tuple[Batch, int]]:
    """A batch that is not empty, cut before each of these times, and what is now for each part.

    `now_ms` is the time before the batch, the boundaries are after it and ascend. At each of them
    stands an empty part: what falls due then is settled before any later event is judged. Of those
    before the first event the last one settles what the others would.
    """
    if not boundaries_ms:
        return [(batch, max(now_ms, int(batch.order_ms[-1])))]
    before_all = bisect_right(boundaries_ms, int(batch.order_ms[0]))
    times_ms = boundaries_ms[max(0, before_all - 1) :]
    cuts: list[int] = np.searchsorted(batch.order_ms, times_ms).tolist()
    done: dict[tuple[int, str], int] = {}
    empty = _part(batch, 0, 0, last=False, done=done)
    steps = []
    for number, (start, end) in enumerate(pairwise([0, *cuts, len(batch)])):
        if number:
            now_ms = times_ms[number - 1]
            steps.append((empty, now_ms))
        part = _part(batch, start, end, last=number == len(cuts), done=done)
        if part.ranges:
            now_ms = max([now_ms, *part.order_ms[-1:].tolist()])
            steps.append((part, now_ms))
    return steps


def _part(
    batch: Batch, start: int, end: int, *, last: bool, done: dict[tuple[int, str], int]
) -> Batch:
    """Rows start..end of a batch; `done` holds how far each source was taken by earlier parts."""
    rows = slice(start, end)
    ranges: dict[int, dict[str, tuple[int, int]]] = {}
    for shard, topics in batch.ranges.items() if last or end > start else ():
        for topic, (first, after) in topics.items():
            begin = done.get((shard, topic), first)
            here = (batch.shard[rows] == shard) & (batch.source[rows] == EVENT_TOPICS.index(topic))
            offsets = batch.offset[rows][here]
            until = after if last else int(offsets[-1]) + 1 if len(offsets) else begin
            if until > begin:
                ranges.setdefault(shard, {})[topic] = (begin, until)
                done[shard, topic] = until
    columns = {name: getattr(batch, name)[rows] for name in _ROW_COLUMNS}
    return replace(batch, ranges=ranges, **columns)


def event_columns(decoded: Decoded, source: Codes, order: Int64s) -> dict[str, Any]:
    """What a batch has of its events, by field: `source` as the messages came, all in an order."""
    columns = {field.name: getattr(decoded.columns, field.name) for field in fields(Columns)}
    columns["kind"] = _kinds(source, decoded.malformed, decoded.columns.kind)
    columns["malformed"] = decoded.malformed
    ordered = {name: column[order] for name, column in columns.items()}
    return ordered | {"came_as": order, "as_they_came": decoded.texts}


def _joined(columns: Sequence[Int64s]) -> Int64s:
    return np.concatenate(columns) if columns else np.empty(0, np.int64)


def _kinds(source: Codes, malformed: Mask, engagement: Codes) -> Codes:
    """The kind of each event: its topic's own, or what the engagement says."""
    of_topic = np.array([IMPRESSION, CLICK, 0], dtype=np.uint8)[source]
    of_topic[malformed] = 0
    return np.maximum(of_topic, engagement)


_ROW_COLUMNS = tuple(
    field.name for field in fields(Batch) if field.name not in ("as_they_came", "chunks", "ranges")
)
