"""The event message of the three event topics, as typed structs.

Sources: the event table of docs/contract.md. msgspec checks types, ranges and lengths; what it
does not (UTF-8 of skipped fields, NUL characters, duplicate keys) `pipeline.billing.decode` adds.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

EVENT_ID_MAX_LENGTH = 128
EventId = Annotated[str, Meta(min_length=1, max_length=EVENT_ID_MAX_LENGTH)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
NonNegative = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Event(msgspec.Struct, gc=False, kw_only=True):
    """What a Pinner saw or did; the message of `ads.impressions` and `ads.clicks`."""

    event_id: EventId
    """Unique; a resend has the same id."""
    event_time_ms: Int64
    """When the Pinner did it, ms since the epoch, UTC."""
    campaign_id: str
    ad_group_id: str
    promoted_pin_id: str
    user_id: str
    """The Pinner; never stored in clear."""
    impression_id: str
    """The served insertion that this belongs to."""
    price_micros: NonNegative
    """The auction's clearing price of the ad's billable action, in micros of the account's
    currency: per 1,000 impressions (CPM), per click (CPC) or per engagement (CPE)."""
    placement: Literal["browse", "search"]
    country: str | UnsetType = UNSET
    device: str | UnsetType = UNSET
    keyword: str | UnsetType = UNSET
    """The keyword matched in search."""


class EngagementEvent(Event, gc=False, kw_only=True):
    """The message of `ads.engagements`; a click-through comes on `ads.clicks`."""

    kind: Literal["closeup", "save", "install"]
