"""The life of a billing day, as tables: open, closing, closed.

A shard closes the days of a time zone, in order:

    open     the clock has not passed the day's end + grace (its end, where an operator released it)
    closing  it has, but the shard's sources have not been read past that time: an outage or a
             backlog keeps a day here, so that punctual events never become late ones
    closed   the close stands in the shard's journal; later events of the day are adjustments

An account's day closes once all shards have closed the zone day that it ends with
(`pipeline.contract.days`):

    open     no shard has closed it
    closing  some have; or all have, and its charges do not come to its events' amounts: such a day
             is kept here until somebody has looked, because a closed one could not be put right
    closed   its row stands in billing.day_closes, with totals and digest

Days of one calendar close one after the other, none left out. Nothing leads out of `closed`: what
comes later is posted in an open day. A transition that is not in the tables is a broken invariant
and raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class DayState(StrEnum):
    """Where a day is in its life."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class DayEvent(StrEnum):
    """What happens to a day."""

    TIME_UP = "time_up"
    """A shard's clock has passed the day's end and its grace."""
    READ = "read"
    """All of the shard's sources have been read past that time, or to their ends."""
    SHARD_CLOSED = "shard_closed"
    """One more shard has closed the account's day."""
    REFUSED = "refused"
    """All shards have, but the account's books for the day do not balance."""
    BALANCED = "balanced"
    """All shards have, and the books balance: the day's row is written."""


Table = Mapping[tuple[DayState, DayEvent], DayState]

SHARD_DAY: Final[Table] = {
    (DayState.OPEN, DayEvent.TIME_UP): DayState.CLOSING,
    (DayState.CLOSING, DayEvent.READ): DayState.CLOSED,
}

ACCOUNT_DAY: Final[Table] = {
    (DayState.OPEN, DayEvent.SHARD_CLOSED): DayState.CLOSING,
    (DayState.CLOSING, DayEvent.SHARD_CLOSED): DayState.CLOSING,
    (DayState.CLOSING, DayEvent.REFUSED): DayState.CLOSING,
    (DayState.CLOSING, DayEvent.BALANCED): DayState.CLOSED,
}


class IllegalTransitionError(Exception):
    """A day was to do what its state does not allow: the books contradict themselves."""


def step(table: Table, state: DayState, event: DayEvent, what: str) -> DayState:
    """The state after an event. `what` names the day. Raises `IllegalTransitionError`."""
    after = table.get((state, event))
    if after is None:
        raise IllegalTransitionError(f"{what} is {state}: {event.value} cannot happen to it")
    return after


def shard_state(day: int, *, closed_through: int, ended_through: int) -> DayState:
    """A zone's day in a shard: `ended_through` is the last day whose time is up."""
    if day <= closed_through:
        return DayState.CLOSED
    return DayState.CLOSING if day <= ended_through else DayState.OPEN


def account_state(closed_shards: int, *, is_closed: bool) -> DayState:
    """An account's day, of which so many shards have closed their part."""
    if is_closed:
        return DayState.CLOSED
    return DayState.CLOSING if closed_shards else DayState.OPEN
