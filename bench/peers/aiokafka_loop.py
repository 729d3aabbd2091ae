"""A hand-written aiokafka loop with a transaction each 100 ms: exactly once.

Arguments: bootstrap, output topic, group, the file of prices, a directory.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from bench.peers.job import EVENT_TOPICS, TRANSACTION_S, SimpleJob

RECORDS_A_FETCH = 10_000
FETCH_BYTES = 4 << 20


async def run(bootstrap: str, output: str, group: str, prices: Path) -> None:
    job = SimpleJob(prices)
    consumer = AIOKafkaConsumer(
        *EVENT_TOPICS,
        bootstrap_servers=bootstrap,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=FETCH_BYTES,
    )
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=group)
    await consumer.start()
    await producer.start()
    while True:
        until_s = time.monotonic() + TRANSACTION_S
        offsets: dict[TopicPartition, int] = {}
        while time.monotonic() < until_s:
            fetched = await consumer.getmany(timeout_ms=10, max_records=RECORDS_A_FETCH)
            for partition, records in fetched.items():
                for record in records:
                    job.take_bytes(record.topic, record.value)
                offsets[partition] = records[-1].offset + 1
        if not offsets:
            continue
        async with producer.transaction():
            await producer.send(output, job.output())
            await producer.send_offsets_to_transaction(offsets, group)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])))
