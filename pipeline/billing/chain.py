"""The continuity rule: which journal records count.

A record counts only if its `previous` is the journal offset of the last record that counted and
its source ranges start where the last ones ended. Two owners of one shard (a zombie after a
rebalance) may both append; the first append counts, and every reader skips the other by this rule.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.billing.journal import EMPTY_DIGEST, Header, digest_holds


class BrokenChainError(Exception):
    """The journal contradicts itself: a record that should count does not fit. Never retried."""


@dataclass(slots=True)
class Chain:
    """Where a reader of one shard's journal stands. Mutated by `admit` and `extend` alone."""

    shard: int
    last_offset: int = -1
    """Journal offset of the last record that counted; -1 before the first."""
    next_offsets: dict[str, int] = field(default_factory=dict)
    """Per event topic: the source offset that the next record must start with."""
    seq: int = 0
    digest: bytes = EMPTY_DIGEST
    skipped: int = 0
    """Records of losing owners seen so far."""

    def admit(self, offset: int, header: Header, value: bytes) -> bool:
        """Whether the record at this journal offset counts; moves on if so. `value`: all its bytes.

        Raises `BrokenChainError` where the record follows the last one that counted but its
        digest, shard, sequence or source ranges do not.
        """
        if not self.is_next(header):
            self.skipped += 1
            return False
        self._check(offset, header, value)
        self.extend(offset, header)
        return True

    def is_next(self, header: Header) -> bool:
        """Whether a record claims to follow the last one that counted: if not, it lost."""
        return header.previous == self.last_offset

    def extend(self, offset: int, header: Header) -> None:
        """Move on by a record that is known to count."""
        for topic, (_, end) in header.sources.items():
            self.next_offsets[topic] = end
        self.last_offset = offset
        self.seq += header.events
        self.digest = header.digest

    def _check(self, offset: int, header: Header, value: bytes) -> None:
        where = f"journal partition {self.shard} offset {offset}"
        if header.shard != self.shard:
            raise BrokenChainError(f"{where}: written for shard {header.shard}")
        if header.seq != self.seq:
            raise BrokenChainError(f"{where}: starts at event {header.seq}, expected {self.seq}")
        for topic, (start, end) in header.sources.items():
            expected = self.next_offsets.get(topic, start)
            if start != expected or end < start:
                raise BrokenChainError(
                    f"{where}: takes {topic} from {start} to {end}, expected to start at {expected}"
                )
        if not digest_holds(header, value, self.digest):
            raise BrokenChainError(f"{where}: its digest does not follow from the record before it")
