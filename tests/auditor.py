"""The auditor: a second, naive model of the public contract, which the product is checked against.

It owns an answer to one question: given what was read from `ads.catalog` and an order of
judgement, what does the contract say of each event, to the nano? It takes one record at a time and
favours clarity over speed everywhere.

Invariants:
- It shares no code with the product and imports the standard library only, so a mistake has to be
  made twice, in two different shapes, to go unseen.
- It knows no clock: `now_ms` is passed in. The same calls in the same order give the same answers.
- A refused catalog record and a raised error leave its state unchanged.
- Money is int nanos (1 micro = 1,000 nanos); exchange rates are exact fractions. No floats.

The rules are those of the contract's "How an event is judged", numbered alike.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import Any, Final, Generic, Never, TypeVar
from zoneinfo import ZoneInfo, available_timezones

MS_PER_DAY: Final = 24 * 60 * 60 * 1000
FUTURE_TOLERANCE_MS: Final = 5 * 60 * 1000
IMPRESSIONS_PER_BLOCK: Final = 1000
LARGEST_AMOUNT_MICROS: Final = 10**15
LARGEST_INT64: Final = 2**63 - 1
SMALLEST_INT64: Final = -(2**63)

KIND_OF_TOPIC: Final = {"ads.impressions": "impression", "ads.clicks": "click"}
ENGAGEMENTS: Final = "ads.engagements"
ENGAGEMENT_KINDS: Final = ("closeup", "save", "install")
PLACEMENTS: Final = ("browse", "search")

DAILY_LIMITS: Final = ("ad_group_daily", "campaign_daily")
LIFETIME_LIMITS: Final = ("ad_group_lifetime", "campaign_lifetime")

STATUSES: Final = ("active", "paused", "archived")
REVIEWS: Final = ("pending", "approved", "rejected")
CAMPAIGN_PLACEMENTS: Final = ("all", "browse", "search")
CURRENCY_OF_COUNTRY: Final = {
    "US": "USD",
    "CA": "CAD",
    "GB": "GBP",
    "IE": "EUR",
    "AU": "AUD",
    "NZ": "NZD",
}
BASIS_OF_OBJECTIVE: Final = {
    "traffic": "cpc",
    "app_install": "cpc",
    "engagement": "cpe",
    "awareness": "cpm",
    "video_awareness": "cpm",
}
BILLABLE_KINDS: Final = {
    "cpc": ("click",),
    "cpe": ("closeup", "save", "click"),
    "cpm": ("impression",),
}
MINIMUM_BID_COLUMN: Final = {
    "traffic": 0,
    "app_install": 0,  # a target cost per install, too, is held against the CPC column
    "engagement": 1,
    "awareness": 2,
    "video_awareness": 3,
}
MINIMUM_BIDS_MICROS: Final[dict[str, tuple[int | None, ...]]] = {
    # CPC, CPE, CPM, autoplay-video CPM; None: pegged to PEG_USD_MICROS
    "USD": (100_000, 100_000, 2_000_000, 6_000_000),
    "GBP": (80_000, 80_000, None, 4_630_000),
    "CAD": (150_000, 150_000, None, 8_150_000),
    "EUR": (110_000, 110_000, None, 5_380_000),
    "AUD": (150_000, 150_000, None, 8_070_000),
    "NZD": (160_000, 160_000, None, 8_670_000),
}
PEG_USD_MICROS: Final = 2_000_000
# "localtime" is the host's own setting, not an IANA name: no two hosts need agree on it.
TIME_ZONES: Final = available_timezones() - {"localtime"}
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class CatalogRecord:
    """A record of `ads.catalog`; `value` is None for a deletion."""

    offset: int
    timestamp_ms: int
    key: str
    value: bytes | None


@dataclass(frozen=True)
class SourceRecord:
    """A record of one of the three event topics."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True)
class Verdict:
    """What the contract says of one event; what an event lacks is the empty string or 0.

    `price_micros` is the event's own, before the bid caps it. `billing_day` is the record
    timestamp's UTC day where the event has no billing day of its own. `basis` is set on charged
    events only, `limit` on over-budget and on partially charged ones.
    """

    topic: str
    partition: int
    offset: int
    disposition: str
    limit: str
    amount_nanos: int
    free_nanos: int
    billing_day: date
    account_id: str
    campaign_id: str
    ad_group_id: str
    promoted_pin_id: str
    kind: str
    event_id: str
    price_micros: int
    basis: str

    def compared(self) -> dict[str, Any]:
        """What a judgement of the product has to be equal to, days as ISO dates."""
        names = ("topic", "partition", "offset", "disposition", "limit", "amount_nanos")
        more = ("free_nanos", "kind", "event_id", "basis")
        found = {name: getattr(self, name) for name in (*names, *more)}
        return found | {"billing_day": self.billing_day.isoformat()}


# --- Keys, days ----------------------------------------------------------------------------------


def murmur2(data: bytes) -> int:
    """Kafka's default hash of a record key, as an unsigned 32-bit integer.

    Austin Appleby's MurmurHash2 for 32 bits, seed 0x9747b28c, as Kafka's producers compute it.
    Java prints the same 32 bits as a signed int.
    """
    multiplier = 0x5BD1E995
    mask = 0xFFFFFFFF
    state = (0x9747B28C ^ len(data)) & mask
    whole = len(data) - len(data) % 4
    for start in range(0, whole, 4):
        word = int.from_bytes(data[start : start + 4], "little")
        word = (word * multiplier) & mask
        word ^= word >> 24
        word = (word * multiplier) & mask
        state = ((state * multiplier) & mask) ^ word
    rest = data[whole:]
    if rest:
        state ^= int.from_bytes(rest, "little")
        state = (state * multiplier) & mask
    state ^= state >> 13
    state = (state * multiplier) & mask
    state ^= state >> 15
    return state


def partition_of(key: str, partitions: int) -> int:
    """The partition, 0 to partitions - 1, that Kafka's default gives to a UTF-8 key."""
    return (murmur2(key.encode("utf-8")) & 0x7FFFFFFF) % partitions


def day_of(time_ms: int, zone: tzinfo) -> date:
    """The calendar day of an instant in a time zone."""
    return (EPOCH + timedelta(milliseconds=time_ms)).astimezone(zone).date()


# --- JSON, strictly ------------------------------------------------------------------------------


Zones = list[tuple[date, str]]
"""An account's time zones: (the day the zone was changed in, the zone of the days after it)."""


def end_of_day_ms(day: date, zones: Zones) -> int:
    """When an account's day ends: with its zone's date, but not before the day of the change."""
    changed_in, zone = [entry for entry in zones if entry[0] < day][-1]
    midnight = datetime.combine(day + timedelta(days=1), datetime.min.time(), ZoneInfo(zone))
    end_ms = round(midnight.timestamp() * 1000)
    if changed_in == date.min:
        return end_ms
    return max(end_ms, end_of_day_ms(changed_in, zones))


def account_day_of(time_ms: int, zones: Zones) -> date:
    """The first of an account's days that ends after an instant."""
    day = day_of(time_ms, UTC) - timedelta(days=3)
    while end_of_day_ms(day, zones) <= time_ms:
        day += timedelta(days=1)
    return day


class MalformedError(Exception):
    """The bytes are not of the form that the contract gives."""


class Members(list[tuple[str, object]]):
    """A JSON object as it was written: its (name, value) pairs, repetitions included."""

    def as_dict(self) -> dict[str, object]:
        """The object by name. Raises MalformedError where a name is given twice."""
        by_name: dict[str, object] = {}
        for name, value in self:
            if name in by_name:
                raise MalformedError(f"{name} is given twice")
            by_name[name] = value
        return by_name


def _no_constant(text: str) -> Never:
    raise MalformedError(f"{text} is not JSON")


def _integer(text: str) -> int:
    # Python refuses to convert thousands of digits, which JSON allows. A number of 40 digits is
    # already outside every range that is asked about, so the rest of a longer one is left off.
    return int(text[:40])


def read_json_object(value: bytes | None) -> dict[str, object]:
    """The top-level members of a UTF-8 JSON object; nested objects are Members.

    Raises MalformedError for everything else, for a name given twice at the top level, and for an
    escaped lone surrogate anywhere (it stands for no character and has no UTF-8 form).
    """
    if value is None:
        raise MalformedError("no value")
    try:
        document = json.loads(
            value.decode("utf-8"),
            object_pairs_hook=Members,
            parse_constant=_no_constant,
            parse_int=_integer,
        )
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:  # Unicode and JSON errors are ValueErrors
        raise MalformedError(str(error)) from error
    if not isinstance(document, Members):
        raise MalformedError("not an object")
    return document.as_dict()


def _member(members: dict[str, object], name: str, default: object) -> object:
    value = members.get(name, default)
    if value is None:
        raise MalformedError(f"{name} is missing or null")
    return value


def take_text(members: dict[str, object], name: str, default: str | None = None) -> str:
    """A string member. Without a default it must be there."""
    value = _member(members, name, default)
    if not isinstance(value, str):
        raise MalformedError(f"{name} is not a string")
    return value


def take_integer(members: dict[str, object], name: str, default: int | None = None) -> int:
    """A JSON integer of any size. Without a default it must be there."""
    value = _member(members, name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise MalformedError(f"{name} is not an integer")
    return value


def take_one_of(
    members: dict[str, object], name: str, allowed: Sequence[str], default: str | None = None
) -> str:
    """A string member that is one of a closed set."""
    value = take_text(members, name, default)
    if value not in allowed:
        raise MalformedError(f"{name} is not one of {allowed}")
    return value


# --- Events --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """A well-formed event, its kind included. `keyword` is None where the event has none."""

    event_id: str
    event_time_ms: int
    campaign_id: str
    ad_group_id: str
    promoted_pin_id: str
    user_id: str
    impression_id: str
    price_micros: int
    keyword: str | None
    kind: str


def _event_text(members: dict[str, object], name: str) -> str:
    text = take_text(members, name)
    if name == "event_id" and not 1 <= len(text) <= 128:
        raise MalformedError("event_id is not 1 to 128 characters long")
    if "\0" in text:
        raise MalformedError(f"{name} has a NUL character")
    return text


def _event_integer(members: dict[str, object], name: str) -> int:
    number = take_integer(members, name)
    smallest = 0 if name == "price_micros" else SMALLEST_INT64
    if not smallest <= number <= LARGEST_INT64:
        raise MalformedError(f"{name} is out of range")
    return number


def read_event(topic: str, value: bytes | None) -> Event:
    """The event in a record of an event topic (rule 1).

    Raises MalformedError where it is not of the contract's form, ValueError where the topic is none
    of the three.
    """
    if topic != ENGAGEMENTS and topic not in KIND_OF_TOPIC:
        raise ValueError(f"{topic} is not an event topic")
    members = read_json_object(value)
    take_one_of(members, "placement", PLACEMENTS)
    for name in ("country", "device", "keyword"):
        if name in members:
            _event_text(members, name)
    if topic == ENGAGEMENTS:
        kind = take_one_of(members, "kind", ENGAGEMENT_KINDS)
    else:
        kind = KIND_OF_TOPIC[topic]
    return Event(
        event_id=_event_text(members, "event_id"),
        event_time_ms=_event_integer(members, "event_time_ms"),
        campaign_id=_event_text(members, "campaign_id"),
        ad_group_id=_event_text(members, "ad_group_id"),
        promoted_pin_id=_event_text(members, "promoted_pin_id"),
        user_id=_event_text(members, "user_id"),
        impression_id=_event_text(members, "impression_id"),
        price_micros=_event_integer(members, "price_micros"),
        keyword=take_text(members, "keyword") if "keyword" in members else None,
        kind=kind,
    )


# --- The catalog's entities ----------------------------------------------------------------------


class RefusedError(Exception):
    """A catalog record is refused; its only argument is the reason."""

    @property
    def reason(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Account:
    """One version of an account."""

    country: str
    currency: str
    time_zone: str


@dataclass(frozen=True)
class Campaign:
    """One version of a campaign; a limit is None where there is none."""

    account_id: str
    objective: str
    daily_spend_limit_micros: int | None
    lifetime_spend_limit_micros: int | None
    status: str


@dataclass(frozen=True)
class AdGroup:
    """One version of an ad group; no `start_ms` makes it a continuous one."""

    campaign_id: str
    budget_type: str
    budget_micros: int
    bid_strategy: str
    bid_micros: int
    keyword_bids_micros: dict[str, int]
    start_ms: int | None
    end_ms: int | None
    status: str


@dataclass(frozen=True)
class PromotedPin:
    """One version of a promoted pin."""

    ad_group_id: str
    status: str
    review: str


def _entity_id(text: str) -> str:
    if not 1 <= len(text) <= 256:
        raise MalformedError("an id is not 1 to 256 characters long")
    return text


def _time_ms(members: dict[str, object], name: str) -> int | None:
    if name not in members:
        return None
    time_ms = take_integer(members, name)
    if not SMALLEST_INT64 <= time_ms <= LARGEST_INT64:
        raise MalformedError(f"{name} is out of range")
    return time_ms


def _keyword_bids(members: dict[str, object]) -> dict[str, int]:
    bids = members.get("keyword_bids_micros", Members())
    if not isinstance(bids, Members):
        raise MalformedError("keyword_bids_micros is not an object")
    by_keyword = bids.as_dict()
    return {keyword: take_integer(by_keyword, keyword) for keyword in by_keyword}


def read_account(members: dict[str, object]) -> Account:
    """An account's fields; the zone's name is not looked up yet."""
    return Account(
        country=take_one_of(members, "country", tuple(CURRENCY_OF_COUNTRY)),
        currency=take_one_of(members, "currency", tuple(CURRENCY_OF_COUNTRY.values())),
        time_zone=take_text(members, "time_zone", "UTC"),
    )


def read_campaign(members: dict[str, object]) -> Campaign:
    """A campaign's fields; amounts are not checked for range yet."""
    take_one_of(members, "placement", CAMPAIGN_PLACEMENTS, "all")  # the auction's business
    limits = {
        name: take_integer(members, name) if name in members else None
        for name in ("daily_spend_limit_micros", "lifetime_spend_limit_micros")
    }
    return Campaign(
        account_id=_entity_id(take_text(members, "account_id")),
        objective=take_one_of(members, "objective", tuple(BASIS_OF_OBJECTIVE)),
        daily_spend_limit_micros=limits["daily_spend_limit_micros"],
        lifetime_spend_limit_micros=limits["lifetime_spend_limit_micros"],
        status=take_one_of(members, "status", STATUSES, "active"),
    )


def read_ad_group(members: dict[str, object]) -> AdGroup:
    """An ad group's fields; amounts are not checked for range yet."""
    take_one_of(members, "pacing", ("asap", "even"), "asap")  # about serving, not about money
    return AdGroup(
        campaign_id=_entity_id(take_text(members, "campaign_id")),
        budget_type=take_one_of(members, "budget_type", ("daily", "lifetime")),
        budget_micros=take_integer(members, "budget_micros"),
        bid_strategy=take_one_of(members, "bid_strategy", ("max_bid", "target_cpi"), "max_bid"),
        bid_micros=take_integer(members, "bid_micros"),
        keyword_bids_micros=_keyword_bids(members),
        start_ms=_time_ms(members, "start_ms"),
        end_ms=_time_ms(members, "end_ms"),
        status=take_one_of(members, "status", STATUSES, "active"),
    )


def read_promoted_pin(members: dict[str, object]) -> PromotedPin:
    """A promoted pin's fields."""
    take_text(members, "destination_url", "")
    return PromotedPin(
        ad_group_id=_entity_id(take_text(members, "ad_group_id")),
        status=take_one_of(members, "status", STATUSES, "active"),
        review=take_one_of(members, "review", REVIEWS, "pending"),
    )


def read_usd_per_unit(members: dict[str, object]) -> dict[str, Decimal]:
    """An fx entity's rates by currency, each a plain decimal string greater than 0."""
    rates = _member(members, "usd_per_unit", None)
    if not isinstance(rates, Members):
        raise MalformedError("usd_per_unit is not an object")
    by_currency = rates.as_dict()
    usd_per_unit: dict[str, Decimal] = {}
    for currency in by_currency:
        text = take_text(by_currency, currency)
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or Decimal(text) <= 0:
            raise MalformedError(f"the rate of {currency} is not a decimal greater than 0")
        usd_per_unit[currency] = Decimal(text)
    return usd_per_unit


def read_day(text: str) -> date:
    """A day written YYYY-MM-DD. Raises MalformedError."""
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        raise MalformedError("a day is not written YYYY-MM-DD")
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise MalformedError(str(error)) from error


Version = TypeVar("Version", Account, Campaign, AdGroup, PromotedPin)


class History(Generic[Version]):
    """The versions of one entity since it was (last) published after not being in the catalog."""

    def __init__(self, created_ms: int) -> None:
        self.created_ms = created_ms
        """The effective_ms of the version read first, which need not be the earliest."""
        self._versions: list[tuple[int, Version]] = []

    def add(self, effective_ms: int, version: Version) -> None:
        """Put a version at its place in time; on a tie it comes after those read before it."""
        place = 0
        for earlier_ms, _ in self._versions:
            if earlier_ms <= effective_ms:
                place += 1
        self._versions.insert(place, (effective_ms, version))

    def times_ms(self) -> list[int]:
        """When each version takes effect."""
        return [effective_ms for effective_ms, _ in self._versions]

    def in_force(self, time_ms: int) -> Version:
        """The version of the greatest effective_ms <= time_ms; before all of them, the first."""
        found = self._versions[0][1]
        for effective_ms, version in self._versions:
            if effective_ms <= time_ms:
                found = version
        return found


# --- The catalog ---------------------------------------------------------------------------------


class Catalog:
    """What is in force: every accepted entity's history, and what stays fixed over a deletion.

    A deletion forgets an entity's versions and when it was created, never its parent, its currency
    and country or its budget type.
    """

    def __init__(self) -> None:
        self.accounts: dict[str, History[Account]] = {}
        self.zones: dict[str, Zones] = {}
        self._read_ms = 0
        self.campaigns: dict[str, History[Campaign]] = {}
        self.ad_groups: dict[str, History[AdGroup]] = {}
        self.promoted_pins: dict[str, History[PromotedPin]] = {}
        self.usd_per_unit: dict[date, dict[str, Decimal]] = {}  # in the order of reading
        self._country_and_currency: dict[str, tuple[str, str]] = {}
        self._campaign_account: dict[str, str] = {}
        self._ad_group_campaign: dict[str, str] = {}
        self._promoted_pin_ad_group: dict[str, str] = {}
        self._budget_type: dict[str, str] = {}

    def apply(self, record: CatalogRecord) -> None:
        """Take in one record. Raises MalformedError or RefusedError, and then changes nothing."""
        self._read_ms = max(self._read_ms, record.timestamp_ms)
        entity, _, entity_id = record.key.partition(":")
        if entity not in ("account", "campaign", "ad_group", "promoted_pin", "fx"):
            raise MalformedError("the key names no kind of entity")
        _entity_id(entity_id)
        if record.value is None:
            self._delete(entity, entity_id)
            return
        members = read_json_object(record.value)
        # null for an optional field counts as absent, and for a required one as missing.
        members = {name: value for name, value in members.items() if value is not None}
        id_field = "fx_day" if entity == "fx" else f"{entity}_id"
        if take_text(members, id_field) != entity_id:
            raise MalformedError("the id in the body is not the key's")
        take_text(members, "changed_by", "")
        effective_ms = _time_ms(members, "effective_ms")
        if effective_ms is None:
            effective_ms = record.timestamp_ms
        elif effective_ms < 0:
            raise MalformedError("effective_ms is negative")
        if entity == "account":
            self._account(entity_id, effective_ms, read_account(members))
        elif entity == "campaign":
            self._campaign(entity_id, effective_ms, read_campaign(members))
        elif entity == "ad_group":
            self._ad_group(entity_id, effective_ms, read_ad_group(members))
        elif entity == "promoted_pin":
            self._promoted_pin(entity_id, effective_ms, read_promoted_pin(members))
        else:
            rates = read_usd_per_unit(members)
            day = read_day(entity_id)
            self.usd_per_unit.pop(day, None)  # so that it moves to the end: read last
            self.usd_per_unit[day] = rates

    def _delete(self, entity: str, entity_id: str) -> None:
        if entity == "account":
            self.accounts.pop(entity_id, None)
        elif entity == "campaign":
            self.campaigns.pop(entity_id, None)
        elif entity == "ad_group":
            self.ad_groups.pop(entity_id, None)
        elif entity == "promoted_pin":
            self.promoted_pins.pop(entity_id, None)
        else:
            self.usd_per_unit.pop(read_day(entity_id), None)

    def _account(self, account_id: str, effective_ms: int, account: Account) -> None:
        if CURRENCY_OF_COUNTRY[account.country] != account.currency:
            raise RefusedError("currency_mismatch")
        if account.time_zone not in TIME_ZONES:
            raise RefusedError("unknown_time_zone")
        fixed = (account.country, account.currency)
        if self._country_and_currency.get(account_id, fixed) != fixed:
            raise RefusedError("currency_changed")
        self._country_and_currency[account_id] = fixed
        self._change_zone(account_id, max(effective_ms, self._read_ms), account.time_zone)
        if account_id not in self.accounts:
            self.accounts[account_id] = History(effective_ms)
        self.accounts[account_id].add(effective_ms, account)

    def _change_zone(self, account_id: str, time_ms: int, zone: str) -> None:
        """A zone holds from the day after the one that its change falls in."""
        zones = self.zones.setdefault(account_id, [])
        if not zones:
            zones.append((date.min, zone))
            return
        day = account_day_of(time_ms, zones)
        zones[:] = sorted([entry for entry in zones if entry[0] != day] + [(day, zone)])

    def _campaign(self, campaign_id: str, effective_ms: int, campaign: Campaign) -> None:
        for limit in (campaign.daily_spend_limit_micros, campaign.lifetime_spend_limit_micros):
            if limit is not None and not 0 <= limit <= LARGEST_AMOUNT_MICROS:
                raise RefusedError("amount_out_of_range")
        if campaign.account_id not in self.accounts:
            raise RefusedError("missing_parent")
        account_id = campaign.account_id
        if self._campaign_account.get(campaign_id, account_id) != account_id:
            raise RefusedError("parent_changed")
        self._campaign_account[campaign_id] = account_id
        if campaign_id not in self.campaigns:
            self.campaigns[campaign_id] = History(effective_ms)
        self.campaigns[campaign_id].add(effective_ms, campaign)

    def _ad_group(self, ad_group_id: str, effective_ms: int, ad_group: AdGroup) -> None:
        bids = [ad_group.bid_micros, *ad_group.keyword_bids_micros.values()]
        for amount in [ad_group.budget_micros, *bids]:
            if not 0 < amount <= LARGEST_AMOUNT_MICROS:
                raise RefusedError("amount_out_of_range")
        campaign_id, budget_type = ad_group.campaign_id, ad_group.budget_type
        if campaign_id not in self.campaigns:
            raise RefusedError("missing_parent")
        if self._ad_group_campaign.get(ad_group_id, campaign_id) != campaign_id:
            raise RefusedError("parent_changed")
        if self._budget_type.get(ad_group_id, budget_type) != budget_type:
            raise RefusedError("budget_type_changed")
        campaign = self.campaigns[campaign_id].in_force(effective_ms)
        if ad_group.bid_strategy == "target_cpi" and campaign.objective != "app_install":
            raise RefusedError("strategy_not_allowed")
        start_ms, end_ms = ad_group.start_ms, ad_group.end_ms
        if budget_type == "lifetime" and end_ms is None:
            raise RefusedError("missing_end")
        if start_ms is not None and end_ms is not None and end_ms <= start_ms:
            raise RefusedError("bad_dates")
        if min(bids) < self._minimum_bid_micros(campaign, effective_ms):
            raise RefusedError("bid_too_low")
        self._ad_group_campaign[ad_group_id] = campaign_id
        self._budget_type[ad_group_id] = budget_type
        if ad_group_id not in self.ad_groups:
            self.ad_groups[ad_group_id] = History(effective_ms)
        self.ad_groups[ad_group_id].add(effective_ms, ad_group)

    def _promoted_pin(self, promoted_pin_id: str, effective_ms: int, pin: PromotedPin) -> None:
        ad_group_id = pin.ad_group_id
        if ad_group_id not in self.ad_groups:
            raise RefusedError("missing_parent")
        if self._promoted_pin_ad_group.get(promoted_pin_id, ad_group_id) != ad_group_id:
            raise RefusedError("parent_changed")
        self._promoted_pin_ad_group[promoted_pin_id] = ad_group_id
        if promoted_pin_id not in self.promoted_pins:
            self.promoted_pins[promoted_pin_id] = History(effective_ms)
        self.promoted_pins[promoted_pin_id].add(effective_ms, pin)

    def _minimum_bid_micros(self, campaign: Campaign, effective_ms: int) -> int:
        _, currency = self._country_and_currency[campaign.account_id]
        minimum = MINIMUM_BIDS_MICROS[currency][MINIMUM_BID_COLUMN[campaign.objective]]
        if minimum is not None:
            return minimum
        rate = self._usd_per_unit_for(currency, effective_ms)
        if rate is None:
            return PEG_USD_MICROS
        return ceil(PEG_USD_MICROS / Fraction(rate))  # exact, where Decimal's quotient rounds

    def _usd_per_unit_for(self, currency: str, effective_ms: int) -> Decimal | None:
        """The rate for a version that takes effect then, of the fx days that have the currency."""
        # Days as numbers since the epoch: an effective_ms may lie past the calendar's last year.
        effective_day = effective_ms // MS_PER_DAY
        latest_day: date | None = None
        read_last: Decimal | None = None
        for day, rates in self.usd_per_unit.items():
            if currency not in rates:
                continue
            read_last = rates[currency]
            reached = (day - EPOCH.date()).days <= effective_day
            if reached and (latest_day is None or day > latest_day):
                latest_day = day
        if latest_day is None:
            return read_last
        return self.usd_per_unit[latest_day][currency]


# --- Judging -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ad:
    """The histories behind one event: all in the catalog, and each other's."""

    account_id: str
    account: History[Account]
    campaign: History[Campaign]
    ad_group: History[AdGroup]
    promoted_pin: History[PromotedPin]


class Auditor:
    """Judges events one at a time, by the contract's ten rules.

    It may be given the events of every shard, in any order that keeps each shard's own order of
    judgement: what one shard has seen or charged is nothing to another. Ids are remembered
    for ever.
    """

    def __init__(self, partitions: int, horizon_days: int = 7) -> None:
        """`partitions`: of each event topic. `horizon_days`: the acceptance horizon."""
        self._partitions = partitions
        self._horizon_ms = horizon_days * MS_PER_DAY
        self._catalog = Catalog()
        self._seen: set[tuple[int, str]] = set()
        self._clicked: set[tuple[int, str]] = set()
        self._engaged: set[tuple[int, str, str, str, date]] = set()
        self._spend_nanos: dict[tuple[str, str, date | None], int] = defaultdict(int)
        self._impression_nanos: dict[tuple[str, date], list[int]] = defaultdict(list)
        self._decided_bids: dict[str, list[tuple[int, int]]] = defaultdict(list)

    def catalog(self, record: CatalogRecord) -> str | None:
        """Apply the next record of `ads.catalog`: the reason it is refused for, or None."""
        try:
            self._catalog.apply(record)
        except MalformedError:
            return "malformed"
        except RefusedError as refused:
            return refused.reason
        return None

    def decided_bid(self, ad_group_id: str, decided_at_ms: int, bid_micros: int) -> None:
        """A `bid` signal: it counts for the events judged after it."""
        self._decided_bids[ad_group_id].append((decided_at_ms, bid_micros))

    def judge(self, record: SourceRecord, now_ms: int) -> Verdict:
        """Judge the next event in the order of judgement, and remember what it did.

        Raises ValueError where the record's topic is not an event topic.
        """
        utc_day = day_of(record.timestamp_ms, UTC)
        try:
            event = read_event(record.topic, record.value)
        except MalformedError:  # rule 1
            return _verdict(record, None, utc_day)
        verdict = _verdict(record, event, utc_day)
        if partition_of(event.campaign_id, self._partitions) != record.partition:  # rule 2
            return replace(verdict, disposition="misrouted")
        if event.event_time_ms > record.timestamp_ms + FUTURE_TOLERANCE_MS:  # rule 3
            return replace(verdict, disposition="future")
        if event.event_time_ms < record.timestamp_ms - self._horizon_ms:
            return replace(verdict, disposition="expired")
        ad = self._find_ad(event)
        if ad is None:  # rule 4
            return replace(verdict, disposition="unknown")
        verdict = replace(verdict, account_id=ad.account_id)
        if (record.partition, event.event_id) in self._seen:  # rule 5
            return replace(verdict, disposition="duplicate")
        self._seen.add((record.partition, event.event_id))
        zones = self._catalog.zones[ad.account_id]
        verdict = replace(verdict, billing_day=account_day_of(event.event_time_ms, zones))
        return self._judge_known(verdict, event, ad, now_ms)

    def spend(self, limit: str, entity_id: str, day: date | None) -> int:
        """Nanos accrued against a limit, whether or not such a limit is set.

        `limit` is one of the contract's four names, `entity_id` an ad group's or a campaign's id,
        `day` the billing day of a daily limit; a lifetime limit takes no account of it. Raises
        ValueError for another name, or a daily limit without a day.
        """
        if limit in LIFETIME_LIMITS:
            return self._spend_nanos.get((limit, entity_id, None), 0)
        if limit not in DAILY_LIMITS or day is None:
            raise ValueError(f"no such bucket: {limit} {day}")
        return self._spend_nanos.get((limit, entity_id, day), 0)

    def limit_micros(self, limit: str, entity_id: str, now_ms: int) -> int | None:
        """The limit of this name that is in force then; None where the entity has none such.

        Raises KeyError for an entity that is not in the catalog.
        """
        if limit in ("ad_group_daily", "ad_group_lifetime"):
            ad_group = self._catalog.ad_groups[entity_id].in_force(now_ms)
            return ad_group.budget_micros if limit == f"ad_group_{ad_group.budget_type}" else None
        campaign = self._catalog.campaigns[entity_id].in_force(now_ms)
        if limit == "campaign_daily":
            return campaign.daily_spend_limit_micros
        return campaign.lifetime_spend_limit_micros

    def exceeded(self) -> list[str]:
        """Which buckets hold more than the largest limit that their entity ever had; in words."""
        found = []
        for (limit, entity_id, day), spend_nanos in self._spend_nanos.items():
            of_groups = limit.startswith("ad_group")
            known = self._catalog.ad_groups if of_groups else self._catalog.campaigns
            limits = [
                self.limit_micros(limit, entity_id, effective_ms)
                for effective_ms in known[entity_id].times_ms()
            ]
            largest = max((micros for micros in limits if micros is not None), default=0)
            if None not in limits and spend_nanos > largest * 1000:
                found.append(f"{limit} of {entity_id} {day}: {spend_nanos} of {largest * 1000}")
        return found

    def blocks(self, ad_group_id: str, day: date) -> list[tuple[int, int]]:
        """The CPM blocks of an ad group's billing day: (charged impressions, nanos) each.

        Complete ones of 1,000 in the order of judgement, then the incomplete one if there is one.
        """
        amounts = self._impression_nanos.get((ad_group_id, day), [])
        blocks = []
        for start in range(0, len(amounts), IMPRESSIONS_PER_BLOCK):
            block = amounts[start : start + IMPRESSIONS_PER_BLOCK]
            blocks.append((len(block), sum(block)))
        return blocks

    def _find_ad(self, event: Event) -> Ad | None:
        """What the event is about; None where a part is not in the catalog or not the other's."""
        campaign = self._catalog.campaigns.get(event.campaign_id)
        ad_group = self._catalog.ad_groups.get(event.ad_group_id)
        promoted_pin = self._catalog.promoted_pins.get(event.promoted_pin_id)
        if campaign is None or ad_group is None or promoted_pin is None:
            return None
        # Parents are the same in all versions: any time will do.
        if ad_group.in_force(0).campaign_id != event.campaign_id:
            return None
        if promoted_pin.in_force(0).ad_group_id != event.ad_group_id:
            return None
        account_id = campaign.in_force(0).account_id
        account = self._catalog.accounts.get(account_id)
        if account is None:
            return None
        return Ad(account_id, account, campaign, ad_group, promoted_pin)

    def _judge_known(self, verdict: Verdict, event: Event, ad: Ad, now_ms: int) -> Verdict:
        """Rules 6 to 10, for an event of a known ad seen for the first time."""
        time_ms = event.event_time_ms
        campaign, ad_group = ad.campaign.in_force(time_ms), ad.ad_group.in_force(time_ms)
        if not _is_serving(ad, time_ms):  # rule 6
            return replace(verdict, disposition="not_serving")
        basis = BASIS_OF_OBJECTIVE[campaign.objective]
        if event.kind not in BILLABLE_KINDS[basis]:  # rule 7
            return replace(verdict, disposition="counted")
        click = (verdict.partition, event.impression_id)
        engagement = (
            verdict.partition,
            event.promoted_pin_id,
            event.user_id,
            event.kind,
            verdict.billing_day,
        )
        if basis == "cpc" and click in self._clicked:  # rule 8
            return replace(verdict, disposition="repeat")
        if basis == "cpe" and engagement in self._engaged:
            return replace(verdict, disposition="repeat")
        bid_micros = ad_group.bid_micros  # rule 9
        if event.keyword is not None:
            bid_micros = ad_group.keyword_bids_micros.get(event.keyword, bid_micros)
        if ad_group.bid_strategy == "target_cpi":
            for decided_at_ms, decided_micros in reversed(self._decided_bids[event.ad_group_id]):
                if decided_at_ms <= time_ms:
                    bid_micros = min(bid_micros, decided_micros)
                    break
        price_micros = min(event.price_micros, bid_micros)
        # A CPM price is for 1,000 impressions, and 1 micro is 1,000 nanos.
        price_nanos = price_micros if basis == "cpm" else price_micros * 1000
        limit, remaining_nanos = self._remaining(event, ad, verdict.billing_day, now_ms)  # rule 10
        if remaining_nanos <= 0:
            return replace(verdict, disposition="over_budget", limit=limit, free_nanos=price_nanos)
        amount_nanos = min(price_nanos, remaining_nanos)
        if event.kind == "click":
            self._clicked.add(click)
        if event.kind != "impression":
            self._engaged.add(engagement)
        self._accrue(event, verdict.billing_day, amount_nanos)
        return replace(
            verdict,
            disposition="charged",
            limit=limit if amount_nanos < price_nanos else "",
            amount_nanos=amount_nanos,
            free_nanos=price_nanos - amount_nanos,
            basis=basis,
        )

    def _remaining(self, event: Event, ad: Ad, day: date, now_ms: int) -> tuple[str, int]:
        """The tightest of the limits in force now, the first of equals, and its remaining nanos."""
        ad_group, campaign = ad.ad_group.in_force(now_ms), ad.campaign.in_force(now_ms)
        is_daily = ad_group.budget_type == "daily"
        limits = (  # in the order in which equals are named
            ("ad_group_daily", event.ad_group_id, ad_group.budget_micros if is_daily else None),
            ("ad_group_lifetime", event.ad_group_id, None if is_daily else ad_group.budget_micros),
            ("campaign_daily", event.campaign_id, campaign.daily_spend_limit_micros),
            ("campaign_lifetime", event.campaign_id, campaign.lifetime_spend_limit_micros),
        )
        candidates = [
            (limit, limit_micros * 1000 - self.spend(limit, entity_id, day))
            for limit, entity_id, limit_micros in limits
            if limit_micros is not None
        ]
        return min(candidates, key=lambda candidate: candidate[1])  # min keeps the first of equals

    def _accrue(self, event: Event, day: date, amount_nanos: int) -> None:
        """Count a charge in every bucket, set or not: a limit may be set later."""
        self._spend_nanos["ad_group_daily", event.ad_group_id, day] += amount_nanos
        self._spend_nanos["ad_group_lifetime", event.ad_group_id, None] += amount_nanos
        self._spend_nanos["campaign_daily", event.campaign_id, day] += amount_nanos
        self._spend_nanos["campaign_lifetime", event.campaign_id, None] += amount_nanos
        if event.kind == "impression":
            self._impression_nanos[event.ad_group_id, day].append(amount_nanos)


def _is_serving(ad: Ad, time_ms: int) -> bool:
    """Whether the ad could be served at that time: statuses, review and the ad group's dates."""
    ad_group, pin = ad.ad_group.in_force(time_ms), ad.promoted_pin.in_force(time_ms)
    for status in (ad.campaign.in_force(time_ms).status, ad_group.status, pin.status):
        if status != "active":
            return False
    if pin.review != "approved":
        return False
    start_ms = ad_group.start_ms
    if start_ms is None:  # continuous: from the first UTC midnight after it was created
        start_ms = (ad.ad_group.created_ms // MS_PER_DAY + 1) * MS_PER_DAY
    return start_ms <= time_ms and (ad_group.end_ms is None or time_ms < ad_group.end_ms)


def _verdict(record: SourceRecord, event: Event | None, day: date) -> Verdict:
    """A verdict to start from: free, without an account, `malformed` until a rule says more."""
    return Verdict(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        disposition="malformed",
        limit="",
        amount_nanos=0,
        free_nanos=0,
        billing_day=day,
        account_id="",
        campaign_id=event.campaign_id if event else "",
        ad_group_id=event.ad_group_id if event else "",
        promoted_pin_id=event.promoted_pin_id if event else "",
        kind=event.kind if event else "",
        event_id=event.event_id if event else "",
        price_micros=event.price_micros if event else 0,
        basis="",
    )
