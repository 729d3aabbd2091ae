"""What finance does: statements and credits."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TextIO

import pyarrow.parquet as pq
import typer
from rich.table import Table

from pipeline.cli import wiring
from pipeline.cli.catalog_topic import publish, read_catalog, record_of, refusal_of
from pipeline.cli.common import CommandError, DataOption, JsonOption, err, out
from pipeline.cli.tables import now_by_clock_ms
from pipeline.contract.catalog import Catalog
from pipeline.contract.catalog_entities import Credit
from pipeline.contract.money import units
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.corrections import Correctable, Selection, find_charged
from pipeline.reporting.statements import ACCOUNT_LINE, Line, read_statement, to_table


class StatementFormat(StrEnum):
    """How a statement is written."""

    TABLE = "table"
    CSV = "csv"
    PARQUET = "parquet"
    JSON = "json"


# -- statements -------------------------------------------------------------------------------


def parse_month(text: str) -> date:
    """The first day of a YYYY-MM. Raises `CommandError`."""
    try:
        return date.fromisoformat(f"{text}-01")
    except ValueError as error:
        raise CommandError(f"{text!r} is not a month: expected YYYY-MM") from error


def statement_dict(lines: Sequence[Line]) -> dict[str, Any]:
    """For JSON; amounts are texts, for a JSON number may pass a float."""
    own = lines[0]
    return {
        "month": f"{own.month:%Y-%m}",
        "account_id": own.account_id,
        "currency": own.currency,
        "lines": [
            {"campaign_id": line.campaign_id, "amount": str(line.amount)} for line in lines[1:]
        ],
        "total": str(sum((line.amount for line in lines), Decimal("0.00"))),
        "carried_nanos": sum(line.carried_nanos for line in lines),
    }


def format_of(to: Path | None) -> StatementFormat:
    """How a statement is written where nothing says it."""
    if to is None:
        return StatementFormat.TABLE
    of_suffix = {".parquet": StatementFormat.PARQUET, ".json": StatementFormat.JSON}
    return of_suffix.get(to.suffix.lower(), StatementFormat.CSV)


def write_statement(lines: Sequence[Line], form: StatementFormat, to: Path | None) -> None:
    """Write a statement to a file, or to standard output; Parquet to a file only, tables to none.

    CSV and Parquet have the rows of billing.statements, the account's own line first. Raises
    `CommandError`.
    """
    if form is StatementFormat.TABLE:
        if to is not None:
            raise CommandError("a table is for a terminal: with --out say --format csv or another")
        out.print(_statement_table(lines))
    elif to is None:
        if form is StatementFormat.PARQUET:
            raise CommandError("Parquet is not for a terminal: name a file with --out")
        _write_text(lines, form, sys.stdout)
    else:
        try:
            if form is StatementFormat.PARQUET:
                pq.write_table(to_table(lines), to)
            else:
                with to.open("w", encoding="utf-8", newline="") as file:
                    _write_text(lines, form, file)
        except OSError as error:
            raise CommandError(f"--out {to} cannot be written: {error}") from error


def _write_text(lines: Sequence[Line], form: StatementFormat, stream: TextIO) -> None:
    if form is StatementFormat.JSON:
        stream.write(json.dumps(statement_dict(lines)) + "\n")
        return
    table = to_table(lines)
    writer = csv.writer(stream)
    writer.writerow(table.column_names)
    writer.writerows(row.values() for row in table.to_pylist())


def _statement_table(lines: Sequence[Line]) -> Table:
    found = statement_dict(lines)
    table = Table(
        "campaign",
        f"amount {found['currency']}",
        title=f"Account {found['account_id']}, {found['month']}",
        caption=f"carried to the next month: {found['carried_nanos']:,} nanos",
        show_footer=True,
    )
    table.columns[0].footer, table.columns[1].footer = "total", found["total"]
    table.columns[1].justify = "right"
    for line in lines:
        if line.campaign_id != ACCOUNT_LINE:
            table.add_row(line.campaign_id, f"{line.amount:,}")
    return table


# -- credits ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreditPlan:
    """What a `pipeline credit` would do."""

    to_post: list[Credit]
    done: list[str]
    """Event ids that have been credited, or ordered, before."""
    not_charged: dict[str, str]
    """Event id -> why there is nothing to give back."""


def read_event_ids(path: Path) -> list[str]:
    """Event ids from a file: one a line, plain or as JSON objects with an `event_id`."""
    ids: dict[str, None] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text:
            continue
        if text.startswith("{"):
            try:
                text = str(json.loads(text)["event_id"])
            except (ValueError, KeyError) as error:
                raise CommandError(f"{path}:{number}: no event_id: {error}") from error
        ids[text] = None
    return list(ids)


def plan_credits(
    catalog: Catalog, charged: Sequence[Correctable], asked: Sequence[str], reason: str, by: str
) -> CreditPlan:
    """Sort what was asked for; the credits are checked as the workers will check them."""
    plan = CreditPlan([], [], {})
    found = {one.event_id: one for one in charged}
    for event_id in asked:
        if event_id not in found:
            plan.not_charged[event_id] = "was not charged, or is not in the tables"
    for event_id, one in found.items():
        if one.credited or event_id in catalog.credits:
            plan.done.append(event_id)
            continue
        if one.amount_nanos <= 0:
            plan.not_charged[event_id] = "was charged 0"
            continue
        credit = one.credit(reason, by)
        if refusal := refusal_of(catalog, record_of(catalog, credit, 0)):
            plan.not_charged[event_id] = refusal
        else:
            plan.to_post.append(credit)
    return plan


def _plan_dict(plan: CreditPlan, *, posted: bool) -> dict[str, Any]:
    return {
        "posted": posted,
        "credits": [
            {"event_id": c.event_id, "amount_nanos": c.amount_nanos, "currency": c.currency}
            for c in plan.to_post
        ],
        "credited_before": plan.done,
        "not_charged": plan.not_charged,
    }


def show_plan(plan: CreditPlan, *, posted: bool) -> None:
    """What a `pipeline credit` has done, or would do."""
    table = Table("account", "campaign", "events", "amount", "currency")
    sums: dict[tuple[str, str, str], list[int]] = {}
    for credit in plan.to_post:
        key = (credit.account_id, credit.campaign_id, credit.currency)
        sums.setdefault(key, []).append(credit.amount_nanos)
    for (account, campaign, currency), amounts in sorted(sums.items()):
        given_back = f"-{units(sum(amounts))}"
        table.add_row(account, campaign, f"{len(amounts):,}", given_back, currency)
    out.print(table)
    for event_id, why in plan.not_charged.items():
        err.print(f"{event_id}: {why}", style="yellow", highlight=False)
    out.print(
        f"{len(plan.to_post):,} to credit, {len(plan.done):,} credited before, "
        f"{len(plan.not_charged):,} with nothing to give back"
    )
    said = "ordered; they are posted in the open day" if posted else "dry run: pass --post to post"
    out.print(said)


def register(app: typer.Typer) -> None:
    """Add the commands."""

    @app.command("statement")
    def statement_command(
        account: Annotated[str, typer.Option(help="The account's id.")],
        month: Annotated[str, typer.Option(help="YYYY-MM")],
        form: Annotated[
            StatementFormat | None,
            typer.Option("--format", help="How to write it; else a table, or as --out ends (CSV)."),
        ] = None,
        to: Annotated[Path | None, typer.Option("--out", help="A file to write.")] = None,
        data: DataOption = None,
    ) -> None:
        """Show an account's statement of a month whose days are all closed.

        Example: `pipeline statement --account a1 --month 2026-03 --format csv`
        """
        first_day = parse_month(month)
        store = Store(wiring.settings_for(data).clickhouse_dsn)
        lines = read_statement(store, account, first_day)
        write_statement(lines, form or format_of(to), to)

    @app.command("credit")
    def credit_command(
        reason: Annotated[str, typer.Option(help="Why, for the books.")],
        by: Annotated[str, typer.Option(help="Who asks, for the books.")],
        file: Annotated[
            Path | None, typer.Option(help="Event ids, one a line, or NDJSON with event_id.")
        ] = None,
        account: Annotated[str | None, typer.Option(help="Filter: of this account.")] = None,
        campaign: Annotated[str | None, typer.Option(help="Filter: of this campaign.")] = None,
        ad_group: Annotated[str | None, typer.Option(help="Filter: of this ad group.")] = None,
        user_hash: Annotated[str | None, typer.Option(help="Filter: of this Pinner.")] = None,
        day: Annotated[str | None, typer.Option(help="Filter: of this billing day.")] = None,
        post: Annotated[
            bool, typer.Option("--post/--dry-run", help="Post, or only show what would be.")
        ] = False,
        data: DataOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Give back what events were charged, each once; shows what it would do without --post.

        Example: `pipeline credit --file invalid.txt --reason "invalid traffic" --by ana --post`
        """
        ids = None if file is None else read_event_ids(file)
        if ids is None and not any((account, campaign, ad_group, user_hash, day)):
            raise CommandError("say which events: --file, or a filter such as --campaign and --day")
        if not reason.strip() or not by.strip():
            raise CommandError("--reason and --by must say something: they stand in the books")
        settings = wiring.settings_for(data)
        selection = Selection(ids, account, campaign, ad_group, user_hash, _day(day))
        store = Store(settings.clickhouse_dsn)
        charged = find_charged(store, selection)
        catalog = asyncio.run(read_catalog(settings))
        read_ms = catalog.read_ms  # planning goes on with it
        plan = plan_credits(catalog, charged, ids or [], reason, by)
        if post:
            now_ms = now_by_clock_ms(settings, read_ms)
            records = [record_of(catalog, credit, now_ms) for credit in plan.to_post]
            asyncio.run(publish(settings, records))
        if as_json:
            print(json.dumps(_plan_dict(plan, posted=post)))
        else:
            show_plan(plan, posted=post)


def _day(text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise CommandError(f"{text!r} is not a day: {error}") from error
