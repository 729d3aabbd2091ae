"""Simulating ad serving, and the demo."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.cli import wiring
from pipeline.cli.close_day import close_day
from pipeline.cli.common import CommandError, DataOption, err, out
from pipeline.cli.logs import configure_logging
from pipeline.cli.reports import full_report, show_report
from pipeline.cli.up import Up
from pipeline.cli.wiring import ENDPOINTS_FILE
from pipeline.contract.days import from_iso, iso
from pipeline.contract.money import units
from pipeline.contract.vocabulary import MS_PER_DAY, NANOS_PER_MICRO
from pipeline.embedded import ports
from pipeline.embedded.processes import DirectoryLock
from pipeline.reporting.clickhouse import Store, StoreError
from pipeline.settings import Settings, load_settings
from pipeline.simulate.run import FileError, Progress, SimulationOptions, publish_file, simulate
from pipeline.simulate.world import World, build_world

DEMO_DAY = "2026-03-02"
_SPEND = (
    "SELECT ad_group_id, sum(amount_nanos) AS spend, sum(free_nanos) AS free, any(currency) "
    "FROM billing.events WHERE ad_group_id LIKE 'sim-%' AND account_id != '' "
    "AND billing_day = {day:Date} GROUP BY ad_group_id ORDER BY spend DESC"
)


class Watch:
    """Rows that the live view shows, read from the tables now and then, beside the simulation."""

    def __init__(self, store: Store, day: str) -> None:
        self._store = store
        self._day = day
        self.rows: list[tuple[Any, ...]] = []
        self.reported = 0

    async def run(self) -> None:
        """Read about once a second, for ever."""
        while True:
            try:
                self.rows = await asyncio.to_thread(self._store.rows, _SPEND, {"day": self._day})
                [[count]] = await asyncio.to_thread(
                    self._store.rows, "SELECT count() FROM billing.events"
                )
                self.reported = int(count)
            except StoreError as error:
                err.print(str(error), style="red")
            await asyncio.sleep(1.0)


def render(progress: Progress, watch: Watch, budgets_micros: dict[str, int], day_ms: int) -> Group:
    """The live view."""
    done = (progress.now_ms - day_ms) / MS_PER_DAY
    clock = time.strftime("%H:%M", time.gmtime(progress.now_ms / 1_000))
    signals = ", ".join(f"{n} {action}" for action, n in sorted(progress.signals.items()))
    head = Text(
        f"{clock}  sent {progress.sent:,}  in the tables {watch.reported:,} "
        f"(behind {max(0, progress.sent - watch.reported):,})  "
        f"stopped now {len(progress.paused)}  signals: {signals or 'none'}"
    )
    table = Table("ad group", "spend", "budget", "used", "free", box=None)
    for group, spend, free, currency in watch.rows[:12]:
        budget = budgets_micros.get(group, 0) * NANOS_PER_MICRO
        stopped = " stopped" if f"ad_group:{group}" in progress.paused else ""
        table.add_row(
            group + stopped,
            f"{units(spend):.2f} {currency}",
            f"{units(budget):.2f}",
            f"{100 * spend // max(1, budget)}%",
            f"{units(free):.2f}",
        )
    return Group(ProgressBar(total=1.0, completed=done, width=60), head, table)


async def run_simulation(settings: Settings, options: SimulationOptions) -> tuple[World, Progress]:
    """Simulate with a live view where the terminal can show one, and plain lines elsewhere."""
    store = Store(settings.clickhouse_dsn)
    watch = Watch(store, options.day)
    watching = asyncio.ensure_future(watch.run())
    day_ms = from_iso(options.day) * MS_PER_DAY
    try:
        if err.is_terminal:
            with Live(console=err, refresh_per_second=4, transient=True) as live:
                return await _simulated(
                    settings,
                    options,
                    lambda p, budgets: live.update(render(p, watch, budgets, day_ms)),
                )
        return await _simulated(settings, options, _plain_lines(watch))
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await asyncio.to_thread(store.close)


def _plain_lines(watch: Watch) -> Callable[[Progress, dict[str, int]], None]:
    last = [0.0]

    def show(progress: Progress, _: dict[str, int]) -> None:
        if time.monotonic() - last[0] > 3.0:
            last[0] = time.monotonic()
            clock = time.strftime("%H:%M", time.gmtime(progress.now_ms / 1_000))
            err.print(
                f"{clock} sent {progress.sent:,}, in the tables {watch.reported:,}, "
                f"stopped {len(progress.paused)}",
                highlight=False,
            )

    return show


async def _simulated(
    settings: Settings,
    options: SimulationOptions,
    show: Callable[[Progress, dict[str, int]], None],
) -> tuple[World, Progress]:
    day_start_ms = from_iso(options.day) * MS_PER_DAY
    budgets = build_world(
        options.seed, options.campaigns, day_start_ms, options.impressions
    ).budgets_micros
    return await simulate(
        options, settings.kafka_client_options(), lambda progress: show(progress, budgets)
    )


def summarise(store: Store, world: World, progress: Progress, day: str) -> None:
    """What the simulated day came to, by currency."""
    rows = store.rows(_SPEND, {"day": day})
    table = Table(
        "currency", "ad groups", "budgets", "spend", "used", "free overdelivery", "of budgets"
    )
    for currency in sorted({row[3] for row in rows}):
        own = [row for row in rows if row[3] == currency]
        budgets = sum(world.budgets_micros[row[0]] for row in own) * NANOS_PER_MICRO
        spend, free = sum(row[1] for row in own), sum(row[2] for row in own)
        table.add_row(
            currency,
            str(len(own)),
            f"{units(budgets):,.2f}",
            f"{units(spend):,.2f}",
            f"{100 * spend / budgets:.1f}%",
            f"{units(free):,.2f}",
            f"{100 * free / budgets:.2f}%",
        )
    out.print(table)
    signals = ", ".join(f"{n} {action}" for action, n in sorted(progress.signals.items()))
    out.print(
        f"{progress.sent:,} events sent ({progress.resent:,} of them twice), "
        f"{progress.withheld:,} impressions withheld on signals; signals: {signals or 'none'}",
        highlight=False,
    )


async def _with_up(settings: Settings, run: Callable[[Settings], Awaitable[None]]) -> None:
    """Run something beside an embedded default that is stopped afterwards."""
    stop = asyncio.Event()
    one = Up(settings, 0, ports.free_port(), ports.free_port())
    up = asyncio.ensure_future(one.run(stop))
    ready = asyncio.ensure_future(one.ready.wait())
    try:
        await asyncio.wait([up, ready], return_when=asyncio.FIRST_COMPLETED)
        if not up.done():
            await run(one.beside)
    finally:
        stop.set()
        await up


async def _demo(settings: Settings, options: SimulationOptions) -> None:
    started_s = time.monotonic()
    world, progress = await run_simulation(settings, options)
    store = Store(settings.clickhouse_dsn)
    out.print("closing the day ...")
    # The day of the accounts east and west of UTC lies across two or three calendar days.
    await close_day(settings, store, iso(from_iso(options.day)), force=False, timeout_s=120)
    summarise(store, world, progress, options.day)
    report = await full_report(settings, store)
    show_report(report)
    await asyncio.to_thread(store.close)
    out.print(
        f"Done in {time.monotonic() - started_s:.0f} s. The data is in {settings.data_dir}; look "
        f"around with:\n"
        f"  PIPELINE_CLOCK=stream pipeline up --data {settings.data_dir}\n"
        f"  pipeline explain ad_group:{max(world.budgets_micros)} --data {settings.data_dir}\n"
        f"  pipeline reconcile --data {settings.data_dir}",
        highlight=False,
    )
    if not report.ok:
        raise CommandError("the reconciliation found differences; see above")


def register(app: typer.Typer) -> None:
    """Add the commands."""

    @app.command("simulate")
    def simulate_command(
        from_file: Annotated[
            Path | None, typer.Option("--from", help="Publish these events (NDJSON) instead.")
        ] = None,
        day: Annotated[str, typer.Option(help="The simulated day, YYYY-MM-DD.")] = DEMO_DAY,
        seed: Annotated[int, typer.Option(help="Same seed, same choices.")] = 1,
        servers: Annotated[int, typer.Option(help="Ad servers.")] = 3,
        campaigns: Annotated[int, typer.Option(help="Campaigns, two ad groups each.")] = 20,
        impressions: Annotated[int, typer.Option(help="Impressions of the day.")] = 120_000,
        seconds: Annotated[float, typer.Option(help="Real time that the day takes.")] = 20.0,
        data: DataOption = None,
    ) -> None:
        """Simulate a day of ad serving, or publish recorded events with their own timestamps.

        The simulated fleet obeys `pacing.signals`. Run `pipeline up` with PIPELINE_CLOCK=stream,
        for the simulated day is not today. Example: `pipeline simulate --from events.ndjson`
        """
        settings = wiring.settings_for(data)
        if from_file is not None:
            try:
                with err.status("publishing") as status:
                    count = asyncio.run(
                        publish_file(
                            from_file,
                            settings.kafka_client_options(),
                            lambda sent: status.update(f"published {sent:,}"),
                        )
                    )
            except FileError as error:
                raise CommandError(f"{error}; nothing was published") from error
            out.print(f"published {count:,} events")
            return
        options = SimulationOptions(day, seed, servers, campaigns, impressions, seconds)
        world, progress = asyncio.run(run_simulation(settings, options))
        time.sleep(2.0)
        summarise(Store(settings.clickhouse_dsn), world, progress, day)

    @app.command("demo")
    def demo_command(
        data: Annotated[
            Path, typer.Option(help="Data directory; what an earlier demo left is removed first.")
        ] = Path("demo-data"),
        seed: Annotated[int, typer.Option(help="Same seed, same choices.")] = 1,
        impressions: Annotated[int, typer.Option(help="Impressions of the day.")] = 120_000,
        seconds: Annotated[float, typer.Option(help="Real time that the day takes.")] = 20.0,
    ) -> None:
        """The whole product in a minute: a simulated day, its limits, its close, its books.

        Example: `pipeline demo --seconds 10`
        """
        settings = load_settings(data_dir=data, clock="stream")
        configure_logging(settings.log_format)
        empty_data(data)
        options = SimulationOptions(DEMO_DAY, seed, impressions=impressions, seconds=seconds)
        with DirectoryLock(data):
            asyncio.run(_with_up(settings, lambda found: _demo(found, options)))


_OWN_DIRECTORIES = {"kafka", "clickhouse", "snapshots", "faust"}
_OWN_FILES = {"lock", ENDPOINTS_FILE} | {
    f"{part}.{ending}"
    for part in ("worker", "reporter")
    for ending in ("log", "log.1", "pid", "pid.new")
}
"""What `pipeline up` leaves in its data directory."""


def empty_data(data: Path) -> None:
    """Remove what an earlier demo left. Raises `CommandError` where anything else is there."""
    if not data.exists():
        return
    if not data.is_dir():
        raise CommandError(f"{data} is not a directory; choose another --data")
    strange = sorted(path.name for path in data.iterdir() if not _is_own(path))
    if strange:
        some = ", ".join(strange[:5]) + (", ..." if len(strange) > 5 else "")
        raise CommandError(f"{data} holds more than a demo's data ({some}); choose another --data")
    with DirectoryLock(data):
        for path in data.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_own(path: Path) -> bool:
    if path.is_symlink():
        return False
    return path.name in (_OWN_DIRECTORIES if path.is_dir() else _OWN_FILES)
