"""A hand-written confluent-kafka loop, in batches, a transaction each 100 ms: exactly once.

Arguments: bootstrap, output topic, group, the file of prices, a directory.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, Producer

from bench.peers.job import EVENT_TOPICS, TRANSACTION_S, SimpleJob

RECORDS_A_CALL = 10_000


def run(bootstrap: str, output: str, group: str, prices: Path) -> None:
    job = SimpleJob(prices)
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": group})
    producer.init_transactions()
    consumer.subscribe(list(EVENT_TOPICS))
    while True:
        until_s = time.monotonic() + TRANSACTION_S
        while time.monotonic() < until_s:
            for message in consumer.consume(RECORDS_A_CALL, timeout=0.01):
                if message.error():
                    raise KafkaException(message.error())
                job.take_bytes(message.topic(), message.value())
        if not job.events:
            continue
        producer.begin_transaction()
        producer.produce(output, job.output())
        positions = [p for p in consumer.position(consumer.assignment()) if p.offset >= 0]
        producer.send_offsets_to_transaction(positions, consumer.consumer_group_metadata())
        producer.commit_transaction()


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
