"""Many byte strings in one buffer: no object for each until it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from pipeline.native import compiled

Bytes = npt.NDArray[np.uint8]
Int64s = npt.NDArray[np.int64]

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


def lines_of(parts: Sequence[Packed]) -> bytes | None:
    """All values with a newline between each two, or None where one of them is null."""
    if any(int(part.sizes.min(initial=0)) < 0 for part in parts):
        return None
    size = sum(int(part.sizes.sum()) + len(part) for part in parts)
    lines = np.empty(size, np.uint8)
    end = 0
    for part in parts:
        end = _copy_lines(part.buffer, part.starts, part.sizes, lines, end)
    return lines[:-1].tobytes()


@compiled
def _copy_lines(buffer: Bytes, starts: Int64s, sizes: Int64s, lines: Bytes, at: int) -> int:
    """Copy every value to `lines` from `at` on, each with a newline behind; where they end."""
    for row in range(len(sizes)):
        # Of slices the compiler knows that they are not indexed from the end: it copies in blocks.
        value = buffer[starts[row] : starts[row] + sizes[row]]
        line = lines[at : at + sizes[row]]
        for byte in range(len(value)):
            line[byte] = value[byte]
        at += len(value)
        lines[at] = _NEWLINE
        at += 1
    return at
