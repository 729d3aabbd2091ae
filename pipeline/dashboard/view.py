"""What a request asks to see, checked once at the door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Final
from urllib.parse import urlencode

ROWS_A_PAGE: Final = 50
MAX_TEXT: Final = 256
"""The longest id of the catalog."""

LEVELS: Final[dict[str, tuple[str, ...]]] = {
    "accounts": ("account_id",),
    "campaigns": ("account_id", "campaign_id"),
    "ad-groups": ("account_id", "campaign_id", "ad_group_id"),
    "pins": ("account_id", "campaign_id", "ad_group_id", "promoted_pin_id"),
}
"""Level -> the columns that name a row of it; the last is its own id."""

FILTERS: Final = ("account_id", "campaign_id", "ad_group_id", "placement", "country", "device")

SORTS: Final = (
    "name",
    "impressions",
    "clicks",
    "ctr",
    "engagements",
    "installs",
    "spend_nanos",
    "free_nanos",
    "cpc_nanos",
    "cpm_nanos",
    "cpe_nanos",
)


class BadRequest(ValueError):
    """A request that makes no sense; the text says which part, and what is allowed."""


@dataclass(frozen=True, slots=True)
class View:
    """A table of figures: which rows, in which order, which page."""

    level: str
    first_day: date
    last_day: date
    filters: tuple[tuple[str, str], ...] = ()
    """(column of FILTERS, value that it must equal)."""
    text: str = ""
    """What the row's own id must contain."""
    sort: str = "spend_nanos"
    descending: bool = True
    page: int = 1

    @property
    def ids(self) -> tuple[str, ...]:
        return LEVELS[self.level]

    @property
    def days(self) -> int:
        return (self.last_day - self.first_day).days + 1

    def query(self, **changes: object) -> str:
        """The query string of this view, or of one changed so."""
        other = replace(self, **changes)  # type: ignore[arg-type]
        fields = {
            "level": other.level,
            "from": other.first_day.isoformat(),
            "to": other.last_day.isoformat(),
            **dict(other.filters),
            "q": other.text,
            "sort": other.sort,
            "order": "desc" if other.descending else "asc",
            "page": str(other.page),
        }
        plain = {"q": "", "page": "1", "sort": "spend_nanos", "order": "desc"}
        return urlencode({k: v for k, v in fields.items() if plain.get(k) != v})

    def sorted_by(self, column: str) -> str:
        """The query string of a click on a column's heading."""
        turned = not self.descending if column == self.sort else column != "name"
        return self.query(sort=column, descending=turned, page=1)

    def into(self, level: str, column: str, value: str) -> str:
        """The query string of the rows below one row."""
        others = tuple((name, held) for name, held in self.filters if name != column)
        return self.query(level=level, filters=(*others, (column, value)), text="", page=1)


def parse_view(given: Mapping[str, str], default_day: date) -> View:
    """The view that a query string asks for. Raises `BadRequest`."""
    level = _one_of(given.get("level", "campaigns"), tuple(LEVELS), "level")
    first = parse_day(given.get("from"), "from", default_day)
    last = parse_day(given.get("to"), "to", max(first, default_day))
    if last < first:
        raise BadRequest(f"to: {last} is before from: {first}")
    # An id is what it is, spaces included.
    filters = tuple((name, _text(given[name], name)) for name in FILTERS if given.get(name))
    page = given.get("page", "1")
    if not page.isascii() or not page.isdigit() or not 1 <= int(page[:9]) <= 1_000_000:
        raise BadRequest("page: a number from 1 on")
    return View(
        level=level,
        first_day=first,
        last_day=last,
        filters=filters,
        text=_text(given.get("q", "").strip(), "q"),
        sort=_one_of(given.get("sort", "spend_nanos"), SORTS, "sort"),
        descending=_one_of(given.get("order", "desc"), ("asc", "desc"), "order") == "desc",
        page=int(page),
    )


def parse_day(text: str | None, name: str, default: date) -> date:
    """A `YYYY-MM-DD`, or the default where nothing is given. Raises `BadRequest`."""
    if not text:
        return default
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise BadRequest(f"{name}: {text[:20]!r} is not a day such as 2026-03-01") from None
    if not 1970 <= day.year <= 2148:  # what ClickHouse's Date holds
        raise BadRequest(f"{name}: {day} is out of range")
    return day


def _one_of(text: str, allowed: tuple[str, ...], name: str) -> str:
    if text not in allowed:
        raise BadRequest(f"{name}: one of {', '.join(allowed)}")
    return text


def _text(text: str, name: str) -> str:
    if len(text) > MAX_TEXT:
        raise BadRequest(f"{name}: at most {MAX_TEXT} characters")
    return text
