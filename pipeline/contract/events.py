"""The event message of the three event topics, as typed structs.

Sources: the event table of docs/contract.md. msgspec checks types, ranges and lengths; what it
does not (UTF-8 of skipped fields, NUL characters, duplicate keys) `pipeline.billing.decode` adds.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

EventId = Annotated[str, Meta(min_length=1, max_length=128)]
Id = Annotated[str, Meta(min_length=1, max_length=256)]
Dimension = Annotated[str, Meta(max_length=256)]
NonNegative = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Event(msgspec.Struct, gc=False, kw_only=True):
    """What a Pinner saw or did; the message of `ads.impressions` and `ads.clicks`."""

    event_id: EventId
    """Unique; a resend has the same id."""
    event_time_ms: NonNegative
    """When the Pinner did it, ms since the epoch, UTC."""
    campaign_id: Id
    ad_group_id: Id
    promoted_pin_id: Id
    user_id: Id
    """The Pinner; never stored in clear."""
    impression_id: Id
    """The served insertion that this belongs to."""
    price_micros: NonNegative
    """The auction's clearing price of the ad's billable action, in micros of the account's
    currency: per 1,000 impressions (CPM), per click (CPC) or per engagement (CPE)."""
    placement: Literal["browse", "search"]
    country: Dimension | UnsetType = UNSET
    device: Dimension | UnsetType = UNSET
    keyword: Dimension | UnsetType = UNSET
    """The keyword matched in search."""


class EngagementEvent(Event, gc=False, kw_only=True):
    """The message of `ads.engagements`; a click-through comes on `ads.clicks`."""

    kind: Literal["closeup", "save", "install"]
