"""Signals go out in the order of the journal, however their records are acknowledged."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from msgspec.structs import replace

from pipeline.billing.books import Shard
from pipeline.billing.id_runs import MemoryShelf
from pipeline.contract.signals import Signal, decode_signal
from pipeline.contract.vocabulary import SIGNALS
from pipeline.streams.recovery import Owned
from pipeline.streams.writer import Entry, JournalWriter
from tests.headers import a_header
from tests.integration.product import Kafka

ENTITY = "ad_group:in-order"
PAUSE = Signal(
    entity=ENTITY,
    action="pause",
    reason="limit_reached",
    serve_probability=0.0,
    limit="ad_group_daily",
    limit_nanos=1,
    spend_nanos=1,
    inflight_nanos=0,
    billing_day="2026-03-02",
    decided_at_ms=0,
    version=1,
)


def entry_of(signal: Signal) -> Entry:
    return Entry(0, a_header(signals=[signal]), b"", [], [], [])


@pytest.fixture
async def signals_topic(bootstrap: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(SIGNALS, 1, 1)])  # no error where it is there
    finally:
        await admin.close()


@pytest.mark.usefixtures("signals_topic")
async def test_a_later_record_waits_for_the_signals_of_the_one_before(bootstrap: str) -> None:
    """Or a reader that begins after compaction would find the older of two signals."""
    owned = Owned(Shard.new(0, 7, 0, MemoryShelf()))
    writer = JournalWriter({"bootstrap_servers": bootstrap}, partitions=1)
    loop = asyncio.get_running_loop()
    older, newer = loop.create_future(), loop.create_future()
    resume = replace(PAUSE, action="resume", serve_probability=1.0, version=2)
    await writer.start()
    try:
        first = asyncio.ensure_future(writer.send_outbox(owned, entry_of(PAUSE), older, None))
        second = asyncio.ensure_future(writer.send_outbox(owned, entry_of(resume), newer, first))
        newer.set_result(8)
        await asyncio.sleep(0.2)
        assert owned.state.outbox_through == -1
        older.set_result(7)
        await asyncio.gather(first, second)
    finally:
        await writer.stop()
    assert owned.state.outbox_through == 8
    records = await asyncio.to_thread(Kafka(bootstrap).read, SIGNALS)
    sent = [decode_signal(record.value) for record in records if record.key == ENTITY.encode()]
    assert [signal.version for signal in sent] == [1, 2]


@pytest.mark.usefixtures("signals_topic")
async def test_nothing_is_sent_of_a_record_that_is_not_in_the_journal(bootstrap: str) -> None:
    owned = Owned(Shard.new(0, 7, 0, MemoryShelf()))
    writer = JournalWriter({"bootstrap_servers": bootstrap}, partitions=1)
    failed = asyncio.get_running_loop().create_future()
    failed.set_exception(OSError("not appended"))
    lost = replace(PAUSE, entity="ad_group:lost")
    await writer.start()
    try:
        with pytest.raises(OSError, match="not appended"):
            await writer.send_outbox(owned, entry_of(lost), failed, None)
    finally:
        await writer.stop()
    records = await asyncio.to_thread(Kafka(bootstrap).read, SIGNALS)
    assert b"ad_group:lost" not in {record.key for record in records}
    assert owned.state.outbox_through == -1
