"""A broker's answers, received where they are used from.

aiokafka has asyncio gather what comes in a buffer that grows, copies an answer out of it as a
whole, and then once more what the answer holds of each partition: three copies of every event, most
of them into memory that the kernel must find first. Here the socket is read into one block for the
answer, the records of a partition are a part of that block, and a block that nobody refers to any
more is used again.
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import struct
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.fetch import FetchRequest

_SIZE: Final = struct.Struct(">i")
_LONGEST_TEXT_BYTES: Final = 0x7FFF
"""A string's length is a 16-bit integer: what is longer is records."""

_KEPT_BLOCKS: Final = 8
"""More than a worker has in use at once while it keeps up with what it fetches."""

GetConnection = Callable[..., Awaitable[AIOKafkaConnection | None]]


class Blocks:
    """Blocks of one size, each used again when nothing refers to it any more; some of them, for a
    block keeps the memory of all that was ever in it."""

    def __init__(self, size: int) -> None:
        self._kind = ctypes.c_ubyte * size
        self._size = size
        self._free: list[mmap.mmap] = []

    def get(self, size: int) -> memoryview:
        """So many bytes, with anything in them. More than a block has are made for this once."""
        if size > self._size:
            return memoryview(bytearray(size))
        block = self._free.pop() if self._free else mmap.mmap(-1, self._size, mmap.MAP_PRIVATE)
        # Every view holds the lease, and nothing else does.
        lease = self._kind.from_buffer(block)
        weakref.finalize(lease, self._take_back, block).atexit = False
        return memoryview(lease).cast("B")[:size]

    def _take_back(self, block: mmap.mmap) -> None:
        if len(self._free) < _KEPT_BLOCKS:
            self._free.append(block)


def straight(get: GetConnection, blocks: Blocks) -> GetConnection:
    """aiokafka's way to a connection, whose answers are then received into blocks."""
    known = weakref.WeakSet[AIOKafkaConnection]()

    async def get_straight(*args: Any, **kwargs: Any) -> AIOKafkaConnection | None:
        connection = await get(*args, **kwargs)
        if connection is None or not connection.connected() or connection in known:
            return connection
        if not connection._requests:  # a part of what is awaited may be in the other buffer
            known.add(connection)
            transport = connection._writer.transport
            transport.set_protocol(_Straight(connection, transport.get_protocol(), blocks))
        return connection

    return get_straight


class _Straight(asyncio.BufferedProtocol):
    """Receives a connection's answers; all else is for the protocol that it had before."""

    def __init__(
        self, connection: AIOKafkaConnection, before: asyncio.Protocol, blocks: Blocks
    ) -> None:
        # As aiokafka's own reader does: who drops a connection need not close it.
        self._connection = weakref.ref(connection)
        self._before = before
        self._blocks = blocks
        self._head = memoryview(bytearray(_SIZE.size))
        self._into, self._filled, self._is_head = self._head, 0, True

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._into[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._filled < len(self._into):
            return
        received, was_head = self._into, self._is_head
        self._filled, self._is_head = 0, not was_head
        if was_head:
            [size] = _SIZE.unpack(received)
            if size <= 0:
                raise ValueError(f"an answer of {size} bytes")  # asyncio closes the connection
            self._into = self._blocks.get(size)
        else:
            self._into = self._head
            connection = self._connection()
            if connection is not None and connection.connected():
                _answer(connection, received)

    def eof_received(self) -> bool | None:
        return self._before.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._before.connection_lost(exc)

    def pause_writing(self) -> None:
        self._before.pause_writing()

    def resume_writing(self) -> None:
        self._before.resume_writing()


def _answer(connection: AIOKafkaConnection, received: memoryview) -> None:
    """Hand an answer to who waits for it; as aiokafka does it, but for that of a fetch."""
    correlation_id, request, future = connection._requests[0]
    if request.API_KEY == FetchRequest.API_KEY and not future.done():
        answer = _Answer(received)
        if request.parse_response_header(answer).correlation_id == correlation_id:
            future.set_result(request.RESPONSE_TYPE.decode(answer))
            connection._last_action = time.monotonic()
            connection._requests.popleft()
            return
    connection._handle_frame(bytes(received))


class _Answer:
    """What aiokafka's decoders read from: records as they lie there, all else as bytes."""

    def __init__(self, received: memoryview) -> None:
        self._received = received.toreadonly()  # as bytes are: compiled code knows the difference
        self._at = 0

    def read(self, size: int) -> bytes | memoryview:
        part = self._received[self._at : self._at + size]
        self._at += size
        return part if size > _LONGEST_TEXT_BYTES else bytes(part)
