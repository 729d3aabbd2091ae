"""The benchmarks' own promises: the same events each time, and a page that says what was kept."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import report
from bench.engine import EngineAlone, make_engine, turns_of
from bench.latency import quantile, together
from bench.quick import reference_loop
from bench.watch import Output, steady_events_per_s
from bench.workload import CAMPAIGNS, catalog, messages, prices
from pipeline.contract.vocabulary import MS_PER_DAY

START_MS = 1_772_323_200_000


def test_same_seed_same_messages() -> None:
    first = list(messages(2_000, CAMPAIGNS, START_MS, seed=7))
    assert first == list(messages(2_000, CAMPAIGNS, START_MS, seed=7))
    assert first != list(messages(2_000, CAMPAIGNS, START_MS, seed=8))


def test_workload_has_the_make_it_says() -> None:
    given = list(messages(20_000, CAMPAIGNS, START_MS))
    topics = Counter(message.topic for message in given)
    ids = {json.loads(message.value)["event_id"] for message in given}
    size = sum(len(message.value) for message in given) / len(given)
    assert topics["ads.impressions"] / len(given) == pytest.approx(0.8, abs=0.02)
    assert 1 - len(ids) / len(given) == pytest.approx(0.01, abs=0.003)
    assert 270 < size < 400
    assert [m.timestamp_ms for m in given] == sorted(m.timestamp_ms for m in given)


def test_engine_accepts_the_catalog_and_takes_every_message_once() -> None:
    given = list(messages(3_000, 8, START_MS))
    created_ms = START_MS - 2 * MS_PER_DAY
    turns = list(turns_of(given, partitions=4, events_a_turn=700))
    taken = [value for chunks in turns for chunk in chunks for value in chunk.values]
    assert Counter(taken) == Counter(message.value for message in given)
    alone = EngineAlone(make_engine(4, catalog(8, created_ms), created_ms))
    alone.take(turns)
    assert alone.journal_bytes > 0


def test_reference_loop_charges_by_objective() -> None:
    given = list(messages(1_000, 8, START_MS))
    charged = reference_loop(given, prices(8))
    assert charged > 0
    assert reference_loop(given + given, prices(8)) == charged


def test_steady_rate_leaves_the_first_output_out() -> None:
    outputs = [Output(1_000, 900, 1), Output(2_000, 100, 1), Output(3_000, 300, 1)]
    assert steady_events_per_s(outputs) == 200
    with pytest.raises(ValueError, match="publish more"):
        steady_events_per_s(outputs[:1])


def test_quantile_is_a_value_that_was_seen() -> None:
    values = [float(n) for n in range(1, 1_001)]
    assert quantile(values, 0.5) == 500
    assert quantile(values, 0.99) == 990
    assert quantile(values, 0.999) == 999
    assert quantile(values, 1.0) == 1_000
    assert quantile([5.0], 0.5) == 5
    assert quantile([], 0.5) is None


ABOUT = {
    "date": "2026-03-01 10:00 UTC",
    "command": "python -m bench",
    "revision": "abc",
    "processor": "a processor, 2 cores",
    "memory": "8 GiB",
    "system": "Linux 6",
    "python": "3.11.7",
    "versions": "polars 2.1",
    "load": "0.1",
}


def _run(events_per_s: float, reported_per_s: float = 0.0) -> dict[str, float]:
    return {
        "events": 1_000_000,
        "events_per_s": events_per_s,
        "cpu_s": 4.0,
        "peak_mib": 300.0,
        "output_bytes_per_event": 50.0,
        "reported_per_s": reported_per_s,
    }


def _contestant(name: str, runs: list[dict[str, float]], problem: str = "") -> dict[str, Any]:
    guarantee = "at least once" if name == "sloppy" else "exactly once"
    return {"name": name, "guarantee": guarantee, "runs": runs, "problem": problem}


COMPARE = {
    "about": ABOUT,
    "contestants": [
        _contestant("this pipeline", [_run(300_000, 2e5), _run(330_000, 2e5), _run(360_000, 2e5)]),
        _contestant("slow & exact", [_run(100_000), _run(110_000), _run(120_000)]),
        _contestant("sloppy", [_run(200_000)]),
        _contestant("absent", [], "skipped: needs mvn | javac\nand more"),
    ],
}


def test_page_has_the_ratio_the_reasons_and_the_verdicts() -> None:
    page = report.render((report.DOCS / report.PAGE).read_text(), {"compare": COMPARE})
    assert "| slow & exact | **3.0 x** | exactly once | 100,000 | 110,000 | 120,000 |" in page
    assert "skipped: needs mvn / javac and more" in page
    assert (
        "| against the fastest peer that is exactly once | at least 3.0 x | 3.0 x | reached |"
        in page
    )
    assert "Not measured yet: `python -m bench latency`." in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"\|", row)) > 2 for row in rows)


def test_the_results_that_are_kept_can_be_rendered() -> None:
    """Those of before a figure was measured too: a run of one part renders the others anew."""
    kept = report.kept()
    assert kept.keys() == set(report.RESULTS)
    page = (report.DOCS / report.PAGE).read_text()
    assert "exactly once" in report.render(page, kept)


def test_rendering_twice_changes_nothing() -> None:
    once = report.render((report.DOCS / report.PAGE).read_text(), {"compare": COMPARE})
    assert report.render(once, {"compare": COMPARE}) == once


def test_runs_of_a_load_are_told_by_their_medians() -> None:
    def run(p99_ms: float | None, worst_ms: float | None, unanswered: int) -> dict[str, Any]:
        rates = {"asked_events_per_s": 10, "reached_events_per_s": 10.0}
        figures = rates | {"p50_ms": p99_ms, "p99.9_ms": p99_ms}
        counts = {"share": 0.5, "probes": 100, "unanswered": unanswered}
        return counts | figures | {"p99_ms": p99_ms, "p100_ms": worst_ms}

    found = together([run(30.0, 40.0, 0), run(20.0, 90.0, 0), run(70.0, 80.0, 1)])
    assert (found["p99_ms"], found["p100_ms"]) == (30.0, 90.0)
    assert (found["probes"], found["unanswered"]) == (300, 1)
    assert found["p99_ms_of_runs"] == [30.0, 20.0, 70.0]
    silent = together([run(30.0, 40.0, 0), run(None, None, 100), run(None, None, 100)])
    assert silent["p99_ms"] is None


def test_page_without_a_part_is_refused() -> None:
    with pytest.raises(ValueError, match="goals"):
        report.render("# Performance\n", {})


def test_missed_goal_is_said() -> None:
    slow = {"about": ABOUT, "contestants": [_contestant("this pipeline", [_run(10_000, 5)])]}
    page = report.render((report.DOCS / report.PAGE).read_text(), {"compare": slow})
    assert "| at least 300,000 | 10,000 | **not reached** |" in page


def test_plot_draws_each_contestant_that_ran() -> None:
    plot = ElementTree.fromstring(report.plot_of(COMPARE))
    texts = [text.text for text in plot.iter("{http://www.w3.org/2000/svg}text")]
    assert {"this pipeline", "slow & exact", "sloppy"} <= set(texts)
    assert "absent" not in texts
    bars = [
        float(bar.attrib["width"])
        for bar in plot.iter("{http://www.w3.org/2000/svg}rect")
        if bar.attrib["height"] == "22"
    ]
    assert bars == sorted(bars, reverse=True)
    assert math.isclose(bars[1] / bars[0], 200 / 330, rel_tol=0.01)


def test_kept_figures_come_back(tmp_path: Path) -> None:
    report.keep("compare", COMPARE, tmp_path)
    assert report.kept(tmp_path)["compare"] == COMPARE
    written = report.write(tmp_path)
    assert [path.name for path in written] == ["performance.md", "rates.svg"]
    assert all(path.stat().st_size > 100 for path in written)
