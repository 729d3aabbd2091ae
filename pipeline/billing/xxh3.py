"""XXH3-128 of many stretches of one buffer, in a compiled loop.

The hashes of `pipeline.billing.ids` where the texts lie. Seed 0 and the default secret, written
from the specification: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md

Everything is uint64, constants too: numba makes a float of a uint64 and an int64, and looks for
negative indices wherever an index is signed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.billing.id_runs import Keys
from pipeline.billing.texts import Bytes, Positions, half_at, word_at
from pipeline.native import compiled

Room = tuple[npt.NDArray[np.uint64], Bytes]

_U = np.uint64
_P32_1, _P32_2, _P32_3 = _U(0x9E3779B1), _U(0x85EBCA77), _U(0xC2B2AE3D)
_P64_1, _P64_2, _P64_3 = _U(0x9E3779B185EBCA87), _U(0xC2B2AE3D27D4EB4F), _U(0x165667B19E3779F9)
_P64_4, _P64_5 = _U(0x85EBCA77C2B2AE63), _U(0x27D4EB2F165667C5)
_MX1, _MX2 = _U(0x165667919E3779F9), _U(0x9FB21C651E98DF25)
_LOW32 = _U(0xFFFFFFFF)
_SECRET = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
        "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
        "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
        "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
        "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    ),
    np.uint8,
)
_START = np.array([_P32_3, _P64_1, _P64_2, _P64_3, _P64_4, _P32_2, _P64_5, _P32_1], np.uint64)
_SCRAMBLE = _U(128)
_STRIPE, _BLOCK = _U(64), _U(1024)
_N0, _N1, _N2, _N3, _N4, _N5, _N6, _N7, _N8 = (_U(number) for number in range(9))
_N16, _N24, _N32, _N40, _N48, _N56 = (_U(number) for number in range(16, 64, 8))


def hash_stretches(buffer: Bytes, starts: Positions, sizes: Positions) -> Keys:
    """XXH3-128 of each stretch of `sizes` bytes at `starts`: (low, high) as `ids.hash_text` gives.

    A negative size is a null, whose hash is 0. Raises IndexError where one leaves the buffer.
    """
    return hash_joined(buffer, starts.reshape(1, -1), sizes.reshape(1, -1))


def hash_joined(buffer: Bytes, starts: Positions, sizes: Positions) -> Keys:
    """One identity of each column of stretches, joined by `ids.SEPARATOR`.

    `starts` and `sizes`, in bytes, are of the shape (parts, n). Where a part is null (its size is
    negative) the hash is 0. Raises IndexError where a stretch leaves the buffer, ValueError where
    the shapes differ.
    """
    if starts.shape != sizes.shape:
        raise ValueError("a stretch is a start and a size")
    there = sizes >= 0
    if ((starts < 0) | (starts > len(buffer) - sizes))[there].any():
        raise IndexError("a stretch leaves the buffer")
    keys = np.zeros((starts.shape[1], 2), np.uint64)
    places = np.where(there, starts, 0)
    parts = np.arange(len(starts))
    longest = int(np.where(there, sizes, 0).sum(axis=0).max(initial=0))
    room = room_for(longest, len(starts))
    fill_keys(buffer, places, places + sizes, parts, 0, starts.shape[1], keys, room)
    return keys


def room_for(size: int, parts: int) -> Room:
    """What `fill_keys` works in, where so many parts have so many bytes in all."""
    return np.empty(8, np.uint64), np.empty(size + parts, np.uint8)


def hash_rows(words: npt.NDArray[np.uint64]) -> Keys:
    """XXH3-128 of the bytes of each row of a 2-dimensional array."""
    width = 8 * words.shape[1]
    buffer = np.ascontiguousarray(words).reshape(-1).view(np.uint8)
    starts = np.arange(len(words), dtype=np.int64) * width
    return hash_stretches(buffer, starts, np.full(len(words), width, np.int64))


@compiled
def fill_keys(
    buffer: Bytes,
    starts: Positions,
    ends: Positions,
    parts: Positions,
    first: int,
    last: int,
    keys: Keys,
    room: Room,
) -> None:
    """As `hash_joined`, of the stretches in these rows of `starts` and `ends`, from the first
    column up to the last; one that ends before it starts is a null. All must lie in the buffer,
    and what is joined must have `room_for` it."""
    sums, joined = room
    for row in range(first, last):
        null = False
        for part in parts:
            null |= ends[part, row] < starts[part, row]
        if null:
            continue
        if len(parts) == 1:
            start = _U(starts[parts[0], row])
            low, high = _hash(buffer, start, _U(ends[parts[0], row]) - start, sums)
        else:
            at = _N0
            for part in parts:
                if part != parts[0]:
                    joined[at] = 0
                    at += _N1
                byte, end = _U(starts[part, row]), _U(ends[part, row])
                while byte < end:
                    joined[at] = buffer[byte]
                    at += _N1
                    byte += _N1
            low, high = _hash(joined, _N0, at, sums)
        keys[row, 0], keys[row, 1] = low, high


@compiled
def _hash(data: Bytes, at: np.uint64, size: np.uint64, sums: Keys) -> tuple[np.uint64, np.uint64]:
    if size > _U(240):
        return _large(data, at, size, sums)
    if size > _N16:
        return _medium(data, at, size)
    if size > _N8:
        return _upto_16(data, at, size)
    if size >= _N4:
        return _upto_8(data, at, size)
    if size > _N0:
        last, middle = data[at + size - _N1], data[at + (size >> _N1)]
        value = _U(last) | size << _N8 | _U(data[at]) << _N16 | _U(middle) << _N24
        swapped = _swap(value) >> _N32
        turned = (swapped << _U(13) | swapped >> _U(19)) & _LOW32
        low = half_at(_SECRET, _N0) ^ half_at(_SECRET, _N4) ^ value
        high = half_at(_SECRET, _N8) ^ half_at(_SECRET, _U(12)) ^ turned
        return _avalanche_64(low), _avalanche_64(high)
    return (
        _avalanche_64(word_at(_SECRET, _U(64)) ^ word_at(_SECRET, _U(72))),
        _avalanche_64(word_at(_SECRET, _U(80)) ^ word_at(_SECRET, _U(88))),
    )


@compiled
def _upto_8(data: Bytes, at: np.uint64, size: np.uint64) -> tuple[np.uint64, np.uint64]:
    value = half_at(data, at) | half_at(data, at + size - _N4) << _N32
    value ^= word_at(_SECRET, _N16) ^ word_at(_SECRET, _N24)
    factor = _P64_1 + (size << _N2)
    low = value * factor
    high = _high(value, factor) + (low << _N1)
    low ^= high >> _N3
    low = (low ^ low >> _U(35)) * _MX2
    return low ^ low >> _U(28), _avalanche(high)


@compiled
def _upto_16(data: Bytes, at: np.uint64, size: np.uint64) -> tuple[np.uint64, np.uint64]:
    last = word_at(data, at + size - _N8)
    one = word_at(_SECRET, _N32) ^ word_at(_SECRET, _N40) ^ word_at(data, at) ^ last
    two = word_at(_SECRET, _N48) ^ word_at(_SECRET, _N56) ^ last
    low = one * _P64_1 + (size - _N1 << _U(54))
    high = _high(one, _P64_1) + two + (two & _LOW32) * (_P32_2 - _N1)
    low ^= _swap(high)
    return _avalanche(low * _P64_2), _avalanche(_high(low, _P64_2) + high * _P64_2)


@compiled
def _medium(data: Bytes, at: np.uint64, size: np.uint64) -> tuple[np.uint64, np.uint64]:
    one, two = size * _P64_1, _N0
    end = at + size - _N16
    if size <= _U(128):
        left = (size - _N1 >> _N5) + _N1
        while left > _N0:
            left -= _N1
            step = left << _N4
            one, two = _mix(data, at + step, end - step, left << _N5, one, two)
    else:
        for chunk in range(4):
            step = _U(chunk) << _N5
            one, two = _mix(data, at + step, at + step + _N16, step, one, two)
        one, two = _avalanche(one), _avalanche(two)
        for chunk in range(4, size >> _N5):
            step = _U(chunk) << _N5
            one, two = _mix(data, at + step, at + step + _N16, step - _U(125), one, two)
        one, two = _mix(data, end, end - _N16, _U(103), one, two)
    high = one * _P64_1 + two * _P64_4 + size * _P64_2
    return _avalanche(one + two), _N0 - _avalanche(high)


@compiled
def _mix(
    data: Bytes, at: np.uint64, to: np.uint64, secret: np.uint64, one: np.uint64, two: np.uint64
) -> tuple[np.uint64, np.uint64]:
    a, b, c, d = (
        word_at(data, at),
        word_at(data, at + _N8),
        word_at(data, to),
        word_at(data, to + _N8),
    )
    one += _fold(a ^ word_at(_SECRET, secret), b ^ word_at(_SECRET, secret + _N8))
    two += _fold(c ^ word_at(_SECRET, secret + _N16), d ^ word_at(_SECRET, secret + _N24))
    return one ^ c + d, two ^ a + b


@compiled
def _large(data: Bytes, at: np.uint64, size: np.uint64, sums: Keys) -> tuple[np.uint64, np.uint64]:
    for lane in range(8):
        sums[lane] = _START[lane]
    left, start = size, at
    while left > _BLOCK:
        for stripe in range(16):
            _add(data, start + (_U(stripe) << _N6), _U(stripe) << _N3, sums)
        for lane in range(8):
            value = sums[lane] ^ sums[lane] >> _U(47)
            sums[lane] = (value ^ word_at(_SECRET, _SCRAMBLE + (_U(lane) << _N3))) * _P32_1
        start += _BLOCK
        left -= _BLOCK
    for stripe in range(left - _N1 >> _N6):
        _add(data, start + (_U(stripe) << _N6), _U(stripe) << _N3, sums)
    _add(data, at + size - _STRIPE, _U(121), sums)
    return _merged(size * _P64_1, _U(11), sums), _merged(~(size * _P64_2), _U(117), sums)


@compiled
def _add(data: Bytes, at: np.uint64, secret: np.uint64, sums: Keys) -> None:
    for lane in range(8):
        word = word_at(data, at + (_U(lane) << _N3))
        value = word ^ word_at(_SECRET, secret + (_U(lane) << _N3))
        sums[lane ^ 1] += word
        sums[lane] += (value & _LOW32) * (value >> _N32)


@compiled
def _merged(value: np.uint64, secret: np.uint64, sums: Keys) -> np.uint64:
    for pair in range(4):
        at = secret + (_U(pair) << _N4)
        one = sums[2 * pair] ^ word_at(_SECRET, at)
        value += _fold(one, sums[2 * pair + 1] ^ word_at(_SECRET, at + _N8))
    return _avalanche(value)


@compiled
def _swap(value: np.uint64) -> np.uint64:
    """The bytes in the other order."""
    swapped = _N0
    for _ in range(8):
        swapped = swapped << _N8 | value & _U(255)
        value >>= _N8
    return swapped


@compiled
def _high(one: np.uint64, two: np.uint64) -> np.uint64:
    """The upper half of the product, from those of 32-bit halves."""
    a, b, c, d = one >> _N32, one & _LOW32, two >> _N32, two & _LOW32
    middle = a * d + (b * d >> _N32)
    other = b * c + (middle & _LOW32)
    return a * c + (middle >> _N32) + (other >> _N32)


@compiled
def _fold(one: np.uint64, two: np.uint64) -> np.uint64:
    return one * two ^ _high(one, two)


@compiled
def _avalanche(value: np.uint64) -> np.uint64:
    value = (value ^ value >> _U(37)) * _MX1
    return value ^ value >> _N32


@compiled
def _avalanche_64(value: np.uint64) -> np.uint64:
    value = (value ^ value >> _U(33)) * _P64_2
    value = (value ^ value >> _U(29)) * _P64_3
    return value ^ value >> _N32
