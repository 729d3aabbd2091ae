"""What was predicted to be inflight at a pause, compared with what then came.

What comes after a pause is what was inflight until the ad group is served again; a quarter of an
hour later nearly all of it has come. What a prediction expected by such a time follows from it
alone, by its delay curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from pipeline.contract.pacing_notes import BOUND_DEVIATIONS, PacingNote
from pipeline.pacing.columns import Columns
from pipeline.pacing.inflight import InflightModel
from pipeline.pacing.inflight_rows import TIME_CONSTANTS_S
from pipeline.pacing.observed import Seen
from pipeline.pacing.serving import Standing

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class _Prediction:
    """A prediction at a pause, waiting for what really comes."""

    row: int
    entity: str
    billing_day: str
    made_at_ms: int
    nanos: float
    late_nanos: Floats
    """What of that is late, by the model's time constants."""
    price_nanos: float
    """Of one billable event."""
    came_nanos: float = 0.0


class Settlements:
    """The predictions that wait, one an ad group at a time."""

    def __init__(self, model: InflightModel, after_ms: int) -> None:
        """`after_ms`: how long after its pause a prediction is compared with what came, if the ad
        group is not served again sooner."""
        self._model = model
        self._after_ms = after_ms
        self._waiting: dict[int, _Prediction] = {}
        """By row, which the column `waits` tells too; the oldest first."""
        self._groups = Columns(waits=(0, 0.0))
        self._notes: list[tuple[int, PacingNote]] = []

    def expect(
        self, paused: Sequence[tuple[Standing, str]], basis: Rows, campaign: Rows, now_ms: int
    ) -> None:
        """These ad groups were just told to stop (with their billing days); wait for what comes of
        each of which something is predicted."""
        rows = np.array([standing.row for standing, _ in paused])
        self._groups.reserve(rows)
        predicted = self._model.predict(rows, basis, campaign, now_ms)
        late = self._model.late_nanos(rows, basis, campaign, now_ms)
        for at, (standing, billing_day) in enumerate(paused):
            row = standing.row
            if row in self._waiting or predicted.price[at] <= 0:
                continue
            self._groups.waits[row] = 1.0
            self._waiting[row] = _Prediction(
                row,
                standing.entity,
                billing_day,
                now_ms,
                float(predicted.mean[at]),
                late[at],
                float(predicted.price[at]),
            )

    def observe(self, seen: Seen) -> None:
        """Add what came to the predictions that wait for it, and note those that are over."""
        if not self._waiting:
            return
        self._groups.reserve(seen.group)
        for at in np.flatnonzero(self._groups.waits[seen.group]).tolist():
            self._waiting[int(seen.group[at])].came_nanos += float(seen.value_nanos[at])
        while self._waiting:
            oldest = next(iter(self._waiting.values()))
            if seen.now_ms - oldest.made_at_ms <= self._after_ms:
                break
            self._settle(oldest.row, seen.now_ms)

    def serves_again(self, row: int, now_ms: int) -> None:
        """What comes from now on is not only what was inflight."""
        if row in self._waiting:
            self._settle(row, now_ms)

    def take_notes(self) -> list[tuple[int, PacingNote]]:
        """What is to be recorded; given out once."""
        notes, self._notes = self._notes, []
        return notes

    def forget(self, rows: Rows) -> None:
        """The ad groups are another worker's now."""
        self._groups.clear(rows)
        for row in rows.tolist():
            self._waiting.pop(row, None)

    def _settle(self, row: int, now_ms: int) -> None:
        one = self._waiting.pop(row)
        self._groups.waits[row] = 0.0
        after_s = (now_ms - one.made_at_ms) / 1_000
        if after_s < self._model.ingest_s + self._model.stop_s:
            return  # what was on its way cannot all have come
        still = float(one.late_nanos @ np.exp(-after_s / TIME_CONSTANTS_S))
        expected = max(0.0, one.nanos - still)
        spread = BOUND_DEVIATIONS * sqrt(expected * one.price_nanos)
        note = PacingNote(
            entity=one.entity,
            kind="inflight",
            billing_day=one.billing_day,
            made_at_ms=one.made_at_ms,
            predicted=int(expected),
            low=max(0, int(expected - spread)),
            high=int(expected + spread),
            realised=int(one.came_nanos),
            realised_at_ms=now_ms,
        )
        self._notes.append((row, note))
