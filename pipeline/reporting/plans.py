"""The reporter's plans: how every batch is written exactly once, whatever is killed when.

Before a batch's rows are inserted, its plan is: which offsets of every log it covers. A batch is a
pure function of its plan, and its inserts carry tokens made of the batch number, so

- a reporter that starts finds the last plan and writes that batch again: inserts that had
  happened are recognised by their rows, and by their tokens;
- two reporters (one was thought dead) cannot go different ways: plan n is inserted with the token
  `plan:n`, the first wins, the other reads back a foreign owner and stops; until then both write
  the same inserts of the same plan, which ClickHouse drops by their tokens. It forgets tokens: one
  that was cut off or frozen meanwhile asks for the last plan anew before it inserts.

All batches before the last plan are complete.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from pipeline.billing.chain import Chain
from pipeline.billing.journal import EMPTY_DIGEST
from pipeline.contract.vocabulary import CATALOG, JOURNAL
from pipeline.errors import UserError
from pipeline.reporting.clickhouse import Store

TABLE: Final = "reporting.reporter_batches"
_KEPT: Final = 1_000
"""Batches in one partition of the table; at least as many are kept."""
_SLEEPLESS: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""The clock that goes on while the machine sleeps; on macOS CLOCK_MONOTONIC does."""


class TakenOver(UserError):
    """Another reporter writes to the same ClickHouse: this one must stop."""


class SetBackError(UserError):
    """A log ends before what was reported of it. Starting again tells which, and what to do."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a reader of one journal partition stands: the next offset, and its `Chain`."""

    next_offset: int = 0
    last_offset: int = -1
    next_source_offsets: Mapping[str, int] = field(default_factory=dict)
    seq: int = 0
    digest: bytes = EMPTY_DIGEST
    skipped: int = 0

    @classmethod
    def of(cls, next_offset: int, chain: Chain) -> Position:
        """A copy of where the chain stands now."""
        return cls(
            next_offset=next_offset,
            last_offset=chain.last_offset,
            next_source_offsets=dict(chain.next_offsets),
            seq=chain.seq,
            digest=chain.digest,
            skipped=chain.skipped,
        )

    def chain(self, shard: int) -> Chain:
        """A chain that goes on from here."""
        return Chain(
            shard=shard,
            last_offset=self.last_offset,
            next_offsets=dict(self.next_source_offsets),
            seq=self.seq,
            digest=self.digest,
            skipped=self.skipped,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """One batch: it covers each log from the plan before it up to these positions."""

    batch: int
    journal: Mapping[int, Position]
    catalog_next: int = 0
    owner: str = ""
    """Who wrote it; empty until it is written."""

    def same_ends(self, other: Plan) -> bool:
        """Whether no record lies between the two plans."""
        return self.catalog_next == other.catalog_next and dict(self.journal) == dict(other.journal)

    def check_follows(self, last: Plan) -> None:
        """Raises `SetBackError` where a log would be read again from before the last plan's end."""
        back = [
            f"journal partition {number}"
            for number, at in last.journal.items()
            if self.journal[number].next_offset < at.next_offset
        ]
        if self.catalog_next < last.catalog_next:
            back.append("the catalog")
        if back:
            raise SetBackError(
                f"{' and '.join(back)} would be set back by batch {self.batch}, and reported "
                "twice: this is another log than was reported, or it has lost records"
            )


def origin(partitions: int) -> Plan:
    """The complete nothing before the first batch."""
    return Plan(batch=-1, journal={number: Position() for number in range(partitions)})


class PlanBook:
    """The plans in ClickHouse, as one reporter (`owner`) reads and writes them."""

    def __init__(self, store: Store, partitions: int, owner: str) -> None:
        self._store = store
        self._partitions = partitions
        self._owner = owner
        self._confirmed_s = float("-inf")

    def last_two(self) -> tuple[Plan, Plan | None]:
        """The last complete plan and, unless there is none, the last plan."""
        plans = read_plans(self._store, self._partitions)
        if not plans:
            return origin(self._partitions), None
        if len(plans) == 1:
            return origin(self._partitions), plans[0]
        return plans[0], plans[1]

    def write(self, plan: Plan) -> None:
        """Claim a batch. Raises `TakenOver` where another reporter has claimed it."""
        self._store.insert(TABLE, _rows(plan, self._owner), f"plan:{plan.batch}")
        self.confirm(plan)
        if plan.batch % _KEPT == 0 and plan.batch >= 2 * _KEPT:
            self._store.command(f"ALTER TABLE {TABLE} DROP PARTITION {plan.batch // _KEPT - 2}")

    def confirm(self, plan: Plan, *, within_s: float = 0.0) -> None:
        """Raises `TakenOver` unless this plan is still the last.

        Not asked again where it was confirmed within so many seconds.
        """
        now_s = _now_s()
        if now_s - self._confirmed_s < within_s:
            return
        found = self._store.rows(
            f"SELECT batch, any(owner) FROM {TABLE} WHERE batch >= {{batch:Int64}} "
            "GROUP BY batch ORDER BY batch DESC LIMIT 1",
            {"batch": plan.batch},
        )
        if found != [(plan.batch, plan.owner or self._owner)]:
            raise TakenOver(
                f"another reporter writes to ClickHouse at {self._store.name} "
                f"(batch {found[0][0] if found else plan.batch}): only one may run"
            )
        self._confirmed_s = now_s


def _now_s() -> float:
    return time.clock_gettime(_SLEEPLESS)


def read_plans(store: Store, partitions: int) -> list[Plan]:
    """The last two plans, the older first; fewer where there are not so many.

    A journal partition that a plan does not name yet stands at its beginning.
    """
    found = store.dicts(
        f"SELECT * FROM {TABLE} WHERE batch >= (SELECT max(batch) - 1 FROM {TABLE}) ORDER BY batch"
    )
    plans = []
    for batch in sorted({row["batch"] for row in found}):
        rows = [row for row in found if row["batch"] == batch]
        journal = {number: Position() for number in range(partitions)}
        catalog_next = 0
        for row in rows:
            if row["topic"] == CATALOG:
                catalog_next = row["next_offset"]
                continue
            journal[row["log_partition"]] = Position(
                next_offset=row["next_offset"],
                last_offset=row["last_offset"],
                next_source_offsets=dict(row["next_source_offsets"]),
                seq=row["shard_seq"],
                digest=bytes.fromhex(row["digest"]),
                skipped=row["skipped"],
            )
        plans.append(Plan(batch, journal, catalog_next, rows[0]["owner"]))
    return plans


def _rows(plan: Plan, owner: str) -> pa.Table:
    positions = [(JOURNAL, number, position) for number, position in sorted(plan.journal.items())]
    positions.append((CATALOG, 0, Position(next_offset=plan.catalog_next)))
    of = [position for _, _, position in positions]
    return pa.table(
        {
            "batch": pa.array([plan.batch] * len(of), pa.int64()),
            "topic": pa.array([topic for topic, _, _ in positions]),
            "log_partition": pa.array([number for _, number, _ in positions], pa.uint16()),
            "next_offset": pa.array([each.next_offset for each in of], pa.int64()),
            "last_offset": pa.array([each.last_offset for each in of], pa.int64()),
            "next_source_offsets": pa.array(
                [sorted(each.next_source_offsets.items()) for each in of],
                pa.map_(pa.string(), pa.int64()),
            ),
            "shard_seq": pa.array([each.seq for each in of], pa.int64()),
            "digest": pa.array([each.digest.hex() for each in of]),
            "skipped": pa.array([each.skipped for each in of], pa.int64()),
            "owner": pa.array([owner] * len(of)),
        }
    )
