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

from pipeline.native import compiled

Bytes = npt.NDArray[np.uint8]
Int64s = npt.NDArray[np.int64]

_NEWLINE, _SPACE, _QUOTE, _COMMA, _COLON = b'\n ",:'
_TAB, _RETURN, _BACKSLASH, _OPEN, _CLOSE, _ZERO, _NINE = b"\t\r\\{}09"
_VIEW_BYTES = 16
_INLINE_BYTES = 12
"""Arrow's Utf8View keeps texts up to this size in the view itself, of others where they are:
https://arrow.apache.org/docs/format/Columnar.html#variable-size-binary-view-layout"""
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

    def scan(self, text: bytes, messages: int) -> pl.DataFrame | None:
        """The messages as columns, a null where one lacks a key; None where it says no.

        `text` is the messages, each with a newline behind it.
        """
        if not text.endswith(b"\n") or len(text) >= _MAX_TEXT:
            return None
        views = np.zeros((len(self._strings), messages, _VIEW_BYTES), dtype=np.uint8)
        numbers = np.zeros((len(self._integers), messages), dtype=np.int64)
        there = np.zeros((len(self._sizes), messages), dtype=np.uint8)
        found = _scan(
            np.frombuffer(text, dtype=np.uint8),
            self._names,
            self._sizes,
            views,
            views.view(np.uint32),
            numbers,
            there,
        )
        if found == _NO or (found == _NOT_ASCII and not _is_utf8(text)):
            return None
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
    return pa.Array.from_buffers(
        pa.string_view(), count, [validity, pa.py_buffer(views), texts]
    )


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


_NO, _ASCII, _NOT_ASCII = 0, 1, 2


@compiled
def _scan(
    text: Bytes,
    names: Bytes,
    sizes: Int64s,
    views: Bytes,
    words: npt.NDArray[np.uint32],
    numbers: Int64s,
    there: Bytes,
) -> int:
    """Fill the columns. `words` is `views` by four bytes.

    The newline at the text's end is where every loop ends at the latest: none passes one.
    """
    strings, messages = views.shape[0], views.shape[1]
    keys = len(sizes)
    usual = np.zeros(keys + 1, dtype=np.int64)  # the key that came at this place in the last one
    high = 0
    at = 0
    for row in range(messages):
        if at >= len(text):
            return _NO
        while text[at] == _SPACE or text[at] == _TAB or text[at] == _RETURN:
            at += 1
        if text[at] != _OPEN:
            return _NO
        place = 0
        while True:
            at += 1
            while text[at] == _SPACE or text[at] == _TAB or text[at] == _RETURN:
                at += 1
            if text[at] != _QUOTE or place == keys:
                return _NO
            at += 1
            # -- the key
            key = usual[place]
            tried = 0
            while tried <= keys:
                size = sizes[key]
                same = 0
                # A newline is in no name, so this ends in the text.
                while same < size and text[at + same] == names[key, same]:
                    same += 1
                if same == size and text[at + size] == _QUOTE:
                    break
                key = tried
                tried += 1
                if tried > keys:
                    return _NO
            if there[key, row]:
                return _NO
            there[key, row] = 1
            usual[place] = key
            place += 1
            at += sizes[key] + 1
            while text[at] == _SPACE or text[at] == _TAB or text[at] == _RETURN:
                at += 1
            if text[at] != _COLON:
                return _NO
            at += 1
            while text[at] == _SPACE or text[at] == _TAB or text[at] == _RETURN:
                at += 1
            # -- its value
            if key < strings:
                if text[at] != _QUOTE:
                    return _NO
                at += 1
                start = at
                while text[at] != _QUOTE:
                    byte = text[at]
                    if byte < _SPACE or byte == _BACKSLASH:
                        return _NO
                    high |= byte
                    at += 1
                size = at - start
                words[key, row, 0] = size
                if size <= _INLINE_BYTES:
                    for index in range(size):
                        views[key, row, 4 + index] = text[start + index]
                else:
                    for index in range(4):
                        views[key, row, 4 + index] = text[start + index]
                    words[key, row, 3] = start
                at += 1
            else:
                start = at
                value = 0
                while _ZERO <= text[at] <= _NINE:
                    if at - start == _MAX_DIGITS:
                        return _NO
                    value = value * 10 + (text[at] - _ZERO)
                    at += 1
                if at == start or (text[start] == _ZERO and at - start > 1):
                    return _NO
                numbers[key - strings, row] = value
            while text[at] == _SPACE or text[at] == _TAB or text[at] == _RETURN:
                at += 1
            if text[at] == _CLOSE:
                break
            if text[at] != _COMMA:
                return _NO
        at += 1
        while text[at] == _SPACE or text[at] == _TAB or text[at] == _RETURN:
            at += 1
        if text[at] != _NEWLINE:
            return _NO
        at += 1
    if at != len(text):
        return _NO
    return _NOT_ASCII if high >= 128 else _ASCII
