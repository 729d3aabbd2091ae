"""Reading the project's documents, for tests that hold them against the code."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

_CODE = re.compile(r"`([^`]*)`")


def section(path: Path, heading: str) -> str:
    """The text under a heading of any depth, up to the next heading."""
    match = re.search(
        rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", path.read_text(encoding="utf-8"), re.M | re.S
    )
    assert match is not None, f"{path.name} has no heading {heading!r}"
    return match.group(1)


def first_table(text: str) -> list[list[str]]:
    """The cells of a text's first table, without its head."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = takewhile(lambda line: line.startswith("|"), lines[first + 2 :])
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in rows]


def names(cell: str) -> list[str]:
    """The names in a cell: what stands in code marks, else what commas separate."""
    return _CODE.findall(cell) or [name.strip() for name in cell.split(",")]


def documents() -> list[Path]:
    """All documents of the project."""
    return sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
