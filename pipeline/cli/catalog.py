"""The catalog's commands: publish entities, show what is in force, edit many ad groups at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.progress import track
from rich.table import Table

from pipeline.cli import catalog_edit, wiring
from pipeline.cli.catalog_topic import publish, read_catalog, refusal_of
from pipeline.cli.common import CommandError, DataOption, JsonOption, err, out
from pipeline.cli.tables import now_by_clock_ms
from pipeline.contract.catalog import Catalog
from pipeline.contract.catalog_entities import Entity, record_of_line
from pipeline.contract.log import LogRecord
from pipeline.contract.vocabulary import CATALOG
from pipeline.reporting.clickhouse import StoreError
from pipeline.settings import Settings


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
        err.print(text, style="red", highlight=False)
    if wrong and not skip:
        raise CommandError(
            f"{len(wrong)} of {len(valid) + len(wrong)} lines are not valid; nothing was "
            "published. Correct them, or pass --skip-invalid to publish the others."
        )
    await publish(settings, track(valid, "Publishing", console=err, transient=True))
    return len(valid)


def in_force(catalog: Catalog, entity: str | None, now_ms: int) -> list[dict[str, Any]]:
    """The version in force of every entity, or of one, with those that are to follow it, if any, as
    `scheduled`."""
    found: list[dict[str, Any]] = []
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
            current = history.at(now_ms)
            row = {"entity": name, "versions": len(history.versions), "value": _fields(current)}
            later = [
                {"effective_ms": version.effective_ms, "value": _fields(version.entity)}
                for version in history.versions
                if version.effective_ms > now_ms and version.entity is not current
            ]
            found.append(row | {"scheduled": later} if later else row)
    for day, rates in catalog.fx.items():
        if entity in (None, f"fx:{day}"):
            value = _fields(rates.entity)
            found.append({"entity": f"fx:{day}", "versions": 1, "value": value})
    return found


def show_entities(found: Sequence[dict[str, Any]]) -> None:
    """The rows of `in_force`."""
    table = Table("entity", "versions", "value")
    for row in found:
        table.add_row(row["entity"], str(row["versions"]), json.dumps(row["value"]))
        for later in row.get("scheduled", ()):
            table.add_row("", f"from {later['effective_ms']}", json.dumps(later["value"]))
    out.print(table)


def _fields(entity: Entity) -> dict[str, Any]:
    return {k: v for k, v in msgspec.structs.asdict(entity).items() if v is not None}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    catalog_app = typer.Typer(help="The catalog of accounts, campaigns, ad groups and pins.")
    app.add_typer(catalog_app, name="catalog")

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
        """Show what is in force, and what is to follow it.

        Example: `pipeline catalog show campaign:7 --json`
        """
        settings = wiring.settings_for(data)
        catalog = asyncio.run(read_catalog(settings))
        try:
            now_ms = now_by_clock_ms(settings, catalog.read_ms)
        except StoreError:  # the tables are not there: what the catalog tells of a stream's clock
            now_ms = catalog.read_ms
        found = in_force(catalog, entity, now_ms)
        if as_json:
            print(json.dumps(found))
        else:
            show_entities(found)
        if entity is not None and not found:
            raise CommandError(f"{entity} is not in the catalog")

    catalog_edit.register(catalog_app)
