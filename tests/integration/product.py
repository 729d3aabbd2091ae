"""The product as outside users have it: processes, plain Kafka clients, HTTP and the commands.

Nothing here imports the product's own code but its port chooser: what a test says it saw, any
customer of the public contract could have seen. Calls block; times are ms since the epoch, UTC.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError, URLError
from zoneinfo import ZoneInfo

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import ConsumerRecord

IMPRESSIONS, CLICKS, ENGAGEMENTS = "ads.impressions", "ads.clicks", "ads.engagements"
EVENT_TOPICS = (IMPRESSIONS, CLICKS, ENGAGEMENTS)
CATALOG, SIGNALS, REJECTS = "ads.catalog", "pacing.signals", "billing.rejects"

SECOND_MS, MINUTE_MS, HOUR_MS, DAY_MS = 1_000, 60_000, 3_600_000, 86_400_000
WITHIN_S = 60.0
"""How long anything may take on a busy machine before a test gives up on it."""


def at(text: str, zone: str = "UTC") -> int:
    """The time that `2026-03-02T10:00` is in a time zone, in ms."""
    return round(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


def until(condition: Callable[[], object], what: str, within_s: float = WITHIN_S) -> None:
    """Wait for something to come true; `what` says what did not, in words."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {within_s:.0f} s: {what}"
        time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Message:
    """One record to publish. `value` is an object to be sent as JSON, or the very bytes.

    Without a partition Kafka's default partitioner chooses it by the key.
    """

    topic: str
    value: Mapping[str, Any] | bytes | None
    timestamp_ms: int
    key: bytes | None = None
    partition: int | None = None
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def encoded(self) -> bytes | None:
        if self.value is None or isinstance(self.value, bytes):
            return self.value
        return json.dumps(self.value).encode()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record was published."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Ad:
    """One promoted pin with its parents: what an event must name."""

    account_id: str
    campaign_id: str
    ad_group_id: str
    promoted_pin_id: str

    def event(self, event_id: str, time_ms: int, **fields: Any) -> dict[str, Any]:
        """An event of this ad; each has a Pinner and an insertion of its own unless told so."""
        return {
            "event_id": event_id,
            "event_time_ms": time_ms,
            "campaign_id": self.campaign_id,
            "ad_group_id": self.ad_group_id,
            "promoted_pin_id": self.promoted_pin_id,
            "user_id": f"user-{event_id}",
            "impression_id": f"impression-{event_id}",
            "price_micros": 1_000_000,
            "placement": "browse",
        } | fields

    def _message(self, topic: str, event_id: str, time_ms: int, fields: Any) -> Message:
        record_ms = fields.pop("record_ms", time_ms)
        partition = fields.pop("partition", None)
        value = self.event(event_id, time_ms, **fields)
        return Message(topic, value, record_ms, self.campaign_id.encode(), partition)

    def impression(self, event_id: str, time_ms: int, **fields: Any) -> Message:
        """On ads.impressions; `record_ms` (default: the event's time) and `partition` are Kafka's,
        all other keywords are fields of the event."""
        return self._message(IMPRESSIONS, event_id, time_ms, fields)

    def click(self, event_id: str, time_ms: int, **fields: Any) -> Message:
        return self._message(CLICKS, event_id, time_ms, fields)

    def engagement(self, kind: str, event_id: str, time_ms: int, **fields: Any) -> Message:
        return self._message(ENGAGEMENTS, event_id, time_ms, {"kind": kind} | fields)


def entities_of(
    name: str,
    objective: str,
    *,
    account: Mapping[str, Any] | None = None,
    campaign: Mapping[str, Any] | None = None,
    ad_group: Mapping[str, Any] | None = None,
    pin: Mapping[str, Any] | None = None,
) -> tuple[Ad, list[dict[str, Any]]]:
    """An ad under an account of its own that serves from 2000 on with room for any spend, and its
    entities, parents first; the keywords say what is different about them."""
    ad = Ad(f"{name}-account", f"{name}-campaign", f"{name}-group", f"{name}-pin")
    described: dict[str, Any] = {"account_id": ad.account_id, "country": "US", "currency": "USD"}
    described |= account or {}
    ad = Ad(described["account_id"], ad.campaign_id, ad.ad_group_id, ad.promoted_pin_id)
    return ad, [
        described,
        {"campaign_id": ad.campaign_id, "account_id": ad.account_id, "objective": objective}
        | (dict(campaign or {})),
        {
            "ad_group_id": ad.ad_group_id,
            "campaign_id": ad.campaign_id,
            "budget_type": "daily",
            "budget_micros": 10**12,
            "bid_micros": 10_000_000,
            "start_ms": at("2000-01-01"),
        }
        | (dict(ad_group or {})),
        {
            "promoted_pin_id": ad.promoted_pin_id,
            "ad_group_id": ad.ad_group_id,
            "review": "approved",
        }
        | (dict(pin or {})),
    ]


def key_of(entity: Mapping[str, Any]) -> bytes:
    """The key of an entity's record: told by its most specific id field."""
    for kind in ("promoted_pin", "ad_group", "campaign", "account"):
        if f"{kind}_id" in entity:
            return f"{kind}:{entity[f'{kind}_id']}".encode()
    return f"fx:{entity['fx_day']}".encode()


class Kafka:
    """Plain clients of a broker."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    def publish(self, messages: Iterable[Message]) -> list[Place]:
        """Publish in order, all acknowledged on return; where each one is."""
        return asyncio.run(self._publish(list(messages)))

    async def _publish(self, messages: Sequence[Message]) -> list[Place]:
        producer = AIOKafkaProducer(
            bootstrap_servers=self.bootstrap,
            acks="all",
            enable_idempotence=True,
            max_request_size=8 << 20,
        )
        try:
            await producer.start()
            sends = [
                await producer.send(
                    message.topic,
                    message.encoded,
                    key=message.key,
                    partition=message.partition,
                    timestamp_ms=message.timestamp_ms,
                    headers=list(message.headers),
                )
                for message in messages
            ]
            done = await asyncio.gather(*sends)
        finally:
            await producer.stop()
        return [Place(record.topic, record.partition, record.offset) for record in done]

    def ends(self, *topics: str) -> dict[TopicPartition, int]:
        """The end offset of every partition of these topics (which begin at 0)."""

        async def ask(consumer: AIOKafkaConsumer, tps: list[TopicPartition]) -> Any:
            return await consumer.end_offsets(tps)

        return dict(self._consume(topics, ask))

    def read(self, topic: str, starts: Mapping[int, int] | None = None) -> list[ConsumerRecord]:
        """All records of a topic now, each partition's in order; `starts`: partition -> the offset
        to begin with, else 0."""

        async def collect(consumer: AIOKafkaConsumer, tps: list[TopicPartition]) -> Any:
            ends = await consumer.end_offsets(tps)
            for tp in tps:
                consumer.seek(tp, (starts or {}).get(tp.partition, 0))
            found: list[ConsumerRecord] = []
            while any([await consumer.position(tp) < ends[tp] for tp in tps]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
            return found

        return list(self._consume((topic,), collect))

    def _consume(
        self,
        topics: Sequence[str],
        use: Callable[[AIOKafkaConsumer, list[TopicPartition]], Awaitable[Any]],
    ) -> Any:
        async def run() -> Any:
            consumer = AIOKafkaConsumer(
                *topics,
                bootstrap_servers=self.bootstrap,
                auto_offset_reset="earliest",
                fetch_max_wait_ms=20,  # an empty partition is not to hold up the others
            )
            await consumer.start()
            try:
                return await use(consumer, sorted(consumer.assignment()))
            finally:
                await consumer.stop()

        return asyncio.run(run())


class QueryRefusedError(Exception):
    """ClickHouse's HTTP interface said no; `status` is HTTP's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def http_query(url: str, sql: str, **parameters: Any) -> bytes:
    """A query's raw answer, sent as ClickHouse's HTTP interface wants it."""
    bound = urllib.parse.urlencode({f"param_{name}": value for name, value in parameters.items()})
    request = urllib.request.Request(f"{url}/?{bound}", data=sql.encode())
    try:
        with urllib.request.urlopen(request, timeout=WITHIN_S) as answer:
            return bytes(answer.read())
    except HTTPError as error:
        raise QueryRefusedError(error.code, error.read().decode()) from error


def query(url: str, sql: str, **parameters: Any) -> list[dict[str, Any]]:
    """A query's rows; 64-bit integers come as ints, dates as ISO strings."""
    answer = http_query(url, f"{sql} FORMAT JSONCompact", **parameters)
    document = json.loads(answer)
    names = [column["name"] for column in document["meta"]]
    whole = [column["type"].startswith(("Int", "UInt")) for column in document["meta"]]
    return [
        {
            name: int(value) if is_int else value
            for name, value, is_int in zip(names, row, whole, strict=True)
        }
        for row in document["data"]
    ]


def pipeline(
    *arguments: str, environment: Mapping[str, str] | None = None, within_s: float = WITHIN_S
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        env={**os.environ, "COLUMNS": "200", **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=within_s,
    )


class Running:
    """A running product, however it was started: what goes in and what comes out."""

    def __init__(self) -> None:
        self.kafka = Kafka("")
        self.clickhouse = ""
        self._sent = 0

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command beside the running product."""
        raise NotImplementedError

    # -- in -----------------------------------------------------------------------------------

    def publish(self, *messages: Message) -> list[Place]:
        """Publish events, in order."""
        self._sent += len(messages)
        return self.kafka.publish(messages)

    def publish_catalog(self, *entities: Mapping[str, Any], timestamp_ms: int) -> list[Place]:
        """Publish entities, in order; all count for what is published after this returns."""
        return self.kafka.publish(
            Message(CATALOG, entity, timestamp_ms, key_of(entity)) for entity in entities
        )

    def ad(self, name: str, objective: str, timestamp_ms: int, **differences: Any) -> Ad:
        """Publish an ad with all its entities (see `entities_of`)."""
        ad, entities = entities_of(name, objective, **differences)
        self.publish_catalog(*entities, timestamp_ms=timestamp_ms)
        return ad

    # -- out ----------------------------------------------------------------------------------

    def query(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        return query(self.clickhouse, sql, **parameters)

    def assert_each_charged_once(
        self, ads: Sequence[Ad], unique: int, nanos: int, again: int = 0
    ) -> None:
        """Of these ads' so many different clicks, every tenth of which was sent twice, and so many
        once more, each is in the tables and charged once, with so many nanos; and the books
        balance."""
        duplicates = unique // 10 + again
        self.settle()
        [found] = self.query(
            "SELECT count() AS rows, uniqExact(event_id) AS ids, sum(amount_nanos) AS nanos, "
            "countIf(disposition = 'charged') AS charged, "
            "countIf(disposition = 'duplicate') AS duplicates FROM billing.events "
            "WHERE campaign_id IN {campaigns:Array(String)}",
            campaigns=str([ad.campaign_id for ad in ads]),
        )
        assert found == {
            "rows": unique + duplicates,
            "ids": unique,
            "nanos": unique * nanos,
            "charged": unique,
            "duplicates": duplicates,
        }
        self.assert_reconciled()

    def settle(self) -> None:
        """Wait until every offset of the event topics has its row, strays sent home included."""

        def settled() -> bool:
            held = sum(self.kafka.ends(*EVENT_TOPICS).values())
            try:
                [found] = self.query(
                    "SELECT count() AS rows, countIf(disposition = 'misrouted') AS strays "
                    "FROM billing.events"
                )
            except URLError:
                return False  # the reporter, which serves the tables, is being started again
            rows, strays = found["rows"], found["strays"]
            return bool(rows >= held >= self._sent + strays)

        until(settled, "a row in billing.events for every offset of the event topics")

    def judged(self, ad: Ad, *columns: str) -> list[tuple[Any, ...]]:
        """These columns of the ad's campaign's events, in the order of judgement."""
        self.settle()
        names = ", ".join(f"`{column}`" for column in columns)
        rows = self.query(
            f"SELECT {names} FROM billing.events WHERE campaign_id = {{campaign:String}} "
            "ORDER BY journal_partition, shard_seq",
            campaign=ad.campaign_id,
        )
        return [tuple(row[column] for column in columns) for row in rows]

    def rejects(self) -> list[dict[str, Any]]:
        """Everything on billing.rejects, with the message key as `message_key`."""
        return [
            json.loads(record.value) | {"message_key": record.key.decode()}
            for record in self.kafka.read(REJECTS)
        ]

    def signals(self, entity: str) -> list[dict[str, Any]]:
        """Everything ever sent about an entity, in order."""
        return [
            json.loads(record.value)
            for record in self.kafka.read(SIGNALS)
            if record.key.decode() == entity
        ]

    def assert_reconciled(self, events: int | None = None) -> None:
        """`pipeline reconcile` finds every identity to hold, and all events in the tables."""
        done = self.run("reconcile", "--json")
        report = json.loads(done.stdout)
        broken = [check for check in report["checks"] if not check["ok"] or check["note"]]
        assert (done.returncode, broken) == (0, []), done.stderr
        if events is not None:
            assert report["events"] == events


class Product(Running):
    """`pipeline up` on a data directory, as a process."""

    def __init__(self, data_dir: Path, *, partitions: int = 2, **settings: str) -> None:
        """`settings`: PIPELINE_... variables, named without the prefix, in small letters."""
        super().__init__()
        self.data_dir = data_dir
        self._partitions = partitions
        given = {"clock": "stream"} | settings
        self._environment = {f"PIPELINE_{name.upper()}": value for name, value in given.items()}
        self._process: subprocess.Popen[str] | None = None
        self.web = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start and wait for the `ready` line."""
        with (self.data_dir.with_suffix(".stderr")).open("ab") as errors:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pipeline", "up", "--data", str(self.data_dir)),
                    *("--partitions", str(self._partitions)),
                ],
                env={**os.environ, **self._environment},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("ready "):
            self.close()
            raise AssertionError(f"{line!r} instead of ready; it said: {self.stderr()[-2000:]}")
        found = dict(part.split("=", 1) for part in line.split()[1:])
        self.kafka = Kafka(found["kafka"])
        self.clickhouse, self.web = found["clickhouse"], found["web"]

    def stderr(self) -> str:
        """What all starts on the directory have said so far."""
        return self.data_dir.with_suffix(".stderr").read_text()

    @property
    def pid(self) -> int:
        """Of the supervising process."""
        assert self._process is not None
        return self._process.pid

    def part_pid(self, name: str) -> int:
        """Of the worker, the reporter, or Kafka."""
        home = self.data_dir / "kafka" if name == "kafka" else self.data_dir
        return int(json.loads((home / f"{name}.pid").read_text())["pid"])

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """Send a signal and wait for the end: (exit code, seconds that it took)."""
        assert self._process is not None
        began_s = time.monotonic()
        self._process.send_signal(number)
        code = self._process.wait(WITHIN_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None
        return code, time.monotonic() - began_s

    def close(self) -> None:
        """Leave nothing running, whatever a test has done."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.end()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command beside the running product."""
        return pipeline(*arguments, "--data", str(self.data_dir))
