"""A start compiles what a turn runs, so that no turn waits for the compiler."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json
import sys
from bench.engine import EngineAlone, make_engine, turns_of
from bench.workload import catalog, messages
from pipeline.pacing.predictive import Predictive
from pipeline.streams.worker import warm_up

START_MS = 1_772_323_200_000

def compiled():
    found = {}
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("pipeline."):
            for one in vars(module).values():
                if hasattr(one, "py_func") and hasattr(one, "signatures"):
                    name = f"{one.py_func.__module__}.{one.py_func.__name__}"
                    found[name] = sorted(map(str, one.signatures))
    return found

warm_up()
at_start = compiled()
engine = make_engine(4, catalog(20, START_MS), START_MS, pacing=Predictive())
# At this pace budgets run out, ids are sorted into runs, and a day ends.
given = messages(40_000, 20, START_MS + 86_000_000, events_a_ms=1)
EngineAlone(engine).take(turns_of(given, 4, 4_000))
print(json.dumps([at_start, compiled()]))
"""


def test_turns_compile_nothing_that_a_start_has_not() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=ROOT
    )
    at_start, after_turns = json.loads(done.stdout)
    assert at_start == after_turns
    assert sum(map(len, at_start.values())) >= 40
