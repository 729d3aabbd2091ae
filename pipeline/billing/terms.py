"""The catalog as columns: what an event's ad costs, and whether it serves.

Row numbers are dense per level (pin, ad group, campaign, account). The columns hold each entity's
latest version and `since_ms`, the time from which that version alone holds; an event from before
it is resolved from the entity's history one at a time, which is exact and rare. Limits are those
in force at `now`, so a change that takes effect later waits in a heap until `advance` reaches it.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.billing.ids import Interner, KeyIndex, Keys, hash_text
from pipeline.billing.journal import Ad, pack_ad
from pipeline.billing.texts import ByteRows
from pipeline.contract.catalog import AdGroup, Campaign, Catalog, History
from pipeline.contract.days import Calendar, calendar
from pipeline.contract.partitioning import partition_of
from pipeline.contract.vocabulary import (
    MS_PER_DAY,
    NANOS_PER_MICRO,
    OBJECTIVE_BASIS,
)

Rows = npt.NDArray[np.int64]

AD_COLUMNS = ("campaign_id", "ad_group_id", "promoted_pin_id")

_APART = ("campaign", "shard")
"""Columns that are looked through as a whole, to find the rows of a shard."""

UNLIMITED = np.iinfo(np.int64).max
ALWAYS = np.iinfo(np.int64).min
NEVER_ENDS = np.iinfo(np.int64).max

_COLUMNS: dict[str, dict[str, tuple[type, Any]]] = {
    "pin": {
        "alive": (np.bool_, 0),
        "serves": (np.bool_, 0),
        "since_ms": (np.int64, 0),
        "group": (np.int32, 0),
        "of_campaign": (np.int32, 0),
        "of_shard": (np.int32, 0),
    },
    "group": {
        "alive": (np.bool_, 0),
        "active": (np.bool_, 0),
        "since_ms": (np.int64, 0),
        "start_ms": (np.int64, 0),
        "end_ms": (np.int64, 0),
        "bid_micros": (np.int64, 0),
        "has_keywords": (np.bool_, 0),
        "campaign": (np.int32, -1),
        "daily_nanos": (np.int64, UNLIMITED),
        "lifetime_nanos": (np.int64, UNLIMITED),
        "even": (np.bool_, 0),
        "target_cpi": (np.bool_, 0),
    },
    "campaign": {
        "alive": (np.bool_, 0),
        "active": (np.bool_, 0),
        "since_ms": (np.int64, 0),
        "basis": (np.uint8, 0),
        "for_installs": (np.bool_, 0),
        "account": (np.int32, -1),
        "shard": (np.int32, -1),
        "daily_nanos": (np.int64, UNLIMITED),
        "lifetime_nanos": (np.int64, UNLIMITED),
    },
    "account": {"alive": (np.bool_, 0), "zone": (np.int32, 0)},
}
"""A pin's `of_campaign` and `of_shard` are those of its ad's ids, for good: one whose parents turn
out to be others gets another row."""


class Columns:
    """Growing columns of one level, by attribute.

    But for those that lie apart they are fields of `rows`, records of which `in_force` reads whole
    ones: that is a wait for memory or two, where an array for each column would be one each.
    """

    def __init__(self, level: str) -> None:
        spec = _COLUMNS[level]
        together = sorted(spec.keys() - _APART, key=lambda name: (-_bytes_of(spec, name), name))
        row = np.dtype([(name, spec[name][0]) for name in together], align=True)
        self._new_row = np.array([tuple(spec[name][1] for name in together)], dtype=row)
        self._apart = {name: spec[name] for name in spec if name in _APART}
        self.rows = self._new_row[:0]
        for name, (dtype, _) in self._apart.items():
            setattr(self, name, np.empty(0, dtype=dtype))
        self.reserve(16)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def reserve(self, rows: int) -> None:
        """Make room for rows 0 .. rows-1; new ones hold the level's defaults."""
        capacity = len(self.rows)
        if rows > capacity:
            grown = np.repeat(self._new_row, max(rows, capacity * 2))
            grown[:capacity] = self.rows
            self.rows = grown
            for name in grown.dtype.names or ():
                setattr(self, name, grown[name])
            for name, (dtype, fill) in self._apart.items():
                column: npt.NDArray[Any] = np.full(len(grown), fill, dtype=dtype)
                column[:capacity] = getattr(self, name)
                setattr(self, name, column)


def _bytes_of(spec: Mapping[str, tuple[type, Any]], name: str) -> int:
    return np.dtype(spec[name][0]).itemsize


@dataclass(frozen=True, slots=True)
class AdTerms:
    """What holds for one ad at one time: the row-wise form of the columns."""

    serves: bool
    basis: int
    bid_micros: int
    target_cpi: bool


def start_of(group: AdGroup, created_ms: int) -> int:
    """When the ad group starts: its start_ms, else the next UTC midnight after it was created."""
    if group.start_ms is not None:
        return group.start_ms
    return min((created_ms // MS_PER_DAY + 1) * MS_PER_DAY, NEVER_ENDS)


def bid_for(group: AdGroup, keyword: str | None) -> int:
    """The bid in micros: the keyword's, else the ad group's."""
    if keyword is not None and group.keyword_bids_micros is not None:
        return group.keyword_bids_micros.get(keyword, group.bid_micros)
    return group.bid_micros


def no_rows() -> dict[str, set[int]]:
    """Of each level that has limits, rows to be noted."""
    return {"ad_group": set(), "campaign": set()}


class Terms:
    """Columns over one catalog, kept up to date entity by entity."""

    def __init__(self, catalog: Catalog, partitions: int) -> None:
        self.catalog = catalog
        self.partitions = partitions
        self.group_ids = Interner()
        self.campaign_ids = Interner()
        self.account_ids = Interner()
        self.zones: list[Calendar] = []
        """The accounts' calendars: of plain zones, and of accounts that changed theirs."""
        self.closing_zones: list[Calendar] = []
        """The plain zones behind them, by which shards close days."""
        self.pin = Columns("pin")
        self.group = Columns("group")
        self.campaign = Columns("campaign")
        self.account = Columns("account")
        self.pin_ids: list[str] = []
        self._ads = KeyIndex()
        """Hash of (campaign_id, ad_group_id, promoted_pin_id) -> pin row."""
        self._packed_ads = ByteRows()
        """By pin row: as the journal has them."""
        self.limits_changed = no_rows()
        """Those whose limits changed since someone last cleared this."""
        self._pin_rows: dict[str, int] = {}
        self._calendar_rows: dict[Calendar, int] = {}
        self._pending: list[tuple[int, str, str]] = []
        self._awaited: set[tuple[int, str, str]] = set()

    # -- rows ---------------------------------------------------------------------------------

    def group_row(self, ad_group_id: str) -> int:
        row = self.group_ids.intern(ad_group_id)
        self.group.reserve(row + 1)
        return row

    def campaign_row(self, campaign_id: str) -> int:
        row = self.campaign_ids.intern(campaign_id)
        self.campaign.reserve(row + 1)
        if self.campaign.shard[row] < 0:
            self.campaign.shard[row] = partition_of(campaign_id, self.partitions)
        return row

    def account_row(self, account_id: str) -> int:
        row = self.account_ids.intern(account_id)
        self.account.reserve(row + 1)
        return row

    def calendar_row(self, days: Calendar) -> int:
        row = self._calendar_rows.get(days)
        if row is None:
            row = self._calendar_rows[days] = len(self.zones)
            self.zones.append(days)
            known = {zone.zone_name for zone in self.closing_zones}
            new = dict.fromkeys(name for name in days.zone_names if name not in known)
            self.closing_zones += [calendar(name) for name in new]
        return row

    # -- keeping up with the catalog ----------------------------------------------------------

    def update(self, kind: str, entity_id: str, now_ms: int) -> None:
        """Take over an entity that the catalog has just accepted a record of."""
        if entity_id not in self._known(kind):
            return  # a deletion of what was never there
        if kind == "account":
            self._update_account(entity_id, now_ms)
        elif kind == "campaign":
            self._update_campaign(entity_id, now_ms)
        elif kind == "ad_group":
            self._update_group(entity_id, now_ms)
        elif kind == "promoted_pin":
            self._update_pin(entity_id)

    def _known(self, kind: str) -> Mapping[str, object]:
        catalog = self.catalog
        histories: dict[str, Mapping[str, object]] = {
            "account": catalog.accounts,
            "campaign": catalog.campaigns,
            "ad_group": catalog.ad_groups,
            "promoted_pin": catalog.promoted_pins,
        }
        return histories.get(kind, {})

    def advance(self, now_ms: int) -> None:
        """Bring into force the limits whose effective time has come."""
        while self._pending and self._pending[0][0] <= now_ms:
            entry = heapq.heappop(self._pending)
            self._awaited.discard(entry)
            _, kind, entity_id = entry
            self.update(kind, entity_id, now_ms)

    def next_effective_ms(self) -> int | None:
        """When the next change that is known already takes effect."""
        return self._pending[0][0] if self._pending else None

    def effective_within(self, after_ms: int, up_to_ms: int) -> set[int]:
        """When changes that are known already take effect, within (after, up to]."""
        times_ms = (entry[0] for entry in self._pending)
        return {time_ms for time_ms in times_ms if after_ms < time_ms <= up_to_ms}

    def _update_account(self, account_id: str, now_ms: int) -> None:
        history = self.catalog.accounts[account_id]
        row = self.account_row(account_id)
        self.account.alive[row] = not history.deleted
        if not history.deleted:
            days = self.catalog.calendar_of(account_id)
            assert days is not None, f"account {account_id} has a history but no calendar"
            self.account.zone[row] = self.calendar_row(days)
            self._await_changes(history, "account", account_id, now_ms)

    def _update_campaign(self, campaign_id: str, now_ms: int) -> None:
        history = self.catalog.campaigns[campaign_id]
        row = self.campaign_row(campaign_id)
        columns = self.campaign
        columns.alive[row] = not history.deleted
        if history.deleted:
            return
        latest = history.latest
        columns.active[row] = latest.status == "active"
        columns.basis[row] = OBJECTIVE_BASIS[latest.objective]
        columns.for_installs[row] = latest.objective == "app_install"
        was, columns.account[row] = columns.account[row], self.account_row(latest.account_id)
        if was not in (-1, columns.account[row]):
            groups = self.group.campaign[: len(self.group_ids)]
            self._take_pins_over(np.flatnonzero(groups == row))
        columns.since_ms[row] = _since_ms(history)
        in_force = history.at(now_ms)
        columns.daily_nanos[row] = _limit_nanos(in_force.daily_spend_limit_micros)
        columns.lifetime_nanos[row] = _limit_nanos(in_force.lifetime_spend_limit_micros)
        self.limits_changed["campaign"].add(row)
        self._await_changes(history, "campaign", campaign_id, now_ms)

    def _update_group(self, ad_group_id: str, now_ms: int) -> None:
        history = self.catalog.ad_groups[ad_group_id]
        row = self.group_row(ad_group_id)
        columns = self.group
        columns.alive[row] = not history.deleted
        if history.deleted:
            return
        latest = history.latest
        columns.active[row] = latest.status == "active"
        columns.start_ms[row] = start_of(latest, history.created_ms)
        columns.end_ms[row] = NEVER_ENDS if latest.end_ms is None else latest.end_ms
        columns.bid_micros[row] = latest.bid_micros
        columns.has_keywords[row] = bool(latest.keyword_bids_micros)
        was, columns.campaign[row] = columns.campaign[row], self.campaign_row(latest.campaign_id)
        if was not in (-1, columns.campaign[row]):
            self._take_pins_over(np.array([row]))
        columns.since_ms[row] = _since_ms(history)
        budget_nanos = history.at(now_ms).budget_micros * NANOS_PER_MICRO
        daily = latest.budget_type == "daily"
        columns.daily_nanos[row] = budget_nanos if daily else UNLIMITED
        columns.lifetime_nanos[row] = UNLIMITED if daily else budget_nanos
        columns.even[row] = latest.pacing == "even"
        columns.target_cpi[row] = _is_target_cpi(latest)
        self.limits_changed["ad_group"].add(row)
        self._await_changes(history, "ad_group", ad_group_id, now_ms)

    def _update_pin(self, promoted_pin_id: str) -> None:
        history = self.catalog.promoted_pins[promoted_pin_id]
        row = self._pin_rows.get(promoted_pin_id)
        if history.deleted:
            if row is not None:
                self.pin.alive[row] = False
            return
        latest = history.latest
        campaign_id = self.catalog.ad_groups[latest.ad_group_id].latest.campaign_id
        account_id = self.catalog.campaigns[campaign_id].latest.account_id
        ad_ids = (campaign_id, latest.ad_group_id, promoted_pin_id)
        ad = pack_ad(Ad(account_id, *ad_ids))
        if row is not None and self.packed_ads(np.array([row]))[1] != ad:
            self.pin.alive[row] = False  # its parents are not what they were taken for
            row = None
        if row is None:
            row = self._pin_rows[promoted_pin_id] = len(self.pin_ids)
            self.pin_ids.append(promoted_pin_id)
            self.pin.reserve(row + 1)
            self._ads.add(hash_text(*ad_ids), row)
            self._packed_ads.append(ad)
            self.pin.group[row] = self.group_row(latest.ad_group_id)
            self.pin.of_campaign[row] = campaign = self.campaign_row(campaign_id)
            self.pin.of_shard[row] = self.campaign.shard[campaign]
        self.pin.alive[row] = True
        self.pin.serves[row] = latest.status == "active" and latest.review == "approved"
        self.pin.since_ms[row] = _since_ms(history)

    def _take_pins_over(self, groups: Rows) -> None:
        """What these ad groups belong to is not what it was taken for (see the catalog's
        repetitions), and so are the ads of their pins."""
        pins = np.isin(self.pin.group[: len(self.pin_ids)], groups)
        for row in np.flatnonzero(pins & self.pin.alive[: len(self.pin_ids)]).tolist():
            self._update_pin(self.pin_ids[row])

    def _await_changes(self, history: History[Any], kind: str, entity_id: str, now_ms: int) -> None:
        for version in history.versions:
            if version.effective_ms > now_ms:
                entry = (version.effective_ms, kind, entity_id)
                if entry not in self._awaited:
                    self._awaited.add(entry)
                    heapq.heappush(self._pending, entry)

    def find_ads(self, keys: Keys) -> Rows:
        """The pin row of each ad, by the hash of its ids (AD_COLUMNS in their order).

        -1 where the ad is not in the catalog, or its parts are not each other's.
        """
        return self._ads.find(keys)

    def packed_ads(self, pin_rows: Rows) -> tuple[npt.NDArray[np.int64], bytes]:
        """The journal's names of known ads, packed one after the other: where each starts and the
        last ends, and the bytes."""
        return self._packed_ads.joined(pin_rows)

    # -- one at a time ------------------------------------------------------------------------

    def ad_at(self, pin_row: int, time_ms: int, keyword: str | None) -> AdTerms:
        """What held for an ad at a time, from the entities' histories."""
        pin = self.catalog.promoted_pins[self.pin_ids[pin_row]].at(time_ms)
        group_history = self.catalog.ad_groups[pin.ad_group_id]
        group = group_history.at(time_ms)
        campaign: Campaign = self.catalog.campaigns[group.campaign_id].at(time_ms)
        start_ms = start_of(group, group_history.created_ms)
        serves = (
            pin.status == "active"
            and pin.review == "approved"
            and group.status == "active"
            and campaign.status == "active"
            and start_ms <= time_ms
            and (group.end_ms is None or time_ms < group.end_ms)
        )
        basis, is_target_cpi = OBJECTIVE_BASIS[campaign.objective], _is_target_cpi(group)
        return AdTerms(serves, basis, bid_for(group, keyword), is_target_cpi)

    def is_active(self, group_row: int, time_ms: int) -> bool:
        """Whether an ad group and its campaign were active at a time."""
        group = self.catalog.ad_groups[self.group_ids.text(group_row)].at(time_ms)
        campaign = self.catalog.campaigns[group.campaign_id].at(time_ms)
        return group.status == "active" and campaign.status == "active"

    def rows_of_shard(self, shard: int) -> tuple[Rows, Rows]:
        """The ad group rows and the campaign rows that belong to a shard."""
        campaigns = self.campaign.shard[: len(self.campaign_ids)]
        parents = self.group.campaign[: len(self.group_ids)]
        groups = np.flatnonzero((parents >= 0) & (campaigns[parents] == shard))
        return groups, np.flatnonzero(campaigns == shard)


def _is_target_cpi(group: AdGroup) -> bool:
    return group.bid_strategy == "target_cpi"


def _limit_nanos(limit_micros: int | None) -> int:
    return UNLIMITED if limit_micros is None else limit_micros * NANOS_PER_MICRO


def _since_ms(history: History[Any]) -> int:
    return history.versions[-1].effective_ms if len(history.versions) > 1 else ALWAYS
