"""Row numbers of some table, each once: told by a flag each, which is sooner than by sorting."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

_SPARSE = 64
"""Times as many flags as rows cost more than sorting the rows."""


def distinct(rows: npt.NDArray[np.integer]) -> Rows:
    """Each of these small numbers from 0 on, once and ascending."""
    named = np.zeros(int(rows.max(initial=-1)) + 1, dtype=np.bool_)
    named[rows] = True
    return np.flatnonzero(named)


def numbered(rows: Rows) -> tuple[Rows, Rows]:
    """Each of these numbers from 0 on, once and ascending; and where in there each row's is."""
    size = int(rows.max(initial=-1)) + 1
    if size > _SPARSE * len(rows):
        unique, inverse = np.unique(rows, return_inverse=True)
        return unique, inverse
    unique = distinct(rows)
    place = np.empty(size, dtype=np.int32)
    place[unique] = np.arange(len(unique), dtype=np.int32)
    return unique, place[rows].astype(np.int64)
