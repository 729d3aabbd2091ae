"""Sending rejected events again."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
import typer
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from pipeline.cli import wiring
from pipeline.cli.common import DataOption, err, out
from pipeline.contract.partitioning import partition_of
from pipeline.contract.rejects import Reject
from pipeline.contract.vocabulary import EVENT_TOPICS, REJECTS
from pipeline.settings import Settings
from pipeline.streams.topics import JOURNAL_MAX_BYTES

REDRIVE_GROUP = "promoted-pins-redrive"


async def redrive(settings: Settings, *, dry_run: bool) -> int:
    """Send rejected `unknown` events again, each reject once; returns how many.

    Those whose reject had no room for the original are named and passed over.

    How far the rejects have been taken is the committed offset of a consumer group; events go to
    their campaign's partition with their own record timestamps, so they are judged as then.
    """
    options = settings.kafka_client_options()
    consumer = AIOKafkaConsumer(
        **options, group_id=REDRIVE_GROUP, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    producer = AIOKafkaProducer(
        **options,
        acks="all",
        enable_idempotence=True,
        compression_type="zstd",  # what came well compressed must fit again
        max_request_size=JOURNAL_MAX_BYTES,
    )
    await consumer.start()
    await producer.start()
    sent = 0
    try:
        partitions = consumer.partitions_for_topic(REJECTS)
        if not partitions:
            await consumer._client.force_metadata_update()
            partitions = set(range(settings.partitions))
        tps = [TopicPartition(REJECTS, partition) for partition in sorted(partitions)]
        consumer.assign(tps)
        ends = await consumer.end_offsets(tps)
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            fetched = await consumer.getmany(timeout_ms=500)
            sends = []
            for records in fetched.values():
                for record in records:
                    reject = msgspec.json.decode(record.value, type=Reject)
                    if reject.reason != "unknown" or reject.source not in EVENT_TOPICS:
                        continue
                    if reject.original is None:
                        err.print(
                            f"{reject.message_key}: its reject had no room for the event; send "
                            "the source's record again",
                            style="yellow",
                        )
                        continue
                    sent += 1
                    if not dry_run:
                        sends.append(await _send_again(producer, settings, reject))
            await asyncio.gather(*sends)
            if fetched and not dry_run:
                await consumer.commit()
    finally:
        await producer.stop()
        await consumer.stop()
    return sent


async def _send_again(producer: AIOKafkaProducer, settings: Settings, reject: Reject) -> Any:
    original = reject.original_bytes
    campaign_id = msgspec.json.decode(original or b"")["campaign_id"]
    return await producer.send(
        reject.source,
        original,
        key=reject.key_bytes,
        partition=partition_of(campaign_id, settings.partitions),
        timestamp_ms=reject.timestamp_ms,
    )


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("redrive")
    def redrive_command(
        data: DataOption = None,
        dry_run: Annotated[bool, typer.Option(help="Count only.")] = False,
    ) -> None:
        """Send rejected `unknown` events again, after their ads came into the catalog.

        Example: `pipeline redrive --dry-run`
        """
        count = asyncio.run(redrive(wiring.settings_for(data), dry_run=dry_run))
        out.print(f"{'would send' if dry_run else 'sent'} {count} events again")
