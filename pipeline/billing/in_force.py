"""What the catalog says of each event's ad: one compiled pass over the events.

Each event asks the columns of its pin, ad group, campaign and account. With many ad groups each of
these waits for memory; in one loop the waits of an event, and of those after it, are shared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.billing.terms import Terms
from pipeline.native import compiled

Int64s = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_BLOCK = 256
"""Events whose rows of the terms fit the inner caches."""


@dataclass(frozen=True, slots=True)
class InForce:
    """One entry an event in every column: -1, 0 and False where its ad is not in the catalog.

    `group` and `campaign` are rows of the terms. What holds is that of each entity's latest
    version, but where `one_by_one` says that it does not tell.
    """

    group: Rows
    campaign: Rows
    shard: Int64s
    """That the campaign's events belong to."""
    zone: Int64s
    """Of the account."""
    alive: Mask
    """Whether nothing of the ad was deleted."""
    serves: Mask
    """Whether the ad served at the event's time."""
    basis: Codes
    bid_micros: Int64s
    target_cpi: Mask
    one_by_one: Mask
    """The event is from before the latest version, or the ad group has bids by keyword."""


def in_force(pin: Rows, event_time_ms: Int64s, terms: Terms) -> InForce:
    """What holds for each event; `pin` is the row of its ad, -1 where that is not known."""
    size = len(pin)
    numbers = np.full((4, size), -1, dtype=np.int64)
    flags = np.zeros((4, size), dtype=np.bool_)
    found = InForce(
        group=numbers[0],
        campaign=numbers[1],
        shard=numbers[2],
        zone=numbers[3],
        alive=flags[0],
        serves=flags[1],
        basis=np.zeros(size, dtype=np.uint8),
        bid_micros=np.zeros(size, dtype=np.int64),
        target_cpi=flags[2],
        one_by_one=flags[3],
    )
    _look_up(
        pin,
        event_time_ms,
        (terms.pin.rows, terms.group.rows, terms.campaign.rows, terms.account.rows),
        (terms.group.campaign, terms.campaign.shard),
        numbers,
        found.bid_micros,
        found.basis,
        flags,
    )
    return found


@compiled
def _look_up(
    pin: Rows,
    event_time_ms: Int64s,
    levels: tuple[npt.NDArray[Any], ...],
    apart: tuple[npt.NDArray[np.int32], ...],
    numbers: Int64s,
    bid_micros: Int64s,
    basis: Codes,
    flags: Mask,
) -> None:
    """Fill the columns. Rows of the terms lead to each other, so only the first is looked at.

    A level is read for a block of events before the next one: within it no read waits for another.
    """
    pins, groups, campaigns, accounts = levels
    campaign_of, shard_of = apart
    for start in range(0, len(pin), _BLOCK):
        block = range(start, min(start + _BLOCK, len(pin)))
        for row in block:
            if pin[row] >= 0:
                numbers[0, row] = pins[pin[row]].group
        for row in block:
            if pin[row] >= 0:
                numbers[1, row] = campaign_of[numbers[0, row]]
                bid_micros[row] = groups[numbers[0, row]].bid_micros
        for row in block:
            if pin[row] >= 0:
                numbers[2, row] = shard_of[numbers[1, row]]
                numbers[3, row] = campaigns[numbers[1, row]].account
        for row in block:
            if pin[row] < 0:
                continue
            ad = pins[pin[row]]
            group = groups[numbers[0, row]]
            campaign = campaigns[numbers[1, row]]
            account = accounts[numbers[3, row]]
            time_ms = event_time_ms[row]
            numbers[3, row] = account.zone
            flags[0, row] = ad.alive & group.alive & campaign.alive & account.alive
            flags[1, row] = (
                ad.serves
                & group.active
                & campaign.active
                & (group.start_ms <= time_ms)
                & (time_ms < group.end_ms)
            )
            flags[2, row] = group.target_cpi
            flags[3, row] = group.has_keywords | (
                time_ms < max(ad.since_ms, group.since_ms, campaign.since_ms)
            )
            basis[row] = campaign.basis
