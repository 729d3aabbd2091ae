"""`pipeline catalog edit`: many ad groups at once, as the ads manager has it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table

from pipeline.cli import wiring
from pipeline.cli.catalog_topic import publish, read_catalog, record_of, refusal_of
from pipeline.cli.common import CommandError, DataOption, JsonOption, err, out
from pipeline.cli.tables import now_by_clock_ms
from pipeline.contract.catalog import Catalog
from pipeline.contract.edits import (
    AmountEdit,
    Edit,
    Edited,
    EditError,
    GroupSelection,
    How,
    edited,
    next_version_ms,
)
from pipeline.contract.log import LogRecord


class NewStatus(StrEnum):
    """What an ad group's status can be set to."""

    ACTIVE = "active"
    PAUSED = "paused"
    ARCHIVED = "archived"


def parse_amount(text: str | None, ceiling_micros: int | None, what: str) -> AmountEdit | None:
    """An edit from its text: `500000` sets, `+10%`, `-10%`, `+50000` and `-50000` change.

    Amounts are micros. Raises `CommandError`.
    """
    if text is None:
        if ceiling_micros is not None:
            raise CommandError(f"--max-{what} bounds a change: give --{what} too")
        return None
    how: How = {"+": "raise", "-": "lower"}.get(text[:1], "set")  # type: ignore[assignment]
    number = text if how == "set" else text[1:]
    try:
        if number.endswith("%"):
            percent = Decimal(number.removesuffix("%"))
            if not percent.is_finite():
                raise InvalidOperation
            return AmountEdit(how, percent=percent, ceiling_micros=ceiling_micros)
        return AmountEdit(how, micros=int(number), ceiling_micros=ceiling_micros)
    except (InvalidOperation, ValueError) as error:
        said = f": {error}" if isinstance(error, EditError) else ""
        raise CommandError(
            f"--{what} {text!r} is none of 500000 (micros), +50000, -50000, +10%, -10%{said}"
        ) from error


def check_edits(
    catalog: Catalog, edits: Sequence[Edited], timestamp_ms: int
) -> tuple[list[LogRecord], list[str]]:
    """The records of the edits, and what the catalog would refuse of them, in words."""
    records, refused = [], []
    for one in edits:
        record = record_of(catalog, one.new, timestamp_ms)
        if refusal := refusal_of(catalog, record):
            refused.append(f"ad_group:{one.new.ad_group_id}: {refusal}")
        records.append(record)
    return records, refused


def followers(catalog: Catalog, edits: Sequence[Edited], at_ms: int) -> dict[str, int]:
    """Ad group -> from when on a version that is in the catalog already takes the edit's place."""
    found = {
        one.new.ad_group_id: next_version_ms(catalog, one.new.ad_group_id, at_ms) for one in edits
    }
    return {ad_group_id: from_ms for ad_group_id, from_ms in found.items() if from_ms is not None}


def _edits_dict(
    edits: Sequence[Edited], later_ms: Mapping[str, int], *, published: bool
) -> dict[str, Any]:
    return {
        "published": published,
        "changes": [
            {"ad_group_id": one.old.ad_group_id, "field": name, "old": old, "new": new}
            for one in edits
            for name, old, new in one.changes()
        ],
        "in_force_until_ms": dict(later_ms),
    }


def show_edits(edits: Sequence[Edited], later_ms: Mapping[str, int]) -> None:
    """Old and new, and what follows (`followers`)."""
    table = Table("ad group", "field", "old", "new")
    for one in edits:
        for name, old, new in one.changes():
            table.add_row(one.old.ad_group_id, name, _text(old), _text(new))
    out.print(table)
    for ad_group_id, from_ms in later_ms.items():
        err.print(
            f"ad_group:{ad_group_id}: the catalog has a later change, with effective_ms {from_ms}, "
            "which takes this one's place then and stays as it is",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def register(catalog_app: typer.Typer) -> None:
    """Add the command to `pipeline catalog`."""

    @catalog_app.command("edit")
    def catalog_edit(
        by: Annotated[str, typer.Option(help="Who changes it, for the change history.")],
        account: Annotated[str, typer.Option(help="Ad groups of this account.")] = "",
        campaign: Annotated[str, typer.Option(help="Ad groups of this campaign.")] = "",
        ad_group: Annotated[list[str] | None, typer.Option(help="This one; repeatable.")] = None,
        bid: Annotated[str | None, typer.Option(help="500000, +50000, -50000, +10%, -10%")] = None,
        max_bid: Annotated[int | None, typer.Option(help="No higher than, micros.")] = None,
        budget: Annotated[str | None, typer.Option(help="As --bid.")] = None,
        max_budget: Annotated[int | None, typer.Option(help="No higher than, micros.")] = None,
        status: Annotated[NewStatus | None, typer.Option(help="The new status.")] = None,
        effective_ms: Annotated[
            int | None, typer.Option(help="When it takes effect, ms UTC; default: now.")
        ] = None,
        yes: Annotated[bool, typer.Option("--yes", help="Publish; else only show.")] = False,
        data: DataOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Raise, lower or set bids, budgets and statuses of many ad groups; shows old and new.

        Amounts are micros. Example: `pipeline catalog edit --campaign 7 --bid +10% --max-bid
        2000000 --by ana --yes`
        """
        if not (account or campaign or ad_group):
            raise CommandError("say which ad groups: --account, --campaign or --ad-group")
        edit = Edit(
            parse_amount(bid, max_bid, "bid"),
            parse_amount(budget, max_budget, "budget"),
            None if status is None else status.value,
        )
        if edit == Edit():
            raise CommandError("say what to change: --bid, --budget or --status")
        settings = wiring.settings_for(data)
        catalog = asyncio.run(read_catalog(settings))
        selection = GroupSelection(account, campaign, frozenset(ad_group or ()))
        now_ms = now_by_clock_ms(settings, catalog.read_ms)
        at_ms = now_ms if effective_ms is None else effective_ms
        groups = list(selection.of(catalog, at_ms))
        unknown = selection.ad_group_ids - {group.ad_group_id for group in groups}
        if unknown:
            raise CommandError(f"no ad group to edit: {', '.join(sorted(unknown))}")
        edits = edited(groups, edit, by, at_ms)
        later_ms = followers(catalog, edits, at_ms)
        records, refused = check_edits(catalog, edits, min(at_ms, now_ms))
        for text in refused:
            err.print(text, style="red", highlight=False)
        if yes and not refused:
            asyncio.run(publish(settings, records))
        if as_json:
            print(json.dumps(_edits_dict(edits, later_ms, published=yes and not refused)))
        else:
            show_edits(edits, later_ms)
            unchanged = len(groups) - len(edits)
            said = "published" if yes and not refused else "would change; pass --yes to publish"
            out.print(f"{len(edits)} ad groups {said}; {unchanged} stay as they are")
        if refused:
            raise CommandError(f"{len(refused)} edits would be refused; nothing was published")
