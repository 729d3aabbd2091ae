"""Creating and migrating the tables: `sql/NNNN_name.sql`, applied in order, each once.

A migration is never edited after a release; a change is a new file. Statements are idempotent, so
a migration that was cut off in the middle is simply applied again.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import Final

from pipeline.errors import UserError
from pipeline.reporting.clickhouse import Store, StoreError

UNKNOWN_TABLE: Final = 60
UNKNOWN_DATABASE: Final = 81
DEDUPLICATION_WINDOW: Final = 10_000
"""Inserts that a table remembers for each partition: far more than a restart can repeat. Not more
than others can make while a reporter is cut off, which therefore does not go by tokens alone."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How tables are laid out on a cluster; the default is a single server."""

    replicated: bool = False
    """ReplicatedMergeTree at the server's default path, in place of MergeTree."""
    cluster: str = ""
    """Create everything ON this CLUSTER."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `sql/`; `version` is its number."""

    version: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def statements(self, layout: Layout) -> list[str]:
        """The file's statements with its placeholders filled."""
        filled = Template(_without_comments(self.text)).substitute(_placeholders(layout))
        return [part.strip() for part in re.split(r";\s*(?:\n|$)", filled) if part.strip()]


class SchemaError(UserError):
    """The tables are not those of this version."""


def migrations() -> list[Migration]:
    """All migrations in the order of their numbers."""
    found = []
    for file in resources.files("pipeline.reporting").joinpath("sql").iterdir():
        match = re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name)
        if match:
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return sorted(found, key=lambda migration: migration.version)


def apply(store: Store, layout: Layout | None = None) -> list[str]:
    """Bring the tables to this version. Returns the names of the migrations applied now.

    Raises `SchemaError` where the database is of a later version, or a migration that was applied
    is not the one of this version.
    """
    layout = layout or Layout()
    done = _applied(store)
    known = migrations()
    _check(done, known)
    applied = []
    for migration in known:
        if migration.version in done:
            continue
        for statement in migration.statements(layout):
            store.command(statement)
        _record(store, migration, layout)
        applied.append(f"{migration.version:04d}_{migration.name}")
    return applied


def check(store: Store) -> None:
    """Raises `SchemaError` where migrations are missing; says what to do."""
    done = _applied(store)
    known = migrations()
    _check(done, known)
    missing = [migration.name for migration in known if migration.version not in done]
    if missing:
        raise SchemaError(
            f"ClickHouse at {store.name} lacks {', '.join(missing)}: run `pipeline schema`"
        )


def _check(done: dict[int, str], known: list[Migration]) -> None:
    by_version = {migration.version: migration for migration in known}
    for version, checksum in done.items():
        if version not in by_version:
            raise SchemaError(
                f"the database has migration {version}, which this version does not know: "
                "run the version that applied it, or a later one"
            )
        if checksum != by_version[version].checksum:
            raise SchemaError(
                f"migration {version} ({by_version[version].name}) was applied with other "
                "statements than this version has"
            )


def _applied(store: Store) -> dict[int, str]:
    try:
        rows = store.rows("SELECT version, checksum FROM reporting.schema_migrations")
    except StoreError as error:
        if error.code in (UNKNOWN_TABLE, UNKNOWN_DATABASE):
            return {}
        raise
    return {int(version): str(checksum) for version, checksum in rows}


def _record(store: Store, migration: Migration, layout: Layout) -> None:
    on_cluster = _placeholders(layout)["on_cluster"]
    store.command(f"CREATE DATABASE IF NOT EXISTS reporting {on_cluster}")
    store.command(
        f"CREATE TABLE IF NOT EXISTS reporting.schema_migrations {on_cluster} "
        "(version UInt32, name String, checksum String, applied_at DateTime DEFAULT now()) "
        f"ENGINE = {_placeholders(layout)['merge_tree']} ORDER BY version"
    )
    store.command(
        "INSERT INTO reporting.schema_migrations (version, name, checksum) VALUES "
        f"({migration.version}, '{migration.name}', '{migration.checksum}')"
    )


def _placeholders(layout: Layout) -> dict[str, str]:
    prefix = "replicated" if layout.replicated else "non_replicated"
    exactly_once = f"{prefix}_deduplication_window = {DEDUPLICATION_WINDOW}"
    if layout.replicated:
        exactly_once += ", replicated_deduplication_window_seconds = 604800"
    return {
        "merge_tree": "ReplicatedMergeTree" if layout.replicated else "MergeTree",
        # The rows must be on disk before the reporter's plan says that they are.
        "exactly_once": f"{exactly_once}, fsync_after_insert = 1, fsync_part_directory = 1",
        "on_cluster": f"ON CLUSTER '{layout.cluster}'" if layout.cluster else "",
    }


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("--"))
