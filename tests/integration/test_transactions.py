"""An ad server that publishes in transactions: offsets without events are no missing events."""

from __future__ import annotations

import asyncio
import json

from aiokafka import AIOKafkaProducer

from tests.integration.product import Ad, Product, at

NOON_MS = at("2026-03-02T12:00")


async def publish(bootstrap: str, ad: Ad) -> None:
    """Six transactions of two clicks each, every third of which is aborted: first, then fourth."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id="ads") as producer:
        for number in range(6):
            await producer.begin_transaction()
            for click in range(2):
                message = ad.click(f"{number}-{click}", NOON_MS)
                await producer.send_and_wait(
                    message.topic, message.encoded, message.key, timestamp_ms=NOON_MS
                )
            if number % 3:
                await producer.commit_transaction()
            else:
                await producer.abort_transaction()


def test_transactions_are_judged_reconciled_and_closed(own_product: Product) -> None:
    ad = own_product.ad("transactions", "traffic", at("2026-02-10"))
    asyncio.run(publish(own_product.kafka.bootstrap, ad))
    closed = own_product.run("close-day", "2026-03-02", "--timeout-s", "45")
    assert closed.returncode == 0, closed.stderr
    [day] = own_product.query(
        "SELECT charges, events FROM billing.day_closes WHERE billing_day = '2026-03-02'"
    )
    assert day == {"charges": 8, "events": 8}
    done = own_product.run("reconcile", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    [offsets] = [check for check in report["checks"] if check["name"] == "offsets"]
    # Two aborted clicks and their marker, twice, and three markers between committed ones.
    assert offsets["note"] == ("9 offsets hold no event: transactions' markers and aborted records")
