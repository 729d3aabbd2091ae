"""What time it is, for decisions: the wall's, or the stream's."""

from __future__ import annotations

import time
from typing import Literal, Protocol


class Clock(Protocol):
    """Gives `now` to decisions; nothing inside them reads a clock."""

    follows_stream: bool

    def observe(self, timestamp_ms: int) -> None:
        """A record with this Kafka timestamp was read."""

    def now_ms(self) -> int: ...


class WallClock:
    """Now is the machine's time; where that is set back, now stands still until it has come again.

    What is decided later must not be decided earlier: a limit that came into force stays so. It
    lasts as long as the process: a time ahead of the true one is not handed on.
    """

    follows_stream = False

    def __init__(self) -> None:
        self._now_ms = 0

    def observe(self, timestamp_ms: int) -> None:
        pass

    def now_ms(self) -> int:
        self._now_ms = max(self._now_ms, time.time_ns() // 1_000_000)
        return self._now_ms


class StreamClock:
    """Now is the largest Kafka record timestamp read on any topic; 0 before the first."""

    follows_stream = True

    def __init__(self) -> None:
        self._now_ms = 0

    def observe(self, timestamp_ms: int) -> None:
        self._now_ms = max(self._now_ms, timestamp_ms)

    def now_ms(self) -> int:
        return self._now_ms


def make_clock(kind: Literal["wall", "stream"]) -> Clock:
    """The clock of a setting."""
    return StreamClock() if kind == "stream" else WallClock()
