"""What a turn tells `pipeline.pacing.predictive` of its ad groups, in compiled loops.

`groups` and `campaigns` are the records of its columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.native import compiled
from pipeline.pacing.inflight_rows import ENOUGH_BILLABLE

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Records = npt.NDArray[Any]


@compiled
def note(
    groups: Records,
    campaigns: Records,
    rows: Rows,
    facts: tuple[Rows, Rows, Mask],
    served_at_ms: Rows,
    moved: Rows,
    probability: Floats,
) -> int:
    """Take over what the catalog says of each, its basis, its campaign and whether it is paced
    evenly; and when it and its campaign were last served. How many were not known to be of their
    campaigns: the first of `moved` tell which. `probability` is filled in as `probabilities` does.
    """
    basis, campaign, is_even = facts
    found = 0
    for at in range(len(rows)):
        one, above = groups[rows[at]], campaigns[campaign[at]]
        if one.campaign != campaign[at]:
            moved[found] = at
            found += 1
        one.basis, one.campaign, one.even = basis[at], campaign[at], is_even[at]
        one.served_at_ms = max(one.served_at_ms, float(served_at_ms[at]))
        above.served_at_ms = max(above.served_at_ms, float(served_at_ms[at]))
        probability[at] = _probability(one, campaigns)
    return found


@compiled
def is_served_on(again_ms: float, paused_at_ms: float, served_at_ms: float) -> bool:
    """Whether it is paused and was served so long after it that the pause must be lost."""
    return bool(again_ms > 0 and served_at_ms > paused_at_ms + again_ms)


@compiled
def look_at(
    groups: Records,
    campaigns: Records,
    learned: Records,
    next_look_ms: Floats,
    never: float,
    rows: Rows,
    campaign: Rows,
    own: Rows,
    above: Rows,
) -> tuple[int, int]:
    """Evenly paced ad groups that nobody looks after yet, and paused ones that are still being
    served; and campaigns such as these. How many there are: the first of `own` and of `above` are
    their rows. `learned` are the records of the inflight model."""
    owns, aboves = 0, 0
    for at in range(len(rows)):
        row = rows[at]
        one, of = groups[row], campaigns[campaign[at]]
        is_known = learned[row].known >= ENOUGH_BILLABLE
        again = is_known and is_served_on(one.again_ms, one.paused_at_ms, one.served_at_ms)
        if again or (one.even > 0 and next_look_ms[row] >= never):
            own[owns] = row
            owns += 1
        if is_known and is_served_on(of.again_ms, of.paused_at_ms, of.served_at_ms):
            above[aboves] = campaign[at]
            aboves += 1
    return owns, aboves


@compiled
def probabilities(groups: Records, campaigns: Records, rows: Rows, found: Floats) -> None:
    """What each is served with: by itself, by its campaign, and by their status."""
    for at in range(len(rows)):
        found[at] = _probability(groups[rows[at]], campaigns)


@compiled
def _probability(one: Any, campaigns: Records) -> float:
    own = one.probability * one.active
    return float(own * campaigns[int(one.campaign)].probability if one.campaign >= 0 else own)
