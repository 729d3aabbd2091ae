"""What each page shows: queries in, a template's values out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import date, timedelta
from itertools import accumulate
from typing import Any, Final
from zoneinfo import ZoneInfo

from aiohttp import web

from pipeline.contract.days import calendar, from_iso
from pipeline.contract.vocabulary import MS_PER_DAY, NANOS_PER_MICRO
from pipeline.dashboard import queries
from pipeline.dashboard.chart import Chart, Mark, spend_chart
from pipeline.dashboard.figures import (
    NO_BUDGET,
    Budget,
    Row,
    budget_of,
    entity_of,
    has_lifetime_limit,
    limits_on,
    money,
    to_csv,
)
from pipeline.dashboard.parts import read_parts
from pipeline.dashboard.queries import Query
from pipeline.dashboard.view import (
    ROWS_A_PAGE,
    BadRequest,
    View,
    parse_day,
    parse_view,
)
from pipeline.reporting.clickhouse import Store

FINANCE_DAYS: Final = 14
_NO_DAY: Final = date(1970, 1, 1)
_SUMMED_FOR: Final = timedelta(days=7)
_BELOW: Final = {"accounts": "campaigns", "campaigns": "ad-groups", "ad-groups": "pins"}

Values = tuple[str, dict[str, Any]]


class Source:
    """Where pages get their rows."""

    def __init__(self, store: Store, metrics_urls: Sequence[str]) -> None:
        self._store = store
        self.metrics_urls = metrics_urls
        self.name = store.name
        self._summed_before = _NO_DAY
        self._summed: dict[tuple[str, str], int] = {}
        """(column, id) -> what it was charged on the days before, which never change."""

    async def rows(self, query: Query) -> list[Row]:
        return await asyncio.to_thread(self._store.dicts, query.sql, query.parameters)

    async def all(self, *wanted: Query) -> list[list[Row]]:
        """The rows of several queries, asked for together."""
        return list(await asyncio.gather(*(self.rows(query) for query in wanted)))

    async def charged_ever(self, column: str, ids: Sequence[str]) -> dict[str, int]:
        """What campaigns or ad groups (`column`: their ids') were charged on all days, in nanos.

        Closed days are summed once and again a week later: years of them take over a second.
        """
        [row] = await self.rows(queries.closed_by_all())
        if row["day"] - self._summed_before > _SUMMED_FOR:
            self._summed_before, self._summed = row["day"], {}
        day, summed = self._summed_before, self._summed
        if missing := [id_ for id_ in ids if (column, id_) not in summed]:
            found = await self.rows(queries.charged_before(column, missing, day))
            summed |= {(column, id_): 0 for id_ in missing}
            summed |= {(column, row["id"]): int(row["charged_nanos"]) for row in found}
        ever = {id_: summed[column, id_] for id_ in ids}
        for row in await self.rows(queries.charged_since(column, ids, day)):
            ever[row["id"]] += int(row["charged_nanos"])
        return ever

    async def check(self) -> None:
        """Raises `StoreError` where ClickHouse does not answer."""
        await asyncio.to_thread(self._store.rows, "SELECT 1")


# -- figures ----------------------------------------------------------------------------------


async def closed(source: Source, request: web.Request) -> Values:
    """Closed days: what is shown is what was billed."""
    last_day = await _last_closed_day(source)
    view = parse_view(request.query, last_day)
    values = await table(source, view, live=False)
    presets = {
        "Last closed day": view.query(first_day=last_day, last_day=last_day, page=1),
        "7 days": view.query(first_day=last_day - timedelta(6), last_day=last_day, page=1),
        "30 days": view.query(first_day=last_day - timedelta(29), last_day=last_day, page=1),
    }
    return "figures.html", values | {
        "tab": "figures",
        "last_day": last_day,
        "presets": presets,
        "nothing_closed": last_day == _NO_DAY,
    }


async def today(source: Source, request: web.Request) -> Values:
    """Open days: provisional until they close."""
    days = await source.rows(queries.live_days())
    latest: date = days[0]["billing_day"] if days else _NO_DAY
    view = parse_view(request.query, latest)
    values = await table(source, view, live=True)
    return "today.html", values | {
        "tab": "today",
        "days": [
            (
                row["billing_day"],
                row["as_of_ms"],
                view.query(first_day=row["billing_day"], last_day=row["billing_day"], page=1),
            )
            for row in days
        ],
    }


async def csv_of(source: Source, request: web.Request, *, live: bool) -> tuple[str, str]:
    """The file's name, and all rows of a view as CSV."""
    if live:
        days = await source.rows(queries.live_days())
        default = days[0]["billing_day"] if days else _NO_DAY
    else:
        default = await _last_closed_day(source)
    view = parse_view(request.query, default)
    rows = await source.rows(queries.figures(view, live=live, every_row=True))
    name = f"{view.level}-{view.first_day}-{view.last_day}.csv"
    return name, to_csv(view, rows, provisional=live)


async def _last_closed_day(source: Source) -> date:
    [row] = await source.rows(queries.last_closed_day())
    day: date = row["day"]
    return day


async def table(source: Source, view: View, *, live: bool) -> dict[str, Any]:
    """A page of figures with each row's budget, and the totals of all pages."""
    rows, totals = await source.all(
        queries.figures(view, live=live), queries.totals(view, live=live)
    )
    total_rows = int(rows[0]["total_rows"]) if rows else 0
    return {
        "view": view,
        "below": _BELOW.get(view.level),
        "rows": list(zip(rows, await _budgets(source, view, rows), strict=True)),
        "totals": totals,
        "total_rows": total_rows,
        "pages": max(1, -(-total_rows // ROWS_A_PAGE)),
        "first_row": (view.page - 1) * ROWS_A_PAGE + 1,
        "live": live,
    }


async def _budgets(source: Source, view: View, rows: list[Row]) -> list[Budget]:
    """The budget of each row of a page."""
    entities = [entity_of(view, row) for row in rows]
    named = [entity for entity in entities if entity is not None]
    if not named:
        return [NO_BUDGET] * len(rows)
    # A day of UTC stands for every account's own here: budgets rarely change around midnight.
    start_ms = from_iso(view.last_day.isoformat()) * MS_PER_DAY
    changes = await source.rows(queries.limits(named, start_ms + MS_PER_DAY))
    of_entity = limits_on(changes, start_ms)
    own_id = view.ids[-1]
    limited = [
        row[own_id]
        for entity, row in zip(entities, rows, strict=True)
        if has_lifetime_limit(of_entity.get(entity or "", {}))
    ]
    ever = await source.charged_ever(own_id, limited) if limited else {}
    return [
        budget_of(
            of_entity.get(entity or "", {}),
            int(row["spend_nanos"]),
            view.days,
            ever.get(row[own_id], 0),
        )
        for entity, row in zip(entities, rows, strict=True)
    ]


# -- one ad group -----------------------------------------------------------------------------


async def ad_group(source: Source, request: web.Request) -> Values:
    """An ad group's day: its spend against its limit, and its signals."""
    ad_group_id = request.match_info["ad_group_id"]
    days = await source.rows(queries.ad_group_days(ad_group_id))
    if not days:
        raise BadRequest(f"ad group {ad_group_id[:128]} has no events in the tables")
    latest = days[0]
    day = parse_day(request.query.get("day"), "day", latest["billing_day"])
    entities = [f"ad_group:{ad_group_id}", f"campaign:{latest['campaign']}"]
    steps, before, signals, changes, zones = await source.all(
        queries.spend_curve(ad_group_id, day),
        queries.spend_before(ad_group_id, day),
        queries.signals_of(entities, day),
        queries.changes_of(entities),
        queries.time_zone_of(latest["account"]),
    )
    zone = zones[0]["time_zone"] if zones else "UTC"
    local = calendar(zone)
    number = from_iso(day.isoformat())
    span_ms = (local.start_ms(number), local.end_ms(number))
    limits = await source.rows(queries.limits(entities[:1], span_ms[1]))
    fields = limits_on(limits, span_ms[0]).get(entities[0], {})
    lifetime = fields.get("budget_type") == "lifetime"
    base_nanos = int(before[0]["spend_nanos"]) if lifetime else 0
    spend_nanos = sum(int(step["spend_nanos"]) for step in steps)
    return "ad_group.html", {
        "tab": "figures",
        "ad_group_id": ad_group_id,
        "whose": latest,
        "day": day,
        "days": days,
        "zone": zone,
        "chart": _chart(steps, signals, _budgets_over_time(limits), base_nanos, span_ms, zone),
        "spend_nanos": spend_nanos,
        "free_nanos": sum(int(step["free_nanos"]) for step in steps),
        "budget": budget_of(fields, spend_nanos, 1, base_nanos + spend_nanos),
        "lifetime": lifetime,
        "signals": signals,
        "changes": changes,
    }


def _budgets_over_time(limits: Sequence[Row]) -> list[tuple[int, int]]:
    """(from ms, nanos) of an ad group's budget, in time's order."""
    return [
        (int(change["effective_ms"]), int(change["new"]) * NANOS_PER_MICRO)
        for change in limits
        if change["field"] == "budget_micros" and change["new"]
    ]


def _chart(
    steps: Sequence[Row],
    signals: Sequence[Row],
    limits: Sequence[tuple[int, int]],
    base_nanos: int,
    span_ms: tuple[int, int],
    zone: str,
) -> Chart:
    start_ms, end_ms = span_ms
    # A step's spend is known at its end.
    sums = accumulate((int(step["spend_nanos"]) for step in steps), initial=base_nanos)
    times = [start_ms, *(int(step["at_ms"]) + queries.CURVE_STEP_MS for step in steps)]
    before = [limit for limit in limits if limit[0] <= start_ms][-1:]
    during = [limit for limit in limits if start_ms < limit[0] < end_ms]
    marks = [
        Mark(
            int(signal["decided_at_ms"]),
            signal["action"],
            f"{signal['action']} {signal['entity'].partition(':')[0].replace('_', ' ')}: "
            f"{signal['reason']} {signal['limit']} at {money(signal['spend_nanos'])}",
        )
        for signal in signals
        if start_ms <= int(signal["decided_at_ms"]) <= end_ms
    ]
    points = list(zip(times, sums, strict=True))
    return spend_chart(points, [*before, *during], marks, span_ms, ZoneInfo(zone))


# -- finance and operations -------------------------------------------------------------------


async def finance(source: Source, request: web.Request) -> Values:
    """Closed days as four tables have them, adjustments, and free overdelivery by cause."""
    days, adjustments, free = await source.all(
        queries.closed_days(FINANCE_DAYS),
        queries.adjustments(FINANCE_DAYS),
        queries.free_by_cause(FINANCE_DAYS),
    )
    return "finance.html", {
        "tab": "finance",
        "days": days,
        "span": FINANCE_DAYS,
        "adjustments": adjustments,
        "free": free,
        "agree": all(day["agrees"] for day in days),
    }


async def finance_day(source: Source, request: web.Request) -> Values:
    """One closed day: each account's close with its digest."""
    day = parse_day(request.match_info["day"], "day", _NO_DAY)
    page = parse_view({"page": request.query.get("page", "1")}, day).page
    rows = await source.rows(queries.digests(day, page))
    total_rows = int(rows[0]["total_rows"]) if rows else 0
    return "finance_day.html", {
        "tab": "finance",
        "day": day,
        "rows": rows,
        "page": page,
        "pages": max(1, -(-total_rows // ROWS_A_PAGE)),
        "total_rows": total_rows,
    }


async def operations(source: Source, request: web.Request) -> Values:
    """How the parts are doing: what they say themselves, and what the tables show."""
    parts, tables = await asyncio.gather(
        read_parts(source.metrics_urls),
        source.all(
            queries.shards(),
            queries.rates(),
            queries.signal_latency(),
            queries.dispositions(),
            queries.last_closes(),
        ),
    )
    shards, rates, latencies, dispositions, closes = tables
    return "operations.html", {
        "tab": "operations",
        "store": source.name,
        "parts": parts,
        "asked": source.metrics_urls,
        "shards": shards,
        "rates": rates,
        "peak": max((int(rate["events"]) for rate in rates), default=1),
        "latencies": latencies,
        "dispositions": dispositions,
        "closes": closes,
    }
