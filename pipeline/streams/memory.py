"""The interpreter's and the C library's memory, set for a process that judges events."""

from __future__ import annotations

import ctypes
import gc

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
"""Names of <malloc.h>."""

_LARGEST_KEPT_BYTES = 32 * 1024 * 1024
"""The most that glibc lets a block have which is not given back when it is freed."""


def tune_memory() -> None:
    """For a process that makes many objects and few cycles, and batches of some megabytes.

    With Python's own thresholds, its objects are looked through for cycles again and again, and
    there are next to none. And glibc gives freed memory back to the kernel at once, which has to
    clear every page before it gives it again: a tenth of a worker's time. It is told to keep up to
    a gigabyte, and to keep it in one place: the threads that fetch would each have their own. Where
    the C library is another one, that does nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 10, 10)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 1024 * 1024 * 1024)
