"""The entities of `ads.catalog` as typed structs, and how records become them.

Sources: the catalog section of docs/contract.md. Values are checked here by themselves; what
depends on other entities or on an entity's past is `pipeline.contract.catalog`'s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pipeline.contract.money import CURRENCIES, MAX_AMOUNT_MICROS

Id = Annotated[str, Meta(min_length=1, max_length=256)]
Micros = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
TimeMs = Annotated[int, Meta(ge=0, le=2**63 - 1)]
IsoDate = Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]
Status = Literal["active", "paused", "archived"]
Currency = Literal["USD", "CAD", "GBP", "EUR", "AUD", "NZD"]
Country = Literal["US", "CA", "GB", "IE", "AU", "NZ"]
Objective = Literal["traffic", "engagement", "awareness", "video_awareness", "app_install"]


class Entity(msgspec.Struct, frozen=True, kw_only=True):
    """What every entity may carry."""

    effective_ms: TimeMs | None = None
    """When the change took effect; absent: the record's Kafka timestamp."""
    changed_by: str | None = None


class Account(Entity, frozen=True, kw_only=True):
    """Who pays, in which currency, by which calendar. Country and currency are fixed once set."""

    account_id: Id
    country: Country
    currency: Currency
    time_zone: str = "UTC"


class Campaign(Entity, frozen=True, kw_only=True):
    """What is paid for, and the limits over all its ad groups."""

    campaign_id: Id
    account_id: Id
    objective: Objective
    daily_spend_limit_micros: Micros | None = None
    lifetime_spend_limit_micros: Micros | None = None
    placement: Literal["all", "browse", "search"] = "all"
    status: Status = "active"


class AdGroup(Entity, frozen=True, kw_only=True):
    """A budget, a bid and dates. The budget type is fixed once set."""

    ad_group_id: Id
    campaign_id: Id
    budget_type: Literal["daily", "lifetime"]
    budget_micros: Micros
    bid_strategy: Literal["max_bid", "target_cpi"] = "max_bid"
    bid_micros: Micros
    keyword_bids_micros: dict[str, Micros] | None = None
    start_ms: TimeMs | None = None
    """Absent: the next UTC midnight after the ad group was created."""
    end_ms: TimeMs | None = None
    """Required for a lifetime budget."""
    pacing: Literal["asap", "even"] = "asap"
    status: Status = "active"


class PromotedPin(Entity, frozen=True, kw_only=True):
    """One ad of an ad group; it serves when active and approved."""

    promoted_pin_id: Id
    ad_group_id: Id
    status: Status = "active"
    review: Literal["pending", "approved", "rejected"] = "pending"
    destination_url: str | None = None


class FxRates(Entity, frozen=True, kw_only=True):
    """A day's exchange rates, for the pegged minimum bids."""

    fx_day: IsoDate
    usd_per_unit: dict[str, str]
    """Currency -> decimal string, over 0. Currencies that no account can have are passed over."""


class DayClose(Entity, frozen=True, kw_only=True):
    """An operator's word that days up to this one may close without their grace."""

    day: IsoDate


class Credit(Entity, frozen=True, kw_only=True):
    """A correction: what one event was charged is to be given back. `changed_by`: who asked.

    Everything but the reason is what the books say of the event. The reporter holds it against
    them, and posts nothing where it differs.
    """

    event_id: Annotated[str, Meta(min_length=1, max_length=128)]
    account_id: Id
    campaign_id: Id
    ad_group_id: Id
    promoted_pin_id: Id
    placement: str
    country: str
    device: str
    basis: Literal["cpc", "cpe", "cpm"]
    currency: Currency
    billing_day: IsoDate
    """The event's own day."""
    charged_day: IsoDate
    """The day that its charge was posted in."""
    amount_nanos: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    """What it was charged, for an impression its exact share of a CPM block."""
    reason: Annotated[str, Meta(min_length=1, max_length=500)]


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a catalog record was refused; the last valid version stays in force."""

    reason: str
    field: str
    detail: str


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of entity is keyed and typed."""

    name: str
    prefix: str
    id_field: str
    entity_type: type[Entity]


KINDS = (
    Kind("account", "account", "account_id", Account),
    Kind("campaign", "campaign", "campaign_id", Campaign),
    Kind("ad_group", "ad_group", "ad_group_id", AdGroup),
    Kind("promoted_pin", "promoted_pin", "promoted_pin_id", PromotedPin),
    Kind("fx", "fx", "fx_day", FxRates),
    Kind("day_close", "close", "day", DayClose),
    Kind("credit", "credit", "event_id", Credit),
)
_BY_PREFIX = {kind.prefix: kind for kind in KINDS}
_DECODERS = {kind.name: msgspec.json.Decoder(kind.entity_type) for kind in KINDS}
_AMOUNT_FIELDS = (
    "daily_spend_limit_micros",
    "lifetime_spend_limit_micros",
    "budget_micros",
    "bid_micros",
)
_POSITIVE_FIELDS = ("budget_micros", "bid_micros")


def parse_key(key: bytes | None) -> tuple[Kind, str] | Refused:
    """Kind and id from a record's key, such as `ad_group:123`."""
    try:
        prefix, separator, entity_id = (key or b"").decode("utf-8").partition(":")
    except UnicodeDecodeError:
        return Refused("malformed", "key", "the key is not UTF-8")
    kind = _BY_PREFIX.get(prefix)
    if kind is None or not separator or not 1 <= len(entity_id) <= 256:
        wanted = ", ".join(f"{kind.prefix}:..." for kind in KINDS)
        return Refused("malformed", "key", f"the key is none of {wanted}")
    return kind, entity_id


def parse_entity(kind: Kind, entity_id: str, value: bytes) -> Entity | Refused:
    """The entity in a record's value: well-formed, and within its own fields' bounds."""
    try:
        value.decode("utf-8")
        entity = _decoded(_DECODERS[kind.name], value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Refused("malformed", _field_of(str(error)), str(error))
    if getattr(entity, kind.id_field) != entity_id:
        return Refused("malformed", kind.id_field, f"differs from the key's {entity_id!r}")
    if isinstance(entity, FxRates | DayClose):
        return _check_day(entity) or entity
    if isinstance(entity, Credit):
        return _check_credit_days(entity) or entity
    return _check_amounts(entity) or entity


def _decoded(decoder: msgspec.json.Decoder[Entity], value: bytes) -> Entity:
    """A field that is null counts as absent. Raises `msgspec.MsgspecError`."""
    try:
        return decoder.decode(value)
    except msgspec.ValidationError:
        fields = msgspec.json.decode(value, type=dict[str, msgspec.Raw])
        given = {name: raw for name, raw in fields.items() if bytes(raw) != b"null"}
        if len(given) == len(fields):
            raise
        return decoder.decode(msgspec.json.encode(given))


def _field_of(message: str) -> str:
    _, found, path = message.partition("`$.")
    if found:
        return path.partition("`")[0]
    _, found, name = message.partition("field `")
    return name.partition("`")[0] if found else ""


_NO_CALENDAR = date(9998, 12, 30)


def _check_day(entity: FxRates | DayClose) -> Refused | None:
    text = entity.fx_day if isinstance(entity, FxRates) else entity.day
    name = "fx_day" if isinstance(entity, FxRates) else "day"
    try:
        if date.fromisoformat(text) >= _NO_CALENDAR:
            return Refused("malformed", name, f"{text} is beyond the calendars")
    except ValueError as error:
        return Refused("malformed", name, str(error))
    if isinstance(entity, FxRates):
        for currency, rate in entity.usd_per_unit.items():
            if currency in CURRENCIES and not _is_rate(rate):
                return Refused("malformed", "usd_per_unit", f"{currency}: {rate!r} is no rate")
    return None


def _check_credit_days(credit: Credit) -> Refused | None:
    for name in ("billing_day", "charged_day"):
        try:
            date.fromisoformat(getattr(credit, name))
        except ValueError as error:
            return Refused("malformed", name, str(error))
    return None


_RATE = re.compile(r"[0-9]{1,16}(\.[0-9]{1,32})?")
_LEAST_RATE, _GREATEST_RATE = Decimal("1e-6"), Decimal("1e6")
"""No currency is nearly worth so little or so much: a rate beyond is a slip."""


def _is_rate(text: str) -> bool:
    return _RATE.fullmatch(text) is not None and _LEAST_RATE <= Decimal(text) <= _GREATEST_RATE


def _check_amounts(entity: Entity) -> Refused | None:
    amounts = {name: getattr(entity, name, None) for name in _AMOUNT_FIELDS}
    bids = getattr(entity, "keyword_bids_micros", None) or {}
    for name, amount in amounts.items():
        least = 1 if name in _POSITIVE_FIELDS else 0
        if amount is not None and not least <= amount <= MAX_AMOUNT_MICROS:
            return Refused("amount_out_of_range", name, f"{amount} is not in {_bounds(least)}")
    for keyword, amount in bids.items():
        if not 1 <= amount <= MAX_AMOUNT_MICROS:
            detail = f"{keyword!r}: {amount} is not in {_bounds(1)}"
            return Refused("amount_out_of_range", "keyword_bids_micros", detail)
    return None


def _bounds(least: int) -> str:
    return f"{least} .. {MAX_AMOUNT_MICROS} micros"


def to_record(entity: Entity) -> tuple[bytes, bytes]:
    """Key and value of an entity's record; fields that are not set are left out."""
    kind = next(kind for kind in KINDS if isinstance(entity, kind.entity_type))
    fields = {k: v for k, v in msgspec.structs.asdict(entity).items() if v is not None}
    key = f"{kind.prefix}:{getattr(entity, kind.id_field)}"
    return key.encode(), msgspec.json.encode(fields)


def record_of_line(line: bytes) -> tuple[bytes, bytes | None]:
    """Key and value of one NDJSON line of a catalog file.

    A line is an entity, whose kind its most specific id field tells, or `{"key": ..., "value":
    entity or null}`. Raises `ValueError` saying what is wrong.
    """
    try:
        fields: Any = msgspec.json.decode(line)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    if "key" in fields:
        value = fields.get("value")
        return str(fields["key"]).encode(), None if value is None else msgspec.json.encode(value)
    for kind in sorted(KINDS, key=_specificity):
        if kind.id_field in fields:
            return f"{kind.prefix}:{fields[kind.id_field]}".encode(), line.strip()
    raise ValueError("no field tells what it is: " + ", ".join(kind.id_field for kind in KINDS))


def _specificity(kind: Kind) -> int:
    return ("credit", "promoted_pin", "ad_group", "campaign", "account", "fx", "day_close").index(
        kind.name
    )
