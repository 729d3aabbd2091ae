"""Topics, schema, catalog, closing a day, and sending unknown events again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pipeline.cli import wiring
from pipeline.cli.catalog_topic import publish, read_catalog, record_of, refusal_of
from pipeline.contract.catalog import Catalog
from pipeline.contract.catalog_entities import DayClose, record_of_line
from pipeline.contract.days import calendar, from_iso
from pipeline.contract.log import LogRecord
from pipeline.contract.partitioning import partition_of
from pipeline.contract.rejects import Reject
from pipeline.contract.vocabulary import CATALOG, EVENT_TOPICS, REJECTS
from pipeline.reporting import schema as clickhouse_schema
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.corrections import last_decided_ms
from pipeline.settings import Settings
from pipeline.streams.log_reader import KafkaLogReader
from pipeline.streams.topics import ensure_topics

REDRIVE_GROUP = "promoted-pins-redrive"
_POLL_S = 0.25

out = Console()
err = Console(stderr=True)


class CommandError(Exception):
    """A command cannot do what it was asked; the text says why and what to do."""


DataOption = Annotated[
    Path | None, typer.Option("--data", help="Data directory of the running `pipeline up`.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def now_by_clock_ms(settings: Settings) -> int:
    """Now by the product's clock; of a stream's, the last time that the tables have of it.

    So a command beside a stream's clock does not move it on to today.
    """
    if settings.clock == "stream":
        return last_decided_ms(Store(settings.clickhouse_dsn))
    return time.time_ns() // 1_000_000


# -- the catalog ------------------------------------------------------------------------------


def _lines(paths: list[Path]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield f"{path}:{number}", line
        except OSError as error:
            raise CommandError(f"{path} cannot be read: {error.strerror}") from error


def check_lines(
    catalog: Catalog, paths: list[Path], timestamp_ms: int | None
) -> tuple[list[LogRecord], list[str]]:
    """The valid lines as records, and what is wrong with the others; applied to the catalog."""
    valid, wrong = [], []
    for where, line in _lines(paths):
        try:
            key, value = record_of_line(line)
        except ValueError as error:
            wrong.append(f"{where}: {error}")
            continue
        stamp_ms = _timestamp_ms(value) if timestamp_ms is None else timestamp_ms
        record = LogRecord(CATALOG, 0, catalog.end_offset, stamp_ms, key, value)
        if refusal := refusal_of(catalog, record):
            wrong.append(f"{where}: {key.decode()}: {refusal}")
        else:
            valid.append(record)
    return valid, wrong


def _timestamp_ms(value: bytes | None) -> int:
    """A record's timestamp: the change's effective time where that is past, else now.

    So a backfilled catalog does not move a stream clock on to today.
    """
    now_ms = time.time_ns() // 1_000_000
    fields: Any = None if value is None else msgspec.json.decode(value)
    effective_ms = fields.get("effective_ms") if isinstance(fields, dict) else None
    return min(effective_ms, now_ms) if isinstance(effective_ms, int) else now_ms


async def _load(settings: Settings, paths: list[Path], at_ms: int | None, skip: bool) -> int:
    catalog = await read_catalog(settings)
    valid, wrong = check_lines(catalog, paths, at_ms)
    for text in wrong:
        err.print(text, style="red", markup=False, highlight=False)
    if wrong and not skip:
        raise CommandError(
            f"{len(wrong)} of {len(valid) + len(wrong)} lines are not valid; nothing was "
            "published. Correct them, or pass --skip-invalid to publish the others."
        )
    await publish(settings, track(valid, "Publishing", console=err, transient=True))
    return len(valid)


def _show(catalog: Catalog, entity: str | None) -> list[dict[str, Any]]:
    """The latest valid version of every entity, or of one, with its history's length."""
    found = []
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("account", catalog.accounts),
        ("campaign", catalog.campaigns),
        ("ad_group", catalog.ad_groups),
        ("promoted_pin", catalog.promoted_pins),
    ]
    for kind, histories in kinds:
        for entity_id, history in histories.items():
            name = f"{kind}:{entity_id}"
            if history.deleted or entity not in (None, name):
                continue
            fields = {
                k: v for k, v in msgspec.structs.asdict(history.latest).items() if v is not None
            }
            found.append({"entity": name, "versions": len(history.versions), "value": fields})
    return found


# -- closing a day ----------------------------------------------------------------------------


async def settled(settings: Settings, store: Store) -> tuple[int, int]:
    """(events that the tables have, events that the topics hold)."""
    held = 0
    for topic in EVENT_TOPICS:
        reader = KafkaLogReader(topic, settings.kafka_client_options())
        try:
            await reader.start()
            begin, end = await reader.begin_offsets(), await reader.end_offsets()
            held += sum(end[partition] - begin[partition] for partition in end)
        finally:
            await reader.stop()
    # Rows of source records that retention has deleted since are more than the topics hold.
    [[rows]] = await asyncio.to_thread(store.rows, "SELECT count() FROM billing.events")
    return int(rows), held


def unclosed_accounts(store: Store, day: str) -> list[str]:
    """Accounts with events up to this day whose day is not closed."""
    return [
        str(account_id)
        for [account_id] in store.rows(
            "SELECT DISTINCT account_id FROM billing.events WHERE account_id != '' "
            "AND disposition NOT IN ('duplicate') AND posting_day <= {day:Date} "
            "AND account_id NOT IN (SELECT account_id FROM billing.day_closes "
            "WHERE billing_day = {day:Date}) ORDER BY account_id",
            {"day": day},
        )
    ]


async def publish_day_close(settings: Settings, day: str, *, without_grace: bool) -> None:
    """Say on the catalog topic that a day may close; with a stream clock, move it past its end."""
    catalog = await read_catalog(settings)
    known = (catalog.calendar_of(name) for name, h in catalog.accounts.items() if not h.deleted)
    calendars = {days for days in known if days is not None} or {calendar("UTC")}
    end_ms = max(days.end_ms(from_iso(day)) for days in calendars)
    stamp_ms = time.time_ns() // 1_000_000
    if settings.clock == "stream":
        stamp_ms = end_ms + (0 if without_grace else settings.day_grace_minutes * 60_000)
    elif stamp_ms < end_ms:
        raise CommandError(f"{day} is not over yet in every account's time zone; wait until it is")
    await publish(settings, [record_of(catalog, DayClose(day=day), stamp_ms)])


async def close_day(
    settings: Settings, store: Store, day: str, *, force: bool, timeout_s: float
) -> int:
    """Wait until a day is closed for every account with events up to it; how many those are.

    With a stream clock, which stands still without data, the clock is moved on first.
    """
    deadline = time.monotonic() + timeout_s

    async def wait_for(condition: str, done: Any) -> None:
        while not await done():
            if time.monotonic() > deadline:
                raise CommandError(f"after {timeout_s:.0f} s still {condition}")
            await asyncio.sleep(_POLL_S)

    async def all_in() -> bool:
        rows, held = await settled(settings, store)
        return rows >= held

    await wait_for("not every event is in the tables", all_in)
    if force or settings.clock == "stream":
        await publish_day_close(settings, day, without_grace=force)

    async def closed() -> bool:
        return not await asyncio.to_thread(unclosed_accounts, store, day)

    await wait_for(f"accounts whose {day} is not closed", closed)
    [[count]] = await asyncio.to_thread(
        store.rows,
        "SELECT count() FROM billing.day_closes WHERE billing_day = {day:Date}",
        {"day": day},
    )
    return int(count)


# -- redrive ----------------------------------------------------------------------------------


async def redrive(settings: Settings, *, dry_run: bool) -> int:
    """Send rejected `unknown` events again, each reject once; returns how many.

    How far the rejects have been taken is the committed offset of a consumer group; events go to
    their campaign's partition with their own record timestamps, so they are judged as then.
    """
    options = settings.kafka_client_options()
    consumer = AIOKafkaConsumer(
        **options, group_id=REDRIVE_GROUP, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    producer = AIOKafkaProducer(**options, acks="all", enable_idempotence=True)
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
                    if reject.reason == "unknown" and reject.source in EVENT_TOPICS:
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


# -- commands ---------------------------------------------------------------------------------


catalog_app = typer.Typer(help="The catalog of accounts, campaigns, ad groups and pins.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(catalog_app, name="catalog")

    @app.command()
    def topics(
        data: DataOption = None,
        keep_all: Annotated[
            bool, typer.Option(help="Keep events and journal for ever (backfills).")
        ] = False,
    ) -> None:
        """Create the topics that are missing and check the others. Idempotent.

        Example: `PIPELINE_KAFKA_REPLICATION_FACTOR=3 pipeline topics`
        """
        settings = wiring.settings_for(data)
        specs = wiring.specs_of(settings, keep_all=keep_all)
        options = settings.kafka_client_options()
        created = asyncio.run(ensure_topics(options, specs, settings.kafka_replication_factor))
        out.print(f"created: {', '.join(created) or 'nothing'}; {len(specs)} topics are there")

    @app.command()
    def schema(data: DataOption = None) -> None:
        """Create or migrate databases, tables and views. Idempotent.

        Example: `PIPELINE_CLICKHOUSE_DSN=http://user:pw@host:8123/ pipeline schema`
        """
        settings = wiring.settings_for(data)
        store = Store(settings.clickhouse_dsn)
        applied = clickhouse_schema.apply(store, wiring.table_layout(settings))
        out.print(f"applied: {', '.join(applied) or 'nothing'}; the schema is up to date")

    @catalog_app.command("load")
    def catalog_load(
        files: Annotated[list[Path], typer.Argument(help="NDJSON files, an entity a line.")],
        data: DataOption = None,
        timestamp_ms: Annotated[
            int | None, typer.Option(help="Kafka timestamp of the records.")
        ] = None,
        skip_invalid: Annotated[bool, typer.Option(help="Publish the valid lines only.")] = False,
    ) -> None:
        """Publish entities, each checked against the catalog first.

        A line's kind is told by its id field; or it is `{"key": "ad_group:1", "value": {…}}`, with
        `null` for a deletion. Example: `pipeline catalog load catalog.ndjson`
        """
        settings = wiring.settings_for(data)
        count = asyncio.run(_load(settings, files, timestamp_ms, skip_invalid))
        out.print(f"published {count} entities")

    @catalog_app.command("show")
    def catalog_show(
        entity: Annotated[
            str | None, typer.Argument(help="One entity, such as ad_group:123.")
        ] = None,
        data: DataOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Show what is in force. Example: `pipeline catalog show campaign:7 --json`"""
        found = _show(asyncio.run(read_catalog(wiring.settings_for(data))), entity)
        if as_json:
            print(json.dumps(found))
        else:
            table = Table("entity", "versions", "value")
            for row in found:
                table.add_row(row["entity"], str(row["versions"]), json.dumps(row["value"]))
            out.print(table)
        if entity is not None and not found:
            raise CommandError(f"{entity} is not in the catalog")

    @app.command("close-day")
    def close_day_command(
        day: Annotated[str, typer.Argument(help="YYYY-MM-DD")],
        data: DataOption = None,
        force: Annotated[bool, typer.Option(help="Do not wait for the grace.")] = False,
        timeout_s: Annotated[float, typer.Option(help="How long to wait.")] = 120.0,
    ) -> None:
        """Wait for, or force, the close of a billing day.

        With the stream's clock (PIPELINE_CLOCK=stream) the clock is moved past the day's end.
        Example: `pipeline close-day 2026-03-01`
        """
        try:
            from_iso(day)
        except ValueError as error:
            raise CommandError(f"{day!r} is not a day: {error}") from error
        settings = wiring.settings_for(data)
        store = Store(settings.clickhouse_dsn)
        count = asyncio.run(close_day(settings, store, day, force=force, timeout_s=timeout_s))
        out.print(f"{day} is closed for {count} accounts")

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
