"""Closing a billing day: waiting for it, or forcing it."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Annotated, Any

import typer

from pipeline.cli import wiring
from pipeline.cli.catalog_topic import publish, read_catalog, record_of
from pipeline.cli.common import CommandError, DataOption, out
from pipeline.cli.source_ends import source_ends
from pipeline.contract.catalog_entities import DayClose
from pipeline.contract.days import calendar, from_iso
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.reached import is_reported
from pipeline.settings import Settings

_POLL_S = 0.25


async def settled(settings: Settings, store: Store) -> bool:
    """Whether the tables have every event that the topics hold."""
    return await asyncio.to_thread(is_reported, store, await source_ends(settings))


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

    await wait_for("not every event is in the tables", partial(settled, settings, store))
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


def register(app: typer.Typer) -> None:
    """Add the command."""

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
