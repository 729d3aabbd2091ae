"""Repetitions in the catalog: what keeps a refused record from outliving the valid one before it.

The topic is compacted: of a key it keeps the last record for certain, valid or not. So after a
refusal the product publishes the key's last valid record once more, and says in a header what it
repeats. Whoever reads the whole log passes it over; whoever begins where the log was compacted, and
could not tell the refused record from a valid one, is put right by it. `Catalog` has the rules.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

HEADER = "pipeline-repeats"


@dataclass(frozen=True, slots=True)
class Repeated:
    """What a repetition says of itself."""

    offset: int
    """Of the record that it repeats: the last of its key that was taken over."""
    read_to: int
    """All records before this offset had been judged when it was made."""

    @property
    def headers(self) -> tuple[tuple[str, bytes], ...]:
        """Of the repetition's record."""
        return ((HEADER, f"{self.offset} {self.read_to}".encode()),)


def repeated_by(headers: Iterable[tuple[str, bytes]]) -> Repeated | None:
    """What a record with these headers repeats; None where it is an ordinary one."""
    for name, said in headers:
        if name == HEADER:
            numbers = said.split()
            if len(numbers) == 2 and all(number.isdigit() for number in numbers):
                return Repeated(*map(int, numbers))
    return None
