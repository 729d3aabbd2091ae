"""The SQL of each page. A query is a value: its text, and the parameters bound to it.

Text is put together from the fixed lists of `view` alone; whatever a request says is a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

from pipeline.dashboard.view import ROWS_A_PAGE, View

MAX_CSV_ROWS: Final = 1_000_000
CURVE_STEP_MS: Final = 300_000

_COLUMNS: Final = [
    "impressions",
    "clicks",
    "closeups",
    "saves",
    "installs",
    "charged_impressions",
    "charged_clicks",
    "charged_engagements",
    "spend_nanos",
    "free_nanos",
]
# The rows' own columns are named row_*, so that a plain name is a sum.
_ROW_COLUMNS: Final = ", ".join(f"{name} AS row_{name}" for name in _COLUMNS)
_COUNTED_BY: Final = {
    "cpc": "charged_clicks",
    "cpm": "charged_impressions",
    "cpe": "charged_engagements",
}
# A campaign is charged by one thing alone, so what was charged by clicks, say, is on a closed day
# the spend of the rows with charged clicks; but for a day on which its objective changed, of which
# no row has its spend by basis. A row of an open day says what it was charged by.
_SPEND_BY_BASIS: Final = {
    False: "".join(
        f", if({counted} > 0, spend_nanos, 0) AS row_{basis}_nanos"
        for basis, counted in _COUNTED_BY.items()
    ),
    True: "".join(
        f", if(basis = '{basis}', spend_nanos, 0) AS row_{basis}_nanos" for basis in _COUNTED_BY
    ),
}
"""By whether the day is open."""
_SUMS: Final = (
    # What is free may be beyond any limit; an Int64 holds 9.2 billion units.
    ",\n".join(
        f"    sum({'toInt128' if name == 'free_nanos' else ''}(row_{name})) AS {name}"
        for name in _COLUMNS
    )
    + """,
    clicks + closeups + saves AS engagements,
    if(impressions = 0, 0, clicks / impressions) AS ctr,
    intDiv(sum(row_cpc_nanos), greatest(charged_clicks, 1)) AS cpc_nanos,
    intDiv(toInt128(sum(row_cpm_nanos)) * 1000, greatest(charged_impressions, 1)) AS cpm_nanos,
    intDiv(sum(row_cpe_nanos), greatest(charged_engagements, 1)) AS cpe_nanos"""
)

# The first day that some account has open. What the tables have of later days says nothing of the
# time: an event without a day of its own is posted in the day that its record was stamped with.
_OPEN_FROM: Final = (
    "(SELECT greatest(min(first_open_day), toDate('1971-01-01')) FROM reporting.open_days)"
)
_RECENT: Final = f"posting_day >= {_OPEN_FROM} - 1"
_LAST_DECIDED: Final = f"(SELECT max(decided_at_ms) FROM billing.events WHERE {_RECENT})"

_CLOSED: Final = (
    "(account_id, billing_day) IN (SELECT account_id, billing_day FROM billing.day_closes "
    "WHERE billing_day BETWEEN {first:Date} AND {last:Date})"
)


@dataclass(frozen=True, slots=True)
class Query:
    """A statement, and what is bound to its `{name:Type}` placeholders."""

    sql: str
    parameters: dict[str, Any] = field(default_factory=dict)


def _rows(view: View, *, live: bool) -> tuple[str, dict[str, Any]]:
    """The rows that a view sums up, and their parameters."""
    parameters: dict[str, Any] = {"first": view.first_day, "last": view.last_day}
    conditions = ["billing_day BETWEEN {first:Date} AND {last:Date}"]
    if not live:
        conditions.append(_CLOSED)
    for name, value in view.filters:
        conditions.append(f"{name} = {{{name}:String}}")
        parameters[name] = value
    if view.text:
        conditions.append(f"positionCaseInsensitiveUTF8({view.ids[-1]}, {{text:String}}) > 0")
        parameters["text"] = view.text
    ids = ", ".join((*view.ids, "currency"))
    columns = _ROW_COLUMNS + _SPEND_BY_BASIS[live]
    table = "reporting.live_rows" if live else "reporting.daily"
    where = " AND ".join(conditions)
    return f"SELECT {ids}, {columns} FROM {table} WHERE {where}", parameters


def figures(view: View, *, live: bool, every_row: bool = False) -> Query:
    """One page of a table of figures (every row: of the CSV); `total_rows` counts all pages'."""
    rows, parameters = _rows(view, live=live)
    by = ", ".join((*view.ids, "currency"))
    first = view.ids[-1] if view.sort == "name" else view.sort
    order = f"{first} {'DESC' if view.descending else 'ASC'}, {by}"
    limit = MAX_CSV_ROWS if every_row else ROWS_A_PAGE
    parameters |= {"limit": limit, "skip": 0 if every_row else (view.page - 1) * ROWS_A_PAGE}
    sql = (
        f"SELECT {by},\n{_SUMS},\n    count() OVER () AS total_rows\nFROM ({rows})\n"
        f"GROUP BY {by}\nORDER BY {order}\nLIMIT {{limit:UInt64}} OFFSET {{skip:UInt64}}"
    )
    return Query(sql, parameters)


def totals(view: View, *, live: bool) -> Query:
    """The sums of all rows of a view, for each currency."""
    rows, parameters = _rows(view, live=live)
    return Query(
        f"SELECT currency,\n{_SUMS}\nFROM ({rows})\nGROUP BY currency ORDER BY currency",
        parameters,
    )


def last_closed_day() -> Query:
    """The last day that some account has closed, 1970-01-01 where none has."""
    return Query("SELECT max(billing_day) AS day FROM billing.day_closes")


def live_days() -> Query:
    """The days with provisional figures, the latest first, and how far these go."""
    return Query(
        "SELECT billing_day, max(decided_at_ms) AS as_of_ms FROM reporting.live_rows "
        "GROUP BY billing_day ORDER BY billing_day DESC"
    )


def limits(entities: Sequence[str], before_ms: int) -> Query:
    """The limits of ad groups and campaigns: every change that was in effect before a time.

    Deletions as well: what is made again under the id of what was deleted has only its own limits.
    """
    return Query(
        "SELECT entity, field, effective_ms, new FROM reporting.changes "
        "WHERE entity IN {entities:Array(String)} AND field IN ('deleted', 'budget_type', "
        "'budget_micros', 'daily_spend_limit_micros', 'lifetime_spend_limit_micros') "
        "AND effective_ms < {before:Int64} ORDER BY effective_ms, catalog_offset, change_number",
        {"entities": list(entities), "before": before_ms},
    )


def closed_by_all() -> Query:
    """The day before which every account has closed all its days: what they hold never changes."""
    return Query("SELECT min(first_open_day) AS day FROM reporting.open_days")


def charged_before(column: str, ids: Sequence[str], day: date) -> Query:
    """What campaigns or ad groups (`column`: their ids') were charged on closed days before a day.

    Credits are left out, for they give no limit back.
    """
    return Query(
        f"SELECT {column} AS id, sum(spend_nanos - credit_nanos) AS charged_nanos "
        f"FROM reporting.daily WHERE {column} IN {{ids:Array(String)}} "
        "AND billing_day < {day:Date} GROUP BY id",
        {"ids": list(ids), "day": day},
    )


def charged_since(column: str, ids: Sequence[str], day: date) -> Query:
    """The same from a day on, open days included."""
    whose = f"{column} IN {{ids:Array(String)}}"
    return Query(
        f"SELECT {column} AS id, sum(charged) AS charged_nanos FROM ("
        f"SELECT {column}, spend_nanos - credit_nanos AS charged FROM reporting.daily "
        f"WHERE {whose} AND billing_day >= {{day:Date}} "
        f"UNION ALL SELECT {column}, spend_nanos FROM reporting.live_rows "
        f"WHERE {whose} AND spend_nanos > 0) GROUP BY id",
        {"ids": list(ids), "day": day},
    )


# -- one ad group -----------------------------------------------------------------------------


def ad_group_days(ad_group_id: str) -> Query:
    """The days that an ad group has events of, the latest first, and whose it is."""
    return Query(
        "SELECT billing_day, any(account_id) AS account, any(campaign_id) AS campaign, "
        "any(currency) AS money, sum(amount_nanos) AS spend_nanos, "
        "sum(events.free_nanos) AS free_nanos FROM billing.events AS events "
        "WHERE ad_group_id = {ad_group:String} AND account_id != '' "
        "GROUP BY billing_day ORDER BY billing_day DESC LIMIT 60",
        {"ad_group": ad_group_id},
    )


def spend_curve(ad_group_id: str, day: date) -> Query:
    """Spend and free value of a billing day by the time of its events, in steps."""
    return Query(
        "SELECT intDiv(event_time_ms, {step:Int64}) * {step:Int64} AS at_ms, "
        "sum(amount_nanos) AS spend_nanos, sum(free_nanos) AS free_nanos FROM billing.events "
        "WHERE ad_group_id = {ad_group:String} AND billing_day = {day:Date} "
        "AND posting_day >= {day:Date} AND account_id != '' GROUP BY at_ms ORDER BY at_ms",
        {"ad_group": ad_group_id, "day": day, "step": CURVE_STEP_MS},
    )


def spend_before(ad_group_id: str, day: date) -> Query:
    """What an ad group spent on the days before."""
    return Query(
        "SELECT sum(amount_nanos) AS spend_nanos FROM billing.events "
        "WHERE ad_group_id = {ad_group:String} AND billing_day < {day:Date} AND account_id != ''",
        {"ad_group": ad_group_id, "day": day},
    )


def signals_of(entities: Sequence[str], day: date) -> Query:
    """The signals of a day for an ad group and its campaign, in order."""
    return Query(
        "SELECT entity, version, action, reason, serve_probability, bid_micros, limit, "
        "limit_nanos, spend_nanos, inflight_nanos, decided_at_ms, resume_at_ms "
        "FROM reporting.signals WHERE entity IN {entities:Array(String)} "
        "AND billing_day = {day:Date} ORDER BY decided_at_ms, entity, version LIMIT 1000",
        {"entities": list(entities), "day": day},
    )


def changes_of(entities: Sequence[str]) -> Query:
    """The catalog changes of an ad group and its campaign, the latest first."""
    return Query(
        "SELECT entity, field, old, new, changed_by, effective_ms FROM reporting.changes "
        "WHERE entity IN {entities:Array(String)} "
        "ORDER BY effective_ms DESC, catalog_offset DESC, change_number LIMIT 100",
        {"entities": list(entities)},
    )


def time_zone_of(account_id: str) -> Query:
    """The time zone that an account's days are of; no row where it has no event yet."""
    return Query(
        "SELECT argMax(time_zone, (seen_at_ms, journal_partition, journal_offset)) AS time_zone "
        "FROM reporting.accounts WHERE account_id = {account:String} GROUP BY account_id",
        {"account": account_id},
    )


# -- finance ----------------------------------------------------------------------------------


def closed_days(last_days: int) -> Query:
    """The last closed days by currency, each amount as four tables have it: they must be equal.

    A credit has no event of its own: billing.credits counts with billing.events.
    """
    closed = (
        "(account_id, {column}) IN (SELECT account_id, billing_day FROM billing.day_closes "
        "WHERE billing_day > (SELECT max(billing_day) FROM billing.day_closes) - {days:UInt16})"
    )
    recent = "{column} > (SELECT max(billing_day) FROM billing.day_closes) - {days:UInt16}"
    where = {
        column: f"{recent} AND {closed}".replace("{column}", column)
        for column in ("billing_day", "posting_day")
    }
    return Query(
        "SELECT day, currency, sum(a) AS accounts, sum(n) AS charges, sum(e) AS events_nanos, "
        "sum(c) AS charges_nanos, sum(d) AS daily_nanos, sum(k) AS closes_nanos, "
        "sum(f) AS free_nanos, max(at) AS closed_at_ms, "
        "events_nanos = charges_nanos AND charges_nanos = daily_nanos "
        "AND daily_nanos = closes_nanos AS agrees FROM ("
        "SELECT billing_day AS day, currency, count() AS a, sum(charges) AS n, 0 AS e, 0 AS c, "
        "0 AS d, sum(amount_nanos) AS k, 0 AS f, max(closed_at_ms) AS at FROM billing.day_closes "
        f"WHERE {recent.replace('{column}', 'billing_day')} GROUP BY day, currency "
        "UNION ALL SELECT posting_day, currency, 0, 0, sum(amount_nanos), 0, 0, 0, "
        f"sum(free_nanos), 0 FROM billing.events WHERE {where['posting_day']} "
        "GROUP BY posting_day, currency "
        "UNION ALL SELECT posting_day, currency, 0, 0, sum(amount_nanos), 0, 0, 0, 0, 0 "
        f"FROM billing.credits WHERE refused = '' AND {where['posting_day']} "
        "GROUP BY posting_day, currency "
        "UNION ALL SELECT posting_day, currency, 0, 0, 0, sum(amount_nanos), 0, 0, 0, 0 "
        f"FROM billing.charges WHERE {where['posting_day']} GROUP BY posting_day, currency "
        "UNION ALL SELECT billing_day, currency, 0, 0, 0, 0, sum(spend_nanos), 0, 0, 0 "
        f"FROM reporting.daily WHERE {where['billing_day']} GROUP BY billing_day, currency"
        ") WHERE currency != '' GROUP BY day, currency ORDER BY day DESC, currency",
        {"days": last_days},
    )


def digests(day: date, page: int) -> Query:
    """The accounts' closes of a day, with their digests."""
    return Query(
        "SELECT account_id, currency, amount_nanos, charges, events, digest, closed_at_ms, "
        "count() OVER () AS total_rows FROM billing.day_closes WHERE billing_day = {day:Date} "
        "ORDER BY account_id LIMIT {limit:UInt64} OFFSET {skip:UInt64}",
        {"day": day, "limit": ROWS_A_PAGE, "skip": (page - 1) * ROWS_A_PAGE},
    )


def adjustments(last_days: int) -> Query:
    """Charges posted after their own day was closed, by the day posted in and the day they adjust.

    An adjustment's currency is its charge's; counts are of charges, not of events.
    """
    return Query(
        "SELECT posting_day, adjusts_day, currency, uniqExact(account_id) AS accounts, "
        "count() AS charges, sum(amount_nanos) AS amount_nanos FROM billing.charges "
        f"WHERE is_adjustment AND posting_day > {_OPEN_FROM} - {{days:UInt16}} "
        "GROUP BY posting_day, adjusts_day, currency "
        "ORDER BY posting_day DESC, adjusts_day DESC, currency LIMIT 200",
        {"days": last_days},
    )


def free_by_cause(last_days: int) -> Query:
    """Value delivered free, by the limit that stopped or cut the charge."""
    return Query(
        "SELECT posting_day, currency, limit, count() AS events, sum(e.free_nanos) AS free_nanos, "
        "uniqExact(ad_group_id) AS ad_groups FROM billing.events AS e WHERE e.free_nanos > 0 "
        f"AND posting_day > {_OPEN_FROM} - {{days:UInt16}} "
        "GROUP BY posting_day, currency, limit ORDER BY posting_day DESC, currency, limit",
        {"days": last_days},
    )


# -- operations -------------------------------------------------------------------------------


def shards() -> Query:
    """What the tables have of each shard: events judged, and up to when."""
    return Query(
        "SELECT log_partition AS shard, argMax(shard_seq, batch) AS events, "
        "argMax(next_offset, batch) AS journal_offset, argMax(skipped, batch) AS skipped, "
        "max(batch) AS last_batch FROM reporting.reporter_batches WHERE topic = 'billing.journal' "
        "AND batch >= (SELECT max(batch) FROM reporting.reporter_batches) - 1 "
        "GROUP BY shard ORDER BY shard"
    )


def rates() -> Query:
    """Events judged a minute, over the last hour that the tables have."""
    return Query(
        "SELECT intDiv(decided_at_ms, 60000) * 60000 AS at_ms, count() AS events, "
        "countIf(disposition = 'charged') AS charged, "
        "countIf(disposition IN ('malformed', 'future', 'expired', 'unknown')) AS turned_away "
        f"FROM billing.events WHERE {_RECENT} AND decided_at_ms > {_LAST_DECIDED} - 3600000 "
        "GROUP BY at_ms ORDER BY at_ms DESC"
    )


def signal_latency() -> Query:
    """For the last signals: from the last event that its journal record judged to the decision."""
    return Query(
        "SELECT action, count() AS signals, quantileExact(0.5)(late_ms) AS p50_ms, "
        "quantileExact(0.99)(late_ms) AS p99_ms FROM ("
        "SELECT action, decided_at_ms - last_event_ms AS late_ms FROM ("
        "SELECT action, decided_at_ms, journal_partition, journal_offset FROM reporting.signals "
        "ORDER BY decided_at_ms DESC LIMIT 1000) AS sent INNER JOIN ("
        "SELECT journal_partition, journal_offset, max(event_time_ms) AS last_event_ms "
        f"FROM billing.events WHERE {_RECENT} "
        "GROUP BY journal_partition, journal_offset) AS judged "
        "ON sent.journal_partition = judged.journal_partition "
        "AND sent.journal_offset = judged.journal_offset) GROUP BY action ORDER BY action"
    )


def dispositions() -> Query:
    """What became of the events judged in the last 24 hours that the tables have."""
    return Query(
        "SELECT disposition, count() AS events FROM billing.events "
        f"WHERE {_RECENT} AND decided_at_ms > {_LAST_DECIDED} - 86400000 "
        "GROUP BY disposition ORDER BY events DESC"
    )


def last_closes() -> Query:
    """The last closed day of each time zone, and how many accounts it has."""
    return Query(
        "SELECT time_zone, min(closed_through) AS closed_through, count() AS shards, "
        "max(closed_at_ms) AS closed_at_ms FROM ("
        "SELECT time_zone, journal_partition, max(closed_through) AS closed_through, "
        "max(closed_at_ms) AS closed_at_ms FROM reporting.shard_closes "
        "GROUP BY time_zone, journal_partition) GROUP BY time_zone ORDER BY time_zone"
    )
