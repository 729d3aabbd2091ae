"""A broker's answers in blocks that are used again, and never while somebody looks into them."""

from __future__ import annotations

import asyncio
import struct
from typing import Any, cast

import numpy as np
import pytest
from aiokafka.conn import AIOKafkaConnection
from hypothesis import given
from hypothesis import strategies as st

from pipeline.streams.answers import _KEPT_BLOCKS, Blocks, _Straight, straight

SIZE = 1 << 16


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def test_a_block_is_used_again_once_nothing_refers_to_it() -> None:
    blocks = Blocks(SIZE)
    first = blocks.get(SIZE)
    place = address(first)
    part = np.frombuffer(first[100:200].toreadonly(), np.uint8)[10:]
    del first
    assert address(blocks.get(SIZE)) != place, "a part of it is still looked at"
    del part
    assert address(blocks.get(10)) == place


def test_what_is_larger_than_a_block_is_made_for_itself() -> None:
    blocks = Blocks(SIZE)
    assert len(blocks.get(SIZE + 1)) == SIZE + 1
    assert len(blocks.get(0)) == 0
    assert len(blocks.get(SIZE)) == SIZE


def test_a_burst_does_not_keep_its_memory_for_ever() -> None:
    blocks = Blocks(SIZE)
    burst = [blocks.get(1) for _ in range(3 * _KEPT_BLOCKS)]
    assert len(burst) == 3 * _KEPT_BLOCKS
    del burst
    assert len(blocks._free) == _KEPT_BLOCKS


class Connection:
    """Takes the answers that are no fetches', as aiokafka's does."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.is_closed = False
        self._writer = None
        self._requests: list[Any] = [(1, Request(), None)] * 1_000

    def connected(self) -> bool:
        return not self.is_closed

    def _handle_frame(self, answer: bytes) -> None:
        self.answers.append(answer)


class Request:
    API_KEY = 3


@given(
    st.lists(st.binary(min_size=1, max_size=300), max_size=8),
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
)
async def test_answers_are_put_together_however_they_arrive(
    answers: list[bytes], pieces: list[int]
) -> None:
    connection = Connection()
    protocol = _Straight(cast(AIOKafkaConnection, connection), asyncio.Protocol(), Blocks(100))
    sent = b"".join(struct.pack(">i", len(answer)) + answer for answer in answers)
    turn = 0
    while sent:
        buffer = protocol.get_buffer(-1)
        size = min(len(buffer), pieces[turn % len(pieces)], len(sent))
        buffer[:size] = sent[:size]
        protocol.buffer_updated(size)
        sent, turn = sent[size:], turn + 1
    assert connection.answers == answers


async def test_a_connection_that_is_closed_already_is_given_on_as_it_is() -> None:
    """Another task may be given the connection that the first has opened, and that has ended."""
    closed = Connection()
    closed.is_closed = True

    async def get() -> AIOKafkaConnection:
        return cast(AIOKafkaConnection, closed)

    assert await straight(get, Blocks(SIZE))() is cast(AIOKafkaConnection, closed)


@pytest.mark.parametrize("size", [0, -1])
def test_an_answer_of_no_size_ends_the_connection(size: int) -> None:
    connection = cast(AIOKafkaConnection, Connection())
    protocol = _Straight(connection, asyncio.Protocol(), Blocks(SIZE))
    protocol.get_buffer(-1)[:] = struct.pack(">i", size)
    with pytest.raises(ValueError, match=f"an answer of {size} bytes"):
        protocol.buffer_updated(4)
