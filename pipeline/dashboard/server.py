"""The dashboard's routes, who may see them, and the headers that keep a browser honest."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import jinja2
from aiohttp import web

from pipeline.dashboard import figures, pages, view
from pipeline.reporting.clickhouse import Store, StoreError, StoreUnavailable

COOKIE: Final = "pins_dashboard"
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
_HEADERS: Final = {
    # Nothing from elsewhere, no script but ours, no frame around us.
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_STATIC: Final = {"dashboard.css": "text/css", "dashboard.js": "text/javascript"}
_OPEN: Final = frozenset({"/login", "/health", *(f"/static/{name}" for name in _STATIC)})
"""Pages that need no token."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Page = Callable[[pages.Source, web.Request], Awaitable[tuple[str, dict[str, Any]]]]


@dataclass(frozen=True, slots=True)
class DashboardSettings:
    """How a dashboard is served."""

    token: str = ""
    """What a browser must show; empty: none is asked for, and only loopback names are served."""
    metrics_urls: tuple[str, ...] = ()
    """The /metrics pages of workers and reporter, for the operations page."""


class Dashboard:
    """Serves the pages; `open_store` is called at the first request that needs it."""

    def __init__(self, open_store: Callable[[], Store], settings: DashboardSettings) -> None:
        self._open_store = open_store
        self._store: Store | None = None
        self._opening = asyncio.Lock()
        self._settings = settings
        # A new one at every start: whoever was let in before logs in again.
        self._session = hmac.new(
            secrets.token_bytes(32), settings.token.encode(), hashlib.sha256
        ).hexdigest()
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("pipeline.dashboard"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        for function in (
            figures.money,
            figures.average,
            figures.percent,
            figures.count,
            figures.latency,
            figures.moment,
            figures.time_of_day,
        ):
            self._templates.filters[function.__name__] = function
        self._templates.globals["LEVELS"] = tuple(view.LEVELS)

    def application(self, health: Handler | None = None) -> web.Application:
        """The aiohttp application; `health` answers /health."""
        application = web.Application(middlewares=[self._guard])
        router = application.router
        for path, page in (
            ("/", pages.closed),
            ("/today", pages.today),
            ("/ad-group/{ad_group_id}", pages.ad_group),
            ("/finance", pages.finance),
            ("/finance/{day}", pages.finance_day),
            ("/operations", pages.operations),
        ):
            router.add_get(path, self._handler(page))
        router.add_get("/figures.csv", self._csv)
        router.add_get("/today.csv", self._csv)
        router.add_get("/login", self._login_page)
        router.add_post("/login", self._login)
        router.add_get("/static/{name}", self._static)
        router.add_get("/health", health or self._health)
        return application

    async def close(self) -> None:
        """Give the connection to ClickHouse back."""
        if self._store is not None:
            await asyncio.to_thread(self._store.close)

    # -- who may see it -----------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await self._guarded(request, handler)
        except web.HTTPException as error:
            error.headers.update(_HEADERS)
            raise
        response.headers.update(_HEADERS)
        return response

    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._settings.token and not _is_loopback_name(request.host):
            # A page elsewhere whose name was made to point here would read everything.
            raise web.HTTPForbidden(text="open the dashboard as http://127.0.0.1:PORT/\n")
        if self._settings.token and request.path not in _OPEN and not self._is_let_in(request):
            raise web.HTTPSeeOther("/login")
        try:
            return await handler(request)
        except view.BadRequest as error:
            return self._render("problem.html", {"what": str(error)}, status=400)
        except StoreUnavailable as error:
            return self._render("problem.html", {"what": str(error)}, status=503)
        except StoreError as error:
            return self._render("problem.html", {"what": str(error)}, status=502)

    def _is_let_in(self, request: web.Request) -> bool:
        if hmac.compare_digest(request.cookies.get(COOKIE, "").encode(), self._session.encode()):
            return True
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self._is_token(given)

    def _is_token(self, given: str) -> bool:
        token = self._settings.token
        return bool(token) and hmac.compare_digest(given.strip().encode(), token.encode())

    async def _login_page(self, _: web.Request) -> web.Response:
        return self._render("login.html", {"wrong": False})

    async def _login(self, request: web.Request) -> web.StreamResponse:
        given = (await request.post()).get("token", "")
        if not isinstance(given, str) or not self._is_token(given):
            return self._render("login.html", {"wrong": True}, status=403)
        response = web.HTTPSeeOther("/")
        response.set_cookie(
            COOKIE, self._session, httponly=True, samesite="Strict", secure=request.secure
        )
        raise response

    # -- pages --------------------------------------------------------------------------------

    def _handler(self, page: Page) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            source = pages.Source(await self._opened(), self._settings.metrics_urls)
            template, values = await page(source, request)
            return self._render(template, values)

        return handle

    async def _opened(self) -> Store:
        async with self._opening:
            if self._store is None:
                self._store = await asyncio.to_thread(self._open_store)
            return self._store

    async def _csv(self, request: web.Request) -> web.Response:
        live = request.path == "/today.csv"
        source = pages.Source(await self._opened(), ())
        name, text = await pages.csv_of(source, request, live=live)
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return web.Response(text=text, content_type="text/csv", headers=headers)

    async def _static(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in _STATIC:
            raise web.HTTPNotFound
        text = resources.files("pipeline.dashboard").joinpath("static", name).read_text("utf-8")
        return web.Response(text=text, content_type=_STATIC[name])

    async def _health(self, _: web.Request) -> web.Response:
        try:
            await pages.Source(await self._opened(), ()).check()
        except StoreError as error:
            return web.json_response({"state": "unavailable", "trouble": str(error)}, status=503)
        return web.json_response({"state": "running"})

    def _render(self, template: str, values: dict[str, Any], status: int = 200) -> web.Response:
        text = self._templates.get_template(template).render(values)
        headers = {"Cache-Control": "no-store"}
        return web.Response(text=text, content_type="text/html", status=status, headers=headers)


def _is_loopback_name(host: str) -> bool:
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return name in _LOOPBACK


def check_exposure(host: str, token: str) -> None:
    """Raises `ValueError` where others could reach a dashboard without a token."""
    if host not in ("127.0.0.1", "localhost", "::1") and len(token) < 16:
        raise ValueError(
            f"the dashboard would listen on {host}, where others can reach it: set "
            "PIPELINE_DASHBOARD_TOKEN to 16 characters or more, or PIPELINE_WEB_HOST=127.0.0.1"
        )


def urls_of(text: str) -> Sequence[str]:
    """The addresses of a comma-separated list."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
