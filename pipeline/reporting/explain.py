"""Why an event was charged or not; why an ad group serves or is stopped.

Everything is read back from the books: the event's row, the rows judged before it in its shard
(which give the limits as they stood), the charge or block that posted it, the day that closed it,
and the statement that bills it. Bids, statuses and limits are the catalog's, as it was at the time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final

from pipeline.billing.daylife import account_state
from pipeline.billing.terms import bid_for, start_of
from pipeline.contract.catalog import AdGroup, Campaign, Catalog
from pipeline.contract.days import calendar, from_iso, iso
from pipeline.contract.vocabulary import (
    CPM_BLOCK,
    DISPOSITIONS,
    EVENT_TOPICS,
    NANOS_PER_MICRO,
    OBJECTIVE_BASIS,
)
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.rows import OWN_DAY

Row = dict[str, Any]

RULES: Final[tuple[tuple[str, int, str, str], ...]] = (
    (
        "malformed",
        1,
        "is an event of the contract's form",
        "is not an event of the contract's form; see billing.rejects",
    ),
    (
        "misrouted",
        2,
        "is on its campaign's partition",
        "is on another partition than its campaign's: sent home unchanged, and judged there",
    ),
    (
        "future",
        3,
        "is no more than 5 minutes ahead of its record",
        "is more than 5 minutes ahead of its record's timestamp; see billing.rejects",
    ),
    (
        "expired",
        3,
        "is within the acceptance horizon",
        "was older than the acceptance horizon when it was recorded: never billed",
    ),
    (
        "unknown",
        4,
        "names an ad of the catalog",
        "names an ad group, campaign or pin that was not in the catalog, or not each other's; "
        "can be redriven",
    ),
    ("duplicate", 5, "is the first with its event_id", "had been judged before: free"),
    (
        "not_serving",
        6,
        "came while its ad was serving",
        "came while the campaign, ad group or pin was not active or approved, or outside the ad "
        "group's dates: free",
    ),
    (
        "counted",
        7,
        "is what the campaign's objective pays for",
        "is not what the campaign's objective pays for: counted only",
    ),
    (
        "repeat",
        8,
        "is the first of its kind to be charged",
        "repeats one that was charged: the same engagement of the day, or the same impression's "
        "click; free",
    ),
    ("over_budget", 10, "fits a limit", "a limit had nothing left: free"),
    ("charged", 10, "fits a limit", "charged at the lower of price and bid, within every limit"),
)
"""(disposition, rule, what it says of an event that passes, and of one that it decides)."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where explanations come from. `now_ms`: the time that "today" is told by."""

    store: Store
    catalog: Catalog
    now_ms: int


# -- an event ---------------------------------------------------------------------------------


def explain_event(sources: Sources, what: str) -> list[Row]:
    """Every occurrence of an event_id in the order of judgement, each with all that is known.

    `what` may also be a place, `TOPIC-PARTITION-OFFSET` as billing.rejects has it: a malformed
    event has no event_id.
    """
    place = _PLACE.fullmatch(what)
    condition, parameters = "event_id = {id:String}", {"id": what}
    if place is not None:
        condition = (
            "source_topic = {topic:String} AND source_partition = {partition:UInt16} "
            "AND source_offset = {offset:Int64}"
        )
        parameters = place.groupdict()
    rows = sources.store.dicts(
        f"SELECT * FROM billing.events WHERE {condition} "
        "ORDER BY decided_at_ms, disposition != 'misrouted', journal_partition, shard_seq",
        parameters,
    )
    return [_occurrence(sources, row) for row in rows]


_PLACE: Final = re.compile(
    rf"(?P<topic>{'|'.join(map(re.escape, EVENT_TOPICS))})-(?P<partition>\d+)-(?P<offset>\d+)"
)


def _occurrence(sources: Sources, row: Row) -> Row:
    rules = _rules(sources, row)
    found: Row = {
        "event_id": row["event_id"],
        "kind": row["kind"],
        "disposition": row["disposition"],
        "amount_nanos": row["amount_nanos"],
        "free_nanos": row["free_nanos"],
        "currency": row["currency"],
        "source": f"{row['source_topic']}-{row['source_partition']} offset {row['source_offset']}",
        "ad": {name: row[name] for name in _AD},
        "event_time": "" if row["disposition"] == "malformed" else utc_text(row["event_time_ms"]),
        "billing_day": row["billing_day"],
        "posting_day": row["posting_day"],
        "journal": {
            "record": f"{row['journal_partition']}-{row['journal_offset']}",
            "shard_seq": row["shard_seq"],
            "decided_at": utc_text(row["decided_at_ms"]),
        },
        "limit": row["limit"],
        "rules": rules,
        "why": f"rule {rules[-1]['rule']}: {rules[-1]['says']}",
        "charge": None,
    }
    if row["disposition"] in OWN_DAY:
        found["posting_day_state"] = _day_state(sources, row)
    if row["disposition"] in ("charged", "over_budget"):
        found["limits"] = _limits_at(sources, row)
    if row["disposition"] == "charged":
        found |= _posted(sources.store, row)
    return _plain_row(found)


_AD: Final = ("account_id", "campaign_id", "ad_group_id", "promoted_pin_id")


def _rules(sources: Sources, row: Row) -> list[Row]:
    """The rules in order, up to the one that decided, each with what it looked at."""
    decided = DISPOSITIONS.index(row["disposition"])
    told: list[Row] = []
    for disposition, rule, passes, decides in RULES:
        position = DISPOSITIONS.index(disposition)
        if position > decided:
            break
        if (disposition, row["disposition"]) == ("over_budget", "charged"):
            continue  # one rule with two ends
        inputs = _INPUTS.get(disposition)
        if rule == 10:
            told.append({"rule": 9, "says": "price is the lower of auction price and bid"})
            told[-1] |= _price(sources, row)
        told.append({"rule": rule, "says": decides if position == decided else passes})
        told[-1] |= inputs(sources, row) if inputs else {}
    if row["limit"]:
        told[-1]["says"] += f"; the limit that cut it: {row['limit']}"
    return told


def _ad_group_of(sources: Sources, row: Row) -> AdGroup | None:
    history = sources.catalog.ad_groups.get(row["ad_group_id"])
    return None if history is None else history.at(row["event_time_ms"])


def _campaign_of(sources: Sources, row: Row) -> Campaign | None:
    history = sources.catalog.campaigns.get(row["campaign_id"])
    return None if history is None else history.at(row["event_time_ms"])


def _first_occurrence(sources: Sources, row: Row) -> Row:
    found = sources.store.rows(
        "SELECT source_topic, source_partition, source_offset, disposition FROM billing.events "
        "WHERE event_id = {id:String} AND journal_partition = {p:UInt16} AND shard_seq < {s:Int64} "
        "AND disposition != 'duplicate' ORDER BY shard_seq DESC LIMIT 1",
        {"id": row["event_id"], "p": row["journal_partition"], "s": row["shard_seq"]},
    )
    if row["disposition"] != "duplicate" or not found:
        return {}
    topic, partition, offset, disposition = found[0]
    return {"judged_before": f"{topic}-{partition} offset {offset}: {disposition}"}


def _serving(sources: Sources, row: Row) -> Row:
    group, campaign = _ad_group_of(sources, row), _campaign_of(sources, row)
    pins = sources.catalog.promoted_pins.get(row["promoted_pin_id"])
    if group is None or campaign is None or pins is None:
        return {}
    pin = pins.at(row["event_time_ms"])
    starts_ms = start_of(group, sources.catalog.ad_groups[row["ad_group_id"]].created_ms)
    return {
        "campaign": campaign.status,
        "ad_group": group.status,
        "pin": f"{pin.status}, {pin.review}",
        "starts": utc_text(starts_ms),
        "ends": "" if group.end_ms is None else utc_text(group.end_ms),
    }


def _objective(sources: Sources, row: Row) -> Row:
    campaign = _campaign_of(sources, row)
    return {} if campaign is None else {"objective": campaign.objective, "kind": row["kind"]}


def _repeated(sources: Sources, row: Row) -> Row:
    """Of an engagement, the one that was charged; of a click, its impression_id is not kept."""
    if row["disposition"] != "repeat":
        return {}
    found = sources.store.rows(
        "SELECT event_id FROM billing.events WHERE promoted_pin_id = {pin:String} "
        "AND user_hash = {user:String} AND kind = {kind:String} AND billing_day = {day:Date} "
        "AND disposition = 'charged' AND basis = 'cpe' AND journal_partition = {p:UInt16} "
        "AND shard_seq < {s:Int64} LIMIT 1",
        {
            "pin": row["promoted_pin_id"],
            "user": row["user_hash"],
            "kind": row["kind"],
            "day": row["billing_day"],
            "p": row["journal_partition"],
            "s": row["shard_seq"],
        },
    )
    return {"charged_before": found[0][0]} if found else {}


_INPUTS: Final[dict[str, Callable[[Sources, Row], Row]]] = {
    "duplicate": _first_occurrence,
    "not_serving": _serving,
    "counted": _objective,
    "repeat": _repeated,
}


def _price(sources: Sources, row: Row) -> Row:
    """What rule 9 looked at. A keyword's bid is not in the books, only what came of it."""
    group, campaign = _ad_group_of(sources, row), _campaign_of(sources, row)
    value_nanos = row["amount_nanos"] + row["free_nanos"]
    told: Row = {"auction_price_micros": row["price_micros"], "value_nanos": value_nanos}
    if group is None or campaign is None:
        return told
    told["bid_micros"] = bid_for(group, None)
    is_cpm = OBJECTIVE_BASIS[campaign.objective] == OBJECTIVE_BASIS["awareness"]
    per_micro = 1 if is_cpm else NANOS_PER_MICRO
    if value_nanos != min(row["price_micros"], told["bid_micros"]) * per_micro:
        # Of what no table but the signals' holds: a keyword's bid, or the day's of target CPI.
        of = "decided" if group.bid_strategy == "target_cpi" else "keyword"
        told[f"{of}_bid_micros"] = value_nanos // per_micro
    return told


def _limits_at(sources: Sources, row: Row) -> list[Row]:
    """Each limit that is set, with the spend before and after the event, in nanos.

    The spend is summed from the rows that the shard judged before; the limit is the one in force
    when the event was judged.
    """
    parameters = {
        "p": row["journal_partition"],
        "s": row["shard_seq"],
        "day": row["billing_day"],
        "group": row["ad_group_id"],
        "campaign": row["campaign_id"],
    }
    sums = ", ".join(
        f"sumIf(amount_nanos, {condition})"
        for condition in (
            "ad_group_id = {group:String} AND billing_day = {day:Date}",
            "ad_group_id = {group:String}",
            "billing_day = {day:Date}",
            "true",
        )
    )
    [spent] = sources.store.rows(
        f"SELECT {sums} FROM billing.events WHERE campaign_id = {{campaign:String}} "
        "AND disposition = 'charged' AND journal_partition = {p:UInt16} AND shard_seq < {s:Int64}",
        parameters,
    )
    bounds = _limits(sources.catalog, row["ad_group_id"], row["campaign_id"], row["decided_at_ms"])
    return [
        {
            "limit": name,
            "limit_nanos": bound,
            "spend_before_nanos": int(before),
            "spend_after_nanos": int(before) + row["amount_nanos"],
        }
        for (name, bound), before in zip(bounds.items(), spent, strict=True)
        if bound is not None
    ]


def _limits(
    catalog: Catalog, ad_group_id: str, campaign_id: str, time_ms: int
) -> dict[str, int | None]:
    """The four limits in nanos as they were at a time; None where one is not set."""
    groups, campaigns = catalog.ad_groups.get(ad_group_id), catalog.campaigns.get(campaign_id)
    group = None if groups is None else groups.at(time_ms)
    campaign = None if campaigns is None else campaigns.at(time_ms)
    budget = None if group is None else group.budget_micros
    daily = group is not None and group.budget_type == "daily"
    in_micros = {
        "ad_group_daily": budget if daily else None,
        "ad_group_lifetime": None if daily else budget,
        "campaign_daily": None if campaign is None else campaign.daily_spend_limit_micros,
        "campaign_lifetime": None if campaign is None else campaign.lifetime_spend_limit_micros,
    }
    return {
        name: None if micros is None else micros * NANOS_PER_MICRO
        for name, micros in in_micros.items()
    }


def _posted(store: Store, row: Row) -> Row:
    """The charge that posted the event, its credit, and the statement's line."""
    charge = _block(store, row) if row["basis"] == "cpm" else _own_charge(store, row)
    credits = store.dicts(
        "SELECT charge_id, amount_nanos, posting_day, reason, credited_by FROM billing.credits "
        "WHERE event_id = {id:String} AND refused = ''",
        {"id": row["event_id"]},
    )
    lines = store.dicts(
        "SELECT month, amount, currency FROM billing.statements WHERE account_id = {a:String} "
        "AND campaign_id = {c:String} AND month = toStartOfMonth({day:Date})",
        {"a": row["account_id"], "c": row["campaign_id"], "day": row["posting_day"]},
    )
    return {
        "charge": charge,
        "credit": credits[0] if credits else None,
        "statement_line": lines[0] if lines else None,
    }


_CHARGE: Final = (
    "charge_id, event_id, basis, quantity, amount_nanos, posting_day, is_adjustment, adjusts_day"
)


def _own_charge(store: Store, row: Row) -> Row | None:
    found = store.dicts(
        f"SELECT {_CHARGE} FROM billing.charges WHERE event_id = {{id:String}} "
        "AND journal_partition = {p:UInt16} AND journal_offset = {o:Int64} AND amount_nanos >= 0",
        {"id": row["event_id"], "p": row["journal_partition"], "o": row["journal_offset"]},
    )
    return found[0] if found else None


def _block(store: Store, row: Row) -> Row | None:
    """The CPM block that an impression is in; None while the block is open."""
    parameters = {
        "group": row["ad_group_id"],
        "billing": row["billing_day"],
        "posting": row["posting_day"],
        "s": row["shard_seq"],
    }
    of_block = (
        "ad_group_id = {group:String} AND billing_day = {billing:Date} "
        "AND posting_day = {posting:Date} AND basis = 'cpm'"
    )
    [[before]] = store.rows(
        f"SELECT count() FROM billing.events WHERE {of_block} AND shard_seq < {{s:Int64}}",
        parameters,
    )
    blocks = store.dicts(
        f"SELECT {_CHARGE} FROM billing.charges WHERE {of_block} AND amount_nanos >= 0 "
        "ORDER BY journal_offset, charge_number LIMIT 1 OFFSET {block:UInt64}",
        parameters | {"block": int(before) // CPM_BLOCK},
    )
    place = int(before) % CPM_BLOCK + 1
    return blocks[0] | {"impression_of_block": place} if blocks else None


def _day_state(sources: Sources, row: Row) -> str:
    """Where the account's posting day is in its life (`pipeline.billing.daylife`)."""
    store, account_id, day = sources.store, row["account_id"], row["posting_day"]
    closed = store.rows(
        "SELECT 1 FROM billing.day_closes "
        "WHERE billing_day = {day:Date} AND account_id = {account:String}",
        {"day": day, "account": account_id},
    )
    days = sources.catalog.calendar_of(account_id) or calendar("UTC")
    zone, number = days.mark(from_iso(str(day)))
    [[shards]] = store.rows(
        "SELECT uniqExact(journal_partition) FROM reporting.shard_closes "
        "WHERE time_zone = {zone:String} AND closed_through >= {day:Date}",
        {"zone": zone, "day": iso(number)},
    )
    return account_state(int(shards), is_closed=bool(closed)).value


# -- an ad group ------------------------------------------------------------------------------


def explain_ad_group(sources: Sources, ad_group_id: str) -> Row | None:
    """State, limits, spend and signals of an ad group; None where nothing is known of it."""
    figures = sources.store.dicts(
        "SELECT posting_day, disposition, `limit`, count() AS events, sum(amount_nanos) AS amount, "
        "sum(free_nanos) AS free, any(campaign_id) AS campaign, any(account_id) AS account "
        "FROM billing.events WHERE ad_group_id = {id:String} "
        "AND account_id != '' GROUP BY posting_day, disposition, `limit` "
        "ORDER BY posting_day DESC, disposition LIMIT 200",
        {"id": ad_group_id},
    )
    history = sources.catalog.ad_groups.get(ad_group_id)
    group = None if history is None else history.at(sources.now_ms)
    if group is None and not figures:
        return None
    campaign_id = figures[0]["campaign"] if group is None else group.campaign_id
    entities = [f"ad_group:{ad_group_id}", f"campaign:{campaign_id}"]
    last = {entity: _last_signals(sources.store, entity) for entity in entities}
    standing = [signals[0] for signals in last.values() if signals]
    stopped = [_stop(signal) for signal in standing if signal["action"] == "pause"]
    own = last[entities[0]]
    throttled = bool(own) and 0 < own[0]["serve_probability"] < 1
    return _plain_row(
        {
            "entity": entities[0],
            "campaign_id": campaign_id,
            "state": "stopped"
            if stopped
            else "throttled"
            if throttled
            else own_state(sources.catalog, ad_group_id, sources.now_ms),
            "stopped_by": stopped,
            "limits": _limits_now(sources, ad_group_id, campaign_id),
            "inflight_nanos": {s["entity"]: s["inflight_nanos"] for s in standing},
            "figures": [
                {name: value for name, value in row.items() if name not in ("campaign", "account")}
                for row in figures
            ],
            "last_signals": [signal for signals in last.values() for signal in signals],
            "forecast": _forecast(sources.store, ad_group_id),
            "predictions": _predictions(sources.store, entities[0]),
        }
    )


def own_state(catalog: Catalog, ad_group_id: str, now_ms: int) -> str:
    """The state of an ad group that no limit has stopped."""
    history = catalog.ad_groups.get(ad_group_id)
    if history is None or history.deleted:
        return "not in the catalog"
    group = history.at(now_ms)
    campaigns = catalog.campaigns.get(group.campaign_id)
    if campaigns is None or campaigns.deleted:
        return "campaign not in the catalog"
    campaign = campaigns.at(now_ms)
    if group.status != "active":
        return group.status
    if campaign.status != "active":
        return f"campaign {campaign.status}"
    start_ms = start_of(group, history.created_ms)
    if now_ms < start_ms:
        return f"starts {utc_text(start_ms)}"
    if group.end_ms is not None and now_ms >= group.end_ms:
        return f"ended {utc_text(group.end_ms)}"
    return "serving"


def _stop(signal: Row) -> Row:
    resume_ms = signal["resume_at_ms"]
    return {
        "entity": signal["entity"],
        "reason": signal["reason"],
        "limit": signal["limit"],
        "limit_nanos": signal["limit_nanos"],
        "spend_nanos": signal["spend_nanos"],
        "since": utc_text(signal["decided_at_ms"]),
        "resumes": utc_text(resume_ms) if resume_ms else "when the limit is raised",
    }


def _limits_now(sources: Sources, ad_group_id: str, campaign_id: str) -> list[Row]:
    """Each limit that is set, with what is spent of it today, or ever."""
    campaigns = sources.catalog.campaigns.get(campaign_id)
    account_id = "" if campaigns is None else campaigns.latest.account_id
    days = sources.catalog.calendar_of(account_id) or calendar("UTC")
    today = iso(days.day_of(sources.now_ms))
    [spent] = sources.store.rows(
        "SELECT sumIf(amount_nanos, ad_group_id = {g:String} AND billing_day = {day:Date}), "
        "sumIf(amount_nanos, ad_group_id = {g:String}), "
        "sumIf(amount_nanos, billing_day = {day:Date}), sum(amount_nanos) FROM billing.events "
        "WHERE campaign_id = {c:String} AND disposition = 'charged'",
        {"g": ad_group_id, "c": campaign_id, "day": today},
    )
    bounds = _limits(sources.catalog, ad_group_id, campaign_id, sources.now_ms)
    return [
        {
            "limit": name,
            "day": today if name.endswith("daily") else "",
            "limit_nanos": bound,
            "spend_nanos": int(spend),
        }
        for (name, bound), spend in zip(bounds.items(), spent, strict=True)
        if bound is not None
    ]


def _forecast(store: Store, ad_group_id: str) -> Row | None:
    """When the ad group's budget was last predicted to have run out, and the bounds of that."""
    rows = store.dicts(
        "SELECT * FROM reporting.exhaustion WHERE ad_group_id = {id:String} "
        "ORDER BY billing_day DESC LIMIT 1",
        {"id": ad_group_id},
    )
    return rows[0] if rows else None


def _predictions(store: Store, entity: str) -> list[Row]:
    """How right the predictions about an entity were, by kind."""
    return store.dicts(
        "SELECT * FROM reporting.pacing_quality WHERE entity = {entity:String} ORDER BY kind",
        {"entity": entity},
    )


def _last_signals(store: Store, entity: str) -> list[Row]:
    return store.dicts(
        "SELECT * FROM reporting.signals WHERE entity = {entity:String} "
        "ORDER BY version DESC LIMIT 5",
        {"entity": entity},
    )


def utc_text(time_ms: int) -> str:
    """A time for people: `2026-03-01 12:00:00.000 UTC`."""
    seconds, ms = divmod(time_ms, 1_000)
    if seconds > 253_402_300_799:  # beyond the year 9999
        return f"{time_ms} ms"
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{ms:03d} UTC"


def _plain_row(row: Row) -> Row:
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    """Days as ISO texts and amounts of statements as texts, all through."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, date):
        return value.isoformat()
    return value if isinstance(value, str | int | float | bool | None) else str(value)
