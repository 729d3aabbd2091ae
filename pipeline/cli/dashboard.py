"""The dashboard as a process."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from pipeline.cli import wiring
from pipeline.cli.common import DataOption, until_signalled
from pipeline.cli.logs import configure_logging
from pipeline.dashboard.server import Dashboard, DashboardSettings, check_exposure, urls_of
from pipeline.reporting.clickhouse import Store
from pipeline.settings import Settings, SettingsError
from pipeline.web import served


async def serve_dashboard(settings: Settings, port: int, stop: asyncio.Event) -> None:
    """The dashboard until told to stop."""
    token = settings.dashboard_token.get_secret_value()
    try:
        check_exposure(settings.web_host, token)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    served_by = DashboardSettings(token, tuple(urls_of(settings.dashboard_metrics_urls)))
    dashboard = Dashboard(lambda: Store(settings.clickhouse_dsn), served_by)
    async with served(dashboard.application(), settings.web_host, port):
        print(f"ready web=http://{settings.web_host}:{port}", flush=True)
        await stop.wait()
    await dashboard.close()


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("dashboard")
    def dashboard_command(
        port: Annotated[int, typer.Option(help="Port to listen on.")] = 8080,
        data: DataOption = None,
    ) -> None:
        """Serve the dashboard in the browser, read-only over ClickHouse.

        On loopback unless PIPELINE_WEB_HOST says otherwise; then PIPELINE_DASHBOARD_TOKEN is
        needed. Example: `pipeline dashboard --port 8080`
        """
        settings = wiring.settings_for(data)
        configure_logging(settings.log_format)
        asyncio.run(until_signalled(lambda stop: serve_dashboard(settings, port, stop)))
