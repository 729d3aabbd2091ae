"""Texts in fewer bytes: what the journal writes of ids that are UUIDs, and of texts that recur.

Made while a message is in the cache: it takes less time than what it saves of copying and
compressing. Where the texts of a turn do not allow it they are written as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.billing.journal_events import ID_SIZES, IdForm
from pipeline.billing.texts import Bytes, Int64s, Positions, half_at, word_at
from pipeline.native import compiled

Uint64s = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.uint16]

MOST_TEXTS: Final = 1024
"""Countries and devices that are numbered in a turn: there are some hundreds ..."""
LONGEST_TEXT: Final = 64
"""... of so many bytes at most: the headers hold them, which are not compressed."""
_SLOTS: Final = 2 * MOST_TEXTS
_TOO_MANY: Final = MOST_TEXTS + 1
_U = np.uint64
_DIGITS, _DIGITS_AND_DASHES = ID_SIZES["hex"], ID_SIZES["uuid"]
_ANY, _TEXT = 0, -1
"""What the ids seen so far are, beside one of these sizes."""
_FORMS: Final = {size: form for form, size in ID_SIZES.items()}
_DASH = ord("-")
_SPREAD = _U(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio. Source: Knuth, The Art of Computer Programming 3, 6.4."""
_LOW_NIBBLES, _ONES = _U(0x0F0F0F0F0F0F0F0F), _U(0x0101010101010101)
_EVEN_BYTES, _EVEN_PAIRS, _HALF = _U(0x00FF00FF00FF00FF), _U(0x0000FFFF0000FFFF), _U(0xFFFFFFFF)


@dataclass(frozen=True, slots=True, eq=False)
class Brief:
    """Of the events of one turn."""

    numbers: Numbers
    """Shape (columns, rows): the texts as positions in `texts`; a null as an empty one."""
    texts: tuple[str, ...]
    ids: Uint64s
    """Shape (rows, 2): 16 bytes an id where `id_form` says what text they stand for."""
    id_form: IdForm

    def by_part(self, edges: Int64s) -> tuple[Numbers, list[list[str]]]:
        """The numbers of the rows from each edge up to the next as positions in the texts of these
        rows alone, and those texts."""
        numbers, until = np.empty_like(self.numbers), np.zeros(len(edges) - 1, np.int64)
        place = np.zeros(len(self.texts), np.int64)
        found = np.empty(min(self.numbers.size, len(until) * len(self.texts)), np.int64)
        _renumber(self.numbers, edges, place, numbers, found, until)
        named = [self.texts[number] for number in found[: until[-1]].tolist()]
        return numbers, [named[a:b] for a, b in pairwise([0, *until.tolist()])]

    def of_rows(self, rows: Int64s) -> Brief:
        """These rows, in this order."""
        return Brief(self.numbers.take(rows, axis=1), self.texts, self.ids[rows], self.id_form)


class BriefMaker:
    """What compiled code fills in of a turn's messages, block by block."""

    def __init__(self, columns: int, rows: int) -> None:
        self.numbers = np.empty((columns, rows), np.uint16)
        self.ids = np.empty((rows, 2), np.uint64)
        self.table = (
            np.zeros(_SLOTS, np.int64),
            np.zeros(MOST_TEXTS, np.uint64),
            np.zeros((MOST_TEXTS, 2), np.int64),
        )
        """By slot a text's number and 1, where there is one; and of each text its first bytes, its
        start and its size."""
        self.seen = np.zeros(2, np.int64)
        """How many texts are numbered, and what the ids are."""

    def made(self, buffer: Bytes) -> Brief | None:
        """What was made of the texts in this buffer; None where they were too many."""
        count, form = self.seen.tolist()
        if count == _TOO_MANY:
            return None
        places = self.table[2][:count].tolist()
        texts = tuple(buffer[start : start + size].tobytes().decode() for start, size in places)
        return Brief(self.numbers, texts, self.ids, _FORMS.get(form, "text"))


@compiled
def _renumber(
    numbers: Numbers, edges: Int64s, place: Int64s, own: Numbers, found: Int64s, until: Int64s
) -> None:
    """As `Brief.by_part`: which texts are `found`, and how many `until` the end of each part. A
    place, 0 as given, is a text's position among all found, and 1."""
    total = 0
    for part in range(len(until)):
        before = total
        for row in range(edges[part], edges[part + 1]):
            for column in range(len(numbers)):
                number = numbers[column, row]
                if place[number] <= before:
                    found[total] = number
                    total += 1
                    place[number] = total
                own[column, row] = place[number] - 1 - before
        until[part] = total


@compiled
def number_texts(
    buffer: Bytes,
    starts: Positions,
    ends: Positions,
    columns: Int64s,
    first: int,
    last: int,
    table: tuple[Int64s, Uint64s, Int64s],
    numbers: Numbers,
    seen: Int64s,
) -> None:
    """Number the texts of these columns in these rows, from the first up to the last, until they
    are too many or one is too long."""
    slots, words, places = table
    count, mask = seen[0], len(slots) - 1
    for row in range(first, last if count <= len(places) else first):
        for column in range(len(columns)):
            start = starts[columns[column], row]
            size = ends[columns[column], row] - start
            if size > LONGEST_TEXT:
                seen[0] = _TOO_MANY
                return
            word = _word_of(buffer, start, size)
            at = _hash(buffer, start, size, word) & mask
            number = slots[at] - 1
            while number >= 0 and not (
                words[number] == word
                and places[number, 1] == size
                and (size <= 8 or _is_text(buffer, start, size, places[number, 0]))
            ):
                at = (at + 1) & mask
                number = slots[at] - 1
            if number < 0:
                if count == len(places):
                    seen[0] = _TOO_MANY
                    return
                number = count
                words[number], places[number, 0], places[number, 1] = word, start, size
                count += 1
                slots[at] = count
            numbers[column, row] = number
    seen[0] = count


@compiled
def _hash(buffer: Bytes, start: int, size: int, word: np.uint64) -> np.int64:
    """Of all bytes; `word` is the first of them."""
    mixed = (word ^ _U(size)) * _SPREAD
    for at in range(8, size, 8):
        mixed = (mixed ^ mixed >> _U(32) ^ _word_of(buffer, start + at, size - at)) * _SPREAD
    return np.int64(mixed >> _U(40))


@compiled
def _word_of(buffer: Bytes, start: int, size: int) -> np.uint64:
    """The first 8 bytes, or all where there are fewer."""
    at, whole = _U(start), _U(min(size, 8))
    if at + _U(8) <= _U(len(buffer)):
        unused = _U(64) - _U(8) * whole
        return word_at(buffer, at) << unused >> unused if whole else _U(0)
    word, byte = _U(0), _U(0)
    while byte < whole:
        word |= _U(buffer[at + byte]) << _U(8) * byte
        byte += _U(1)
    return word


@compiled
def _is_text(buffer: Bytes, start: int, size: int, other: int) -> bool:
    """Whether the same text stands in two places."""
    same = 0
    while same < size and buffer[start + same] == buffer[other + same]:
        same += 1
    return bool(same == size)


@compiled
def pack_ids(
    buffer: Bytes,
    starts: Positions,
    ends: Positions,
    first: int,
    last: int,
    ids: Uint64s,
    seen: Int64s,
) -> None:
    """Pack the ids in these rows, from the first up to the last, until one is none that all others
    are of the form of: 32 lower-case hexadecimal digits, or a UUID as it is mostly written."""
    for row in range(first, last if seen[1] != _TEXT else first):
        at, size = _U(starts[row]), ends[row] - starts[row]
        if seen[1] == _ANY and size in (_DIGITS, _DIGITS_AND_DASHES):
            seen[1] = size
        if size != seen[1] or not _pack_id(buffer, at, size, ids, row):
            seen[1] = _TEXT
            return


@compiled
def _pack_id(buffer: Bytes, at: np.uint64, size: int, ids: Uint64s, row: int) -> bool:
    """Pack an id of one of the two sizes; whether it is of the form."""
    first, last = word_at(buffer, at), word_at(buffer, at + _U(size - 8))
    if size == _DIGITS:
        second, third = word_at(buffer, at + _U(8)), word_at(buffer, at + _U(16))
    else:
        for dash in (8, 13, 18, 23):
            if buffer[at + _U(dash)] != _DASH:
                return False
        second = half_at(buffer, at + _U(9)) | half_at(buffer, at + _U(14)) << _U(32)
        third = half_at(buffer, at + _U(19)) | half_at(buffer, at + _U(24)) << _U(32)
    fits = True
    for word in (first, second, third, last):
        values = _values_of(word)
        fits &= values == values & _LOW_NIBBLES and _digits_of(values) == word
    ids[row, 0] = _joined(_values_of(first)) | _joined(_values_of(second)) << _U(32)
    ids[row, 1] = _joined(_values_of(third)) | _joined(_values_of(last)) << _U(32)
    return fits


@compiled
def _values_of(digits: np.uint64) -> np.uint64:
    """The values of 8 hexadecimal digits, a byte each: a letter's low bits begin at 1. Of what is
    no digit, some value."""
    return (digits & _LOW_NIBBLES) + (digits >> _U(6) & _ONES) * _U(9)


@compiled
def _digits_of(values: np.uint64) -> np.uint64:
    """The lower-case digits of these values, each under 16."""
    letters = (values + _ONES * _U(0x76)) >> _U(7) & _ONES
    return values + _ONES * _U(0x30) + letters * _U(0x27)


@compiled
def _joined(values: np.uint64) -> np.uint64:
    """4 bytes of 8 values of 4 bits."""
    pairs = (values << _U(4) | values >> _U(8)) & _EVEN_BYTES
    fours = (pairs | pairs >> _U(8)) & _EVEN_PAIRS
    return (fours | fours >> _U(16)) & _HALF
