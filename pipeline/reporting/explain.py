"""Why an event was charged or not; why an ad group serves or is stopped."""

from __future__ import annotations

from datetime import date
from typing import Any, Final

from pipeline.reporting.clickhouse import Store

RULES: Final = {
    "malformed": "rule 1: not an event of the contract's form; see billing.rejects",
    "misrouted": "rule 2: the campaign's partition is another one; republished and judged there",
    "future": "rule 3: more than 5 minutes later than its record's own timestamp; see rejects",
    "expired": "rule 3: older than the acceptance horizon when it was recorded; never billed",
    "unknown": "rule 4: its ad group, campaign or pin was not in the catalog, or not each other's; "
    "can be redriven",
    "duplicate": "rule 5: the event_id had been judged before",
    "not_serving": "rule 6: at its time the campaign, ad group or pin was not active or approved, "
    "or outside the ad group's dates; free",
    "counted": "rule 7: not what this campaign's objective pays for; counted only",
    "repeat": "rule 8: the same engagement of the day, or the same impression's click, was charged "
    "already; free",
    "over_budget": "rule 10: a limit had nothing left; free",
    "charged": "rules 9 and 10: charged at the lower of auction price and bid, within all limits",
}


def explain_event(store: Store, event_id: str) -> list[dict[str, Any]]:
    """Every occurrence of an event_id in the order of judgement, each with why and what it cost."""
    rows = store.dicts(
        "SELECT * FROM billing.events WHERE event_id = {id:String} "
        "ORDER BY decided_at_ms, journal_partition, shard_seq",
        {"id": event_id},
    )
    charges = store.dicts(
        "SELECT * FROM billing.charges WHERE event_id = {id:String}", {"id": event_id}
    )
    return [_occurrence(store, row, charges) for row in rows]


def _occurrence(store: Store, row: dict[str, Any], charges: list[dict[str, Any]]) -> dict[str, Any]:
    found = {name: _plain(value) for name, value in row.items()}
    found["why"] = RULES[row["disposition"]]
    if row["limit"]:
        found["why"] += f"; the limit that cut it: {row['limit']}"
    found["charge"] = next(
        (
            {name: _plain(value) for name, value in charge.items()}
            for charge in charges
            if charge["journal_offset"] == row["journal_offset"]
            and charge["journal_partition"] == row["journal_partition"]
        ),
        None,
    )
    if row["disposition"] == "charged" and row["basis"] == "cpm":
        found["charge_note"] = "accrued at once; posted with its ad group's block of 1,000"
    closed = store.rows(
        "SELECT closed_at_ms, digest FROM billing.day_closes "
        "WHERE billing_day = {day:Date} AND account_id = {account:String}",
        {"day": row["posting_day"], "account": row["account_id"]},
    )
    found["posting_day_state"] = "closed" if closed else "open"
    return found


def explain_ad_group(store: Store, ad_group_id: str) -> dict[str, Any]:
    """An ad group's and its campaign's last signals, and its figures by day and disposition."""
    figures = store.dicts(
        "SELECT posting_day, any(account_id) AS account, any(campaign_id) AS campaign, "
        "disposition, `limit`, count() AS events, sum(amount_nanos) AS amount, "
        "sum(free_nanos) AS free FROM billing.events WHERE ad_group_id = {id:String} "
        "AND account_id != '' GROUP BY posting_day, disposition, `limit` "
        "ORDER BY posting_day DESC, disposition LIMIT 200",
        {"id": ad_group_id},
    )
    campaign_id = figures[0]["campaign"] if figures else ""
    entities = [f"ad_group:{ad_group_id}", f"campaign:{campaign_id}"]
    last = [signal for entity in entities for signal in _last_signals(store, entity)]
    stopped = [
        signal
        for signal in (next((s for s in last if s["entity"] == e), None) for e in entities)
        if signal is not None and signal["action"] == "pause"
    ]
    throttled = any(signal["action"] == "throttle" for signal in last[:1])
    return {
        "entity": entities[0],
        "campaign_id": campaign_id,
        "account_id": figures[0]["account"] if figures else "",
        "state": "stopped" if stopped else "throttled" if throttled else "serving",
        "stopped_by": stopped,
        "figures": [{name: _plain(value) for name, value in row.items()} for row in figures],
        "last_signals": last,
        "forecast": _forecast(store, ad_group_id),
        "predictions": _predictions(store, entities[0]),
    }


def _forecast(store: Store, ad_group_id: str) -> dict[str, Any] | None:
    """When the ad group's budget was last predicted to have run out, and the bounds of that."""
    rows = store.dicts(
        "SELECT * FROM reporting.exhaustion WHERE ad_group_id = {id:String} "
        "ORDER BY billing_day DESC LIMIT 1",
        {"id": ad_group_id},
    )
    return {name: _plain(value) for name, value in rows[0].items()} if rows else None


def _predictions(store: Store, entity: str) -> list[dict[str, Any]]:
    """How right the predictions about an entity were, by kind."""
    return store.dicts(
        "SELECT * FROM reporting.pacing_quality WHERE entity = {entity:String} ORDER BY kind",
        {"entity": entity},
    )


def _last_signals(store: Store, entity: str) -> list[dict[str, Any]]:
    rows = store.dicts(
        "SELECT * FROM reporting.signals WHERE entity = {entity:String} "
        "ORDER BY version DESC LIMIT 5",
        {"entity": entity},
    )
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) else value
