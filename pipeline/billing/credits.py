"""Credits: an event's charge given back, once, in the open day.

A credit is ordered by a record of `ads.catalog` (`credit:EVENT_ID`) and posted by the shard that
owns the campaign, in its next journal record. The shard remembers every event that it has credited
for ever, so a repeated order does nothing, whatever the catalog's compaction has left of the first.
Limits are not given back: what was spent of a day's budget stays spent.

A shard cannot look up what an event was charged, so it takes the order's word and the reporter,
which has the books, posts nothing where they differ (`pipeline.reporting.credits`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pipeline.billing import ids
from pipeline.billing.books import Shard
from pipeline.billing.journal import CreditPosting
from pipeline.billing.terms import Terms
from pipeline.contract.catalog_entities import Credit
from pipeline.contract.days import from_iso, iso
from pipeline.contract.partitioning import partition_of

CREDITS_A_RECORD: Final = 5_000
"""Of one shard in one turn: under 8 kB each in the longest texts, they fit into its record."""


def credit_key(event_id: str) -> bytes:
    """What a shard remembers of a credited event: 16 bytes."""
    return b"".join(word.to_bytes(8, "little") for word in ids.hash_text(event_id))


class CreditDesk:
    """The orders of all shards, and how far each shard owned here has seen to them."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._orders: dict[int, list[Credit]] = {}
        self._seen: dict[int, int] = {}
        """Shard -> how many of its orders are posted, or were before."""

    def order(self, credit: Credit) -> None:
        """Take in an order that the catalog has accepted."""
        shard = partition_of(credit.campaign_id, self._partitions)
        self._orders.setdefault(shard, []).append(credit)

    def look_again(self, shard: int) -> None:
        """The shard's state is not what it was: which orders it has posted is to be seen anew."""
        self._seen.pop(shard, None)

    def is_due(self, shards: Iterable[int]) -> bool:
        """Whether any of these shards has orders that it has not looked at."""
        return any(self._seen.get(n, 0) < len(self._orders.get(n, ())) for n in shards)

    def post(self, shard: Shard, terms: Terms, now_ms: int) -> list[CreditPosting]:
        """Post orders that the shard has not posted before, and remember them.

        At most CREDITS_A_RECORD of them; the others make the next turn due.
        """
        orders = self._orders.get(shard.shard, [])
        seen = self._seen.get(shard.shard, 0)
        posted: list[CreditPosting] = []
        while seen < len(orders) and len(posted) < CREDITS_A_RECORD:
            credit = orders[seen]
            seen += 1
            key = credit_key(credit.event_id)
            if key not in shard.credited:
                shard.credited.add(key)
                posted.append(_posting(credit, shard, terms, now_ms))
        self._seen[shard.shard] = seen
        return posted


def _posting(credit: Credit, shard: Shard, terms: Terms, now_ms: int) -> CreditPosting:
    days = terms.zones[int(terms.account.zone[terms.account_row(credit.account_id)])]
    closed_through = days.closed_through(shard.closed)
    own_day = from_iso(credit.billing_day)
    open_day = max(days.day_of(now_ms), closed_through + 1)
    return CreditPosting(
        event_id=credit.event_id,
        account_id=credit.account_id,
        campaign_id=credit.campaign_id,
        ad_group_id=credit.ad_group_id,
        promoted_pin_id=credit.promoted_pin_id,
        placement=credit.placement,
        country=credit.country,
        device=credit.device,
        basis=credit.basis,
        currency=credit.currency,
        billing_day=credit.billing_day,
        charged_day=credit.charged_day,
        posting_day=iso(open_day if own_day <= closed_through else own_day),
        amount_nanos=credit.amount_nanos,
        reason=credit.reason,
        by=credit.changed_by or "",
    )
