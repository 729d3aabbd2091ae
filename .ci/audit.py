"""pip-audit over a lock file, told apart: vulnerable, clean, or nobody to ask.

pip-audit by itself ends with 1 both for a vulnerability and for a service that it cannot reach; and
with 0, "no known vulnerabilities", where a mirror answers that has packages and no advisories.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

FOUND, NOT_AUDITED = 1, 3
UNREACHABLE = ("ConnectionError", "Could not connect", "Max retries exceeded", "timed out")


def judge(dependencies: list[dict[str, Any]]) -> tuple[int, str]:
    """Exit code and words for what pip-audit says of each package."""
    audited = [one for one in dependencies if "vulns" in one]
    vulnerable = [
        f"{one['name']} {one['version']}: {vuln['id']}, fixed in "
        f"{', '.join(vuln['fix_versions']) or 'no version yet'}"
        for one in audited
        for vuln in one["vulns"]
    ]
    if vulnerable:
        return FOUND, "vulnerable:\n" + "\n".join(vulnerable)
    if not audited:
        return NOT_AUDITED, "no package is known to the vulnerability service that answers here"
    skipped = [f"{one['name']}: {one['skip_reason']}" for one in dependencies if "vulns" not in one]
    if skipped:
        return FOUND, "not known to the vulnerability service:\n" + "\n".join(skipped)
    return 0, f"{len(audited)} packages, no known vulnerability"


def audit(command: str, lock: Path) -> tuple[int, str]:
    """Run pip-audit; exit code and words."""
    given = ["--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    done = subprocess.run(
        [command, *given, "--requirement", str(lock)], capture_output=True, text=True, check=False
    )
    try:
        return judge(json.loads(done.stdout)["dependencies"])
    except (ValueError, KeyError):
        said = done.stderr.strip()
        if any(word in said for word in UNREACHABLE):
            return NOT_AUDITED, "no vulnerability service can be reached from here"
        return done.returncode or FOUND, f"pip-audit failed:\n{said}"


def main() -> int:
    """The exit code: 0 clean, 1 vulnerable (or pip-audit's own), 3 nobody to ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", help="pip-audit's path")
    parser.add_argument("lock", type=Path)
    parser.add_argument(
        "--where-reachable", action="store_true", help="0 where there is nobody to ask"
    )
    given = parser.parse_args()
    code, says = audit(given.command, given.lock)
    print(f"audit of {given.lock}: {says}", file=sys.stderr)
    if code == NOT_AUDITED:
        print("NOTHING WAS AUDITED", file=sys.stderr)
        return 0 if given.where_reachable else code
    return code


if __name__ == "__main__":
    sys.exit(main())
