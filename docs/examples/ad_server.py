"""What an ad server does with `pacing.signals`: docs/contract.md, Signals.

    python docs/examples/ad_server.py HOST:PORT    prints what may not be served plainly

`Serving` needs nothing but the messages; `follow` reads them with aiokafka.
"""

from __future__ import annotations

import asyncio
import json
import sys
from random import random

from aiokafka import AIOKafkaConsumer


class Serving:
    """The last word on every ad group and campaign: (version, serve_probability)."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[int, float]] = {}

    def take(self, value: bytes) -> None:
        """Take a message's value; resends and stragglers have no higher version than known."""
        signal = json.loads(value)
        version, _ = self.known.get(signal["entity"], (0, 1.0))
        if signal["version"] > version:
            self.known[signal["entity"]] = (signal["version"], signal["serve_probability"])

    def probability(self, ad_group_id: str, campaign_id: str) -> float:
        """The share of the impressions it wins that an ad is served in; 1 if nothing was said."""
        _, of_group = self.known.get(f"ad_group:{ad_group_id}", (0, 1.0))
        _, of_campaign = self.known.get(f"campaign:{campaign_id}", (0, 1.0))
        return of_group * of_campaign

    def serves(self, ad_group_id: str, campaign_id: str) -> bool:
        """Decide one impression."""
        return random() < self.probability(ad_group_id, campaign_id)


async def follow(bootstrap: str, serving: Serving, ready: asyncio.Event) -> None:
    """Read the topic from its beginning and for ever; `ready` is set at what was its end."""
    consumer = AIOKafkaConsumer(
        "pacing.signals", bootstrap_servers=bootstrap, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        ends = await consumer.end_offsets(consumer.assignment())
        while True:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    serving.take(record.value)
            if all([await consumer.position(tp) >= end for tp, end in ends.items()]):
                ready.set()
    finally:
        await consumer.stop()


async def show(bootstrap: str) -> None:
    """Print every entity that is not served plainly now."""
    serving, ready = Serving(), asyncio.Event()
    following = asyncio.create_task(follow(bootstrap, serving, ready))
    following.add_done_callback(lambda _: ready.set())
    await ready.wait()
    if following.done():
        await following  # raises what ended it
    following.cancel()
    for entity, (version, probability) in sorted(serving.known.items()):
        if probability < 1:
            print(f"{entity} serve_probability={probability} version={version}")


if __name__ == "__main__":
    asyncio.run(show(sys.argv[1]))
