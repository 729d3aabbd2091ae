"""Checking the identities that always hold, at zero tolerance.

Each check is a query that returns only what differs, so its memory does not grow with the history
beyond what the engine's own aggregation needs; `day` narrows those that are about days.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any, Final

from pipeline.reporting.clickhouse import Store
from pipeline.reporting.digest import day_digests
from pipeline.reporting.rows import OWN_DAY

MAX_ROWS: Final = 10
_OWN: Final = "(" + ", ".join(f"'{name}'" for name in OWN_DAY) + ")"

Ends = Mapping[tuple[str, int], tuple[int, int]]
"""(topic, partition) -> its first and its end offset, as Kafka says."""


@dataclass(frozen=True, slots=True)
class Check:
    """One identity and whether it held."""

    name: str
    says: str
    ok: bool
    differing: list[dict[str, Any]] = field(default_factory=list)
    """The first rows that differ, at most MAX_ROWS."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of a run."""

    checks: list[Check]
    events: int

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ok": self.ok, "events": self.events, "checks": [asdict(c) for c in self.checks]}


def reconcile(
    store: Store,
    day: date | None = None,
    ends: Ends | None = None,
    noted: Callable[[str], None] = lambda name: None,
) -> Report:
    """Run every check; `ends` lets offsets be held against Kafka's own; `noted` tells progress."""
    checks = []
    for name, says, sql in _QUERIES:
        noted(name)
        differing = store.dicts(
            f"SELECT * FROM ({sql}) LIMIT {MAX_ROWS}", {"day": day or _ANY_DAY, "any": day is None}
        )
        checks.append(Check(name, says, not differing, [_plain(row) for row in differing]))
    noted("digests")
    checks.append(_check_digests(store, day))
    if ends is not None:
        noted("offsets")
        checks.append(_check_offsets(store, ends))
    [[events]] = store.rows("SELECT count() FROM billing.events")
    return Report(checks, int(events))


_ANY_DAY: Final = date(1970, 1, 1)
_CLOSED: Final = (
    "(account_id, {column}) IN (SELECT account_id, billing_day FROM billing.day_closes) "
    "AND ({{any:Bool}} OR {column} = {{day:Date}})"
)


def _closed(column: str) -> str:
    return _CLOSED.format(column=column)


_QUERIES: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "shard_sequence",
        "each shard's rows of billing.events are numbered 0, 1, 2 ... without gaps",
        "SELECT journal_partition, count() AS rows, min(shard_seq) AS first, "
        "max(shard_seq) AS last, uniqExact(shard_seq) AS numbers FROM billing.events "
        "GROUP BY journal_partition HAVING first != 0 OR last != rows - 1 OR numbers != rows",
    ),
    (
        "one_row_an_offset",
        "no source offset has two rows in billing.events",
        "SELECT source_topic, source_partition, count() AS rows, "
        "uniqExact(source_offset) AS offsets FROM billing.events "
        "GROUP BY source_topic, source_partition HAVING rows != offsets",
    ),
    (
        "rows_are_the_journal's",
        "billing.events has as many rows of each shard as the journal says were judged",
        "SELECT log_partition, shard_seq AS judged, rows FROM ("
        "SELECT log_partition, argMax(shard_seq, batch) AS shard_seq "
        "FROM reporting.reporter_batches WHERE topic = 'billing.journal' GROUP BY log_partition"
        ") AS plan LEFT JOIN (SELECT journal_partition, count() AS rows FROM billing.events "
        "GROUP BY journal_partition) AS found ON plan.log_partition = found.journal_partition "
        "WHERE judged != rows",
    ),
    (
        "charged_once",
        "no event_id is charged twice in a shard",
        "SELECT journal_partition, event_id, count() AS times FROM billing.events "
        "WHERE disposition = 'charged' GROUP BY journal_partition, event_id HAVING times > 1",
    ),
    (
        "posted_once",
        "no charge_id stands twice, and no click or engagement is posted twice",
        "SELECT charge_id, event_id, count() AS times FROM billing.charges "
        "GROUP BY charge_id, event_id HAVING times > 1 "
        "UNION ALL SELECT any(charge_id), event_id, count() AS times FROM billing.charges "
        "WHERE event_id != '' GROUP BY journal_partition, event_id HAVING times > 1",
    ),
    (
        "charges_are_the_events'",
        "a closed day's charges sum to its events' amounts, for each account",
        "SELECT account_id, posting_day, sum(accrued) AS events_nanos, "
        "sum(posted) AS charges_nanos "
        "FROM (SELECT account_id, posting_day, amount_nanos AS accrued, 0 AS posted "
        f"FROM billing.events WHERE {_closed('posting_day')} "
        "UNION ALL SELECT account_id, posting_day, 0, amount_nanos FROM billing.charges "
        f"WHERE {_closed('posting_day')}) "
        "GROUP BY account_id, posting_day HAVING events_nanos != charges_nanos",
    ),
    (
        "clicks_and_engagements_posted_at_once",
        "on any day the charges by click and engagement sum to those events' amounts",
        "SELECT account_id, posting_day, sum(accrued) AS events_nanos, "
        "sum(posted) AS charges_nanos "
        "FROM (SELECT account_id, posting_day, amount_nanos AS accrued, 0 AS posted "
        "FROM billing.events WHERE basis IN ('cpc', 'cpe') "
        "AND ({any:Bool} OR posting_day = {day:Date}) "
        "UNION ALL SELECT account_id, posting_day, 0, amount_nanos FROM billing.charges "
        "WHERE basis IN ('cpc', 'cpe') AND ({any:Bool} OR posting_day = {day:Date})) "
        "GROUP BY account_id, posting_day HAVING events_nanos != charges_nanos",
    ),
    (
        "blocks_hold_no_more_than_accrued",
        "an ad group's posted impressions and amounts never exceed those that were charged",
        "SELECT ad_group_id, posting_day, sum(accrued) AS events_nanos, "
        "sum(posted) AS blocks_nanos, sum(impressions) AS charged_impressions, "
        "sum(quantity) AS posted_impressions "
        "FROM (SELECT ad_group_id, posting_day, amount_nanos AS accrued, 1 AS impressions, "
        "0 AS posted, 0 AS quantity FROM billing.events WHERE basis = 'cpm' "
        "AND ({any:Bool} OR posting_day = {day:Date}) "
        "UNION ALL SELECT ad_group_id, posting_day, 0, 0, amount_nanos, quantity "
        "FROM billing.charges WHERE basis = 'cpm' AND ({any:Bool} OR posting_day = {day:Date})) "
        "GROUP BY ad_group_id, posting_day "
        "HAVING blocks_nanos > events_nanos OR posted_impressions > charged_impressions "
        "OR charged_impressions - posted_impressions >= 1000",
    ),
    (
        "closes_are_the_charges",
        "each row of billing.day_closes holds its day's sums and counts",
        "SELECT account_id, billing_day, sum(closed_nanos) AS close_nanos, "
        "sum(posted) AS charges_nanos, sum(closed_charges) AS close_charges, "
        "sum(charge) AS charges, sum(closed_events) AS close_events, sum(event) AS events "
        "FROM (SELECT account_id, billing_day, amount_nanos AS closed_nanos, "
        "charges AS closed_charges, events AS closed_events, 0 AS posted, 0 AS charge, 0 AS event "
        "FROM billing.day_closes WHERE {any:Bool} OR billing_day = {day:Date} "
        "UNION ALL SELECT account_id, posting_day, 0, 0, 0, amount_nanos, 1, 0 "
        f"FROM billing.charges WHERE {_closed('posting_day')} "
        "UNION ALL SELECT account_id, posting_day, 0, 0, 0, 0, 0, 1 FROM billing.events "
        f"WHERE disposition IN {_OWN} AND {_closed('posting_day')}) "
        "GROUP BY account_id, billing_day HAVING close_nanos != charges_nanos "
        "OR close_charges != charges OR close_events != events",
    ),
    (
        "daily_is_the_events'",
        "reporting.daily holds its day's spend, free value and impressions, for each ad",
        "SELECT account_id, promoted_pin_id, billing_day, sum(daily_spend) AS daily_nanos, "
        "sum(spend) AS events_nanos, sum(daily_free) AS daily_free_nanos, "
        "sum(free) AS events_free_nanos, sum(daily_seen) AS daily_impressions, "
        "sum(seen) AS impressions "
        "FROM (SELECT account_id, promoted_pin_id, billing_day, spend_nanos AS daily_spend, "
        "free_nanos AS daily_free, impressions AS daily_seen, 0 AS spend, 0 AS free, 0 AS seen "
        "FROM reporting.daily WHERE {any:Bool} OR billing_day = {day:Date} "
        "UNION ALL SELECT account_id, promoted_pin_id, posting_day, 0, 0, 0, amount_nanos, "
        "free_nanos, kind = 'impression' FROM billing.events "
        f"WHERE disposition IN {_OWN} AND {_closed('posting_day')}) "
        "GROUP BY account_id, promoted_pin_id, billing_day "
        "HAVING daily_nanos != events_nanos OR daily_free_nanos != events_free_nanos "
        "OR daily_impressions != impressions",
    ),
    (
        "days_without_gaps",
        "an account has one row of billing.day_closes for each day from its first event on",
        "SELECT account_id, count() AS rows, min(billing_day) AS first, max(billing_day) AS last "
        "FROM billing.day_closes GROUP BY account_id "
        "HAVING rows != dateDiff('day', first, last) + 1 OR rows != uniqExact(billing_day)",
    ),
)


def _check_digests(store: Store, day: date | None) -> Check:
    """Recompute the digest of every closed day from billing.charges."""
    closes = store.rows(
        "SELECT billing_day, account_id, digest, charges FROM billing.day_closes "
        "WHERE {any:Bool} OR billing_day = {day:Date} ORDER BY billing_day, account_id",
        {"day": day or _ANY_DAY, "any": day is None},
    )
    by_day: dict[date, dict[str, tuple[str, int]]] = {}
    for billing_day, account_id, digest, charges in closes:
        by_day.setdefault(billing_day, {})[account_id] = (digest, int(charges))
    differing = []
    for billing_day, accounts in by_day.items():
        found = day_digests(store, billing_day, {name: n for name, (_, n) in accounts.items()})
        differing += [
            {"billing_day": str(billing_day), "account_id": name, "closed": was, "now": found[name]}
            for name, (was, _) in accounts.items()
            if found[name] != was
        ]
    says = "the digest of each closed day is that of its charges"
    return Check("digests", says, not differing, differing[:MAX_ROWS])


def _check_offsets(store: Store, ends: Ends) -> Check:
    """Every record that the topics hold has its row, up to where the reporter is."""
    rows = {
        (topic, int(partition)): (int(count), int(first), int(last))
        for topic, partition, count, first, last in store.rows(
            "SELECT source_topic, source_partition, count(), min(source_offset), "
            "max(source_offset) FROM billing.events GROUP BY source_topic, source_partition"
        )
    }
    differing = []
    waiting = 0
    for (topic, partition), (begin, end) in sorted(ends.items()):
        count, first, last = rows.get((topic, partition), (0, begin, begin - 1))
        waiting += end - 1 - last
        if count != last - first + 1 or (count and first > begin):
            differing.append(
                {
                    "topic": topic,
                    "partition": partition,
                    "rows": count,
                    "first": first,
                    "last": last,
                }
            )
    note = f"{waiting} records are not in the tables yet" if waiting else ""
    says = "rows of billing.events = offsets consumed, of each source partition"
    return Check("offsets", says, not differing, differing[:MAX_ROWS], note)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, date) else value for name, value in row.items()}
