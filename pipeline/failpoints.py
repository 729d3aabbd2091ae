"""Named places at which a fault can be injected: what `tests/fault` kills, stops and delays.

A process without armed points pays one truth test of an empty dict at each. They are armed by the
environment variable `PIPELINE_FAILPOINTS`, read once by the composition root:

    PIPELINE_FAILPOINTS="append_sent:3:kill,insert_sent:2-40:raise,fetch:1:sleep:500"

Each is NAME:HITS:ACTION[:MS]. HITS says at which passings it fires, counted from 1 since the
process began: `3`, or `2-40`. Actions:

- `kill`, `stop`: SIGKILL or SIGSTOP to this process, MS ms later (default: at once). Some ms
  later, what was sent is on its way or just arriving, and the fault lands between two points.
- `raise`: `FailPointError`, an OSError, as a lost connection would.
- `sleep`: blocks the calling thread for MS ms, as a slow disk or peer would.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import Final

log = logging.getLogger(__name__)

VARIABLE: Final = "PIPELINE_FAILPOINTS"

WORKER_POINTS: Final = (
    "fetch",
    "decide",
    "append_sent",
    "append_acknowledged",
    "signals_sent",
    "snapshot_written",
    "snapshot_copied",
    "ids_written",
    "taken_over",
    "offset_commit",
)
REPORTER_POINTS: Final = ("plan_stored", "insert_sent", "insert_acknowledged", "day_closed")
POINTS: Final = frozenset(WORKER_POINTS + REPORTER_POINTS)

_SIGNALS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
_ACTIONS: Final = (*_SIGNALS, "raise", "sleep")


class FailPointError(OSError):
    """The fault that a fail point was told to raise."""


@dataclass(slots=True)
class _Armed:
    """One armed point and how often it was passed."""

    first: int
    last: int
    action: str
    delay_ms: int
    passed: int = 0


_armed: dict[str, _Armed] = {}


def arm(text: str) -> None:
    """Arm the points that the variable's text names, and no others.

    Raises ValueError, saying which part is wrong, before anything is armed.
    """
    armed = dict(_parse(part) for part in text.split(",") if part)
    _armed.clear()
    _armed.update(armed)
    if armed:
        log.warning("fail points are armed: %s", text)


def reach(name: str) -> None:
    """Pass the point of this name, one of POINTS; does nothing unless it is armed."""
    if _armed and name in _armed:
        _pass(name, _armed[name])


def _parse(part: str) -> tuple[str, _Armed]:
    fields = part.split(":")
    if len(fields) not in (3, 4) or fields[0] not in POINTS or fields[2] not in _ACTIONS:
        raise ValueError(
            f"{VARIABLE}: {part!r} is not NAME:HITS:ACTION[:MS] with a name of "
            f"{', '.join(sorted(POINTS))} and an action of {', '.join(_ACTIONS)}"
        )
    first, _, last = fields[1].partition("-")
    delay_ms = int(fields[3]) if len(fields) == 4 else 0
    return fields[0], _Armed(int(first), int(last or first), fields[2], delay_ms)


def _pass(name: str, point: _Armed) -> None:
    point.passed += 1
    if not point.first <= point.passed <= point.last:
        return
    log.warning("fail point %s fires: %s after %d ms", name, point.action, point.delay_ms)
    if point.action == "raise":
        raise FailPointError(f"fail point {name}, passing {point.passed}")
    if point.action == "sleep":
        time.sleep(point.delay_ms / 1_000)
    elif point.delay_ms:
        threading.Timer(point.delay_ms / 1_000, _signal_self, (point.action,)).start()
    else:
        _signal_self(point.action)


def _signal_self(action: str) -> None:
    os.kill(os.getpid(), _SIGNALS[action])
