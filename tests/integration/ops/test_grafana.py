"""Every Grafana query runs against the schema, and every metric that one names is exposed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import CLOSED_DAY, OPEN_DAY, Running, query
from .test_metrics import scrape

GRAFANA = Path(__file__).parents[3] / "deploy" / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
MACROS = {
    "$__fromTime": f"toDateTime('{CLOSED_DAY} 00:00:00', 'UTC') - 86400",
    "$__toTime": f"toDateTime('{OPEN_DAY} 23:59:59', 'UTC')",
    "${currency:singlequote}": "'USD'",
}
"""As Grafana's ClickHouse plugin fills them in."""


def targets(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            if panel["datasource"]["type"] == kind:
                for target in panel["targets"]:
                    yield f"{path.stem}: {panel['title']}", target


SQL = {name: target["rawSql"] for name, target in targets("grafana-clickhouse-datasource")}


@pytest.mark.parametrize("name", SQL)
def test_every_clickhouse_query_gives_rows_of_the_running_product(
    running: Running, name: str
) -> None:
    sql = SQL[name]
    for macro, text in MACROS.items():
        sql = sql.replace(macro, text)
    assert "$" not in sql, "a macro that this test does not know"
    assert query(running, sql), name


@pytest.mark.parametrize("name", SQL)
def test_dashboards_read_only_what_their_role_may(name: str) -> None:
    assert set(re.findall(r"\b(?:FROM|JOIN)\s+(\w+)\.", SQL[name])) == {"reporting"}


def test_every_prometheus_query_uses_metrics_that_exist(running: Running) -> None:
    exposed = {name for name, _ in (scrape(running.worker) | scrape(running.clickhouse))}
    found = list(targets("prometheus"))
    assert len(found) > 10
    for name, target in found:
        named = set(re.findall(r"\b(?:pins|process)_\w+\b", target["expr"]))
        assert named, name
        assert named <= exposed, f"{name}: {named - exposed}"


def test_dashboards_use_the_datasources_that_are_provisioned() -> None:
    provisioned = yaml.safe_load(
        (GRAFANA / "provisioning" / "datasources" / "datasources.yml").read_text()
    )["datasources"]
    known = {(one["uid"], one["type"]) for one in provisioned}
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        used = [panel["datasource"] for panel in dashboard["panels"]]
        used += [
            target["datasource"] for panel in dashboard["panels"] for target in panel["targets"]
        ]
        used += [variable["datasource"] for variable in dashboard["templating"]["list"]]
        assert {(one["uid"], one["type"]) for one in used} <= known


def test_variables_have_their_choices(running: Running) -> None:
    for path in DASHBOARDS:
        for variable in json.loads(path.read_text())["templating"]["list"]:
            choices = [row[0] for row in query(running, variable["query"])]
            assert variable["current"]["value"] in choices
