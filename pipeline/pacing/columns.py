"""Growing columns by row: what the learners of this package keep of each ad group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Columns:
    """Named numpy columns that grow together; a new row holds each column's fill value.

    They are fields of `rows`, records that compiled loops read whole: what is learned of an ad
    group lies together, where an array for each column would be a wait for memory each.
    """

    def __init__(self, **spec: tuple[int, float]) -> None:
        """Per column: how many values a row has (0: one, as a flat array) and the fill value."""
        self._spec = spec
        fields = [
            (name, np.float64, (width,) if width else ()) for name, (width, _) in spec.items()
        ]
        self._new_row = np.empty(1, dtype=np.dtype(fields))
        for name, (_, fill) in spec.items():
            self._new_row[name] = fill
        self._set_rows(self._new_row[:0])

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def reserve(self, rows: Rows) -> None:
        """Make room for these rows."""
        needed = int(rows.max()) + 1 if len(rows) else 0
        if needed <= self._capacity:
            return
        # So many more that the next turns, which mostly name a few that are new, need no others.
        grown = np.empty(max(needed * 5 // 4, 16), dtype=self.rows.dtype)
        grown[: self._capacity] = self.rows
        grown[self._capacity :] = self._new_row
        self._set_rows(grown)

    def _set_rows(self, rows: npt.NDArray[Any]) -> None:
        self.rows, self._capacity = rows, len(rows)
        for name in self._spec:
            setattr(self, name, rows[name])

    def clear(self, rows: Rows) -> None:
        """Put rows back to the fill values: their shard is another worker's now."""
        known = rows[rows < self._capacity]
        for name, (_, fill) in self._spec.items():
            getattr(self, name)[known] = fill

    def dump(self, rows: Rows) -> dict[str, bytes]:
        """The values of these rows, as 32-bit floats: what is learned is not that precise; times
        in ms are left out. Hours since the epoch come to a minute or two."""
        self.reserve(rows)
        return {
            name: getattr(self, name)[rows].astype("<f4").tobytes()
            for name in self._spec
            if not name.endswith("_ms")
        }

    def load(self, rows: Rows, dumped: Mapping[str, bytes]) -> None:
        """Take over what `dump` gave of as many rows. Raises `ValueError` where it is not that;
        columns that are not in it keep their values."""
        self.reserve(rows)
        for name, (width, _) in self._spec.items():
            if name in dumped:
                values = np.frombuffer(dumped[name], dtype="<f4").astype(np.float64)
                shape = (len(rows), width) if width else (len(rows),)
                getattr(self, name)[rows] = values.reshape(shape)

    def __len__(self) -> int:
        return self._capacity
