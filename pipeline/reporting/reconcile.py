"""Checking the identities that always hold, at zero tolerance.

Every check returns only what differs. Memory is bounded: checks about days go through the days in
ranges of about EVENTS_AT_ONCE rows, checks about ids through slices of their hashes, and sequences
are counted in bitmaps. What the tables alone cannot tell, `pipeline.reporting.audit` does.

The tables of a running product are written one after the other, so a difference may be passing:
with `pause` given, a check that fails is made once more, and only what differs both times counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any, Final

from pipeline.reporting.clickhouse import Store, in_pieces
from pipeline.reporting.closes import DAILY_COUNTERS
from pipeline.reporting.daybook import next_month
from pipeline.reporting.digest import day_digests
from pipeline.reporting.reached import Ends, judged_offsets, reported_positions
from pipeline.reporting.rows import OWN_DAY
from pipeline.reporting.statements import ACCOUNTS_AT_ONCE, expected_lines, stored_lines

MAX_ROWS: Final = 10
EVENTS_AT_ONCE: Final = 5_000_000
_OWN: Final = "(" + ", ".join(f"'{name}'" for name in OWN_DAY) + ")"


Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Check:
    """One identity and whether it held."""

    name: str
    says: str
    ok: bool
    differing: list[Row] = field(default_factory=list)
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


@dataclass(frozen=True, slots=True)
class _Identity:
    """A check as a query for what differs. `over`: what it is run over, piece by piece."""

    name: str
    says: str
    sql: str
    over: str
    """`all` (once), `days` (with {from:Date} and {to:Date}) or `slices` (with {slice:UInt32})."""


def reconcile(
    store: Store,
    day: date | None = None,
    ends: Ends | None = None,
    noted: Callable[[str], None] = lambda name: None,
    pause: Callable[[], None] | None = None,
) -> Report:
    """Run every check; `ends` lets offsets be held against Kafka's own; `noted` tells progress.

    `day` narrows the checks that are about days, and about months to the day's.
    """
    runs: list[tuple[str, str, Callable[[], list[Row]]]] = [
        (one.name, one.says, lambda one=one: _differing(store, one, day))  # type: ignore[misc]
        for one in _IDENTITIES
    ]
    says = "the digest of each closed day is that of its charges"
    runs.append(("digests", says, lambda: _digests(store, day)))
    says = "each statement is what the month's charges and the carried remainder come to"
    runs.append(("statements", says, lambda: _statements(store, day)))
    checks = []
    for name, says, run in runs:
        noted(name)
        differing = run()
        if differing and pause is not None:
            pause()
            again = run()
            differing = [row for row in differing if row in again]
        checks.append(Check(name, says, not differing, differing[:MAX_ROWS]))
    if ends is not None:
        noted("offsets")
        checks.append(_check_offsets(store, ends))
    [[events]] = store.rows("SELECT count() FROM billing.events")
    return Report(checks, int(events))


# -- running a check in pieces ----------------------------------------------------------------


def _differing(store: Store, identity: _Identity, day: date | None) -> list[Row]:
    differing: list[Row] = []
    for parameters in _pieces(store, identity.over, day):
        found = store.dicts(f"SELECT * FROM ({identity.sql}) LIMIT {MAX_ROWS}", parameters)
        differing += [_plain(row) for row in found]
        if len(differing) >= MAX_ROWS:
            break
    return differing


def _pieces(store: Store, over: str, day: date | None) -> Iterator[dict[str, Any]]:
    if over == "all":
        yield {}
    elif over == "slices":
        [[charged]] = store.rows("SELECT count() FROM billing.events WHERE disposition = 'charged'")
        slices = int(charged) // EVENTS_AT_ONCE + 1
        for number in range(slices):
            yield {"slices": slices, "slice": number}
    elif day is not None:
        yield {"from": day, "to": day}
    else:
        for first, last in _day_ranges(store):
            yield {"from": first, "to": last}


def _day_ranges(store: Store) -> Iterator[tuple[date, date]]:
    """All days that any table has, in ranges of about EVENTS_AT_ONCE events."""
    days = store.rows(
        "SELECT day, sum(events) FROM ("
        "SELECT posting_day AS day, count() AS events FROM billing.events GROUP BY day "
        "UNION ALL SELECT DISTINCT posting_day, 0 FROM billing.charges "
        "UNION ALL SELECT DISTINCT posting_day, 0 FROM billing.credits "
        "UNION ALL SELECT DISTINCT billing_day, 0 FROM reporting.daily "
        "UNION ALL SELECT DISTINCT billing_day, 0 FROM billing.day_closes) "
        "GROUP BY day ORDER BY day"
    )
    start: date | None = None
    held, last = 0, date.min
    for day, events in days:
        if start is not None and held + events > EVENTS_AT_ONCE:
            yield start, last
            start, held = None, 0
        start, held, last = start or day, held + int(events), day
    if start is not None:
        yield start, last


# -- the identities ---------------------------------------------------------------------------


def _on(column: str) -> str:
    return f"{column} BETWEEN {{from:Date}} AND {{to:Date}}"


def _closed(column: str) -> str:
    return (
        f"{_on(column)} AND (account_id, {column}) IN (SELECT account_id, billing_day "
        f"FROM billing.day_closes WHERE {_on('billing_day')})"
    )


_DAILY_KEY: Final = (
    "account_id, campaign_id, ad_group_id, promoted_pin_id, placement, country, device, currency"
)


def _daily_sql() -> str:
    """reporting.daily against its sums over events and credits, column by column."""
    names = list(DAILY_COUNTERS)
    key = f"billing_day, {_DAILY_KEY}"
    stored = ", ".join(names)
    counted = ", ".join(f"-({expression}) AS {name}" for name, expression in DAILY_COUNTERS.items())
    sums = ", ".join(f"sum({name}) AS {name}_too_many" for name in names)
    wrong = " OR ".join(f"{name}_too_many != 0" for name in names)
    return (
        f"SELECT {key}, count() AS in_daily, {sums} FROM ("
        f"SELECT {key}, 1 AS stored, {stored} FROM reporting.daily WHERE {_on('billing_day')} "
        f"UNION ALL SELECT posting_day AS billing_day, {_DAILY_KEY}, 0, {counted} FROM ("
        f"SELECT posting_day, {_DAILY_KEY}, kind, disposition, basis, amount_nanos, free_nanos "
        f"FROM billing.events WHERE disposition IN {_OWN} AND {_closed('posting_day')} "
        f"UNION ALL SELECT posting_day, {_DAILY_KEY}, '', 'credited', '', amount_nanos, 0 "
        f"FROM billing.credits WHERE refused = '' AND {_closed('posting_day')}) "
        f"GROUP BY posting_day, {_DAILY_KEY}) GROUP BY {key} "
        f"HAVING {wrong} OR countIf(stored = 1) != 1"
    )


_ACCOUNTS: Final = (
    "SELECT known.account_id AS account_id, first_day, zone, zones > 1 OR named > 1 AS moved FROM ("
    "SELECT account_id, min(first_day) AS first_day, uniqExact(time_zone) AS zones, "
    "argMax(time_zone, (seen_at_ms, journal_partition, journal_offset)) AS zone "
    "FROM reporting.accounts GROUP BY account_id) AS known "
    "LEFT JOIN (SELECT substring(entity, length('account:') + 1) AS account_id, "
    "uniqExact(new) AS named FROM reporting.changes "
    "WHERE startsWith(entity, 'account:') AND field = 'time_zone' GROUP BY account_id) AS terms "
    "ON known.account_id = terms.account_id"
)
"""Each account's first day and zone. One that moved has no single zone that closes its days: its
zone is known of here with its first event after the move, and its days go by the old one before."""


def _closed_at_sql() -> str:
    """closed_at_ms against the shards' closes: of each shard the first that covers the day."""
    return (
        "SELECT account_id, billing_day, closed_at_ms, shards_at_ms FROM ("
        "SELECT closes.account_id AS account_id, billing_day, closed_at_ms, zone "
        f"FROM billing.day_closes AS closes INNER JOIN ({_ACCOUNTS}) AS account "
        f"ON closes.account_id = account.account_id WHERE {_on('billing_day')} AND NOT moved"
        ") AS closed INNER JOIN ("
        "SELECT time_zone, day, max(at_ms) AS shards_at_ms FROM ("
        "SELECT time_zone, journal_partition, day, min(closed_at_ms) AS at_ms "
        "FROM reporting.shard_closes CROSS JOIN ("
        f"SELECT DISTINCT billing_day AS day FROM billing.day_closes WHERE {_on('billing_day')}"
        ") AS days WHERE closed_through >= day GROUP BY time_zone, journal_partition, day) "
        "GROUP BY time_zone, day) AS shards "
        "ON closed.zone = shards.time_zone AND closed.billing_day = shards.day "
        "WHERE closed_at_ms != shards_at_ms"
    )


def _gaps_sql() -> str:
    """An account's closes against its first day and the shards' closes.

    An account that moved closes by the zone that it left for a day or two more, and by whichever
    of its zones it may be: it may be up to two days behind its own, and ahead of them all.
    """
    return (
        "WITH zones AS (SELECT time_zone, min(through) AS through, count() AS shards FROM ("
        "SELECT time_zone, journal_partition, max(closed_through) AS through "
        "FROM reporting.shard_closes GROUP BY time_zone, journal_partition) GROUP BY time_zone "
        "HAVING shards = (SELECT uniqExact(log_partition) FROM reporting.reporter_batches "
        "WHERE topic = 'billing.journal')) "
        "SELECT account.account_id AS account_id, rows, days, first, last, first_day, "
        "through AS closed_through "
        f"FROM ({_ACCOUNTS}) AS account "
        "LEFT JOIN (SELECT account_id, count() AS rows, uniqExact(billing_day) AS days, "
        "min(billing_day) AS first, max(billing_day) AS last FROM billing.day_closes "
        "GROUP BY account_id) AS closes ON account.account_id = closes.account_id "
        "LEFT JOIN zones ON account.zone = zones.time_zone "
        "WHERE rows != days "
        "OR (rows > 0 AND (rows != dateDiff('day', first, last) + 1 OR first != first_day)) "
        "OR (through >= first_day AND dateDiff('day', if(rows = 0, first_day - 1, last), through) "
        "> if(moved, 2, 0)) "
        "OR (rows > 0 AND last > if(moved, (SELECT max(through) FROM zones) + 2, through))"
    )


_IDENTITIES: Final = (
    _Identity(
        "shard_sequence",
        "each shard's rows of billing.events are numbered 0, 1, 2 ... without gaps",
        "SELECT journal_partition, count() AS rows, min(shard_seq) AS first, "
        "max(shard_seq) AS last, groupBitmap(toUInt64(shard_seq)) AS numbers FROM billing.events "
        "GROUP BY journal_partition HAVING first != 0 OR last != rows - 1 OR numbers != rows",
        "all",
    ),
    _Identity(
        "one_row_an_offset",
        "no source offset has two rows in billing.events",
        "SELECT source_topic, source_partition, count() AS rows, "
        "groupBitmap(toUInt64(source_offset)) AS offsets FROM billing.events "
        "GROUP BY source_topic, source_partition HAVING rows != offsets",
        "all",
    ),
    _Identity(
        "rows_are_the_journal's",
        "billing.events has as many rows of each shard as the journal says were judged",
        "SELECT log_partition, shard_seq AS judged, rows FROM ("
        "SELECT log_partition, argMax(shard_seq, batch) AS shard_seq "
        "FROM reporting.reporter_batches WHERE topic = 'billing.journal' GROUP BY log_partition"
        ") AS plan LEFT JOIN (SELECT journal_partition, count() AS rows FROM billing.events "
        "GROUP BY journal_partition) AS found ON plan.log_partition = found.journal_partition "
        "WHERE judged != rows",
        "all",
    ),
    _Identity(
        "rows_are_of_read_records",
        "no row is of a shard that there is not, nor of a journal record not read yet",
        "SELECT in_table, journal_partition, last, next_offset, elsewhere FROM ("
        "SELECT 'billing.events' AS in_table, journal_partition, max(journal_offset) AS last, "
        "countIf(source_partition != journal_partition) AS elsewhere FROM billing.events "
        "GROUP BY journal_partition "
        "UNION ALL SELECT 'billing.charges', journal_partition, max(journal_offset), 0 "
        "FROM billing.charges GROUP BY journal_partition "
        "UNION ALL SELECT 'billing.credits', journal_partition, max(journal_offset), 0 "
        "FROM billing.credits GROUP BY journal_partition) AS found "
        # A plan is written before the rows of its records; a shard without one has offset 0 here.
        "LEFT JOIN (SELECT log_partition, argMax(next_offset, batch) AS next_offset "
        "FROM reporting.reporter_batches WHERE topic = 'billing.journal' GROUP BY log_partition"
        ") AS plan ON found.journal_partition = plan.log_partition "
        "WHERE last >= next_offset OR elsewhere > 0",
        "all",
    ),
    _Identity(
        "charged_once",
        "no event_id is charged twice in a shard",
        "SELECT journal_partition, event_id, count() AS times FROM billing.events "
        "WHERE disposition = 'charged' AND cityHash64(event_id) % {slices:UInt32} = {slice:UInt32} "
        "GROUP BY journal_partition, event_id HAVING times > 1",
        "slices",
    ),
    _Identity(
        "posted_once",
        "no charge_id stands twice, and nothing is posted or credited twice",
        "SELECT charge_id, any(event_id) AS event, count() AS times FROM billing.charges "
        "WHERE cityHash64(charge_id) % {slices:UInt32} = {slice:UInt32} "
        "GROUP BY charge_id HAVING times > 1 "
        "UNION ALL SELECT any(charge_id), event_id, count() AS times FROM billing.charges "
        "WHERE event_id != '' AND cityHash64(event_id) % {slices:UInt32} = {slice:UInt32} "
        "GROUP BY journal_partition, event_id, amount_nanos < 0 HAVING times > 1",
        "slices",
    ),
    _Identity(
        "charges_are_the_events'",
        "a closed day's charges sum to its events' amounts and its credits, for each account",
        "SELECT account_id, posting_day, sum(accrued) AS events_nanos, "
        "sum(credited) AS credits_nanos, sum(posted) AS charges_nanos "
        "FROM (SELECT account_id, posting_day, amount_nanos AS accrued, 0 AS credited, 0 AS posted "
        f"FROM billing.events WHERE {_closed('posting_day')} "
        "UNION ALL SELECT account_id, posting_day, 0, amount_nanos, 0 FROM billing.credits "
        f"WHERE {_closed('posting_day')} "
        "UNION ALL SELECT account_id, posting_day, 0, 0, amount_nanos FROM billing.charges "
        f"WHERE {_closed('posting_day')}) "
        "GROUP BY account_id, posting_day HAVING events_nanos + credits_nanos != charges_nanos",
        "days",
    ),
    _Identity(
        "clicks_and_engagements_posted_at_once",
        "on any day the charges by click and engagement sum to those events' amounts",
        "SELECT account_id, posting_day, sum(accrued) AS events_nanos, "
        "sum(posted) AS charges_nanos "
        "FROM (SELECT account_id, posting_day, amount_nanos AS accrued, 0 AS posted "
        f"FROM billing.events WHERE basis IN ('cpc', 'cpe') AND {_on('posting_day')} "
        "UNION ALL SELECT account_id, posting_day, 0, amount_nanos FROM billing.charges "
        f"WHERE basis IN ('cpc', 'cpe') AND amount_nanos >= 0 AND {_on('posting_day')}) "
        "GROUP BY account_id, posting_day HAVING events_nanos != charges_nanos",
        "days",
    ),
    _Identity(
        "blocks_hold_no_more_than_accrued",
        "an ad group's posted impressions and amounts of a day never exceed those charged of it",
        "SELECT ad_group_id, billing_day, posting_day, sum(accrued) AS events_nanos, "
        "sum(posted) AS blocks_nanos, sum(impressions) AS charged_impressions, "
        "sum(quantity) AS posted_impressions "
        "FROM (SELECT ad_group_id, billing_day, posting_day, amount_nanos AS accrued, "
        "1 AS impressions, 0 AS posted, 0 AS quantity FROM billing.events WHERE basis = 'cpm' "
        f"AND {_on('posting_day')} "
        "UNION ALL SELECT ad_group_id, billing_day, posting_day, 0, 0, amount_nanos, quantity "
        f"FROM billing.charges WHERE basis = 'cpm' AND amount_nanos >= 0 AND {_on('posting_day')}) "
        "GROUP BY ad_group_id, billing_day, posting_day "
        "HAVING blocks_nanos > events_nanos OR posted_impressions > charged_impressions "
        "OR charged_impressions - posted_impressions >= 1000",
        "days",
    ),
    _Identity(
        "credits_are_posted",
        "each credit has its negative charge, and each negative charge its credit",
        "SELECT charge_id, posting_day, any(event_id) AS event, sum(credited) AS credited_nanos, "
        "sum(posted) AS posted_nanos "
        "FROM (SELECT charge_id, posting_day, event_id, amount_nanos AS credited, 0 AS posted "
        f"FROM billing.credits WHERE refused = '' AND {_on('posting_day')} "
        "UNION ALL SELECT charge_id, posting_day, event_id, 0, amount_nanos FROM billing.charges "
        f"WHERE amount_nanos < 0 AND {_on('posting_day')}) "
        "GROUP BY charge_id, posting_day HAVING credited_nanos != posted_nanos",
        "days",
    ),
    _Identity(
        "closes_are_the_charges",
        "each row of billing.day_closes holds its day's sums and counts, and stands once",
        "SELECT account_id, billing_day, sum(closed_nanos) AS close_nanos, "
        "sum(posted) AS charges_nanos, sum(closed_charges) AS close_charges, "
        "sum(charge) AS charges, sum(closed_events) AS close_events, sum(event) AS events, "
        "sum(close) AS closes "
        "FROM (SELECT account_id, billing_day, amount_nanos AS closed_nanos, "
        "charges AS closed_charges, events AS closed_events, 0 AS posted, 0 AS charge, 0 AS event, "
        f"1 AS close FROM billing.day_closes WHERE {_on('billing_day')} "
        "UNION ALL SELECT account_id, posting_day, 0, 0, 0, amount_nanos, 1, 0, 0 "
        f"FROM billing.charges WHERE {_closed('posting_day')} "
        "UNION ALL SELECT account_id, posting_day, 0, 0, 0, 0, 0, 1, 0 FROM billing.events "
        f"WHERE disposition IN {_OWN} AND {_closed('posting_day')}) "
        "GROUP BY account_id, billing_day HAVING close_nanos != charges_nanos "
        "OR close_charges != charges OR close_events != events OR closes != 1",
        "days",
    ),
    _Identity(
        "daily_is_the_events'",
        "reporting.daily holds its day's figures, all of them, for each ad",
        _daily_sql(),
        "days",
    ),
    _Identity(
        "closes_have_the_accounts'_currency",
        "each row of billing.day_closes is in its account's currency",
        "SELECT account_id, billing_day, currency FROM billing.day_closes "
        f"WHERE {_on('billing_day')} "
        "AND (account_id, currency) NOT IN (SELECT account_id, currency FROM reporting.accounts)",
        "days",
    ),
    _Identity(
        "closes_are_the_shards'",
        "each row of billing.day_closes is of the time at which the last shard closed the day",
        _closed_at_sql(),
        "days",
    ),
    _Identity(
        "days_without_gaps",
        "an account has one row of billing.day_closes for each day from its first event on, up to "
        "the last day that all shards have closed, and no further",
        _gaps_sql(),
        "all",
    ),
)


def _digests(store: Store, day: date | None) -> list[Row]:
    """Recompute the digest of every closed day from billing.charges."""
    differing: list[Row] = []
    for first, last in [(day, day)] if day else list(_day_ranges(store)):
        closes = store.rows(
            "SELECT billing_day, account_id, digest, charges FROM billing.day_closes "
            f"WHERE {_on('billing_day')} ORDER BY billing_day, account_id",
            {"from": first, "to": last},
        )
        by_day: dict[date, dict[str, tuple[str, int]]] = {}
        for billing_day, account_id, digest, charges in closes:
            by_day.setdefault(billing_day, {})[account_id] = (digest, max(0, int(charges)))
        for billing_day, accounts in by_day.items():
            found = day_digests(store, billing_day, {name: n for name, (_, n) in accounts.items()})
            differing += [
                {
                    "billing_day": str(billing_day),
                    "account_id": name,
                    "closed": was,
                    "now": found[name],
                }
                for name, (was, _) in accounts.items()
                if found[name] != was
            ]
    return differing


def _statements(store: Store, day: date | None) -> list[Row]:
    """Make every statement again from the charges; and look for those that are missing."""
    differing: list[Row] = []
    months = store.rows(
        "SELECT month, groupUniqArray(account_id) FROM ("
        "SELECT month, account_id FROM billing.statements UNION ALL "
        # A month is stated after its last day is closed, and before any later day is.
        "SELECT toStartOfMonth(billing_day), account_id FROM billing.day_closes "
        "WHERE billing_day = toLastDayOfMonth(billing_day) AND (account_id, billing_day) NOT IN ("
        "SELECT account_id, max(billing_day) FROM billing.day_closes GROUP BY account_id)) "
        "GROUP BY month ORDER BY month"
    )
    currencies = dict(
        store.rows("SELECT account_id, any(currency) FROM reporting.accounts GROUP BY account_id")
    )
    for month, account_ids in months:
        if day is not None and not month <= day < next_month(month):
            continue
        for piece in in_pieces(sorted(account_ids), ACCOUNTS_AT_ONCE):
            some = {name: currencies.get(name, "") for name in piece}
            stored = stored_lines(store, month, list(some))
            expected = expected_lines(store, month, some)
            differing += [
                _plain(asdict(line)) | {"what": "is not what the charges come to"}
                for line in stored
                if line not in expected
            ]
            differing += [
                _plain(asdict(line)) | {"what": f"stands {stored.count(line)} times"}
                for line in expected
                if stored.count(line) != 1
            ]
    return differing


def _check_offsets(store: Store, ends: Ends) -> Check:
    """The rows of each source partition lie within what the journal says was consumed of it.

    That they are as many as the journal judged, and which, other checks see to. They can be fewer
    than the offsets: the markers of transactions, and what was aborted, have offsets too and no
    event. The tables cannot tell these from a record that the worker overlooked, so that the note
    says how many there are; without transactions there are none.
    """
    rows = {
        (topic, int(partition)): (int(count), int(first), int(last))
        for topic, partition, count, first, last in store.rows(
            "SELECT source_topic, source_partition, count(), min(source_offset), "
            "max(source_offset) FROM billing.events GROUP BY source_topic, source_partition"
        )
    }
    judged_to = judged_offsets(reported_positions(store))
    differing = []
    waiting = empty = 0
    for place, (begin, end) in sorted(ends.items()):
        count, first, last = rows.get(place, (0, begin, begin - 1))
        consumed = judged_to.get(place, begin)
        waiting += max(0, end - consumed)
        empty += max(0, last + 1 - min(first, begin) - count)
        if count > last - first + 1 or (count and last >= consumed):
            topic, partition = place
            differing.append(
                {
                    "topic": topic,
                    "partition": partition,
                    "rows": count,
                    "first": first,
                    "last": last,
                    "consumed_to": consumed,
                }
            )
    notes = [f"{waiting} offsets are not in the tables yet"] if waiting else []
    if empty:
        notes.append(f"{empty} offsets hold no event: transactions' markers and aborted records")
    says = "rows of billing.events = offsets consumed that hold a record, of each source partition"
    return Check("offsets", says, not differing, differing[:MAX_ROWS], "; ".join(notes))


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, date | Decimal) else value
        for name, value in row.items()
    }
