"""The table of docs/reliability.md, from what a run came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: written by the run -->", "<!-- faults end -->"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one scenario."""

    name: str
    faults: int
    events: int
    """Judged since the look before; the scenarios of a step share them, and the differences."""
    seconds: float
    differences: list[str] = field(default_factory=list)


def table(results: Sequence[Result]) -> str:
    """A row a scenario: faults, the events judged meanwhile, differences from the auditor."""
    lines = ["| scenario | faults | events | differences |", "|---|---|---|---|"]
    for result in results:
        found = len(result.differences)
        shown = f"**{found}**" if found else "0"
        lines.append(f"| {result.name} | {result.faults} | {result.events} | {shown} |")
    faults = sum(result.faults for result in results)
    lines.append(f"| all | {faults} | {max((r.events for r in results), default=0)} | |")
    return "\n".join(lines)


def write(results: Sequence[Result], page: Path = PAGE) -> None:
    """Put the table in its place on the page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}")
