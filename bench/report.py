"""From kept figures to docs/performance.md and its plot: pure functions of the JSON files.

docs/performance.md is written by hand but for the parts between `<!-- NAME -->` and
`<!-- /NAME -->`, which `write` fills.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bench.site import ROOT

DOCS = ROOT / "docs"
PAGE = "performance.md"
RESULTS = ("compare", "latency", "scale", "state", "close")
"""Names of what is kept, each in `performance/NAME.json` beside the page."""

Results = Mapping[str, Mapping[str, Any]]
"""Name -> what was kept under it; a name that was never measured is missing."""

COMMANDS = {
    "compare": "python -m bench",
    "latency": "python -m bench latency",
    "scale": "python -m bench scale",
    "state": "python -m bench state",
    "close": "python -m bench close",
}


def keep(name: str, results: Mapping[str, Any], docs: Path = DOCS) -> None:
    """Keep figures for the page."""
    path = docs / "performance" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def kept(docs: Path = DOCS) -> dict[str, Mapping[str, Any]]:
    """All kept figures."""
    paths = {name: docs / "performance" / f"{name}.json" for name in RESULTS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def write(docs: Path = DOCS) -> list[Path]:
    """Write the page and its plot; the paths written."""
    results = kept(docs)
    page = docs / PAGE
    text = (page if page.exists() else DOCS / PAGE).read_text()
    page.write_text(render(text, results))
    written = [page]
    if "compare" in results:
        plot = docs / "performance" / "rates.svg"
        plot.write_text(plot_of(results["compare"]))
        written.append(plot)
    return written


def render(text: str, results: Results) -> str:
    """The page with its generated parts filled. Raises `ValueError` where it lacks one's place."""
    for name, section in SECTIONS.items():
        between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        parts = between.split(text)
        if len(parts) != 4:
            raise ValueError(f"{PAGE} needs one part <!-- {name} --> ... <!-- /{name} -->")
        before, begin, end, after = parts
        text = f"{before}{begin}{section(results)}\n{end}{after}"
    return text


# -- words and tables -----------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def _about(results: Mapping[str, Any]) -> str:
    about = results["about"]
    peers = f"; peers: {about['peers']}" if "peers" in about else ""
    return (
        f"Measured {about['date']} by `{about['command'].strip()}` at revision "
        f"{about['revision']} on {about['processor']}, {about['memory']}, {about['system']}, "
        f"Python {about['python']} ({about['versions']}{peers}); load {about['load']}."
    )


def _section(
    name: str,
) -> Callable[[Callable[[Mapping[str, Any]], str]], Callable[[Results], str]]:
    """A section that needs one kind of figures, with a word on how they were measured."""

    def decorate(body: Callable[[Mapping[str, Any]], str]) -> Callable[[Results], str]:
        def section(results: Results) -> str:
            if name not in results:
                return f"Not measured yet: `{COMMANDS[name]}`."
            return f"{body(results[name])}\n\n{_about(results[name])}"

        return section

    return decorate


def _number(value: float) -> str:
    """Three significant digits, thousands separated."""
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(0, digits)}f}"


def _median(contestant: Mapping[str, Any], figure: str) -> float:
    values = [run[figure] for run in contestant["runs"]]
    return statistics.median(values) if values else 0.0


# -- the peers ------------------------------------------------------------------------------------


@_section("compare")
def _compare(results: Mapping[str, Any]) -> str:
    contestants = results["contestants"]
    product = _median(contestants[0], "events_per_s")
    rows = []
    for one in contestants:
        if not one["runs"]:
            rows.append([one["name"], "-", one["guarantee"], *["-"] * 4, one["problem"]])
            continue
        rates = [run["events_per_s"] for run in one["runs"]]
        per_million = [run["cpu_s"] / run["events"] * 1e6 for run in one["runs"]]
        rows.append(
            [
                one["name"],
                f"**{product / statistics.median(rates):.1f} x**",
                one["guarantee"],
                f"{min(rates):,.0f}",
                f"{statistics.median(rates):,.0f}",
                f"{max(rates):,.0f}",
                f"{statistics.median(per_million):.1f} / {_median(one, 'peak_mib'):,.0f}",
                one["problem"] or _note(one),
            ]
        )
    head = [
        "who",
        "this pipeline's rate is",
        "guarantee",
        "events/s min",
        "median",
        "max",
        "CPU s a million / peak MiB",
        "note",
    ]
    table = _table(head, [[_cell(text) for text in row] for row in rows])
    return f"![Events a second on one core](performance/rates.svg)\n\n{table}"


def _cell(text: str) -> str:
    """A text, such as a program's last words, as a cell can hold it."""
    text = " ".join(text.replace("|", "/").split())
    return text if len(text) <= 200 else f"{text[:60]} ... {text[-130:]}"


def _reported_per_s(contestant: Mapping[str, Any]) -> float:
    """The reporter's rate; 0 of a peer, and in results from before it was measured."""
    if not all("reported_per_s" in run for run in contestant["runs"]):
        return 0.0
    return _median(contestant, "reported_per_s")


def _note(contestant: Mapping[str, Any]) -> str:
    if not (rate := _reported_per_s(contestant)):
        return f"{len(contestant['runs'])} runs"
    return (
        f"{len(contestant['runs'])} runs, each reconciled at zero tolerance; "
        f"the reporter then on that core: {_number(rate)} events/s"
    )


def plot_of(results: Mapping[str, Any]) -> str:
    """The rates as bars in an SVG: the median, and a line from the least to the greatest."""
    ran = [one for one in results["contestants"] if one["runs"]]
    ran.sort(key=lambda one: -_median(one, "events_per_s"))
    greatest = max((run["events_per_s"] for one in ran for run in one["runs"]), default=1.0)
    left, width, row = 170, 430, 34
    lines = []
    for number, one in enumerate(ran):
        rates = [run["events_per_s"] for run in one["runs"]]
        y = 34 + number * row
        median = statistics.median(rates)
        low, mid, high = (left + width * r / greatest for r in (min(rates), median, max(rates)))
        color = "#bd081c" if one is results["contestants"][0] else "#8a8f98"
        lines += [
            f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(one["name"])}</text>',
            f'<rect x="{left}" y="{y}" width="{mid - left:.1f}" height="22" fill="{color}"/>',
            f'<path d="M{low:.1f} {y + 11}H{high:.1f}" stroke="#222" stroke-width="2"/>',
            f'<text x="{high + 8:.1f}" y="{y + 15}">{_number(median)}</text>',
        ]
    height = 44 + len(ran) * row
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 {height}" '
        'font-family="sans-serif" font-size="13" role="img">\n'
        "<title>Events a second on one core</title>\n"
        f'<rect width="700" height="{height}" fill="#fff"/>\n'
        '<text x="8" y="20" font-weight="bold">Events a second on one core: median, and least to '
        "greatest</text>\n" + "\n".join(lines) + "\n</svg>\n"
    )


# -- the others -----------------------------------------------------------------------------------


@_section("latency")
def _latency(results: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{level['share']:.0%}",
            _number(level["asked_events_per_s"]),
            _number(level["reached_events_per_s"]),
            *(_milliseconds(level[f"p{name}_ms"]) for name in ("50", "99", "99.9", "100")),
            ", ".join(map(_milliseconds, level.get("p99_ms_of_runs", [level["p99_ms"]]))),
            f"{level['probes']:,}",
            f"{level['unanswered']:,}",
        ]
        for level in results["levels"]
    ]
    head = ["load", "events/s asked", "sent", "p50 ms", "p99 ms", "p99.9 ms", "worst ms"]
    table = _table([*head, "p99 ms of each run", "probes", "unanswered"], rows)
    if "backlog_events_per_s" not in results:
        return table
    live, backlog = (_number(results[f"{of}_events_per_s"]) for of in ("capacity", "backlog"))
    return f"{table}\n\nCapacity of a stream: {live} events/s; of a backlog: {backlog}."


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


@_section("scale")
def _scale(results: Mapping[str, Any]) -> str:
    first = results["engine"][0]["cpu_us_per_event"]
    engine = _table(
        ["engine alone: partitions", "ad groups", "against the first", "CPU µs an event"],
        [
            [
                str(one["partitions"]),
                f"{one['ad_groups']:,}",
                f"{one['cpu_us_per_event'] / first:.2f}",
                f"{one['cpu_us_per_event']:.2f}",
            ]
            for one in results["engine"]
        ],
    )
    first = results["workers"][0]["cpu_us_per_event"]
    workers = _table(
        ["partitions", "workers", "cost against the first", "CPU µs an event", "events/s in all"],
        [
            [
                str(one["partitions"]),
                str(one["workers"]),
                f"{one['cpu_us_per_event'] / first:.2f}",
                f"{one['cpu_us_per_event']:.2f}",
                _number(one["events_per_s"]),
            ]
            for one in results["workers"]
        ],
    )
    first = results["sizes"][0]["cpu_us_per_event"]
    sizes = _table(
        ["ad groups, one worker", "cost against the first", "CPU µs an event", "events/s"],
        [
            [
                f"{one['ad_groups']:,}",
                f"{one['cpu_us_per_event'] / first:.2f}",
                f"{one['cpu_us_per_event']:.2f}",
                _number(one["events_per_s"]),
            ]
            for one in results["sizes"]
        ],
    )
    low = _table(
        ["events/s", "share of a core"],
        [[_number(one["events_per_s"]), f"{one['core_share']:.1%}"] for one in results["low_load"]],
    )
    return f"{engine}\n\n{workers}\n\n{sizes}\n\n{low}"


@_section("state")
def _state(results: Mapping[str, Any]) -> str:
    names = {"ids": "event ids", "unique": "keys of rule 8"}
    head = ["live", "engine's rate against empty", "bytes in memory / on disk each"]
    head += [
        "look-ups and adds a s, empty / full",
        "CPU µs a key, files included",
        "longest turn ms, CPU / clock",
    ]
    head += ["snapshot MiB", "a turn waits for it ms", "written s", "loaded s", "files"]
    sets = _table(
        head,
        [
            [
                f"{one['ids']:,} {names[one['what']]}",
                f"{results['empty_job_us'] / one['job_us']:.2f}" if "job_us" in one else "-",
                f"{one['memory_bytes_per_id']:.1f} / {one['disk_bytes'] / one['ids']:.1f}",
                f"{_number(one['first_ids_per_s'])} / {_number(one['last_ids_per_s'])}",
                f"{one['cpu_us_per_id']:.2f}",
                f"{one['longest_turn_cpu_ms']:,.0f} / {one['longest_turn_ms']:,.0f}",
                f"{one['snapshot_bytes'] / 2**20:,.1f}",
                f"{one['pack_s'] * 1_000:,.1f}",
                f"{one['save_s']:.2f}",
                f"{one['load_s']:.1f}",
                f"{one['runs']}",
            ]
            for one in results["sizes"]
        ],
    )
    head = ["ad groups", "catalog records", "loaded CPU s", "memory MiB", "CPU µs an event"]
    head += ["longest turn CPU ms", "a turn waits for a shard's snapshot CPU ms", "snapshot MiB"]
    groups = _table(
        head,
        [
            [
                f"{one['ad_groups']:,}",
                f"{one['records']:,}",
                f"{one['load_cpu_s']:.1f}",
                f"{one['memory_mib']:,.0f}",
                f"{one['cpu_us_per_event']:.2f}",
                f"{one['longest_turn_cpu_ms']:,.0f}",
                f"{one['pack_cpu_s'] * 1_000:,.0f}",
                f"{one['packed_mib']:,.1f}",
            ]
            for one in results["ad_groups"]
        ],
    )
    return f"{sets}\n\n{groups}"


@_section("close")
def _close(results: Mapping[str, Any]) -> str:
    one = results["close"]
    head = [
        "events of the day",
        "accounts",
        "daily rows",
        "charges",
        "CPU s",
        "clock s",
        "peak MiB",
    ]
    cells = [one["events"], one["accounts"], one["daily_rows"], one["charges"]]
    row = [f"{cell:,}" for cell in cells]
    row += [f"{one['cpu_s']:.1f}", f"{one['clock_s']:.1f}", f"{one['peak_mib']:,.0f}"]
    return _table(head, [row])


# -- goals ----------------------------------------------------------------------------------------


def _goals(results: Results) -> str:
    rows = []
    for what, goal, figure in GOALS:
        try:
            value = figure(results)
        except (KeyError, IndexError, ValueError, TypeError):
            rows.append([what, goal.text, "-", "not measured"])
            continue
        verdict = "reached" if goal.holds(value) else "**not reached**"
        rows.append([what, goal.text, goal.show(value), verdict])
    return _table(["what", "goal", "measured", ""], rows)


class Goal:
    """At least or at most a value, shown with a unit."""

    def __init__(self, least: bool, value: float, form: str) -> None:
        self._least, self._value, self._form = least, value, form
        self.text = ("at least " if least else "at most ") + self.show(value)

    def holds(self, value: float) -> bool:
        return value >= self._value if self._least else value <= self._value

    def show(self, value: float) -> str:
        return self._form.format(value)


def _product_rate(results: Results) -> float:
    if "compare" not in results:
        return 0.0
    return _median(results["compare"]["contestants"][0], "events_per_s")


def _product_figure(results: Results, figure: str) -> float:
    return _median(results["compare"]["contestants"][0], figure)


def _ratio_to_exact_peers(results: Results) -> float:
    peers = [
        _median(one, "events_per_s")
        for one in results["compare"]["contestants"][1:]
        if one["guarantee"] == "exactly once" and one["runs"]
    ]
    return _product_figure(results, "events_per_s") / max(peers)


def _p99_at_half(results: Results) -> float:
    [level] = [one for one in results["latency"]["levels"] if one["share"] == 0.5]
    return float(level["p99_ms"]) if not level["unanswered"] else math.inf


def _core_share(results: Results, events_a_s: int) -> float:
    loads = results["scale"]["low_load"]
    nearest = min(loads, key=lambda one: abs(float(one["events_per_s"]) - events_a_s))
    return float(nearest["core_share"])


def _spread(of: Sequence[Mapping[str, Any]]) -> float:
    costs = [float(one["cpu_us_per_event"]) for one in of]
    return max(costs) / costs[0] - 1


def _rate_at_full(results: Results) -> float:
    """The engine's rate with a full set, as a share of that with an empty one."""
    fullest = _fullest(results)
    return float(results["state"]["empty_job_us"]) / float(fullest["job_us"])


def _fullest(results: Results) -> Mapping[str, Any]:
    ids = [one for one in results["state"]["sizes"] if one["what"] == "ids"]
    return max(ids, key=lambda one: int(one["ids"]))


GOALS: list[tuple[str, Goal, Callable[[Results], float]]] = [
    (
        "events/s of the whole job on one core",
        Goal(True, 300_000, "{:,.0f}"),
        lambda results: _product_figure(results, "events_per_s"),
    ),
    (
        "against the fastest peer that is exactly once",
        Goal(True, 3.0, "{:.1f} x"),
        _ratio_to_exact_peers,
    ),
    ("signal latency p99 at 50% load", Goal(False, 100, "{:,.1f} ms"), _p99_at_half),
    ("an idle worker", Goal(False, 0.03, "{:.1%} of a core"), lambda r: _core_share(r, 0)),
    ("at 20,000 events/s", Goal(False, 0.25, "{:.1%} of a core"), lambda r: _core_share(r, 20_000)),
    (
        "a worker's cost an event, 4 to 64 partitions",
        Goal(False, 0.2, "{:+.0%}"),
        lambda r: _spread([one for one in r["scale"]["workers"] if one["workers"] == 1]),
    ),
    (
        "a worker's cost an event, 200 to 200,000 ad groups",
        Goal(False, 0.2, "{:+.0%}"),
        lambda r: _spread(r["scale"]["sizes"]),
    ),
    (
        "events/s of the engine at the most ids measured, against empty",
        Goal(True, 0.5, "{:.2f} x"),
        _rate_at_full,
    ),
    (
        "dedupe memory at the most ids measured",
        Goal(False, 40, "{:.1f} B an id"),
        lambda r: float(_fullest(r)["memory_bytes_per_id"]),
    ),
]


# -- the capacity model ---------------------------------------------------------------------------

LOAD = 0.6
"""Share of a worker's capacity that is planned for: the rest is for peaks and catching up."""
SHARDS_A_WORKER = 4
WORKER_GIB = 64
HORIZON_S = 7 * 86_400
CACHED_BYTES_AN_ID = 4
"""Of an id's bytes on disk, those that each look-up may read."""
HORIZONS_KEPT = 1.5
"""Ids go in generations of half a horizon, each kept whole for a horizon after its end."""
JOURNAL_KEPT_DAYS = 9
EVENTS_A_S = (10_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)


def _capacity(results: Results) -> str:
    missing = f"Not measured yet: `{COMMANDS['compare']}` and `{COMMANDS['state']}`."
    try:
        product = results["compare"]["contestants"][0]
        rate = _median(product, "events_per_s")
        journal_bytes = _median(product, "output_bytes_per_event")
        reporter = _reported_per_s(product)
        id_bytes = _fullest(results)["disk_bytes"] / _fullest(results)["ids"]
    except (KeyError, IndexError, ZeroDivisionError):
        return missing
    if not reporter:
        return missing
    rows = []
    for events_a_s in EVENTS_A_S:
        by_cpu = math.ceil(events_a_s / (LOAD * rate))
        ids = events_a_s * HORIZONS_KEPT * HORIZON_S
        by_memory = math.ceil(ids * CACHED_BYTES_AN_ID / 2**30 / (LOAD * WORKER_GIB))
        partitions = 2 ** math.ceil(math.log2(max(4, SHARDS_A_WORKER * max(by_cpu, by_memory))))
        rows.append(
            [
                f"{events_a_s:,}",
                f"{by_cpu:,}",
                _number(ids * id_bytes / 2**40),
                f"{by_memory:,}",
                f"{partitions:,}",
                _number(events_a_s * journal_bytes / 2**20),
                _number(events_a_s * journal_bytes * 86_400 * JOURNAL_KEPT_DAYS / 2**40),
                f"{events_a_s * 86_400 / 1e9:,.1f}",
                f"{math.ceil(events_a_s / (LOAD * reporter)):,}",
            ]
        )
    head = [
        "events/s, all day",
        "workers by CPU",
        "TiB of ids on disk",
        f"workers of {WORKER_GIB} GiB by memory",
        "partitions",
        "journal MiB/s",
        f"TiB in {JOURNAL_KEPT_DAYS} days",
        "G rows a day",
        "reporters' worth",
    ]
    return (
        f"{_table(head, rows)}\n\n"
        f"From {rate:,.0f} events/s a core planned at {LOAD:.0%}, {journal_bytes:.0f} journal "
        f"bytes an event, {id_bytes:.0f} bytes an id on disk and {CACHED_BYTES_AN_ID} in the "
        f"page cache over {HORIZONS_KEPT} times "
        f"{HORIZON_S // 86_400} days, and "
        f"{reporter:,.0f} events/s of the reporter."
    )


SECTIONS: dict[str, Callable[[Results], str]] = {
    "goals": _goals,
    "compare": _compare,
    "latency": _latency,
    "scale": _scale,
    "state": _state,
    "close": _close,
    "capacity": _capacity,
}
