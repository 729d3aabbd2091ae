"""Plain JSON messages into columns, in one pass over their bytes.

Only for messages as producers write them: an object of known keys, each once, their values strings
without escapes or non-negative integers. About anything else it says no, and somebody slower must
decide. Whatever it accepts is valid: nothing has to be proven afterwards.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipeline.billing.texts import Bytes, Int64s
from pipeline.native import compiled

Int32s = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint32]

_NEWLINE, _SPACE, _QUOTE, _COMMA, _COLON = b'\n ",:'
_TAB, _RETURN, _BACKSLASH, _OPEN, _CLOSE, _ZERO, _NINE = b"\t\r\\{}09"
_VIEW_BYTES = 16
_INLINE_BYTES = 12
"""Arrow's Utf8View keeps texts up to this size in the view itself, of others where they are:
https://arrow.apache.org/docs/format/Columnar.html#variable-size-binary-view-layout"""
_PREFIX_BYTES = 4
_FIRST_NOT_ASCII = 128
_MAX_DIGITS = 18
"""Of an integer that surely fits 64 bits."""
_MAX_TEXT = 1 << 31


class Scanner:
    """Reads messages whose keys are these columns, which are of texts or integers."""

    def __init__(self, columns: dict[str, pl.DataType]) -> None:
        self._columns = tuple(columns)
        self._strings = [name for name, kind in columns.items() if kind == pl.String]
        self._integers = [name for name, kind in columns.items() if kind == pl.Int64]
        keys = [name.encode() for name in (*self._strings, *self._integers)]
        self._names = np.zeros((len(keys), max(map(len, keys))), dtype=np.uint8)
        self._sizes = np.array([len(key) for key in keys])
        for row, key in enumerate(keys):
            self._names[row, : len(key)] = np.frombuffer(key, np.uint8)

    def scan(self, text: Bytes, messages: int) -> pl.DataFrame | None:
        """The messages as columns, a null where one lacks a key; None where it says no.

        `text` is the messages, each with a newline behind it.
        """
        if not len(text) or text[-1] != _NEWLINE or len(text) >= _MAX_TEXT:
            return None
        starts = np.zeros((len(self._strings), messages), dtype=np.int32)
        ends = np.zeros_like(starts)
        numbers = np.zeros((len(self._integers), messages), dtype=np.int64)
        there = np.zeros((len(self._sizes), messages), dtype=np.uint8)
        found = _scan(text, self._names, self._sizes, starts, ends, numbers, there)
        if found == _NO or (found == _NOT_ASCII and not _is_utf8(text)):
            return None
        views = np.zeros((*starts.shape, _VIEW_BYTES), dtype=np.uint8)
        _set_views(text, starts, ends, views, views.view(np.uint32))
        texts = pa.py_buffer(text)
        columns = [
            pl.Series(name, _strings(views[column], texts, there[column]))
            for column, name in enumerate(self._strings)
        ]
        first = len(self._strings)
        for column, name in enumerate(self._integers):
            values = pl.Series(name, numbers[column])
            if not there[first + column].all():
                values = values.set(pl.Series(there[first + column] == 0), None)
            columns.append(values)
        return pl.DataFrame(columns).select(self._columns)


def _strings(views: Bytes, texts: pa.Buffer, there: Bytes) -> pa.Array:
    count = len(there)
    validity = None
    if not there.all():
        validity = pa.py_buffer(np.packbits(there, bitorder="little"))
    return pa.Array.from_buffers(pa.string_view(), count, [validity, pa.py_buffer(views), texts])


def _is_utf8(text: Bytes) -> bool:
    try:
        text.tobytes().decode()
    except UnicodeDecodeError:
        return False
    return True


_NO, _ASCII, _NOT_ASCII = 0, 1, 2
_NOWHERE = -1

# The newline at the text's end is where every loop stops at the latest: none goes past one.


@compiled
def _scan(
    text: Bytes,
    names: Bytes,
    sizes: Int64s,
    starts: Int32s,
    ends: Int32s,
    numbers: Int64s,
    there: Bytes,
) -> int:
    """Fill in what was found: where each string is, and the integers."""
    strings, messages = starts.shape
    usual = np.zeros(len(sizes), dtype=np.int64)  # the key that came at this place in the last one
    high = 0
    at = 0
    for row in range(messages):
        if at == len(text):
            return _NO
        at = _after_space(text, at)
        if text[at] != _OPEN:
            return _NO
        place = 0
        while True:
            at = _after_space(text, at + 1)
            if text[at] != _QUOTE or place == len(sizes):
                return _NO
            at += 1
            key, other = usual[place], 0
            while True:
                size, same = sizes[key], 0
                while same < size and text[at + same] == names[key, same]:
                    same += 1
                if same == size and text[at + size] == _QUOTE:
                    break
                if other == len(sizes):
                    return _NO
                key, other = other, other + 1
            if there[key, row]:
                return _NO
            there[key, row] = 1
            usual[place] = key
            place += 1
            at = _after_space(text, at + sizes[key] + 1)
            if text[at] != _COLON:
                return _NO
            at = _after_space(text, at + 1)
            if key < strings:
                end, seen = _string_at(text, at)
                if end == _NOWHERE:
                    return _NO
                high |= seen
                starts[key, row], ends[key, row] = at + 1, end - 1
            else:
                end, numbers[key - strings, row] = _integer_at(text, at)
                if end == _NOWHERE:
                    return _NO
            at = _after_space(text, end)
            if text[at] == _CLOSE:
                break
            if text[at] != _COMMA:
                return _NO
        at = _after_space(text, at + 1)
        if text[at] != _NEWLINE:
            return _NO
        at += 1
    if at != len(text):
        return _NO
    return _NOT_ASCII if high >= _FIRST_NOT_ASCII else _ASCII


@compiled
def _after_space(text: Bytes, at: int) -> int:
    while text[at] == _SPACE or text[at] == _TAB or text[at] == _RETURN:
        at += 1
    return at


@compiled
def _string_at(text: Bytes, at: int) -> tuple[int, int]:
    """Where the string that begins here has ended, and all of its bytes or-ed together."""
    seen = 0
    if text[at] != _QUOTE:
        return _NOWHERE, seen
    at += 1
    while text[at] != _QUOTE:
        if text[at] < _SPACE or text[at] == _BACKSLASH:
            return _NOWHERE, seen
        seen |= text[at]
        at += 1
    return at + 1, seen


@compiled
def _integer_at(text: Bytes, at: int) -> tuple[int, int]:
    """Where the integer that begins here has ended, and its value."""
    start, value = at, 0
    while _ZERO <= text[at] <= _NINE:
        if at - start == _MAX_DIGITS:
            return _NOWHERE, 0
        value = value * 10 + (text[at] - _ZERO)
        at += 1
    if at == start or (text[start] == _ZERO and at - start > 1):
        return _NOWHERE, 0
    return at, value


@compiled
def _set_views(text: Bytes, starts: Int32s, ends: Int32s, views: Bytes, words: Words) -> None:
    """Write Arrow's views of text[start:end]; `words` is `views` by four bytes.

    A view is the text's size, then the text, or its first bytes and where it is.
    """
    for column in range(len(starts)):
        for row in range(starts.shape[1]):
            start = starts[column, row]
            size = ends[column, row] - start
            words[column, row, 0] = size
            if size > _INLINE_BYTES:
                words[column, row, 3] = start
                size = _PREFIX_BYTES
            for index in range(size):
                views[column, row, 4 + index] = text[start + index]
