"""Many byte strings in one buffer: no object for each until it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.native import compiled

Bytes = npt.NDArray[np.uint8]
Int64s = npt.NDArray[np.int64]
Positions = npt.NDArray[np.signedinteger[Any]]

NO_CODE = 255
_U = np.uint64
_NEWLINE = ord("\n")


@dataclass(frozen=True, slots=True, eq=False)
class Packed(Sequence[bytes | None]):
    """Byte strings and nulls, each a stretch of `buffer`.

    Whoever makes one vouches that every stretch lies within the buffer: `lines_of` does not look.
    """

    buffer: Bytes
    starts: Int64s
    sizes: Int64s
    """Lengths in bytes; -1 for a null."""

    @classmethod
    def of(cls, values: Iterable[bytes | None]) -> Packed:
        """The values packed; what is packed already is returned as it is."""
        if isinstance(values, Packed):
            return values
        listed = list(values)
        sizes = np.array([-1 if value is None else len(value) for value in listed], np.int64)
        ends = np.cumsum(np.maximum(sizes, 0))
        buffer = np.frombuffer(b"".join(value or b"" for value in listed), np.uint8)
        return cls(buffer, ends - np.maximum(sizes, 0), sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> bytes | None: ...

    @overload
    def __getitem__(self, index: slice) -> Packed: ...

    def __getitem__(self, index: Any) -> Packed | bytes | None:
        if isinstance(index, slice):
            return Packed(self.buffer, self.starts[index], self.sizes[index])
        start, size = int(self.starts[index]), int(self.sizes[index])
        return None if size < 0 else self.buffer[start : start + size].tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Columns of texts, each a stretch of one buffer.

    Whoever makes one vouches that every stretch lies within the buffer and is UTF-8.
    """

    buffer: Bytes
    names: tuple[str, ...]
    starts: Positions
    """Shape (names, rows), as `ends`; 0 for a null, for no text starts there."""
    ends: Positions

    @classmethod
    def of(cls, columns: pl.DataFrame) -> Texts:
        """Columns of strings, packed."""
        starts = np.zeros((columns.width, columns.height), np.int64)
        ends = np.zeros_like(starts)
        buffers = [np.full(1, _NEWLINE, np.uint8)]  # so that no text starts at 0
        size = 1
        for row, column in enumerate(columns.iter_columns() if columns.height else ()):
            array = column.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
            _, edges, texts = array.buffers()
            edges = np.frombuffer(edges, np.int64)[array.offset :][: columns.height + 1]
            there = column.is_not_null().to_numpy()
            starts[row] = np.where(there, edges[:-1] + size, 0)
            ends[row] = np.where(there, edges[1:] + size, 0)
            buffers.append(np.frombuffer(texts or b"", np.uint8))
            size += len(buffers[-1])
        return cls(np.concatenate(buffers), tuple(columns.columns), starts, ends)

    @classmethod
    def joined(cls, parts: Sequence[Texts]) -> Texts:
        """The rows of all of them, of which there is one at least; their names are the same."""
        sizes = [len(part.buffer) for part in parts]
        shifts = np.repeat(np.cumsum(sizes) - sizes, [part.starts.shape[1] for part in parts])
        places = [np.stack((part.starts, part.ends)) for part in parts]
        starts, ends = np.concatenate(places, axis=2)
        buffer = np.concatenate([part.buffer for part in parts])
        names, there = parts[0].names, starts > 0
        return cls(buffer, names, np.where(there, starts + shifts, 0), ends + shifts * there)

    def stretches(self, *names: str) -> tuple[Positions, Positions]:
        """Starts and ends of these columns' texts, shape (names, rows)."""
        rows = [self.names.index(name) for name in names]
        return self.starts[rows], self.ends[rows]

    def column(self, name: str, rows: Int64s) -> list[str | None]:
        """A column's texts in these rows."""
        row = self.names.index(name)
        places = zip(self.starts[row, rows].tolist(), self.ends[row, rows].tolist(), strict=True)
        buffer = self.buffer
        return [buffer[start:end].tobytes().decode() if start else None for start, end in places]

    def packed(self, *names: str) -> list[tuple[Int64s, Bytes]]:
        """Of each column its texts, one after the other: where each starts and the last ends, and
        their bytes. A null is empty."""
        return _gathered(self.buffer, *self.stretches(*names))

    def of_rows(self, rows: Int64s) -> Texts:
        """These rows, in this order."""
        return Texts(self.buffer, self.names, self.starts[:, rows], self.ends[:, rows])


class ByteRows:
    """Byte strings by row in one buffer that grows; a row keeps what it was given."""

    def __init__(self) -> None:
        self._buffer = np.empty(1 << 10, np.uint8)
        self._edges = np.zeros(1 << 5, np.int64)
        """Where each row starts and the last one ends."""
        self._rows = 0

    def append(self, value: bytes) -> None:
        """The next row."""
        start = int(self._edges[self._rows])
        end = start + len(value)
        if end > len(self._buffer):
            self._buffer = np.resize(self._buffer, 2 * end)
        if self._rows + 1 == len(self._edges):
            self._edges = np.resize(self._edges, 2 * len(self._edges))
        self._buffer[start:end] = np.frombuffer(value, np.uint8)
        self._rows += 1
        self._edges[self._rows] = end

    def joined(self, rows: Int64s) -> tuple[Int64s, bytes]:
        """What these rows hold, one after the other: where each starts and the last ends, and it
        all."""
        starts, ends = (self._edges[at].reshape(1, -1) for at in (rows, rows + 1))
        [(edges, joined)] = _gathered(self._buffer, starts, ends)
        return edges, joined.tobytes()


def _gathered(buffer: Bytes, starts: Positions, ends: Positions) -> list[tuple[Int64s, Bytes]]:
    """Of each row of stretches: one after the other, where each starts and the last ends, and the
    bytes."""
    edges = np.zeros((len(starts), starts.shape[1] + 1), np.int64)
    np.cumsum(ends - starts, axis=1, out=edges[:, 1:])
    bounds = np.concatenate((np.zeros(1, np.int64), np.cumsum(edges[:, -1])))
    gathered = np.empty(bounds[-1], np.uint8)
    _copy_texts(buffer, starts, edges, bounds, gathered)
    parts = pairwise(bounds.tolist())
    return [(of_row, gathered[a:b]) for of_row, (a, b) in zip(edges, parts, strict=True)]


@cache
def padded(texts: tuple[str, ...], room: int = 0) -> tuple[Bytes, Int64s]:
    """The texts' bytes, one a row with at least so much room behind, and their sizes."""
    encoded = [text.encode() for text in texts]
    names = np.zeros((len(texts), max(map(len, encoded)) + room), dtype=np.uint8)
    for row, name in enumerate(encoded):
        names[row, : len(name)] = np.frombuffer(name, np.uint8)
    return names, np.array([len(name) for name in encoded])


def lines_of(parts: Sequence[Packed], order: Int64s | None = None) -> Bytes | None:
    """All values, each with a newline behind it, or None where one of them is null.

    `order` says which comes where, by their numbers as they are given.
    """
    sizes = np.concatenate([np.empty(0, np.int64), *(part.sizes for part in parts)])
    if int(sizes.min(initial=0)) < 0:
        return None
    ordered = sizes if order is None else sizes[order]
    ends = np.cumsum(ordered + 1)
    places = ends - ordered - 1
    if order is not None:
        in_order, places = places, np.empty_like(places)
        places[order] = in_order
    lines = np.empty(ends[-1] if len(ends) else 0, np.uint8)
    start = 0
    for part in parts:
        here = places[start : start + len(part)]
        _copy_lines(part.buffer, part.starts, part.sizes, lines, here)
        start += len(part)
    return lines


@compiled
def _copy_lines(buffer: Bytes, starts: Int64s, sizes: Int64s, lines: Bytes, places: Int64s) -> None:
    """Copy every value to its place in `lines`, each with a newline behind."""
    for row in range(len(sizes)):
        # Of slices the compiler knows that they are not indexed from the end: it copies in blocks.
        value = buffer[starts[row] : starts[row] + sizes[row]]
        line = lines[places[row] : places[row] + sizes[row]]
        for byte in range(len(value)):
            line[byte] = value[byte]
        lines[places[row] + sizes[row]] = _NEWLINE


@compiled
def _copy_texts(
    buffer: Bytes, starts: Positions, edges: Int64s, bounds: Int64s, gathered: Bytes
) -> None:
    """Copy each text to where it belongs: message by message, for each is fetched from memory."""
    for row in range(starts.shape[1]):
        for column in range(len(starts)):
            size = edges[column, row + 1] - edges[column, row]
            text = buffer[starts[column, row] : starts[column, row] + size]
            start = bounds[column] + edges[column, row]
            place = gathered[start : start + size]
            for byte in range(len(text)):
                place[byte] = text[byte]


@compiled
def fill_codes(
    buffer: Bytes,
    starts: Positions,
    ends: Positions,
    first: int,
    last: int,
    names: Bytes,
    sizes: Int64s,
    codes: Bytes,
) -> None:
    """Write the row among the names of each buffer[start:end], from the first up to the last; where
    it is none of them NO_CODE."""
    for row in range(first, last):
        start, size = starts[row], ends[row] - starts[row]
        codes[row] = NO_CODE
        for name in range(len(sizes)):
            if sizes[name] == size:
                same = 0
                while same < size and buffer[start + same] == names[name, same]:
                    same += 1
                if same == size:
                    codes[row] = name
                    break


# Indices are uint64, and so is what is added to them: numba looks for negative ones elsewhere, and
# makes a float of a uint64 and an int64. The compiler makes one load of each of these.


@compiled
def half_at(data: Bytes, at: np.uint64) -> np.uint64:
    """4 bytes, little-endian."""
    low = _U(data[at]) | _U(data[at + _U(1)]) << _U(8)
    return low | _U(data[at + _U(2)]) << _U(16) | _U(data[at + _U(3)]) << _U(24)


@compiled
def word_at(data: Bytes, at: np.uint64) -> np.uint64:
    """8 bytes, little-endian."""
    return half_at(data, at) | half_at(data, at + _U(4)) << _U(32)
