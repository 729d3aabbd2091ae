"""Every alert has a runbook and a case, and only uses metrics that a running product exposes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import Running
from .test_metrics import scrape

ROOT = Path(__file__).parents[3]
PROMETHEUS = ROOT / "deploy" / "prometheus"
FROM_PROMETHEUS = {"up"}
"""Made by Prometheus itself for every target."""


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_alert_has_a_runbook_paragraph() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    paragraphs = dict(re.findall(r"^### (\w+)\n+((?:(?!#).+\n?)+)", text, re.MULTILINE))
    for alert in alerts():
        name = alert["alert"]
        assert len(paragraphs.get(name, "")) > 150, f"docs/operations.md says nothing of {name}"
        assert alert["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
        assert alert["labels"]["severity"] in ("page", "ticket")
    assert {name for name in paragraphs if name in text} >= {alert["alert"] for alert in alerts()}


def test_every_alert_uses_metrics_that_exist(running: Running) -> None:
    exposed = {name for name, _ in (scrape(running.worker) | scrape(running.clickhouse))}
    for alert in alerts():
        named = set(re.findall(r"\b(?:pins|process)_\w+\b", alert["expr"])) | set(
            re.findall(r"\bup\b", alert["expr"])
        )
        assert named, alert["alert"]
        assert named <= exposed | FROM_PROMETHEUS, f"{alert['alert']}: {named - exposed}"


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    cases = yaml.safe_load((PROMETHEUS / "alerts.test.yml").read_text())["tests"]
    quiet = {test["alertname"] for case in cases for test in case.get("alert_rule_test", [])}
    firing = {
        re.search(r'alertname="(\w+)"', test["expr"])[1]  # type: ignore[index]
        for case in cases
        for test in case.get("promql_expr_test", [])
    }
    names = {alert["alert"] for alert in alerts()}
    assert quiet == names
    assert firing == names


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts.test.yml"),
        ("check", "config", "--syntax-only", "prometheus.yml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool: the alert rules are not evaluated (apt-get install prometheus)")
    done = subprocess.run(
        [promtool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
