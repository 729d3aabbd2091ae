"""docs/contract.md lists every table and view, with the columns and types that the engine has."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.docs import DOCS, first_table, names, section

CONTRACT = DOCS / "contract.md"
# In a process of its own: a process has one embedded engine for its whole life.
_COLUMNS = """
import json, sys
from pipeline.reporting import schema
from pipeline.reporting.clickhouse import Store
store = Store(f"chdb://{sys.argv[1]}/clickhouse")
schema.apply(store)
print(json.dumps(store.rows(
    "SELECT database || '.' || table, name, type FROM system.columns "
    "WHERE database IN ('billing', 'reporting') ORDER BY database, table, position"
)))
"""


@pytest.fixture(scope="module")
def engine_columns(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Table -> column -> type, as the engine says after the schema was applied."""
    directory = tmp_path_factory.mktemp("tables")
    done = subprocess.run(
        [sys.executable, "-c", _COLUMNS, str(directory)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    tables: dict[str, dict[str, str]] = {}
    for table, column, kind in json.loads(done.stdout):
        plain = re.sub(r"LowCardinality\((\w+)\)", r"\1", kind)
        tables.setdefault(table, {})[column] = plain
    return tables


def _documented_tables() -> list[str]:
    return re.findall(r"^### (\w+\.\w+)$", CONTRACT.read_text(encoding="utf-8"), re.M)


def test_every_table_is_documented_or_the_reporters_own(
    engine_columns: dict[str, dict[str, str]],
) -> None:
    own = section(CONTRACT, "reporting.changes").partition("Tables that the reporter keeps")[2]
    inner = re.findall(r"`(reporting\.\w+)`", own)
    assert sorted([*_documented_tables(), *inner]) == sorted(engine_columns)


@pytest.mark.parametrize("table", _documented_tables())
def test_the_documented_columns_are_the_engines(
    table: str, engine_columns: dict[str, dict[str, str]]
) -> None:
    found = engine_columns[table]
    documented: dict[str, str] = {}
    for row in first_table(section(CONTRACT, table)):
        columns = names(row[0])
        kinds = re.split(r", (?![^(]*\))", row[1])
        if row[1].startswith("as "):  # as in a table above, or as the signal
            kinds = [found.get(column, "") for column in columns]
        each = kinds * len(columns) if len(kinds) == 1 else kinds
        documented |= dict(zip(columns, each, strict=True))
    assert documented == found
