"""Reconciling and explaining."""

from __future__ import annotations

import asyncio
import json
from datetime import date
from typing import Annotated, Any

import typer
from rich.table import Table

from pipeline.cli import wiring
from pipeline.cli.admin import CommandError, DataOption, JsonOption, err, out
from pipeline.contract.vocabulary import EVENT_TOPICS
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.explain import explain_ad_group, explain_event
from pipeline.reporting.reconcile import Report, reconcile
from pipeline.settings import Settings
from pipeline.streams.log_reader import KafkaLogReader

EXIT_DIFFERS = 1


async def source_ends(settings: Settings) -> dict[tuple[str, int], tuple[int, int]]:
    """(topic, partition) -> first and end offset of every event topic partition."""
    found: dict[tuple[str, int], tuple[int, int]] = {}
    for topic in EVENT_TOPICS:
        reader = KafkaLogReader(topic, settings.kafka_client_options())
        try:
            await reader.start()
            begin, end = await reader.begin_offsets(), await reader.end_offsets()
        finally:
            await reader.stop()
        found |= {(topic, partition): (begin[partition], end[partition]) for partition in end}
    return found


def show_report(report: Report) -> None:
    """The checks as a table, and the rows that differ."""
    table = Table("check", "holds", "what it says")
    for check in report.checks:
        says = check.says + (f" ({check.note})" if check.note else "")
        table.add_row(check.name, "yes" if check.ok else "[red]NO[/red]", says)
    out.print(table)
    for check in report.checks:
        for row in check.differing:
            err.print(f"{check.name}: {row}", style="red", markup=False)
    verdict = "every identity holds" if report.ok else "identities do NOT hold"
    out.print(f"{report.events:,} events: {verdict}")


def _show_occurrence(row: dict[str, Any]) -> None:
    amount = f"{row['amount_nanos']:,} nanos {row['currency']}, free {row['free_nanos']:,}"
    out.print(
        f"[bold]{row['disposition']}[/bold] {row['kind']} at {row['event_time_ms']}: {amount}"
    )
    out.print(f"  why: {row['why']}", markup=False)
    table = Table(show_header=False, box=None)
    for name, value in row.items():
        if name not in ("why", "charge") and value not in ("", None):
            table.add_row("  " + name, str(value))
    out.print(table)
    if row["charge"]:
        out.print(f"  posted as charge {row['charge']['charge_id']}", markup=False)


def _show_ad_group(found: dict[str, Any]) -> None:
    out.print(
        f"[bold]{found['entity']}[/bold] of campaign {found['campaign_id']}: {found['state']}"
    )
    for signal in found["stopped_by"]:
        resume = signal["resume_at_ms"]
        out.print(
            f"  stopped by {signal['limit']}: {signal['spend_nanos']:,} of "
            f"{signal['limit_nanos']:,} nanos spent; "
            + (f"resumes at {resume} ms" if resume else "until the limit is raised"),
            markup=False,
        )
    forecast = found["forecast"]
    if forecast is not None and forecast["runs_out_ms"]:
        out.print(
            f"  predicted to run out at {forecast['runs_out_ms']} ms, with 80 % likelihood between "
            f"{forecast['runs_out_low_ms']} and {forecast['runs_out_high_ms']} "
            f"(said at {forecast['predicted_at_ms']} for {forecast['billing_day']})",
            markup=False,
        )
    for quality in found["predictions"]:
        out.print(
            f"  {quality['kind']} predictions: {quality['predictions']}, of them "
            f"{quality['within_interval']} within their interval; errors (10, 50, 90 %): "
            f"{quality['error_q10']:,}, {quality['error_q50']:,}, {quality['error_q90']:,}",
            markup=False,
        )
    table = Table("day", "disposition", "limit", "events", "amount nanos", "free nanos")
    for row in found["figures"]:
        table.add_row(
            row["posting_day"],
            row["disposition"],
            row["limit"],
            f"{row['events']:,}",
            f"{row['amount']:,}",
            f"{row['free']:,}",
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
        ends = asyncio.run(source_ends(settings))
        with err.status("reconciling") as status:
            report = reconcile(Store(settings.clickhouse_dsn), only, ends, status.update)
        if as_json:
            print(json.dumps(report.to_dict(), default=str))
        else:
            show_report(report)
        if not report.ok:
            raise typer.Exit(EXIT_DIFFERS)

    @app.command("explain")
    def explain_command(
        what: Annotated[str, typer.Argument(help="An event_id, or ad_group:ID.")],
        data: DataOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Tell why an event was charged or not, or why an ad group is stopped.

        Example: `pipeline explain ad_group:42`
        """
        store = Store(wiring.settings_for(data).clickhouse_dsn)
        if what.startswith("ad_group:"):
            found: Any = explain_ad_group(store, what.removeprefix("ad_group:"))
            if not found["figures"] and not found["last_signals"]:
                raise CommandError(f"{what}: no event or signal of it is in the tables")
        else:
            found = explain_event(store, what)
            if not found:
                raise CommandError(
                    f"event {what} is not in the tables: not published, or not reported yet"
                )
        if as_json:
            print(json.dumps(found, default=str))
        elif isinstance(found, dict):
            _show_ad_group(found)
        else:
            for row in found:
                _show_occurrence(row)
