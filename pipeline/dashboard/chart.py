"""Charts as SVG, drawn here: they need no script, print, and can be read out.

Geometry is worked out in floats of pixels; the amounts in the texts are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Final

from pipeline.dashboard.figures import money

WIDTH: Final = 960
HEIGHT: Final = 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 28, 16, 36


@dataclass(frozen=True, slots=True)
class Mark:
    """A signal on the chart."""

    at_ms: int
    action: str
    text: str


@dataclass(frozen=True, slots=True)
class Placed:
    """Something at its place in pixels."""

    x: float
    y: float
    text: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """What the template draws: paths, ticks and marks, in pixels of WIDTH x HEIGHT."""

    spend_path: str
    area_path: str
    limit_path: str
    limit_label: Placed | None
    x_ticks: tuple[Placed, ...]
    y_ticks: tuple[Placed, ...]
    marks: tuple[Placed, ...]
    points: tuple[tuple[float, str, str], ...]
    """(x, time, spend) of each step, for the read-out under the pointer."""
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


def spend_chart(
    points: Sequence[tuple[int, int]],
    limits: Sequence[tuple[int, int]],
    marks: Sequence[Mark],
    span_ms: tuple[int, int],
    zone: tzinfo,
) -> Chart:
    """Cumulative spend against its limit, both as (from ms, nanos) steps over a span of time;
    times are told in the zone."""
    start_ms, end_ms = span_ms
    top_nanos = max([nanos for _, nanos in (*points, *limits)], default=0) or 1
    step = _nice_step(top_nanos / 5)
    ceiling = step * -(-int(top_nanos * 1.02) // step)

    def x(at_ms: int) -> float:
        share = (min(max(at_ms, start_ms), end_ms) - start_ms) / (end_ms - start_ms)
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def y(nanos: int) -> float:
        return round(HEIGHT - _BOTTOM - nanos / ceiling * (HEIGHT - _TOP - _BOTTOM), 1)

    spend = [(x(at_ms), y(nanos)) for at_ms, nanos in points]
    bounds = [(x(at_ms), y(nanos)) for at_ms, nanos in limits]
    hours = range(0, round((end_ms - start_ms) / 3_600_000) + 1, 3)
    ticks = [start_ms + hour * 3_600_000 for hour in hours]
    return Chart(
        spend_path=_stepped(spend),
        area_path=_area(spend, HEIGHT - _BOTTOM),
        limit_path=_stepped([*bounds, (WIDTH - _RIGHT, bounds[-1][1])]) if bounds else "",
        limit_label=Placed(WIDTH - _RIGHT, bounds[-1][1], money(limits[-1][1])) if bounds else None,
        x_ticks=tuple(Placed(x(at), HEIGHT - _BOTTOM, _clock(at, zone)) for at in ticks),
        y_ticks=tuple(Placed(_LEFT, y(n), money(n)) for n in range(0, ceiling + 1, step)),
        marks=tuple(Placed(x(m.at_ms), _TOP, m.text, m.action) for m in marks),
        points=tuple((x(at), _clock(at, zone), money(nanos)) for at, nanos in points),
    )


def _stepped(points: Sequence[tuple[float, float]]) -> str:
    """A path that stays level until the next point: money is not spent in between."""
    if not points:
        return ""
    first, *rest = points
    return f"M{first[0]} {first[1]}" + "".join(f"H{x}V{y}" for x, y in rest)


def _area(points: Sequence[tuple[float, float]], bottom: int) -> str:
    if not points:
        return ""
    return f"{_stepped(points)}V{bottom}H{points[0][0]}Z"


def _nice_step(least: float) -> int:
    """The least of 1, 2, 5 times a power of ten that is not below."""
    size = 1
    while size * 10 <= least:
        size *= 10
    return next((size * k for k in (1, 2, 5) if size * k >= least), size * 10)


def _clock(at_ms: int, zone: tzinfo) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1_000, zone):%H:%M}"
