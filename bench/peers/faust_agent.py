"""A stock Faust agent, as its documentation has it: at least once.

Arguments: bootstrap, output topic, group, the file of prices, a directory.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import faust

from bench.peers.job import EVENT_TOPICS, TRANSACTION_S, SimpleJob

EVENTS_AN_OUTPUT = 1_000


def main() -> None:
    bootstrap, output, group, prices, directory = sys.argv[1:]
    app = faust.App(
        group,
        broker=f"kafka://{bootstrap}",
        store="memory://",
        datadir=directory,
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        consumer_auto_offset_reset="earliest",
    )
    job = SimpleJob(Path(prices))
    sums = app.topic(output, value_type=bytes, value_serializer="raw")
    events = app.topic(*EVENT_TOPICS, value_serializer="json")

    async def send() -> None:
        if job.events:
            await sums.send(value=job.output())

    @app.agent(events)
    async def judge(stream: Any) -> None:
        async for event in stream.events():
            job.take(event.message.topic, event.value)
            if job.events >= EVENTS_AN_OUTPUT:
                await send()

    @app.timer(TRANSACTION_S)  # type: ignore[untyped-decorator]
    async def send_the_rest() -> None:
        await send()

    faust.Worker(app, loglevel="warn").execute_from_commandline()


if __name__ == "__main__":
    main()
