"""Fail points: they fire at the passings named, as told, and only where armed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipeline
from pipeline import failpoints


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def fired(name: str, passings: int) -> list[int]:
    """At which passings of a point it raised."""
    found = []
    for number in range(1, passings + 1):
        try:
            failpoints.reach(name)
        except failpoints.FailPointError:
            found.append(number)
    return found


def test_an_unarmed_point_does_nothing() -> None:
    assert fired("fetch", 3) == []


def test_a_point_fires_at_the_passings_named() -> None:
    failpoints.arm("fetch:2:raise,decide:2-4:raise")
    assert fired("fetch", 5) == [2]
    assert fired("decide", 5) == [2, 3, 4]


def test_arming_anew_forgets_what_was_armed() -> None:
    failpoints.arm("fetch:1:raise")
    failpoints.arm("decide:1:raise")
    assert fired("fetch", 2) == []


def test_sleep_takes_its_time() -> None:
    failpoints.arm("fetch:1:sleep:50")
    began_s = time.monotonic()
    failpoints.reach("fetch")
    assert time.monotonic() - began_s >= 0.05


@pytest.mark.parametrize("delay", ["", ":20"])
def test_kill_is_minus_nine(delay: str) -> None:
    program = (
        "import time; from pipeline import failpoints; "
        f"failpoints.arm('fetch:2:kill{delay}'); "
        "failpoints.reach('fetch'); print('once', flush=True); "
        "failpoints.reach('fetch'); time.sleep(30)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"once\n")


@pytest.mark.parametrize("text", ["nowhere:1:kill", "fetch:1:burn", "fetch:x:kill", "fetch:1"])
def test_what_is_not_a_fail_point_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"PIPELINE_FAILPOINTS|invalid literal"):
        failpoints.arm(text)


def test_every_point_has_its_place_in_the_code() -> None:
    sources = "".join(path.read_text() for path in Path(pipeline.__file__).parent.rglob("*.py"))
    reached = re.findall(r'failpoints\.reach\("(\w+)"\)', sources)
    assert sorted(reached) == sorted(failpoints.POINTS)
