"""Plain JSON messages into columns, in one pass over their bytes.

Only for messages as producers write them: an object with each key once, the known ones' values
strings without escapes or non-negative integers, and a few unknown ones' plain values too, which
are passed over. About anything else it says no, and somebody slower must decide. Whatever it
accepts is valid, but that it does not look whether what is not ASCII is UTF-8.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.billing.texts import Bytes, Int64s, padded, word_at
from pipeline.native import compiled

Int32s = npt.NDArray[np.int32]
Uint64s = npt.NDArray[np.uint64]

NEWLINE, _SPACE, _QUOTE, _COMMA, _COLON = b'\n ",:'
_TAB, _RETURN, _BACKSLASH, _OPEN, _CLOSE = b"\t\r\\{}"
_MINUS, _POINT, _ZERO, _NINE = b"-.09"
_WORD_BYTES = 8
_MAX_DIGITS = np.uint64(18)
"""Of an integer that surely fits 64 bits."""
MAX_UNKNOWN = 8
"""Unknown keys of a message."""
MAX_TEXT = 1 << 31

_U = np.uint64
NOWHERE = np.int64(-1)
_1, _8, _BEYOND = _U(1), _U(_WORD_BYTES), _U(1 << 63)
_ONES, _HIGHS = _U(0x0101010101010101), _U(0x8080808080808080)
_QUOTES, _BACKSLASHES, _SPACES = (_U(byte) * _ONES for byte in (_QUOTE, _BACKSLASH, _SPACE))


def names_of(keys: tuple[str, ...]) -> tuple[Bytes, Int64s]:
    """The keys as `scan_rows` compares them: a row each, and their sizes."""
    return padded(tuple(f'{key}"' for key in keys), room=_WORD_BYTES)


@compiled
def scan_rows(
    text: Bytes,
    at: np.int64,
    first: int,
    last: int,
    names: Bytes,
    sizes: Int64s,
    usual: Int64s,
    starts: Int32s,
    ends: Int32s,
    numbers: Int64s,
    there: Bytes,
    unknown: Uint64s,
) -> tuple[np.int64, int]:
    """Read the messages of rows first to last, the first of which begins at `at`, and fill in what
    was found: where each string is, the integers, and which keys there are. Where the last has
    ended, NOWHERE where one is not plain; and whether they are not all ASCII.

    `text` is messages, each with a newline behind it, and shorter than MAX_TEXT: the newline at its
    end is where every loop stops at the latest. `names` and `sizes` are those of `names_of`, of
    the strings' keys, then the integers'. `usual` holds the key that last came after each, as the
    first one, and after an unknown one, with where its value's start was told from and in how many
    bytes; it is tried first, in a shape of (keys + 2, 3). `unknown` is of the shape (MAX_UNKNOWN,
    2). The others are of the shape (keys, messages). All are zeros as given.
    """
    high = 0
    place = _U(at)
    for row in range(first, last):
        if place == _U(len(text)):
            return NOWHERE, high
        place = _after_space(text, place)
        if text[place] != _OPEN:
            return NOWHERE, high
        end, seen = _members_at(
            text, place + _1, row, names, sizes, usual, unknown, starts, ends, numbers, there
        )
        if end == _BEYOND:
            return NOWHERE, high
        high |= seen
        place = _after_space(text, end)
        if text[place] != NEWLINE:
            return NOWHERE, high
        place += _1
    return np.int64(place), high


@compiled
def _members_at(
    text: Bytes,
    at: np.uint64,
    row: int,
    names: Bytes,
    sizes: Int64s,
    usual: Int64s,
    unknown: Uint64s,
    starts: Int32s,
    ends: Int32s,
    numbers: Int64s,
    there: Bytes,
) -> tuple[np.uint64, int]:
    """Fill in a message; where its brace has closed, and whether its strings are not all ASCII."""
    high = others = 0
    first, behind_unknown = len(sizes), len(sizes) + 1
    before = first
    while True:
        # Behind the brace, or behind a value. Where the very bytes stand up to the next value that
        # stood here the last time, they mean what they meant then.
        key, gap, size = usual[before, 0], _U(usual[before, 1]), _U(usual[before, 2])
        if size >= _8 and at + size <= _U(len(text)) and _is_same(text, at, gap, size):
            at += size
            if key >= len(starts):
                at = _after_space(text, at)  # there may be more of it than the last time
        else:
            gap = at
            at = _after_space(text, at)
            if before != first:
                if text[at] == _CLOSE:
                    return at + _1, high
                if text[at] != _COMMA:
                    return _BEYOND, high
                at = _after_space(text, at + _1)
            key, at, seen = _key_at(text, at, key, names, sizes, len(starts), unknown, others)
            high |= seen
            if at == _BEYOND:
                return _BEYOND, high
            if key < len(sizes):
                usual[before, 0], usual[before, 1], usual[before, 2] = key, gap, at - gap
        seen = 0
        if key == len(sizes):
            at, seen = _any_value_at(text, at)
            others += 1
            before = behind_unknown
        elif there[key, row]:
            at = _BEYOND
        else:
            there[key, row] = 1
            before = key
            if key < len(starts):
                starts[key, row] = at
                at, seen = _string_end(text, at)
                ends[key, row] = at - _1
            else:
                at, numbers[key - len(starts), row] = _integer_at(text, at)
        high |= seen
        if at == _BEYOND:
            return _BEYOND, high


@compiled
def _key_at(
    text: Bytes,
    at: np.uint64,
    usual: int,
    names: Bytes,
    sizes: Int64s,
    strings: int,
    unknown: Uint64s,
    others: int,
) -> tuple[int, np.uint64, int]:
    """The key that begins here, where its value does (that of a known string behind its quote), and
    whether it is not all ASCII. The usual one is tried first; an unknown one's number is one more
    than there are, and it must not be among the message's others yet."""
    if text[at] != _QUOTE:
        return 0, _BEYOND, 0
    at += _1
    key, other, seen = usual, 0, 0
    while key < len(sizes) and not _is_name_at(text, at, names[key], sizes[key]):
        key, other = other, other + 1
    if key == len(sizes):
        end, seen = _unknown_key_at(text, at - _1, unknown, others)
        if end == _BEYOND:
            return key, _BEYOND, seen
    else:
        end = at + _U(sizes[key])
    at = _after_space(text, end)
    if text[at] != _COLON:
        return key, _BEYOND, seen
    at = _after_space(text, at + _1)
    if key < strings:
        if text[at] != _QUOTE:
            return key, _BEYOND, seen
        at += _1
    return key, at, seen


@compiled
def _is_same(text: Bytes, at: np.uint64, other: np.uint64, size: np.uint64) -> bool:
    """Whether the same bytes stand in two places, at least eight of them."""
    last = size - _8
    same = _U(0)
    while same < last:
        if word_at(text, at + same) != word_at(text, other + same):
            return False
        same += _8
    return bool(word_at(text, at + last) == word_at(text, other + last))


@compiled
def _is_name_at(text: Bytes, at: np.uint64, name: Bytes, size: int) -> bool:
    """Whether these bytes stand here; behind them in `name` is room for a word."""
    whole, same = _U(size), _U(0)
    if at + whole + _8 > _U(len(text)):
        while same < whole and text[at + same] == name[same]:
            same += _1
        return bool(same == whole)
    while same + _8 <= whole:
        if word_at(text, at + same) != word_at(name, same):
            return False
        same += _8
    # Of the last word only what belongs to the name: its first bytes are the low ones.
    beyond = _8 * (same + _8 - whole)
    differ = word_at(text, at + same) ^ word_at(name, same)
    return bool(same == whole or differ << beyond == _U(0))


@compiled
def _after_space(text: Bytes, at: np.uint64) -> np.uint64:
    # What follows is most often beyond all three: told by one comparison.
    while text[at] <= _SPACE and (text[at] == _SPACE or text[at] == _TAB or text[at] == _RETURN):
        at += _1
    return at


@compiled
def _string_at(text: Bytes, at: np.uint64) -> tuple[np.uint64, int]:
    """Where the string that begins here has ended, and whether it is not all ASCII."""
    if text[at] != _QUOTE:
        return _BEYOND, 0
    return _string_end(text, at + _1)


@compiled
def _string_end(text: Bytes, at: np.uint64) -> tuple[np.uint64, int]:
    """As `_string_at`, behind the string's first quote.

    Eight bytes at a time: https://graphics.stanford.edu/~seander/bithacks.html#ZeroInWord. Of the
    bytes that are flagged the lowest is surely one that a string ends at, or may not hold.
    """
    place, size, high = at, _U(len(text)), _U(0)
    while place + _8 <= size:
        word = word_at(text, place)
        quotes, slashes = word ^ _QUOTES, word ^ _BACKSLASHES
        flags = quotes - _ONES & ~quotes | slashes - _ONES & ~slashes | word - _SPACES & ~word
        flags &= _HIGHS
        if flags:
            below = (flags & ~flags + _1) - _1
            high |= word & below & _HIGHS
            place += ((below & _ONES) * _ONES >> _U(56)) - _1
            break
        high |= word & _HIGHS
        place += _8
    while text[place] != _QUOTE:
        byte = text[place]
        if byte < _SPACE or byte == _BACKSLASH:
            return _BEYOND, 0
        high |= _U(byte) & _HIGHS
        place += _1
    return place + _1, int(high > _U(0))


@compiled
def _unknown_key_at(
    text: Bytes, at: np.uint64, unknown: Uint64s, count: int
) -> tuple[np.uint64, int]:
    """As `_string_at`, of a key that must not be among the message's `count` unknown ones yet."""
    end, seen = _string_at(text, at)
    if end == _BEYOND or count == len(unknown):
        return _BEYOND, seen
    size = end - at
    for index in range(count):
        start, same = unknown[index, 0], _U(0)
        if unknown[index, 1] == size:
            while same < size and text[start + same] == text[at + same]:
                same += _1
        if same == size:
            return _BEYOND, seen
    unknown[count, 0], unknown[count, 1] = at, size
    return end, seen


@compiled
def _any_value_at(text: Bytes, at: np.uint64) -> tuple[np.uint64, int]:
    """Where the string, number, true, false or null that begins here has ended, and whether it
    is a string that is not all ASCII."""
    if text[at] == _QUOTE:
        return _string_at(text, at)
    for literal in (b"true", b"false", b"null"):
        if text[at] == literal[0]:
            for letter in literal:
                if text[at] != letter:
                    return _BEYOND, 0
                at += _1
            return at, 0
    if text[at] == _MINUS:
        at += _1
    at, _ = _integer_at(text, at)
    if at != _BEYOND and text[at] == _POINT:
        start = at + _1
        at = start
        while _ZERO <= text[at] <= _NINE:
            at += _1
        if at == start:
            return _BEYOND, 0
    return at, 0


@compiled
def _integer_at(text: Bytes, at: np.uint64) -> tuple[np.uint64, int]:
    """Where the integer that begins here has ended, and its value."""
    start, value = at, 0
    while _ZERO <= text[at] <= _NINE:
        if at - start == _MAX_DIGITS:
            return _BEYOND, 0
        value = value * 10 + int(text[at] - _ZERO)
        at += _1
    if at == start or (text[start] == _ZERO and at - start > _1):
        return _BEYOND, 0
    return at, value
