"""Reconciling and explaining."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import date
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from pipeline.cli import wiring
from pipeline.cli.catalog_topic import read_catalog
from pipeline.cli.common import CommandError, DataOption, JsonOption, err, out
from pipeline.cli.source_ends import source_ends
from pipeline.cli.tables import now_by_clock_ms
from pipeline.contract.money import units
from pipeline.contract.vocabulary import JOURNAL
from pipeline.reporting.audit import Audit, audit_journal
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.explain import Sources, explain_ad_group, explain_event
from pipeline.reporting.reconcile import Check, Report, reconcile
from pipeline.settings import Settings
from pipeline.streams.log_reader import KafkaLogReader

EXIT_DIFFERS = 1
_TABLES_SETTLE_S = 2.0
"""The reporter writes its tables one after the other: what differs that long differs."""


async def full_report(
    settings: Settings,
    store: Store,
    day: date | None = None,
    noted: Callable[[str], None] = lambda text: None,
) -> Report:
    """All identities of the tables, the offsets that Kafka holds, and the journal's own word."""
    ends = await source_ends(settings)
    report = await asyncio.to_thread(
        reconcile, store, day, ends, noted, lambda: time.sleep(_TABLES_SETTLE_S)
    )
    audit = await _audited(settings, store, day, noted)
    if audit.findings:
        await asyncio.sleep(_TABLES_SETTLE_S)
        again = await _audited(settings, store, day, noted)
        lasting = [finding for finding in audit.findings if finding in again.findings]
        audit = Audit(lasting, again.records, again.note)
    says = "events, charges and credits are what the journal's records say, row by row"
    check = Check("rows_of_the_journal", says, not audit.findings, audit.findings, audit.note)
    return Report([*report.checks, check], report.events)


async def _audited(
    settings: Settings, store: Store, day: date | None, noted: Callable[[str], None]
) -> Audit:
    reader = KafkaLogReader(JOURNAL, settings.kafka_client_options())
    try:
        return await audit_journal(store, reader, settings.partitions, day, noted=noted)
    finally:
        await reader.stop()


def show_report(report: Report) -> None:
    """The checks as a table, and the rows that differ."""
    table = Table("check", "holds", "what it says")
    for check in report.checks:
        says = check.says + (f" ({check.note})" if check.note else "")
        table.add_row(check.name, "yes" if check.ok else Text("NO", style="red"), says)
    out.print(table)
    for check in report.checks:
        for row in check.differing:
            err.print(f"{check.name}: {row}", style="red")
    verdict = "every identity holds" if report.ok else "identities do NOT hold"
    out.print(f"{report.events:,} events: {verdict}")


def _money(nanos: int, currency: str = "") -> str:
    return f"{units(nanos):,f} {currency}".rstrip()


def show_occurrence(row: dict[str, Any]) -> None:
    """One occurrence of an event, as `explain_event` has it."""
    currency = row["currency"]
    free = f", {_money(row['free_nanos'], currency)} free" if row["free_nanos"] else ""
    name = f"{row['kind']} {row['event_id']}".strip() or "event"
    amount = _money(row["amount_nanos"], currency)
    out.print(Text.assemble((row["disposition"], "bold"), f": {name}, {amount}{free}"))
    table = Table(show_header=False, box=None)
    ad = " > ".join(text for text in row["ad"].values() if text)
    came_from = ", ".join(text for text in (row["source"], row["event_time"]) if text)
    table.add_row("  came from", came_from)
    table.add_row("  ad", ad or "not known")
    table.add_row("  judged", f"{row['journal']['decided_at']}, journal {row['journal']['record']}")
    state = row.get("posting_day_state")
    booked = f"{row['posting_day']} ({state})" if state else row["posting_day"]
    table.add_row("  booked on", f"{booked}, of billing day {row['billing_day']}")
    for rule in row["rules"]:
        inputs = {k: v for k, v in rule.items() if k not in ("rule", "says") and v != ""}
        told = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in inputs.items())
        table.add_row(f"  rule {rule['rule']}", rule["says"] + (f" ({told})" if told else ""))
    for limit in row.get("limits", []):
        before, after = limit["spend_before_nanos"], limit["spend_after_nanos"]
        table.add_row(
            f"  {limit['limit']}",
            f"{_money(before)} spent before, {_money(after)} after, of "
            f"{_money(limit['limit_nanos'], currency)}",
        )
    for name, text in _posting_texts(row, currency):
        table.add_row(f"  {name}", text)
    out.print(table)


def _posting_texts(row: dict[str, Any], currency: str) -> list[tuple[str, str]]:
    """How a charged event was posted, given back and billed, in words."""
    if row["disposition"] != "charged":
        return []
    charge, credit, line = row["charge"], row["credit"], row["statement_line"]
    texts = [("posted", "not yet: its block of 1,000 impressions is open")]
    if charge:
        posted = f"charge {charge['charge_id']}, {_money(charge['amount_nanos'], currency)}"
        if "impression_of_block" in charge:
            place, of = charge["impression_of_block"], charge["quantity"]
            posted += f" for a block of {of} impressions, of which this is number {place}"
        if charge["is_adjustment"]:
            posted += f", adjusting {charge['adjusts_day']}"
        texts = [("posted", posted)]
    if credit:
        amount = _money(credit["amount_nanos"], currency)
        by = f"{credit['reason']} ({credit['credited_by']})"
        texts.append(("given back", f"{amount} on {credit['posting_day']}: {by}"))
    if line:
        month = line["month"][:7]
        texts.append(("billed", f"in the campaign's line of {month}: {line['amount']} {currency}"))
    else:
        texts.append(("billed", "not yet: its month is not stated"))
    return texts


def show_ad_group(found: dict[str, Any]) -> None:
    """An ad group, as `explain_ad_group` has it."""
    of = f" of campaign {found['campaign_id']}: {found['state']}"
    out.print(Text.assemble((found["entity"], "bold"), of))
    for stop in found["stopped_by"]:
        out.print(
            f"  {stop['entity']} stopped by {stop['limit'] or stop['reason']}: "
            f"{_money(stop['spend_nanos'])} of {_money(stop['limit_nanos'])} spent, "
            f"since {stop['since']}; resumes {stop['resumes']}",
            soft_wrap=True,
        )
    for limit in found["limits"]:
        when = f" on {limit['day']}" if limit["day"] else ""
        spent, of = _money(limit["spend_nanos"]), _money(limit["limit_nanos"])
        out.print(f"  {limit['limit']}: {spent} of {of} spent{when}")
    for entity, nanos in found["inflight_nanos"].items():
        if nanos:
            out.print(f"  {entity}: {_money(nanos)} served and not billed, at its last signal")
    forecast = found["forecast"]
    if forecast is not None and forecast["runs_out_ms"]:
        out.print(
            f"  predicted to run out at {forecast['runs_out_ms']} ms, with 80 % likelihood between "
            f"{forecast['runs_out_low_ms']} and {forecast['runs_out_high_ms']} "
            f"(said at {forecast['predicted_at_ms']} for {forecast['billing_day']})",
        )
    for quality in found["predictions"]:
        out.print(
            f"  {quality['kind']} predictions: {quality['predictions']}, of them "
            f"{quality['within_interval']} within their interval; errors (10, 50, 90 %): "
            f"{quality['error_q10']:,}, {quality['error_q50']:,}, {quality['error_q90']:,}",
        )
    table = Table("day", "disposition", "limit", "events", "amount", "free")
    for row in found["figures"]:
        table.add_row(
            row["posting_day"],
            row["disposition"],
            row["limit"],
            f"{row['events']:,}",
            _money(row["amount"]),
            _money(row["free"]),
        )
    out.print(table)


def register(app: typer.Typer) -> None:
    """Add the commands."""

    @app.command("reconcile")
    def reconcile_command(
        day: Annotated[
            str | None, typer.Option(help="YYYY-MM-DD: checks about days, this only.")
        ] = None,
        data: DataOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Check the identities of the books at zero tolerance; exit 1 where one fails.

        Example: `pipeline reconcile --day 2026-03-01 --json`
        """
        settings = wiring.settings_for(data)
        try:
            only = None if day is None else date.fromisoformat(day)
        except ValueError as error:
            raise CommandError(f"{day!r} is not a day: {error}") from error
        with err.status("reconciling") as status:
            store = Store(settings.clickhouse_dsn)
            report = asyncio.run(full_report(settings, store, only, status.update))
        if as_json:
            print(json.dumps(report.to_dict(), default=str))
        else:
            show_report(report)
        if not report.ok:
            raise typer.Exit(EXIT_DIFFERS)

    @app.command("explain")
    def explain_command(
        what: Annotated[
            str, typer.Argument(help="An event_id, TOPIC-PARTITION-OFFSET, or ad_group:ID.")
        ],
        data: DataOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Tell why an event was charged or not, or why an ad group is stopped.

        Example: `pipeline explain ad_group:42`
        """
        settings = wiring.settings_for(data)
        store = Store(settings.clickhouse_dsn)
        catalog = asyncio.run(read_catalog(settings))
        sources = Sources(store, catalog, now_by_clock_ms(settings, catalog.read_ms))
        found: Any
        if what.startswith("ad_group:"):
            found = explain_ad_group(sources, what.removeprefix("ad_group:"))
            if found is None:
                raise CommandError(
                    f"{what} is not in the catalog, nor any event of it in the tables"
                )
        else:
            found = explain_event(sources, what)
            if not found:
                raise CommandError(
                    f"event {what} is not in the tables: not published, or not reported yet"
                )
        if as_json:
            print(json.dumps(found, default=str))
        elif isinstance(found, dict):
            show_ad_group(found)
        else:
            for row in found:
                show_occurrence(row)
