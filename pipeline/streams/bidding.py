"""Once a day of its account, each serving target CPI ad group's bid is decided; and taken back
where the ad group is to bid for itself again.

Which days have been looked at is not remembered beyond the bids themselves: after a takeover the
day's ad groups without a bid are looked at again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.billing.books import Shard
from pipeline.billing.posting import Draft
from pipeline.billing.terms import Terms
from pipeline.contract.catalog import Catalog
from pipeline.contract.money import minimum_bid_micros
from pipeline.pacing.serving import Policy
from pipeline.pacing.target_cpi import bid_over_signal, bid_signal, daily_bid_micros

LOOK_MS: Final = 3_600_000
"""How long after a day's turn an ad group that had no bid to decide then is looked at again."""


class BidDesk:
    """Decides each day's bids: the first when a day begins that has something to bid by."""

    def __init__(self, catalog: Catalog, terms: Terms) -> None:
        self._catalog = catalog
        self._terms = terms
        self._next_ms = 0

    def look_again(self) -> None:
        """Shards have come or gone."""
        self._next_ms = 0

    def bid_micros(self, row: int, shard: Shard, entity: str, now_ms: int) -> int | None:
        """The bid that every signal of an ad group says: the last one decided, while it asks for
        any."""
        bid_micros = shard.bid_micros(entity)
        return bid_micros if bid_micros is not None and self._asks(row, now_ms) else None

    def take_back(
        self,
        changed: npt.NDArray[np.int64],
        shards: Mapping[int, Shard],
        drafts: Mapping[int, Draft],
        now_ms: int,
    ) -> None:
        """Put a signal without a bid into the drafts of those of these ad groups that have been
        told one and ask for none any more."""
        terms = self._terms
        if not any(shard.bids for shard in shards.values()):
            return
        for row in changed.tolist():
            campaign = int(terms.group.campaign[row])
            shard = shards.get(int(terms.campaign.shard[campaign]))
            if shard is None or not shard.bids:
                continue
            entity = f"ad_group:{terms.group_ids.text(row)}"
            if shard.bid_micros(entity) is None or self._asks(row, now_ms):
                continue
            calendar = terms.zones[int(terms.account.zone[terms.campaign.account[campaign]])]
            version, today = shard.versions.get(entity, 0) + 1, calendar.day_of(now_ms)
            last = shard.standing.get(entity)
            signal = bid_over_signal(entity, last, version, today, now_ms)
            shard.note_signal(signal)
            drafts[shard.shard].signals.append(signal)

    def _asks(self, row: int, now_ms: int) -> bool:
        """Whether an ad group is to be told what to bid."""
        ad_group = self._catalog.ad_groups[self._terms.group_ids.text(row)].at(now_ms)
        return ad_group.bid_strategy == "target_cpi"

    def decide(
        self, shards: Mapping[int, Shard], pacing: Policy, drafts: Mapping[int, Draft], now_ms: int
    ) -> None:
        """Put the bids that are due into the drafts of their shards."""
        if now_ms < self._next_ms or not self._terms.zones:
            return
        ends_ms = [zone.end_ms(zone.day_of(now_ms)) for zone in self._terms.zones]
        self._next_ms = min(*ends_ms, now_ms + LOOK_MS)
        group = self._terms.group
        for row in np.flatnonzero(group.target_cpi & group.alive & group.active).tolist():
            shard = shards.get(int(self._terms.campaign.shard[group.campaign[row]]))
            if shard is not None and self._asks(row, now_ms):
                self._decide_one(row, shard, pacing, drafts[shard.shard], now_ms)

    def _decide_one(
        self, row: int, shard: Shard, pacing: Policy, draft: Draft, now_ms: int
    ) -> None:
        terms, campaign = self._terms, int(self._terms.group.campaign[row])
        account = int(terms.campaign.account[campaign])
        ad_group_id = terms.group_ids.text(row)
        entity = f"ad_group:{ad_group_id}"
        calendar = terms.zones[int(terms.account.zone[account])]
        today, last = calendar.day_of(now_ms), shard.standing.get(entity)
        decided = shard.bids.get(entity)
        if decided and calendar.day_of(decided[-1][0]) >= today:
            return
        if last is not None and last.serve_probability <= 0:
            return  # stopped: there is nothing to bid for
        if not decided and now_ms - calendar.start_ms(today) >= LOOK_MS:
            return  # installs come after their clicks: amid the day a first estimate is too low
        estimate = pacing.estimate_installs(row, campaign, now_ms)
        if estimate is None:
            return
        currency = self._catalog.accounts[terms.account_ids.text(account)].latest.currency
        bid_micros = daily_bid_micros(
            self._catalog.ad_groups[ad_group_id].at(now_ms).bid_micros,
            estimate[0],
            minimum_bid_micros(currency, "app_install", None),
            shard.bid_micros(entity),
        )
        version = shard.versions.get(entity, 0) + 1
        signal = bid_signal(entity, bid_micros, last, version, today, now_ms)
        shard.note_signal(signal)
        pacing.note_bid(entity, row, campaign, today, estimate, now_ms)
        draft.signals.append(signal)
