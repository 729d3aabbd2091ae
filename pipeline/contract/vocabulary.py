"""The names that the public contract fixes, and the small codes that stand for them inside.

A code is a position in one of the tuples below. Codes are written to the journal, so a tuple only
ever grows at its end.
"""

from __future__ import annotations

from typing import Final, Literal

IMPRESSIONS: Final = "ads.impressions"
CLICKS: Final = "ads.clicks"
ENGAGEMENTS: Final = "ads.engagements"
CATALOG: Final = "ads.catalog"
SIGNALS: Final = "pacing.signals"
JOURNAL: Final = "billing.journal"
JOURNAL_VERSIONS: Final = (1, 2)
"""The versions of its format that this program reads, and can be told to write."""
REJECTS: Final = "billing.rejects"

EVENT_TOPICS: Final = (IMPRESSIONS, CLICKS, ENGAGEMENTS)
"""The three event topics; an event's `source` code is its topic's position here."""

KINDS: Final = ("", "impression", "click", "closeup", "save", "install")
IMPRESSION, CLICK, CLOSEUP, SAVE, INSTALL = 1, 2, 3, 4, 5
ENGAGEMENT_KINDS: Final = ("closeup", "save", "install")

PLACEMENTS: Final = ("", "browse", "search")

DISPOSITIONS: Final = (
    "malformed",
    "misrouted",
    "future",
    "expired",
    "unknown",
    "duplicate",
    "not_serving",
    "counted",
    "repeat",
    "over_budget",
    "charged",
)
"""In the order of the rules that give them; the first rule that applies decides."""
MALFORMED, MISROUTED, FUTURE, EXPIRED, UNKNOWN, DUPLICATE = 0, 1, 2, 3, 4, 5
NOT_SERVING, COUNTED, REPEAT, OVER_BUDGET, CHARGED = 6, 7, 8, 9, 10

REJECTED: Final = (MALFORMED, FUTURE, UNKNOWN)
"""Dispositions whose events go to `billing.rejects`."""

REMEMBERED: Final = (NOT_SERVING, COUNTED, REPEAT, OVER_BUDGET, CHARGED)
"""Dispositions after which an event_id is remembered: a resend is a `duplicate`."""

LimitName = Literal[
    "", "ad_group_daily", "ad_group_lifetime", "campaign_daily", "campaign_lifetime"
]
LIMITS: Final[tuple[LimitName, ...]] = (
    "",
    "ad_group_daily",
    "ad_group_lifetime",
    "campaign_daily",
    "campaign_lifetime",
)
NO_LIMIT, AD_GROUP_DAILY, AD_GROUP_LIFETIME, CAMPAIGN_DAILY, CAMPAIGN_LIFETIME = 0, 1, 2, 3, 4

BASES: Final = ("", "cpc", "cpe", "cpm")
NO_BASIS, CPC, CPE, CPM = 0, 1, 2, 3

OBJECTIVES: Final = ("traffic", "engagement", "awareness", "video_awareness", "app_install")
OBJECTIVE_BASIS: Final = {
    "traffic": CPC,
    "engagement": CPE,
    "awareness": CPM,
    "video_awareness": CPM,
    "app_install": CPC,
}

CPM_BLOCK: Final = 1_000
"""Charged impressions in one posted CPM charge."""

MS_PER_DAY: Final = 86_400_000
LONGEST_DAY_MS: Final = 26 * 3_600_000
"""No calendar day of any time zone is longer (25 hours where clocks go back, and some to spare)."""
FUTURE_TOLERANCE_MS: Final = 5 * 60_000
NANOS_PER_MICRO: Final = 1_000
