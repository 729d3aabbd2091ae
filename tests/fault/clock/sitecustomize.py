"""Python imports this at its start: the wall clock is then shifted by what a file says, in ms.

What setting the machine's clock would do to one process, and only to it.
"""

import os
import time

_FILE = os.environ["FAULT_CLOCK_FILE"]
_true_ns = time.time_ns


def _shifted_ns() -> int:
    try:
        with open(_FILE, "rb") as file:
            shift_ms = int(file.read() or b"0")
    except FileNotFoundError:
        shift_ms = 0
    return _true_ns() + shift_ms * 1_000_000


time.time_ns = _shifted_ns
time.time = lambda: _shifted_ns() / 1_000_000_000
