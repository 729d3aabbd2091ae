"""A read-only ClickHouse HTTP interface over the embedded engine, on loopback.

What `pipeline up` serves so that any ClickHouse client or dashboard can read the tables; a real
server takes its place by changing one DSN. What a read is, `readonly` decides.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final

from aiohttp import web

from pipeline.reporting.clickhouse import Store, StoreError
from pipeline.reporting.readonly import ReadGuard, RefusedQuery, plain_statement

DEFAULT_FORMAT: Final = "TabSeparated"
MAX_QUERY_BYTES: Final = 1024 * 1024

_FORMAT: Final = re.compile(r"\bFORMAT\s+([A-Za-z0-9_]+)\s*$", re.IGNORECASE)
_FORMAT_NAME: Final = re.compile(r"[A-Za-z0-9_]+")


class ReadOnlyHttp:
    """The handlers."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._guard = ReadGuard(store)

    def add_pages(self, application: web.Application) -> None:
        """Add the interface's routes, which take every path that is not taken yet."""
        application.router.add_get("/ping", self._ping)
        application.router.add_route("*", "/{path:.*}", self._query)

    async def _ping(self, _: web.Request) -> web.Response:
        return web.Response(text="Ok.\n")

    async def _query(self, request: web.Request) -> web.Response:
        if request.path not in ("/", "/query"):
            return _failed("there is no such page", 0, 404)
        try:
            sql, bound = await _asked(request)
            if not sql:
                return web.Response(text="Ok.\n")
            sql = plain_statement(sql)
            form = _FORMAT.search(sql)
            chosen = form.group(1) if form else _default_format(request)
            sql = sql[: form.start()] if form else sql
            await asyncio.to_thread(self._guard.check, sql, bound)
            result = await asyncio.to_thread(self._store.raw, sql, chosen, bound)
        except RefusedQuery as error:
            return _failed(
                f"Code: {error.code}. DB::Exception: {error}. (READONLY)", error.code, 403
            )
        except StoreError as error:
            return _failed(str(error), error.code, 404 if error.code in (60, 81) else 400)
        return web.Response(body=result, headers=_headers(chosen))


async def _asked(request: web.Request) -> tuple[str, dict[str, str]]:
    """The statement and its bound parameters; raises `RefusedQuery`.

    As ClickHouse takes them: a statement in the address goes on in the body. Clients send what is
    too long for an address as a form with the same names.
    """
    parts = [request.query.get("query", "")]
    bound = dict(request.query)
    if request.content_type == "multipart/form-data":
        fields = await _form(request)
        parts.append(fields.get("query", ""))
        bound |= fields
    elif request.can_read_body:
        parts.append((await request.read()).decode("utf-8", errors="replace"))
    return "\n".join(parts).strip(), {
        name: value for name, value in bound.items() if name.startswith("param_")
    }


async def _form(request: web.Request) -> dict[str, str]:
    try:
        fields = await request.post()
    except (ValueError, LookupError) as error:  # its form, its charset
        raise RefusedQuery(f"that is not a form: {error}", 36) from error
    texts = {name: value for name, value in fields.items() if isinstance(value, str)}
    if len(texts) < len(fields):
        raise RefusedQuery("tables of one's own are not taken here")
    return texts


def _default_format(request: web.Request) -> str:
    asked = request.headers.get("X-ClickHouse-Format") or request.query.get("default_format")
    if asked and not _FORMAT_NAME.fullmatch(asked):
        raise RefusedQuery("that is not the name of a format", 73)
    return asked or DEFAULT_FORMAT


def _headers(form: str) -> dict[str, str]:
    return {
        "X-ClickHouse-Format": form,
        "X-ClickHouse-Timezone": "UTC",
        "X-ClickHouse-Server-Display-Name": "promoted-pins",
        "Content-Type": "application/octet-stream",
    }


def _failed(text: str, code: int, status: int) -> web.Response:
    headers = {"X-ClickHouse-Exception-Code": str(code)}
    return web.Response(text=text + "\n", status=status, headers=headers)
