"""Bulk edits of the catalog: bids, budgets and statuses of many ad groups at once.

An edit is a value; applied to an entity it gives the entity as it would be, or nothing where that
is what it is already. Amounts are exact: a percentage is a Decimal, and what it comes to is rounded
half up to a whole micro. A ceiling ("no higher than") caps what a raise or a set comes to; a raise
leaves an amount that stands above it already as it is. (docs/finance.md)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal

import msgspec

from pipeline.contract.catalog import Catalog
from pipeline.contract.catalog_entities import AdGroup, Status

How = Literal["set", "raise", "lower"]


class EditError(ValueError):
    """An edit that makes no sense; the text says why."""


@dataclass(frozen=True, slots=True)
class AmountEdit:
    """How an amount in micros is to change: by `micros`, or by `percent` of what it is."""

    how: How
    micros: int | None = None
    percent: Decimal | None = None
    ceiling_micros: int | None = None

    def __post_init__(self) -> None:
        if (self.micros is None) == (self.percent is None):
            raise EditError("an amount changes by micros or by percent: exactly one of them")
        if self.how == "set" and self.percent is not None:
            raise EditError("an amount is set to micros, not to a percentage")
        least = self.micros if self.percent is None else self.percent
        if least is None or least < 0:
            raise EditError(f"to {self.how} by less than nothing: turn it round")

    def of(self, old_micros: int) -> int:
        """What an amount becomes."""
        step = self._step(old_micros)
        if self.how == "lower":
            return old_micros - step
        new = step if self.how == "set" else old_micros + step
        if self.ceiling_micros is None or new <= self.ceiling_micros:
            return new
        # A ceiling is a bound for raising; what stands above it already is not its business.
        return max(self.ceiling_micros, old_micros if self.how == "raise" else 0)

    def _step(self, old_micros: int) -> int:
        if self.percent is None:
            assert self.micros is not None
            return self.micros
        exact = Decimal(old_micros) * self.percent / 100
        return int(exact.to_integral_value(rounding=ROUND_HALF_UP))


@dataclass(frozen=True, slots=True)
class Edit:
    """What is to change of each selected ad group; None: stays."""

    bid: AmountEdit | None = None
    """Of the ad group's own bid, and of each keyword's."""
    budget: AmountEdit | None = None
    status: Status | None = None

    def of(self, group: AdGroup) -> AdGroup:
        """The ad group with the edit made; equal to what it was where nothing changes."""
        keywords = group.keyword_bids_micros
        if self.bid is not None and keywords:
            keywords = {keyword: self.bid.of(bid) for keyword, bid in keywords.items()}
        return msgspec.structs.replace(
            group,
            bid_micros=group.bid_micros if self.bid is None else self.bid.of(group.bid_micros),
            keyword_bids_micros=keywords,
            budget_micros=(
                group.budget_micros if self.budget is None else self.budget.of(group.budget_micros)
            ),
            status=self.status or group.status,
        )


@dataclass(frozen=True, slots=True)
class GroupSelection:
    """Which ad groups: those that match every filter that is not empty."""

    account_id: str = ""
    campaign_id: str = ""
    ad_group_ids: frozenset[str] = field(default_factory=frozenset)

    def of(self, catalog: Catalog, at_ms: int) -> Iterator[AdGroup]:
        """The selected ad groups, as they are in force at a time, by id.

        Only such as are in the catalog and not archived.
        """
        for ad_group_id, history in sorted(catalog.ad_groups.items()):
            group = history.at(at_ms)
            campaign = catalog.campaigns[group.campaign_id]
            if (
                not (history.deleted or campaign.deleted)
                and group.status != "archived"
                and self.campaign_id in ("", group.campaign_id)
                and self.account_id in ("", campaign.latest.account_id)
                and (not self.ad_group_ids or ad_group_id in self.ad_group_ids)
            ):
                yield group


@dataclass(frozen=True, slots=True)
class Edited:
    """One ad group before and after."""

    old: AdGroup
    new: AdGroup

    def changes(self) -> list[tuple[str, object, object]]:
        """(field, old, new) of what changes."""
        before, after = msgspec.structs.asdict(self.old), msgspec.structs.asdict(self.new)
        return [
            (name, before[name], after[name])
            for name in ("status", "bid_micros", "keyword_bids_micros", "budget_micros")
            if before[name] != after[name]
        ]


def next_version_ms(catalog: Catalog, ad_group_id: str, after_ms: int) -> int | None:
    """From when on another version, which an edit of this time leaves as it is, is in force."""
    versions = catalog.ad_groups[ad_group_id].versions
    return min((v.effective_ms for v in versions if v.effective_ms > after_ms), default=None)


def edited(groups: Iterable[AdGroup], edit: Edit, by: str, effective_ms: int) -> list[Edited]:
    """The ad groups that the edit changes, as they would be."""
    found = []
    for group in groups:
        new = edit.of(group)
        if new != group:
            stamped = msgspec.structs.replace(new, changed_by=by, effective_ms=effective_ms)
            found.append(Edited(group, stamped))
    return found
