"""What was read of the logs and is not written yet: admitted, decoded, counted.

Every partition of the journal has a `Chain`; records that do not count are passed over. A partition
whose journal contradicts itself is stopped where it does, with the reason, and the others go on.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.billing.chain import BrokenChainError, Chain
from pipeline.billing.journal import Header, JournalError, decode_events, decode_header
from pipeline.contract.log import LogRecord
from pipeline.reporting.plans import Plan, Position
from pipeline.reporting.rows import CountedRecord

log = logging.getLogger(__name__)

StartAt = Callable[[LogRecord, Header], Chain | None]
"""Where records before this one are lost: the chain to go on with from it, if it is a checkpoint
that says enough, else None."""

_ANOTHER_JOURNAL: Final = (
    "this is another journal, or it has lost records. Connect to the Kafka that the tables were "
    "written from, or restore the partition"
)


class RetentionError(Exception):
    """Journal records that this reader has not seen are gone."""


@dataclass(frozen=True, slots=True)
class _Taken:
    partition: int
    after: Position
    record: CountedRecord | None


@dataclass(frozen=True, slots=True)
class Cut:
    """The records of one batch, in the order they were read, and where they end."""

    plan: Plan
    records: list[CountedRecord]


class Intake:
    """Takes journal records in, and gives them out in batches."""

    def __init__(self, begin: Plan, start_at: StartAt | None = None) -> None:
        """Goes on where the plan `begin` ends."""
        self._end = begin
        self._chains = {number: at.chain(number) for number, at in begin.journal.items()}
        self._next = {number: at.next_offset for number, at in begin.journal.items()}
        self._start_at = start_at
        self._pending: deque[_Taken] = deque()
        self.events = 0
        """Events taken in and not cut yet."""
        self.records = 0
        self.catalog_end = 0
        """The catalog was used up to, not including, this offset by what was taken in."""
        self.stopped: dict[int, str] = {}
        """Partition -> why it goes no further."""

    @property
    def next_offsets(self) -> dict[int, int]:
        """Partition -> offset after the last record taken in."""
        return dict(self._next)

    @property
    def is_empty(self) -> bool:
        return not self._pending

    def take(self, records: Iterable[LogRecord]) -> None:
        """Take records in. Those of stopped or unknown partitions are ignored."""
        for record in records:
            if record.partition in self.stopped or record.partition not in self._chains:
                continue
            if record.offset < self._next[record.partition]:
                continue
            try:
                self._admit(record)
            except (BrokenChainError, JournalError, RetentionError) as error:
                self.stop(record.partition, str(error))

    def stop(self, partition: int, reason: str) -> None:
        """Go no further in a partition."""
        log.error("journal partition %d is not reported any further: %s", partition, reason)
        self.stopped[partition] = reason

    def cut(self, batch: int, most_events: int, catalog_next: int) -> Cut:
        """Give out the oldest records, up to about this many events, as a batch."""
        ends = dict(self._end.journal)
        records = []
        events = 0
        while self._pending and events < most_events:
            taken = self._pending.popleft()
            ends[taken.partition] = taken.after
            if taken.record is not None:
                records.append(taken.record)
                events += taken.record.header.events
        self.events -= events
        self.records -= len(records)
        self._end = Plan(batch, ends, catalog_next)
        return Cut(self._end, records)

    def resume_at(self, plan: Plan) -> None:
        """Go on behind a batch that was cut out again, from where its plan ends.

        A partition whose journal does not lead there is stopped, and counts as being there all the
        same: a later plan that set it back would have its records written once more, as soon as
        the journal has them again.
        """
        for partition, at in plan.journal.items():
            if partition not in self.stopped and self._end.journal.get(partition) != at:
                self.stop(
                    partition,
                    f"journal partition {partition} does not lead to what was reported up to "
                    f"offset {at.next_offset} in batch {plan.batch}: {_ANOTHER_JOURNAL}",
                )
        self._end = plan

    def _admit(self, record: LogRecord) -> None:
        partition, offset = record.partition, record.offset
        if record.value is None:
            raise JournalError(f"journal partition {partition} offset {offset} has no value")
        try:
            header, body = decode_header(record.value)
            if header.previous > self._chains[partition].last_offset:
                # Only records that count are ever named: this one was not among those read.
                self._start_behind_gap(record, header)
            chain = self._chains[partition]
            counted = None
            if chain.admit(offset, header, record.value):
                counted = CountedRecord(partition, offset, header, decode_events(header, body))
                counted.check()
        except JournalError as error:
            raise JournalError(f"journal partition {partition} offset {offset}: {error}") from error
        self._next[partition] = offset + 1
        after = Position.of(offset + 1, self._chains[partition])
        self._pending.append(_Taken(partition, after, counted))
        if counted is not None:
            self.events += header.events
            self.records += 1
            self.catalog_end = max(self.catalog_end, header.catalog_end)

    def _start_behind_gap(self, record: LogRecord, header: Header) -> None:
        """Retention has deleted the record before this one: begin anew at it, if it allows."""
        chain = self._start_at(record, header) if self._start_at else None
        if chain is None:
            reported = self._chains[record.partition].last_offset + 1
            raise RetentionError(
                f"the journal goes on at offset {record.offset} behind record {header.previous}, "
                f"which was deleted before it was reported (reported up to {reported}): the "
                "retention of the journal is shorter than the reporter's absence"
            )
        self._chains[record.partition] = chain


def ahead_of_journal(plan: Plan, ends: Mapping[int, int]) -> dict[int, str]:
    """Partitions whose journal cannot be the one that the plan was made of -> what to do."""
    ahead = {}
    for number, position in plan.journal.items():
        if number not in ends:
            ahead[number] = f"the journal has no partition {number}: run `pipeline topics`"
        elif position.next_offset > ends[number]:
            ahead[number] = (
                f"journal partition {number} ends at offset {ends[number]}, but was reported up to "
                f"{position.next_offset}: {_ANOTHER_JOURNAL}"
            )
    return ahead


def not_after(records: Sequence[LogRecord], plan: Plan) -> list[LogRecord]:
    """The records that a plan covers."""
    return [
        record
        for record in records
        if record.partition in plan.journal
        and record.offset < plan.journal[record.partition].next_offset
    ]
