"""A load that never lets up, and that survives what the faults do to its own broker."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from aiokafka.errors import KafkaError

from tests.integration.product import (
    DAY_MS,
    Ad,
    Kafka,
    Message,
    at,
    entities_of,
    key_of,
)
from tests.integration.world import START_MS, World

EACH = 50
PAUSE_S = 0.25
CATALOG_MS = at("2026-03-06T00:00")


def busy_ad(number: int) -> tuple[Ad, list[dict[str, Any]]]:
    """An ad whose impressions fill CPM blocks of 1,000 and use up its daily budget."""
    budget = {"budget_micros": (5_000_000, 10**12)[number % 2]}
    return entities_of(f"busy-{number}", "awareness", ad_group=budget)


class Load:
    """A world's events and many impressions of a few ads, some 300 a second, in order of time.

    The record timestamps run some 7,000 times as fast as the clock, so that billing days turn and
    close every few seconds. What an unacknowledged send may have written is sent again: the topics
    say what there is, not this.
    """

    def __init__(self, kafka: Callable[[], Kafka], seed: int, partitions: int) -> None:
        self._kafka = kafka
        self._random = Random(seed)
        self._world = World(seed, partitions)
        self._busy = [busy_ad(number) for number in range(4)]
        self._messages = self._mixed()
        self._extra: list[Message] = []
        self._lock = threading.Lock()
        self._enough = threading.Event()
        self._running = threading.Event()
        self._idle = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load")
        self.now_ms = START_MS
        """The timestamp of the last record."""
        self.recent: list[Message] = []
        """The last few hundred messages."""

    def catalog(self) -> list[Message]:
        """All entities, changes that take effect later included."""
        entities = [*self._world.catalog, *self._world.changes]
        for _, of_ad in self._busy:
            entities += of_ad
        return [Message("ads.catalog", each, CATALOG_MS, key_of(each)) for each in entities]

    def __enter__(self) -> Load:
        self._running.set()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._running.set()
        self._thread.join()

    def pause(self) -> None:
        """Return when nothing more is being sent."""
        self._running.clear()
        if not self._idle.wait(120):
            raise TimeoutError("the load does not come to rest")
        if self._failure is not None:
            raise self._failure

    def go_on(self) -> None:
        self._idle.clear()
        self._running.set()

    def add(self, *messages: Message) -> None:
        """Send these too, soon."""
        with self._lock:
            self._extra += messages

    def _mixed(self) -> Iterator[Message]:
        choose = self._random
        for number, message in enumerate(self._world.messages()):
            self.now_ms = message.timestamp_ms
            yield message
            for one in range(choose.randrange(3)):
                ad, _ = choose.choice(self._busy)
                late_ms = choose.choice((0, 0, 0, 0, 1, DAY_MS))
                yield ad.impression(
                    f"busy-{number}-{one}",
                    message.timestamp_ms - late_ms,
                    record_ms=message.timestamp_ms,
                    price_micros=choose.choice((4_000_000, 10_000_001)),
                )

    def _run(self) -> None:
        try:
            while not self._enough.is_set():
                if not self._running.is_set():
                    self._idle.set()
                    self._running.wait()
                    continue
                self._publish(list(itertools.islice(self._messages, EACH)))
                time.sleep(PAUSE_S)
        except BaseException as error:
            self._failure = error
        finally:
            self._idle.set()

    def _publish(self, messages: list[Message]) -> None:
        with self._lock:
            messages += self._extra
            self._extra = []
        self.recent = [*self.recent, *messages][-400:]
        while not self._enough.is_set():
            try:
                self._kafka().publish(messages)
                return
            except (KafkaError, OSError):
                time.sleep(0.2)  # the broker is what is being killed
