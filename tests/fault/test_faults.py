"""Every scenario under one load: the books are the auditor's after each, whatever was done to them.

The short form (part of `make test-faults`) runs each scenario at least once, 40 faults and more;
`make test-long` runs over 300 and writes the table of docs/reliability.md.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fault.report import PAGE, Result, table, write
from tests.fault.run import run
from tests.fault.scenarios import SCENARIOS

LEAST_FAULTS, LEAST_SCENARIOS = 300, 20


def check(results: list[Result]) -> None:
    differences = {result.name: result.differences for result in results if result.differences}
    assert differences == {}
    assert {scenario.name for scenario in SCENARIOS} <= {result.name for result in results}


@pytest.mark.faults
@pytest.mark.timeout(1_200)
def test_a_few_faults_of_each_scenario(tmp_path: Path) -> None:
    results = run(tmp_path)
    check(results)
    assert sum(result.faults for result in results) >= 40
    assert results[-1].events > 5_000


@pytest.mark.long
@pytest.mark.timeout(7_200)
def test_hundreds_of_faults(tmp_path: Path) -> None:
    results = run(tmp_path, long=True)
    check(results)
    # Without the kills that injections needed on the way.
    injected = {scenario.name for scenario in SCENARIOS}
    assert sum(result.faults for result in results if result.name in injected) >= LEAST_FAULTS
    write(results)


def test_the_page_names_every_scenario() -> None:
    """The table is written by the long form: it may be older than the code, not other."""
    page = PAGE.read_text()
    rows = re.findall(r"^\| ([^|]+?) \| (\d+) \|", page, re.MULTILINE)
    assert {scenario.name for scenario in SCENARIOS} <= {name for name, _ in rows}
    assert len(rows) >= LEAST_SCENARIOS


def test_the_table_shows_differences() -> None:
    bad = Result("broker killed", 3, 100, 1.0, ["a row too many"])
    assert "| broker killed | 3 | 100 | **1** |" in table([bad])
