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
    flags = tuple(np.zeros((4, size), dtype=np.bool_))
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
    numbers: Int64s,
    bid_micros: Int64s,
    basis: Codes,
    flags: tuple[Mask, ...],
) -> None:
    """Fill the columns. Rows of the terms lead to each other, so only the first is looked at.

    A level is read for all events before the next one, and each record once: so no read waits for
    another.
    """
    pins, groups, campaigns, accounts = levels
    alive, serves, target_cpi, one_by_one = flags
    for row in range(len(pin)):
        if pin[row] >= 0:
            ad = pins[pin[row]]
            numbers[0, row], numbers[1, row], numbers[2, row] = (
                ad.group,
                ad.of_campaign,
                ad.of_shard,
            )
            alive[row], serves[row] = ad.alive, ad.serves
            one_by_one[row] = event_time_ms[row] < ad.since_ms
    for row in range(len(pin)):
        if pin[row] >= 0:
            group, time_ms = groups[numbers[0, row]], event_time_ms[row]
            bid_micros[row] = group.bid_micros
            alive[row] &= group.alive
            serves[row] &= group.active & (group.start_ms <= time_ms) & (time_ms < group.end_ms)
            target_cpi[row] = group.target_cpi
            one_by_one[row] |= group.has_keywords | (time_ms < group.since_ms)
    for row in range(len(pin)):
        if pin[row] >= 0:
            campaign = campaigns[numbers[1, row]]
            account = accounts[campaign.account]
            numbers[3, row], basis[row] = account.zone, campaign.basis
            alive[row] &= campaign.alive & account.alive
            serves[row] &= campaign.active
            one_by_one[row] |= event_time_ms[row] < campaign.since_ms
