"""What metrics are made of, where a running product would need a fault to show it."""

from __future__ import annotations

import json
import logging
import sys

from pipeline.cli.logs import JsonFormatter
from pipeline.reporting.metrics import LagTracker


def test_a_position_is_behind_since_the_log_was_first_seen_beyond_it() -> None:
    tracker = LagTracker()
    assert tracker.lag_s(position=10, end=10, now_s=100.0) == 0.0
    assert tracker.lag_s(position=10, end=12, now_s=110.0) == 0.0
    assert tracker.lag_s(position=10, end=15, now_s=125.0) == 15.0
    assert tracker.lag_s(position=12, end=15, now_s=130.0) == 5.0
    assert tracker.lag_s(position=15, end=15, now_s=140.0) == 0.0


def test_a_traceback_stays_within_its_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("a.b", 40, "f", 1, "it %s", ("broke",), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    entry = json.loads(line)
    assert entry["level"] == "ERROR"
    assert entry["message"] == "it broke"
    assert "ValueError: two\nlines" in entry["exception"]
