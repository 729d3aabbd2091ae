"""Threads whose work can wait."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

_NICENESS = 10
"""Some tenth of a core that others want too."""


def background_thread(name: str) -> ThreadPoolExecutor:
    """One that does what it is given, one after the other, where others have nothing to do: a run
    of ids is a tenth of a second of sorting, for which a decision would wait on a full core."""
    return ThreadPoolExecutor(1, name, _give_way)


def _give_way() -> None:
    """Not where threads have no priorities of their own: only on Linux."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
