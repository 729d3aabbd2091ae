"""Quix Streams, with its exactly-once guarantee, a commit each 100 ms.

Arguments: bootstrap, output topic, group, the file of prices, a directory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quixstreams import Application

from bench.peers.job import EVENT_TOPICS, TRANSACTION_S, SimpleJob

EVENTS_AN_OUTPUT = 1_000


def run(bootstrap: str, output: str, group: str, prices: Path, directory: Path) -> None:
    job = SimpleJob(prices)
    app = Application(
        broker_address=bootstrap,
        consumer_group=group,
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        commit_interval=TRANSACTION_S,
        auto_create_topics=False,
        state_dir=str(directory),
        loglevel="WARNING",
    )
    sums = app.topic(output, key_serializer="bytes", value_serializer="bytes")
    for name in EVENT_TOPICS:
        events = app.dataframe(app.topic(name, value_deserializer="json"))
        events.apply(_taking(job, name), expand=True).to_topic(sums, key=lambda _: b"sums")
    app.run()


def _taking(job: SimpleJob, topic: str) -> Callable[[dict[str, Any]], list[bytes]]:
    """Takes an event of the topic in; the outputs that are due, one or none."""

    def take(event: dict[str, Any]) -> list[bytes]:
        job.take(topic, event)
        return [job.output()] if job.events >= EVENTS_AN_OUTPUT else []

    return take


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5]))
