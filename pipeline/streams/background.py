"""Threads whose work can wait, or that nobody waits for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_NICENESS = 10
"""Some tenth of a core that others want too."""


def background_thread(name: str) -> ThreadPoolExecutor:
    """One that does what it is given, one after the other, where others have nothing to do: a run
    of ids is a tenth of a second of sorting, for which a decision would wait on a full core."""
    return ThreadPoolExecutor(1, name, give_way)


def give_way() -> None:
    """Let this thread run where others have nothing to do. Not where threads have no priorities of
    their own: only on Linux."""
    if sys.platform == "linux":
        thread = os.PRIO_PROCESS, threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(*thread, max(_NICENESS, os.getpriority(*thread)))


async def apart(function: Callable[[], T]) -> T:
    """What a function returns, or raises, on a thread of its own. The process may end before it
    has: a disk that is away never answers, and asyncio's own threads are waited for."""
    found: Future[T] = Future()

    def run() -> None:
        if not found.set_running_or_notify_cancel():
            return
        try:
            found.set_result(function())
        except BaseException as error:  # whatever it is, it is the caller's
            found.set_exception(error)

    threading.Thread(target=run, name=f"apart-{id(found):x}", daemon=True).start()
    return await asyncio.wrap_future(found)
