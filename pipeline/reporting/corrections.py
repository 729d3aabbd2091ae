"""Looking up what can be given back: the charged events that a correction is about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from pipeline.contract.catalog_entities import Credit
from pipeline.errors import UserError
from pipeline.reporting.clickhouse import Store, in_pieces, text_list

IDS_AT_ONCE: Final = 1_000
MAX_EVENTS: Final = 1_000_000
"""In one correction: its orders are read into memory, and by every worker."""

_COLUMNS: Final = (
    "event_id, account_id, campaign_id, ad_group_id, promoted_pin_id, placement, country, device, "
    "basis, currency, toString(billing_day), toString(posting_day), amount_nanos"
)


class TooManyError(UserError):
    """A selection of more events than one correction takes."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which charged events: these ids, narrowed by each filter that is not None."""

    event_ids: list[str] | None = None
    account_id: str | None = None
    campaign_id: str | None = None
    ad_group_id: str | None = None
    user_hash: str | None = None
    billing_day: date | None = None


@dataclass(frozen=True, slots=True)
class Correctable:
    """A charged event as the books have it. Days are ISO texts."""

    event_id: str
    account_id: str
    campaign_id: str
    ad_group_id: str
    promoted_pin_id: str
    placement: str
    country: str
    device: str
    basis: str
    currency: str
    billing_day: str
    charged_day: str
    amount_nanos: int
    credited: bool
    """Whether its credit is in the books already."""

    def credit(self, reason: str, by: str) -> Credit:
        """The order to give it back."""
        return Credit(
            event_id=self.event_id,
            account_id=self.account_id,
            campaign_id=self.campaign_id,
            ad_group_id=self.ad_group_id,
            promoted_pin_id=self.promoted_pin_id,
            placement=self.placement,
            country=self.country,
            device=self.device,
            basis=self.basis,  # type: ignore[arg-type]
            currency=self.currency,  # type: ignore[arg-type]
            billing_day=self.billing_day,
            charged_day=self.charged_day,
            amount_nanos=self.amount_nanos,
            reason=reason,
            changed_by=by,
        )


def last_decided_ms(store: Store) -> int:
    """When the last event in the tables was judged: a time that a stream's clock has reached."""
    [[last_ms]] = store.rows("SELECT max(decided_at_ms) FROM billing.events")
    return int(last_ms)


def find_charged(store: Store, selection: Selection) -> list[Correctable]:
    """The charged events of a selection, in the order of judgement.

    Raises `TooManyError` where there are more than MAX_EVENTS.
    """
    found: list[Correctable] = []
    for condition, parameters in _conditions(selection):
        rows = store.rows(
            f"SELECT {_COLUMNS} FROM billing.events WHERE disposition = 'charged' AND {condition} "
            f"ORDER BY decided_at_ms, journal_partition, shard_seq LIMIT {MAX_EVENTS + 1}",
            parameters,
        )
        credited = _credited(store, [str(row[0]) for row in rows])
        found += [Correctable(*[*row, row[0] in credited]) for row in rows]
        if len(found) > MAX_EVENTS:
            raise TooManyError(
                f"more than {MAX_EVENTS:,} charged events are selected: narrow the filter, by day "
                "for instance, and credit them in parts"
            )
    return found


def _conditions(selection: Selection) -> Iterator[tuple[str, dict[str, Any]]]:
    """The selection as WHERE conditions with their parameters, ids in portions."""
    parts = ["account_id != ''"]
    parameters: dict[str, Any] = {}
    for column in ("account_id", "campaign_id", "ad_group_id", "user_hash", "billing_day"):
        value = getattr(selection, column)
        if value is not None:
            parts.append(
                f"{column} = {{{column}:{'Date' if column == 'billing_day' else 'String'}}}"
            )
            parameters[column] = value
    where = " AND ".join(parts)
    if selection.event_ids is None:
        yield where, parameters
        return
    for some in in_pieces(selection.event_ids, IDS_AT_ONCE):
        yield f"{where} AND event_id IN {text_list(some)}", parameters


def _credited(store: Store, event_ids: list[str]) -> set[str]:
    found: set[str] = set()
    for some in in_pieces(event_ids, IDS_AT_ONCE):
        found |= {
            event_id
            for (event_id,) in store.rows(
                "SELECT event_id FROM billing.credits "
                f"WHERE refused = '' AND event_id IN {text_list(some)}"
            )
        }
    return found
