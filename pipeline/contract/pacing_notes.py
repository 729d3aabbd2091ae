"""What pacing predicted, and what then came: rows of `reporting.pacing`."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

NoteKind = Literal["inflight", "exhaustion", "bid"]

BOUND_DEVIATIONS: Final = 1.2816
"""From the mean to either bound of 80 % of a normal distribution."""


class PacingNote(msgspec.Struct, frozen=True, array_like=True):
    """One prediction about one entity; journaled when made, when it can be compared, or both.

    `inflight`: nanos that were predicted, at a pause, to come by `realised_at_ms`. `exhaustion`:
    the time in ms at which a budget was predicted to have run out, 0: not on that day; realised 0
    at the day's end: it has not. `bid`: a target CPI ad group's
    estimated installs a million clicks. `low` and `high` bound 80 % of what was thought likely.
    """

    entity: str
    kind: NoteKind
    billing_day: str
    made_at_ms: int
    predicted: int
    low: int
    high: int
    realised: int = 0
    realised_at_ms: int = 0
    """0 while nothing has been realised: then `realised` says nothing."""
