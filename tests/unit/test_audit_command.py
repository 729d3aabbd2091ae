"""CI tells a vulnerability from a vulnerability service that is not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "audit.py"
CLEAN = {"name": "good", "version": "1.0", "vulns": []}
VULNERABLE = {"name": "bad", "version": "1.0", "vulns": [{"id": "X-1", "fix_versions": ["1.1"]}]}
UNKNOWN = {"name": "odd", "skip_reason": "Dependency not found on PyPI"}
AWAY = "requests.exceptions.ConnectionError: Max retries exceeded with url: /v1/query"


def audited(tmp_path: Path, dependencies: Any, error: str = "", *flags: str) -> tuple[int, str]:
    """The script over a command that says what pip-audit would."""
    command = tmp_path / "pip-audit"
    answer = "" if dependencies is None else json.dumps({"dependencies": dependencies})
    command.write_text(
        f"#!{sys.executable}\nimport sys\nprint({answer!r})\n"
        f"print({error!r}, file=sys.stderr)\nsys.exit({int(bool(error))})\n"
    )
    command.chmod(0o755)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(command), "some.lock", *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("dependencies", "error", "code", "says"),
    [
        ([CLEAN], "", 0, "1 packages, no known vulnerability"),
        ([CLEAN, VULNERABLE, UNKNOWN], "", 1, "bad 1.0: X-1, fixed in 1.1"),
        ([CLEAN, UNKNOWN], "", 1, "odd: Dependency not found"),
        ([UNKNOWN, UNKNOWN], "", 3, "NOTHING WAS AUDITED"),
        (None, AWAY, 3, "NOTHING WAS AUDITED"),
        (None, "the lock file has no hashes", 1, "has no hashes"),
    ],
)
def test_what_was_found_is_told_apart(
    tmp_path: Path, dependencies: Any, error: str, code: int, says: str
) -> None:
    found, said = audited(tmp_path, dependencies, error)
    assert (found, says in said) == (code, True), said


def test_only_where_there_is_nobody_to_ask_ci_goes_on(tmp_path: Path) -> None:
    assert audited(tmp_path, None, AWAY, "--where-reachable")[0] == 0
    assert audited(tmp_path, [UNKNOWN], "", "--where-reachable")[0] == 0
    assert audited(tmp_path, [VULNERABLE], "", "--where-reachable")[0] == 1
    assert audited(tmp_path, None, "no hashes", "--where-reachable")[0] == 1
