"""A read-only ClickHouse HTTP interface over the embedded engine, on loopback.

What `pipeline up` serves so that any ClickHouse client or dashboard can read the tables; a real
server takes its place by changing one DSN. Reads only: a statement must begin as a read, and may
not name a function that reaches outside the tables, write a file or change a setting. (The
engine's own `readonly` setting cannot be used: the embedded engine has one session, and it would
stop the reporter's inserts as well.)
"""

from __future__ import annotations

import asyncio
import re
from typing import Final

from aiohttp import web

from pipeline.reporting.clickhouse import Store, StoreError

DEFAULT_FORMAT: Final = "TabSeparated"
MAX_QUERY_BYTES: Final = 1024 * 1024
READONLY: Final = 164
SYNTAX_ERROR: Final = 62

_READS: Final = ("SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXISTS", "EXPLAIN")
_OUTSIDE: Final = re.compile(
    r"\b(file|fileCluster|url|urlCluster|remote|remoteSecure|cluster|clusterAllReplicas|s3\w*|"
    r"gcs|hdfs\w*|azureBlobStorage\w*|mysql|postgresql|mongodb|redis|sqlite|jdbc|odbc|iceberg\w*|"
    r"deltaLake\w*|hudi\w*|executable|input|dictionary|python|paimon\w*|ytsaurus|arrowFlight|"
    r"mergeTree\w*|loop|fuzz\w*|catboostEvaluate|getClientHTTPHeader|getServerSetting)\s*\(",
    re.IGNORECASE,
)
_FORBIDDEN: Final = re.compile(
    r"\b(INTO\s+OUTFILE|INSERT\s+INTO|SETTINGS\s+\w+\s*=)", re.IGNORECASE
)
_FORMAT: Final = re.compile(r"\bFORMAT\s+([A-Za-z0-9_]+)\s*$", re.IGNORECASE)
_QUOTED: Final = re.compile(
    r"'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.)*\"|`(?:[^`\\]|\\.)*`", re.DOTALL
)
_COMMENT: Final = re.compile(r"/\*.*?\*/|--[^\n]*|#[ !][^\n]*", re.DOTALL)
_FIRST_WORD: Final = re.compile(r"[\s(]*([A-Za-z]+)")


class RefusedQuery(Exception):
    """A query that is not a read of these tables; `code` as ClickHouse gives it."""

    def __init__(self, text: str, code: int = READONLY) -> None:
        super().__init__(text)
        self.code = code


def check_read(sql: str) -> None:
    """Raises `RefusedQuery` unless the statement only reads the engine's own tables."""
    if _COMMENT.search(_QUOTED.sub("''", sql)) or "$" in _QUOTED.sub("''", sql):
        raise RefusedQuery("comments and heredocs are not taken here")
    bare = _QUOTED.sub("''", sql)
    first = _FIRST_WORD.match(bare)
    if first is None or first.group(1).upper() not in _READS:
        raise RefusedQuery("only reads are allowed: SELECT, WITH, SHOW, DESCRIBE, EXISTS, EXPLAIN")
    if ";" in bare.rstrip().rstrip(";"):
        raise RefusedQuery("one statement at a time")
    quoted_call = re.search(r"[\"`]\s*\(", sql)
    outside = _OUTSIDE.search(bare) or quoted_call
    if outside is not None:
        raise RefusedQuery(f"{outside.group(0).strip()} reaches outside the tables")
    forbidden = _FORBIDDEN.search(bare)
    if forbidden is not None:
        raise RefusedQuery(f"{forbidden.group(0)} is not allowed here")


class ReadOnlyHttp:
    """The handlers."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add_pages(self, application: web.Application) -> None:
        """Add the interface's routes, which take every path that is not taken yet."""
        application.router.add_get("/ping", self._ping)
        application.router.add_route("*", "/{path:.*}", self._query)

    async def _ping(self, _: web.Request) -> web.Response:
        return web.Response(text="Ok.\n")

    async def _query(self, request: web.Request) -> web.Response:
        if request.path not in ("/", "/query"):
            return _failed("there is no such page", 0, 404)
        sql = request.query.get("query", "")
        body = (
            (await request.read()).decode("utf-8", errors="replace")
            if request.can_read_body
            else ""
        )
        sql = (sql + "\n" + body).strip() if body else sql.strip()
        if not sql:
            return web.Response(text="Ok.\n")
        sql = sql.rstrip().rstrip(";")
        form = _FORMAT.search(sql)
        chosen = form.group(1) if form else _default_format(request)
        sql = sql[: form.start()] if form else sql
        bound = {name: value for name, value in request.query.items() if name.startswith("param_")}
        try:
            check_read(sql)
            result = await asyncio.to_thread(self._store.raw, sql, chosen, bound)
        except RefusedQuery as error:
            return _failed(
                f"Code: {error.code}. DB::Exception: {error}. (READONLY)", error.code, 403
            )
        except StoreError as error:
            return _failed(str(error), error.code, 404 if error.code in (60, 81) else 400)
        return web.Response(body=result, headers=_headers(chosen))


def _default_format(request: web.Request) -> str:
    asked = request.headers.get("X-ClickHouse-Format") or request.query.get("default_format")
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
