"""The catalog: every entity with its history, kept valid record by record.

`Catalog.apply` takes the records of `ads.catalog` in their order. A valid one becomes a version in
its entity's history; an invalid one is refused with a reason and changes nothing, so the last
valid version stays in force. Histories are ordered by effective time; before its first version an
entity is judged by that version, for nothing else is known of it.

The topic is compacted, so a reader may begin behind records that others have read. Two rules keep
such a reader's catalog the same: a record whose parent comes again later waits for it
(`Catalog.apply`), and after a refusal the last valid record is published once more
(`Catalog.repetition_of`, `pipeline.contract.catalog_repeats`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Generic, TypeVar

import msgspec

from pipeline.contract.catalog_entities import (
    Account,
    AdGroup,
    Campaign,
    Credit,
    DayClose,
    Entity,
    FxRates,
    PromotedPin,
    Refused,
    parse_entity,
    parse_key,
    to_record,
)
from pipeline.contract.catalog_repeats import Repeated, repeated_by
from pipeline.contract.days import Calendar, changed_calendar, from_iso, valid_zone
from pipeline.contract.log import LogRecord
from pipeline.contract.money import COUNTRY_CURRENCY, CURRENCIES, minimum_bid_micros
from pipeline.contract.vocabulary import CATALOG, MS_PER_DAY

__all__ = [
    "Accepted",
    "Account",
    "AdGroup",
    "Campaign",
    "Catalog",
    "Change",
    "History",
    "PromotedPin",
    "Refused",
    "Version",
]

T = TypeVar("T", bound=Entity)


@dataclass(frozen=True, slots=True)
class Version(Generic[T]):
    """An entity as it was from `effective_ms` on; `offset` is its record's, where that was
    repeated the first one's."""

    effective_ms: int
    offset: int
    entity: T


@dataclass(slots=True)
class History(Generic[T]):
    """All versions of one entity that are still of use, by effective time."""

    versions: list[Version[T]] = field(default_factory=list)
    created_ms: int = 0
    """Effective time of the first version read."""
    deleted: bool = False
    """Whether its last record was a deletion; its versions stay for what is fixed."""
    last_offset: int = -1
    """Of the last record that was taken over, a deletion included."""
    binds: bool = True
    """Whether what it says is fixed is so; not where it turned out never to have been in force."""

    @property
    def latest(self) -> T:
        """The version with the latest effective time."""
        return self.versions[-1].entity

    def at(self, time_ms: int) -> T:
        """The version in force at a time; the first one before its own time."""
        index = bisect_right(self.versions, time_ms, key=lambda version: version.effective_ms)
        return self.versions[max(0, index - 1)].entity

    def insert(self, version: Version[T]) -> None:
        """Add a version at its place; of two with one effective time the later read wins."""
        at = bisect_right(self.versions, version.effective_ms, key=lambda v: v.effective_ms)
        self.versions.insert(at, version)
        self.last_offset = version.offset

    def last(self) -> Version[T]:
        """The version read last."""
        return max(self.versions, key=lambda version: version.offset)

    def prune(self, before_ms: int) -> None:
        """Drop versions that had been superseded by this time."""
        index = bisect_right(self.versions, before_ms, key=lambda version: version.effective_ms)
        del self.versions[: max(0, index - 1)]


@dataclass(frozen=True, slots=True)
class Change:
    """One field of one entity that changed; values are JSON texts, empty for absent."""

    entity: str
    field: str
    old: str
    new: str
    changed_by: str
    effective_ms: int
    offset: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """A record that was taken over."""

    entity_kind: str
    entity_id: str
    changes: tuple[Change, ...]
    adopted: tuple[tuple[str, str], ...] = ()
    """(kind, id) of records before it that had waited for this parent, and are taken over now."""


class Catalog:
    """All entities, by kind and id."""

    def __init__(self) -> None:
        self.accounts: dict[str, History[Account]] = {}
        self.campaigns: dict[str, History[Campaign]] = {}
        self.ad_groups: dict[str, History[AdGroup]] = {}
        self.promoted_pins: dict[str, History[PromotedPin]] = {}
        self.fx: dict[str, Version[FxRates]] = {}
        self.credits: dict[str, Credit] = {}
        """By event_id; an event is credited once, by the first record that orders it."""
        self.forced_close_day: int | None = None
        """Days up to this one may close without their grace."""
        self.end_offset = 0
        self.revision = 0
        self._records = 0
        self._orphans: dict[tuple[str, str], list[LogRecord]] = {}
        """(kind, id) of a missing parent -> records that wait for it, in their order."""
        self.read_ms = 0
        """Largest timestamp of the records read: a change of zone takes no effect before it."""
        self._zones: dict[str, tuple[str, tuple[tuple[int, str], ...]]] = {}
        """Account -> its first time zone, and its changes: (day of the change, zone after it)."""
        self._rates: dict[str, list[tuple[int, int, Decimal]]] | None = None
        """By currency; None: to be made anew of `fx`."""
        self._histories: dict[str, dict[str, Any]] = {
            "account": self.accounts,
            "campaign": self.campaigns,
            "ad_group": self.ad_groups,
            "promoted_pin": self.promoted_pins,
        }

    def apply(self, record: LogRecord) -> Accepted | Refused:
        """Take over one record, or refuse it and stay as it was.

        A record whose parent is missing is refused. Where compaction has taken records from before
        it, its parent may have been among them, and comes again later in the log: then it is taken
        over as well, as it was when the log was whole. (Offsets without gaps: nothing was taken.)
        """
        self.end_offset = max(self.end_offset, record.offset + 1)
        self._records += 1
        return self._take(record)

    def _take(self, record: LogRecord) -> Accepted | Refused:
        self.read_ms = max(self.read_ms, record.timestamp_ms)
        parsed = parse_key(record.key)
        if isinstance(parsed, Refused):
            return parsed
        kind, entity_id = parsed
        repeated = repeated_by(record.headers)
        if repeated is not None:
            known = self._meet_repetition(kind.name, entity_id, repeated)
            if known is not None:
                return known
        if record.value is None:
            return self._delete(kind.name, entity_id, record, repeated)
        entity = parse_entity(kind, entity_id, record.value)
        if isinstance(entity, Refused):
            return entity
        effective_ms = entity.effective_ms
        if effective_ms is None:
            effective_ms = record.timestamp_ms
        for check in _CHECKS if repeated is None else _CHECKS_OF_A_REPETITION:
            refused = check(self, entity, effective_ms)
            if refused is not None:
                if refused.reason == "missing_parent" and self.end_offset > self._records:
                    self._orphans.setdefault(_needs(entity), []).append(record)
                return refused
        self.revision += 1
        first_offset = record.offset
        if repeated is not None:
            self._forget(kind.name, entity_id)
            first_offset = repeated.offset
        old = self._store(kind.name, entity_id, entity, effective_ms, first_offset)
        changes = _changes(f"{kind.prefix}:{entity_id}", old, entity, effective_ms, record.offset)
        return Accepted(kind.name, entity_id, changes, self._adopt(kind.name, entity_id))

    def _adopt(self, kind: str, entity_id: str) -> tuple[tuple[str, str], ...]:
        """Take over what waited for this parent; the (kind, id) of each, parents first."""
        adopted: list[tuple[str, str]] = []
        for orphan in self._orphans.pop((kind, entity_id), []):
            result = self._take(orphan)
            if isinstance(result, Accepted):
                adopted += [(result.entity_kind, result.entity_id), *result.adopted]
        return tuple(adopted)

    def repetition_of(self, key: bytes, offset: int, timestamp_ms: int) -> LogRecord | None:
        """What to publish after a refused record of this key: its last valid one, once more.

        Offset and timestamp are the refused record's; the repetition has that timestamp, so that a
        stream's clock is not moved. None where there is no valid one, where the record has been
        taken over since (it had waited for its parent), and for the kinds that nothing depends on
        for long: a close that was released has happened, an ordered credit is in the journal.
        """
        parsed = parse_key(key)
        if isinstance(parsed, Refused):
            return None
        kind, entity_id = parsed
        version: Version[Any] | None = self.fx.get(entity_id) if kind.name == "fx" else None
        history: History[Any] | None = self._histories.get(kind.name, {}).get(entity_id)
        if history is not None and history.deleted:
            repeated = Repeated(history.last_offset, self.end_offset)
            return LogRecord(CATALOG, 0, -1, timestamp_ms, key, None, repeated.headers)
        if history is not None:
            version = history.last()
        if version is None or version.offset == offset:
            return None
        # Its effective time would else be that of the repetition.
        entity = msgspec.structs.replace(version.entity, effective_ms=version.effective_ms)
        repeated = Repeated(version.offset, self.end_offset)
        value = to_record(entity)[1]
        return LogRecord(CATALOG, 0, -1, timestamp_ms, key, value, repeated.headers)

    def _meet_repetition(
        self, kind: str, entity_id: str, repeated: Repeated
    ) -> Accepted | Refused | None:
        """What a repetition is to this reader; None: it takes it over in place of all it knows.

        It knows better where it has taken a record over that the repeating one had not read: then
        the repetition is refused, and repeated over in its turn. It knows the same where the
        repeated record is the last that it took over. Otherwise it has taken over what others had
        refused, or not seen what they saw.
        """
        last_offset = self._last_offset(kind, entity_id)
        if last_offset >= repeated.read_to:
            return Refused("overtaken", "", "a record of this key came before its repetition")
        return Accepted(kind, entity_id, ()) if last_offset == repeated.offset else None

    def _last_offset(self, kind: str, entity_id: str) -> int:
        """Of the last record of an entity that was taken over; -1 where none was."""
        if kind == "fx":
            return self.fx[entity_id].offset if entity_id in self.fx else -1
        history: History[Any] | None = self._histories.get(kind, {}).get(entity_id)
        return -1 if history is None else history.last_offset

    def _forget(self, kind: str, entity_id: str) -> None:
        """What was known of an entity was not so."""
        self._histories.get(kind, {}).pop(entity_id, None)
        if kind == "account":
            self._zones.pop(entity_id, None)

    def prune(self, before_ms: int) -> None:
        """Drop history that no event from this time on can need."""
        for histories in self._histories.values():
            for history in histories.values():
                history.prune(before_ms)

    def _store(
        self, kind: str, entity_id: str, entity: Entity, effective_ms: int, offset: int
    ) -> Entity | None:
        """Put an accepted entity in its place; returns what it replaces."""
        if isinstance(entity, FxRates):
            old = self.fx.get(entity_id)
            self.fx[entity_id] = Version(effective_ms, offset, entity)
            self._rates = None
            return None if old is None else old.entity
        if isinstance(entity, DayClose):
            day = from_iso(entity.day)
            self.forced_close_day = max(day, self.forced_close_day or day)
            return None
        if isinstance(entity, Credit):
            self.credits[entity_id] = entity
            return None
        if isinstance(entity, Account):
            self._note_zone(entity, effective_ms)
        history: History[Any] | None = self._histories[kind].get(entity_id)
        if history is None or history.deleted:
            self._histories[kind][entity_id] = History(
                [Version(effective_ms, offset, entity)], effective_ms, last_offset=offset
            )
            return None
        replaced: Entity = history.at(effective_ms)
        history.insert(Version(effective_ms, offset, entity))
        return replaced

    def _delete(
        self, kind: str, entity_id: str, record: LogRecord, repeated: Repeated | None
    ) -> Accepted | Refused:
        """A deletion takes an entity out of the catalog at once."""
        for waiting in self._orphans.values():
            waiting[:] = [orphan for orphan in waiting if orphan.key != record.key]
        if kind == "credit":
            return Refused("malformed", "key", "a credit cannot be taken back")
        if kind == "fx":
            self.fx.pop(entity_id, None)
            self._rates = None
        elif kind in self._histories:
            history = self._histories[kind].get(entity_id)
            if history is not None:
                history.deleted = True
                history.last_offset = record.offset if repeated is None else repeated.offset
                history.binds = history.binds and repeated is None
        self.revision += 1
        name = f"{kind}:{entity_id}"
        change = Change(name, "deleted", "false", "true", "", record.timestamp_ms, record.offset)
        return Accepted(kind, entity_id, (change,))

    def calendar_of(self, account_id: str) -> Calendar | None:
        """The billing days of an account, changes of its time zone included; None if unknown."""
        known = self._zones.get(account_id)
        return None if known is None else changed_calendar(*known)

    def _note_zone(self, account: Account, effective_ms: int) -> None:
        """Keep the account's days: a change takes effect at the day after the one it falls in.

        A change falls in the day of its effective time, or of the newest catalog record where that
        is later: days that may have been closed do not move. (`pipeline.contract.days`)
        """
        calendar = self.calendar_of(account.account_id)
        if calendar is None:
            self._zones[account.account_id] = (account.time_zone, ())
            return
        first, changes = self._zones[account.account_id]
        day = calendar.day_of(max(effective_ms, self.read_ms))
        merged = dict(changes) | {day: account.time_zone}
        kept: list[tuple[int, str]] = []
        for when, zone in sorted(merged.items()):
            if zone != (kept[-1][1] if kept else first):
                kept.append((when, zone))
        self._zones[account.account_id] = (first, tuple(kept))

    def usd_per_unit(self, currency: str, effective_ms: int) -> Decimal | None:
        """The exchange rate that a bid of this time is held against.

        That of the latest day up to the time's UTC day that has one for the currency; failing
        that, the one read last of any day; None where there is none.
        """
        day = effective_ms // MS_PER_DAY
        rates = self._rates_of(currency)
        past = bisect_right(rates, day, key=lambda rate: rate[0])
        if past:
            return rates[past - 1][2]
        return max(rates, key=lambda rate: rate[1])[2] if rates else None

    def _rates_of(self, currency: str) -> list[tuple[int, int, Decimal]]:
        """(day, offset, rate) of every day that has a rate of the currency, by day."""
        if self._rates is None:
            self._rates = {}
            for fx_day, version in sorted(self.fx.items()):
                for name, rate in version.entity.usd_per_unit.items():
                    if name in CURRENCIES:
                        place = from_iso(fx_day), version.offset
                        self._rates.setdefault(name, []).append((*place, Decimal(rate)))
        return self._rates.get(currency, [])

    def past_of(self, entity: Entity) -> History[Any] | None:
        """The entity's history, deleted or not."""
        if isinstance(entity, Account):
            return self.accounts.get(entity.account_id)
        if isinstance(entity, Campaign):
            return self.campaigns.get(entity.campaign_id)
        if isinstance(entity, AdGroup):
            return self.ad_groups.get(entity.ad_group_id)
        if isinstance(entity, PromotedPin):
            return self.promoted_pins.get(entity.promoted_pin_id)
        return None


# -- what depends on other entities or on the past, in the order of the checks ----------------

_Check = Callable[[Catalog, Entity, int], Refused | None]


def _check_currency(_: Catalog, entity: Entity, __: int) -> Refused | None:
    if isinstance(entity, Account) and COUNTRY_CURRENCY[entity.country] != entity.currency:
        wanted = COUNTRY_CURRENCY[entity.country]
        return Refused("currency_mismatch", "currency", f"{entity.country} pays in {wanted}")
    return None


def _check_time_zone(_: Catalog, entity: Entity, __: int) -> Refused | None:
    if isinstance(entity, Account) and not valid_zone(entity.time_zone):
        detail = f"{entity.time_zone!r} is not an IANA time zone"
        return Refused("unknown_time_zone", "time_zone", detail)
    return None


def _parent_of(entity: Entity) -> tuple[str, str, str] | None:
    """Kind and id of the parent, and the field that names it."""
    if isinstance(entity, Campaign):
        return "account", entity.account_id, "account_id"
    if isinstance(entity, AdGroup):
        return "campaign", entity.campaign_id, "campaign_id"
    if isinstance(entity, PromotedPin):
        return "ad_group", entity.ad_group_id, "ad_group_id"
    return None


def _needs(entity: Entity) -> tuple[str, str]:
    """Kind and id of what an entity cannot be without."""
    parent = _parent_of(entity)
    if parent is not None:
        return parent[0], parent[1]
    assert isinstance(entity, Credit)
    return "campaign", entity.campaign_id


def _check_parent(catalog: Catalog, entity: Entity, _: int) -> Refused | None:
    parent = _parent_of(entity)
    if parent is None:
        return None
    kind, parent_id, field_name = parent
    history = catalog._histories[kind].get(parent_id)
    if history is None or history.deleted:
        return Refused("missing_parent", field_name, f"{kind} {parent_id} is not in the catalog")
    return None


def _check_fixed(reason: str, *fields: str) -> _Check:
    def check(catalog: Catalog, entity: Entity, _: int) -> Refused | None:
        past = catalog.past_of(entity)
        if past is None or not past.binds:
            return None
        for name in fields:
            before, now = getattr(past.latest, name, None), getattr(entity, name, None)
            if before != now:
                return Refused(reason, name, f"is {before} and cannot become {now}")
        return None

    return check


def _check_parent_fixed(catalog: Catalog, entity: Entity, now: int) -> Refused | None:
    parent = _parent_of(entity)
    return (
        None if parent is None else _check_fixed("parent_changed", parent[2])(catalog, entity, now)
    )


def _check_strategy(catalog: Catalog, entity: Entity, effective_ms: int) -> Refused | None:
    if isinstance(entity, AdGroup) and entity.bid_strategy == "target_cpi":
        objective = catalog.campaigns[entity.campaign_id].at(effective_ms).objective
        if objective != "app_install":
            detail = f"target_cpi is for app_install campaigns, not {objective}"
            return Refused("strategy_not_allowed", "bid_strategy", detail)
    return None


def _check_dates(_: Catalog, entity: Entity, __: int) -> Refused | None:
    if not isinstance(entity, AdGroup):
        return None
    if entity.budget_type == "lifetime" and entity.end_ms is None:
        return Refused("missing_end", "end_ms", "a lifetime budget needs an end")
    start_ms, end_ms = entity.start_ms, entity.end_ms
    if start_ms is not None and end_ms is not None and end_ms <= start_ms:
        return Refused("bad_dates", "end_ms", "is not after start_ms")
    return None


def _check_bids(catalog: Catalog, entity: Entity, effective_ms: int) -> Refused | None:
    if not isinstance(entity, AdGroup):
        return None
    campaign = catalog.campaigns[entity.campaign_id].at(effective_ms)
    currency = catalog.accounts[campaign.account_id].latest.currency
    rate = catalog.usd_per_unit(currency, effective_ms)
    minimum = minimum_bid_micros(currency, campaign.objective, rate)
    if entity.bid_micros < minimum:
        detail = f"{entity.bid_micros} is under the minimum of {minimum} micros {currency}"
        return Refused("bid_too_low", "bid_micros", detail)
    for keyword, bid in (entity.keyword_bids_micros or {}).items():
        if bid < minimum:
            detail = f"{keyword!r}: {bid} is under the minimum of {minimum} micros {currency}"
            return Refused("bid_too_low", "keyword_bids_micros", detail)
    return None


def _check_credit(catalog: Catalog, entity: Entity, _: int) -> Refused | None:
    """What the catalog can tell; the amount is held against the books by the reporter."""
    if not isinstance(entity, Credit):
        return None
    if entity.event_id in catalog.credits:
        return Refused("already_credited", "event_id", "an event is credited once")
    campaign = catalog.campaigns.get(entity.campaign_id)
    if campaign is None:
        detail = f"campaign {entity.campaign_id} is not in the catalog"
        return Refused("missing_parent", "campaign_id", detail)
    account_id = campaign.latest.account_id
    if account_id != entity.account_id:
        return Refused("parent_changed", "account_id", f"the campaign is of account {account_id}")
    account = catalog.accounts.get(account_id)
    if account is None or account.latest.currency != entity.currency:
        return Refused("currency_mismatch", "currency", "is not the account's")
    return None


_check_currency_fixed = _check_fixed("currency_changed", "country", "currency")
_check_budget_type_fixed = _check_fixed("budget_type_changed", "budget_type")

_CHECKS: tuple[_Check, ...] = (
    _check_currency,
    _check_time_zone,
    _check_parent,
    _check_parent_fixed,
    _check_currency_fixed,
    _check_budget_type_fixed,
    _check_strategy,
    _check_dates,
    _check_bids,
    _check_credit,
)
_AGAINST_THE_PAST = (_check_parent_fixed, _check_currency_fixed, _check_budget_type_fixed)
_CHECKS_OF_A_REPETITION = tuple(check for check in _CHECKS if check not in _AGAINST_THE_PAST)
"""It says what the entity's past is."""


def _changes(
    name: str, old: Entity | None, new: Entity, effective_ms: int, offset: int
) -> tuple[Change, ...]:
    """The fields that differ, as rows of `reporting.changes`."""
    if isinstance(new, Credit):
        # One row, not one for each of its fields: what it repeats of the event never changes.
        amount, by = str(new.amount_nanos), new.changed_by or ""
        return (Change(name, "credited_nanos", "", amount, by, effective_ms, offset),)
    before = {} if old is None else msgspec.structs.asdict(old)
    changes = []
    for field_name, value in msgspec.structs.asdict(new).items():
        if field_name in ("effective_ms", "changed_by"):
            continue
        old_text, new_text = _text(before.get(field_name)), _text(value)
        if old_text != new_text:
            by = new.changed_by or ""
            changes.append(Change(name, field_name, old_text, new_text, by, effective_ms, offset))
    return tuple(changes)


def _text(value: Any) -> str:
    return "" if value is None else msgspec.json.encode(value).decode()
