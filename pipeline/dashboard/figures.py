"""Rows as the pages show them: text of amounts and ratios, and what is used of each budget.

Amounts are shown rounded half up to the currency's two decimals (averages to four), from exact
integers; the CSV has them exact.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final

from pipeline.contract.money import units
from pipeline.contract.vocabulary import NANOS_PER_MICRO
from pipeline.dashboard.view import View

_CENT: Final = Decimal("0.01")
_FINE: Final = Decimal("0.0001")
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")

Row = dict[str, Any]


def money(nanos: int) -> str:
    """An amount to two decimals: `1,234.50`."""
    return f"{units(int(nanos)).quantize(_CENT, ROUND_HALF_UP):,}"


def average(nanos: int) -> str:
    """An average price to four decimals; a dash where nothing was charged so."""
    return f"{units(int(nanos)).quantize(_FINE, ROUND_HALF_UP):,}" if nanos else "—"


def percent(share: float) -> str:
    """A share as a percentage to two decimals."""
    return f"{100 * share:.2f}%"


def count(number: int) -> str:
    """A count with thousands separated."""
    return f"{int(number):,}"


def moment(at_ms: int) -> str:
    """A time to the second, UTC; a dash for 0."""
    if not at_ms:
        return "—"
    return f"{datetime.fromtimestamp(at_ms / 1_000, UTC):%Y-%m-%d %H:%M:%S}"


def latency(seconds: float) -> str:
    """A histogram's bound: `20 ms`, or that it is beyond the last."""
    return "over 1 h" if seconds == math.inf else f"{1_000 * seconds:,.0f} ms"


def time_of_day(at_ms: int) -> str:
    """A time to the second, UTC, without its date."""
    return f"{datetime.fromtimestamp(at_ms / 1_000, UTC):%H:%M:%S}"


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit, and the share that is used of it."""

    text: str
    used: Decimal | None
    """Spend / limit, 1 = all of it; None where there is no limit."""

    @property
    def used_text(self) -> str:
        return "—" if self.used is None else f"{100 * self.used:.1f}%"


NO_BUDGET: Final = Budget("—", None)


def entity_of(view: View, row: Row) -> str | None:
    """The entity whose limit a row's budget is: its ad group's or campaign's."""
    if view.level == "ad-groups":
        return f"ad_group:{row['ad_group_id']}"
    return f"campaign:{row['campaign_id']}" if view.level == "campaigns" else None


def limits_on(rows: Iterable[Row], day_start_ms: int) -> dict[str, dict[str, Any]]:
    """Entity -> field -> value, from rows of the query `limits` up to a day's end.

    Of a limit that changed in the day, the largest that was in force: spend was held against it.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        # A change's value is JSON; the empty string is a field that was taken away.
        value = json.loads(row["new"]) if row["new"] else None
        fields = found.setdefault(row["entity"], {})
        if row["field"] == "deleted":
            fields.clear()
            continue
        held = fields.get(row["field"])
        if int(row["effective_ms"]) > day_start_ms and isinstance(held, int):
            value = None if value is None else max(held, value)
        fields[row["field"]] = value
    return found


def has_lifetime_limit(fields: Mapping[str, Any]) -> bool:
    """Whether an ad group's budget, or a limit of a campaign's, is for all its days."""
    limit = fields.get("lifetime_spend_limit_micros")
    return bool(limit) or fields.get("budget_type") == "lifetime"


def budget_of(
    fields: Mapping[str, Any], spend_nanos: int, days: int, lifetime_nanos: int
) -> Budget:
    """An ad group's budget or a campaign's limit, and what is used of it.

    A daily one is held against `spend_nanos` where that is one day's; a lifetime one against all
    that was ever spent, `lifetime_nanos`.
    """
    daily = fields.get("daily_spend_limit_micros")
    lifetime = fields.get("lifetime_spend_limit_micros")
    if fields.get("budget_type") == "daily":
        daily = fields.get("budget_micros")
    elif fields.get("budget_type") == "lifetime":
        lifetime = fields.get("budget_micros")
    if daily:
        limit_nanos = int(daily) * NANOS_PER_MICRO
        used = Decimal(spend_nanos) / limit_nanos if days == 1 else None
        return Budget(f"{money(limit_nanos)} a day", used)
    if lifetime:
        limit_nanos = int(lifetime) * NANOS_PER_MICRO
        return Budget(f"{money(limit_nanos)} lifetime", Decimal(lifetime_nanos) / limit_nanos)
    return NO_BUDGET


CSV_COLUMNS: Final = [
    "currency",
    "impressions",
    "clicks",
    "ctr",
    "closeups",
    "saves",
    "installs",
    "engagements",
    "charged_impressions",
    "charged_clicks",
    "charged_engagements",
    "spend",
    "overdelivery",
    "cpc",
    "cpm",
    "cpe",
]
_CSV_AMOUNTS: Final = {
    "spend": "spend_nanos",
    "overdelivery": "free_nanos",
    "cpc": "cpc_nanos",
    "cpm": "cpm_nanos",
    "cpe": "cpe_nanos",
}


def to_csv(view: View, rows: Sequence[Row], *, provisional: bool) -> str:
    """A table of figures as CSV: amounts in units of the currency, exact to the nano."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    first = ["first_day", "last_day", "status", *view.ids]
    writer.writerow([*first, *CSV_COLUMNS])
    status = "provisional" if provisional else "closed"
    for row in rows:
        cells: list[object] = [view.first_day, view.last_day, status]
        cells += [_harmless(row[name]) for name in view.ids]
        for name in CSV_COLUMNS:
            amount = _CSV_AMOUNTS.get(name)
            cells.append(row[name] if amount is None else f"{units(int(row[amount])):f}")
        writer.writerow(cells)
    return out.getvalue()


def _harmless(text: str) -> str:
    """An id that a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text
