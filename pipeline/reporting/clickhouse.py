"""The connection to ClickHouse: a real server or the embedded engine, by one DSN.

Errors come in two kinds: `StoreUnavailable` may go away by itself and is worth another try,
every other `StoreError` is not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect import common
from clickhouse_connect.driver.exceptions import (
    ClickHouseError,
    InterfaceError,
    OperationalError,
)

from pipeline import failpoints
from pipeline.errors import UserError

if TYPE_CHECKING:  # most commands read a few rows, and start without it
    import pyarrow as pa

log = logging.getLogger(__name__)

T = TypeVar("T")

BLOCK_ROWS: Final = 10_000_000
"""No insert has more rows than this, so that the engine never splits one into two blocks."""

LIST_BYTES: Final = 64 * 1024
"""Of a list that is bound as one parameter. ClickHouse takes 128 KiB, quotes and escapes included
(`http_max_field_value_size`), and refuses more for good."""
_AROUND_BYTES: Final = 3
"""The quotes and the comma of a text in a list."""

_WRITE_SETTINGS: Final = {
    # One insert is one block is one part, visible at once or not at all.
    "async_insert": 0,
    "insert_deduplicate": 1,
    "max_insert_block_size": BLOCK_ROWS,
    "min_insert_block_size_rows": BLOCK_ROWS,
    "min_insert_block_size_bytes": 0,
}

_PASSING_CODES: Final = frozenset(
    {
        3,  # UNEXPECTED_END_OF_FILE
        159,  # TIMEOUT_EXCEEDED
        164,  # READONLY: a server in maintenance
        202,  # TOO_MANY_SIMULTANEOUS_QUERIES
        203,  # NO_FREE_CONNECTION
        209,  # SOCKET_TIMEOUT
        210,  # NETWORK_ERROR
        225,  # NO_ZOOKEEPER
        236,  # ABORTED
        241,  # MEMORY_LIMIT_EXCEEDED
        242,  # TABLE_IS_READ_ONLY
        243,  # NOT_ENOUGH_SPACE
        252,  # TOO_MANY_PARTS
        285,  # TOO_FEW_LIVE_REPLICAS
        286,  # UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE
        289,  # REPLICA_IS_NOT_IN_QUORUM
        319,  # UNKNOWN_STATUS_OF_INSERT
        425,  # SYSTEM_ERROR
        439,  # CANNOT_SCHEDULE_TASK
        745,  # SERVER_OVERLOADED
        999,  # KEEPER_EXCEPTION
    }
)


class StoreError(UserError):
    """ClickHouse refused or failed. `code` is its error code, 0 where it gave none."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class StoreUnavailable(StoreError):
    """ClickHouse cannot be reached or is overloaded: another try may succeed."""


class Store:
    """A ClickHouse to read from and write to. Calls block; one object may be used by threads.

    Over HTTP calls run in parallel; the embedded engine runs one call of a `Store` at a time.
    """

    def __init__(self, dsn: str, *, timeout_s: int = 300) -> None:
        """Connect. Raises `StoreUnavailable` where nobody answers, `StoreError` else."""
        self.dsn = dsn
        self.name = _public_name(dsn)
        self.embedded = dsn.startswith("chdb:")
        # Sessions would make the server refuse parallel queries of one client.
        common.set_setting("autogenerate_session_id", False)
        options: dict[str, Any] = {} if self.embedded else {"send_receive_timeout": timeout_s}
        if dsn.startswith("https:"):
            # The driver goes by the port, not by the scheme: to any but 443 and 8443 it would send
            # the password in clear.
            options["interface"] = "https"
        self._client = self._call(
            lambda: clickhouse_connect.get_client(dsn=_driver_dsn(dsn), **options)
        )
        if self.embedded:
            self._shut_out_files()

    def command(self, sql: str) -> None:
        """Run a statement that returns no rows."""
        self._call(lambda: self._client.command(sql))

    def rows(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> list[tuple[Any, ...]]:
        """The rows of a query, for small results. Parameters are bound as `{name:Type}`."""
        result = self._call(
            lambda: self._client.query(
                sql, parameters=dict(parameters or {}), settings=dict(settings or {})
            )
        )
        return [tuple(row) for row in result.result_rows]

    def dicts(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """The rows of a query as dicts, for small results."""
        result = self._call(
            lambda: self._client.query(
                sql, parameters=dict(parameters or {}), settings=dict(settings or {})
            )
        )
        return list(result.named_results())

    def arrow(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> pa.Table:
        """The result of a query as an Arrow table."""
        return self._call(
            lambda: self._client.query_arrow(
                sql, parameters=dict(parameters or {}), settings=dict(settings or {})
            )
        )

    def insert(self, table: str, rows: pa.Table, token: str) -> None:
        """Insert rows of one partition atomically; a repeated token inserts nothing."""
        if rows.num_rows > BLOCK_ROWS:
            raise StoreError(f"an insert of {rows.num_rows} rows into {table} is not atomic")
        settings = {**_WRITE_SETTINGS, "insert_deduplication_token": token}

        def call() -> None:
            failpoints.reach("insert_sent")
            self._client.insert_arrow(table, rows.combine_chunks(), settings=settings)
            failpoints.reach("insert_acknowledged")

        self._call(call)

    def insert_select(
        self, sql: str, parameters: Mapping[str, Any], token: str, settings: Mapping[str, Any]
    ) -> None:
        """Run an INSERT ... SELECT whose rows are of one partition, atomically, once a token."""
        together = {**_WRITE_SETTINGS, **settings, "insert_deduplication_token": token}
        self._call(
            lambda: self._client.command(sql, parameters=dict(parameters), settings=together)
        )

    def raw(self, sql: str, form: str, bound: Mapping[str, str]) -> bytes:
        """The result of a query in a ClickHouse format, for the read-only HTTP interface.

        `bound` holds `param_NAME` -> value as ClickHouse's HTTP interface takes them (escaped
        text), which is why the client's own binding, which would escape them again, is passed by.
        """

        def call() -> bytes:
            client: Any = self._client
            query, _, runtime = client._prep_raw_query_runtime(sql, None, None, form, True)
            return bytes(client._backend.execute_raw_query(query, dict(bound), None, runtime, None))

        return self._call(call)

    def close(self) -> None:
        """Give the connection back; the embedded engine stops with the last one."""
        self._client.close()

    def _shut_out_files(self) -> None:
        """Make tables of tables only, for as long as the engine runs.

        The embedded engine's own default database lies over the file system: a table that is not
        there is read from the file of that name (`SELECT * FROM '/etc/passwd'`).
        """
        engines = self.rows("SELECT engine FROM system.databases WHERE name = 'default'")
        if engines != [("Memory",)]:
            self.command("DROP DATABASE IF EXISTS default")
            self.command("CREATE DATABASE IF NOT EXISTS default ENGINE = Memory")

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except ClickHouseError as error:
            raise _translated(error, self.name) from error
        except OSError as error:
            raise StoreUnavailable(f"ClickHouse at {self.name}: {error}") from error


def in_pieces(texts: Sequence[str], at_most: int) -> Iterator[list[str]]:
    """Cut the texts that a query is to name, in their order: a piece has at most so many of them,
    and LIST_BYTES."""
    piece: list[str] = []
    held_bytes = 0
    for text in texts:
        size = len(text.encode()) + _AROUND_BYTES
        if piece and (len(piece) >= at_most or held_bytes + size > LIST_BYTES):
            yield piece
            piece, held_bytes = [], 0
        piece.append(text)
        held_bytes += size
    if piece:
        yield piece


def text_list(texts: Iterable[str]) -> str:
    """Texts as a list literal of SQL, for lists too long to be bound: those travel in the URL."""
    quoted = (text.replace("\\", "\\\\").replace("'", "\\'") for text in texts)
    return "(" + ", ".join(f"'{text}'" for text in quoted) + ")"


async def insistently(
    call: Callable[[], T], noted: Callable[[str], None], *, longest_pause_s: float = 10.0
) -> T:
    """Run a blocking call in a thread, again and again while ClickHouse is unavailable.

    `noted` is told each failure in words, and the empty string once all is well again. Every
    other error is raised.
    """
    pause_s = 0.1
    while True:
        try:
            result = await asyncio.to_thread(call)
        except StoreUnavailable as error:
            noted(str(error))
            log.warning("%s; trying again in %.1f s", error, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, longest_pause_s)
        else:
            noted("")
            return result


def _translated(error: ClickHouseError, name: str) -> StoreError:
    code = int(getattr(error, "code", None) or 0)
    message = f"ClickHouse at {name}: {error}"
    unreachable = isinstance(error, OperationalError | InterfaceError) and code == 0
    if unreachable or code in _PASSING_CODES:
        return StoreUnavailable(message, code)
    return StoreError(message, code)


def _driver_dsn(dsn: str) -> str:
    if not dsn.startswith("chdb:"):
        return dsn
    path = urlsplit(dsn).path
    if not path.strip("/"):
        raise StoreError(f"{dsn!r} names no directory: expected chdb:///path")
    return "chdb:////" + path.lstrip("/")


def _public_name(dsn: str) -> str:
    """The DSN without user and password, for messages."""
    parts = urlsplit(dsn)
    if parts.scheme == "chdb":
        return f"chdb://{parts.path}"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StoreError(
            "a ClickHouse DSN is http://user:password@host:8123/, https://... or chdb:///path"
        )
    port = parts.port or (8443 if parts.scheme == "https" else 8123)
    return f"{parts.scheme}://{parts.hostname}:{port}"
