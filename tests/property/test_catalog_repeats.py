"""A catalog read from a compacted log is the one that was read from all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from pipeline.contract.catalog import Accepted, Catalog, History, Refused, Version
from pipeline.contract.log import LogRecord
from pipeline.contract.vocabulary import CATALOG
from tests.unit.test_catalog_compaction import ACCOUNT, CAMPAIGN, GROUP

PIN = {"promoted_pin_id": "p", "ad_group_id": "g", "status": "active", "review": "approved"}
FX = {"fx_day": "2026-03-01", "usd_per_unit": {"EUR": "1.1"}}
OTHERS = [
    ("account:b", {"account_id": "b", "country": "GB", "currency": "GBP"}),
    ("campaign:d", {"campaign_id": "d", "account_id": "b", "objective": "traffic"}),
    ("ad_group:h", GROUP | {"ad_group_id": "h", "campaign_id": "d"}),
]
START = [
    ("account:a", ACCOUNT),
    *OTHERS,
    ("campaign:c", CAMPAIGN),
    ("ad_group:g", GROUP),
    ("promoted_pin:p", PIN),
    ("fx:2026-03-01", FX),
]

PUBLISHED: list[tuple[str, Any]] = [
    # Valid, unless the entity was deleted before with something else that is fixed.
    ("account:a", ACCOUNT | {"time_zone": "America/New_York"}),
    ("account:a", ACCOUNT),
    ("campaign:c", CAMPAIGN | {"daily_spend_limit_micros": 7}),
    ("ad_group:g", GROUP | {"bid_micros": 600_000}),
    ("ad_group:g", GROUP | {"bid_micros": 700_000, "effective_ms": 5}),
    ("promoted_pin:p", PIN | {"status": "paused"}),
    ("fx:2026-03-01", FX | {"usd_per_unit": {"EUR": "1.2"}}),
    # Refused whatever came before.
    ("account:a", "no account"),
    ("campaign:c", CAMPAIGN | {"objective": "fame"}),
    ("ad_group:g", GROUP | {"bid_micros": 1}),
    ("promoted_pin:p", {}),
    ("fx:2026-03-01", FX | {"usd_per_unit": {"EUR": "nought"}}),
    # Refused only by who has seen what came before.
    ("account:a", ACCOUNT | {"country": "GB", "currency": "GBP"}),
    ("campaign:c", CAMPAIGN | {"account_id": "b"}),
    ("ad_group:g", GROUP | {"campaign_id": "d"}),
    ("ad_group:g", GROUP | {"budget_type": "lifetime", "end_ms": 10**13}),
    ("promoted_pin:p", PIN | {"ad_group_id": "h"}),
    # Deletions.
    ("promoted_pin:p", None),
    ("fx:2026-03-01", None),
]


@dataclass
class Log:
    """The topic, and the worker that repeats: the owner of shard 0."""

    records: list[LogRecord] = field(default_factory=list)
    owner: Catalog = field(default_factory=Catalog)
    refused: list[LogRecord] = field(default_factory=list)
    waiting: list[LogRecord] = field(default_factory=list)

    def publish(self, key: str, value: Any) -> None:
        encoded = None if value is None else json.dumps(value).encode()
        self._append(LogRecord(CATALOG, 0, 0, 0, key.encode(), encoded))

    def _append(self, record: LogRecord) -> None:
        offset = len(self.records)
        self.records.append(replace(record, offset=offset, timestamp_ms=1_000 + offset))

    def read(self) -> None:
        """The owner reads on, and makes what it will repeat."""
        for record in self.records[self.owner.end_offset :]:
            if isinstance(self.owner.apply(record), Refused):
                self.refused.append(record)
        for record in self.refused:
            repetition = self.owner.repetition_of(
                record.key or b"", record.offset, record.timestamp_ms
            )
            if repetition is not None:
                self.waiting.append(repetition)
        self.refused.clear()

    def send(self) -> None:
        for record in self.waiting:
            self._append(record)
        self.waiting.clear()

    def settle(self) -> int:
        """Until the owner has nothing to repeat any more; how often it had to."""
        for rounds in range(10):
            self.read()
            if not self.waiting:
                return rounds
            self.send()
        raise AssertionError("it repeats for ever")

    def compacted(self, before: int) -> list[LogRecord]:
        """What is left once the records before this offset have been compacted."""
        last = {record.key: record.offset for record in self.records[:before]}
        return [r for r in self.records if r.offset >= before or last[r.key] == r.offset]


def read(records: list[LogRecord]) -> Catalog:
    catalog = Catalog()
    for record in records:
        catalog.apply(record)
    return catalog


def in_force(catalog: Catalog) -> dict[str, Any]:
    """What is in force of every entity that is not deleted, from when on."""
    of_all: list[Mapping[str, History[Any]]] = [
        catalog.accounts,
        catalog.campaigns,
        catalog.ad_groups,
        catalog.promoted_pins,
    ]
    last: dict[str, Version[Any]] = {
        f"{number}:{entity_id}": history.last()
        for number, histories in enumerate(of_all)
        for entity_id, history in histories.items()
        if not history.deleted
    }
    return {
        name: (version.effective_ms, msgspec.structs.replace(version.entity, effective_ms=None))
        for name, version in (last | catalog.fx).items()
    }


STEPS = st.lists(st.sampled_from([*PUBLISHED, "read", "send"]), max_size=14)


@given(STEPS)
def test_whatever_was_compacted_all_readers_have_the_same(steps: list[Any]) -> None:
    log = Log()
    for key, value in START:
        log.publish(key, value)
    for step in steps:
        if step == "read":
            log.read()
        elif step == "send":
            log.send()
        else:
            log.publish(*step)
    log.settle()
    whole = in_force(read(log.records))
    for before in range(len(log.records) + 1):
        assert in_force(read(log.compacted(before))) == whole, f"compacted before {before}"


def test_a_repetition_is_an_event_of_nothing_to_who_has_read_all() -> None:
    log = Log()
    for key, value in START:
        log.publish(key, value)
    log.publish("ad_group:g", GROUP | {"bid_micros": 1})
    assert log.settle() == 1
    repetition = log.records[-1]
    assert repetition.key == b"ad_group:g"
    catalog = read(log.records[:-1])
    before = catalog.ad_groups["g"].versions
    assert catalog.apply(repetition) == Accepted("ad_group", "g", ())
    assert catalog.apply(replace(repetition, offset=99)) == Accepted("ad_group", "g", ())
    assert catalog.ad_groups["g"].versions == before


def test_without_repetitions_a_refused_record_takes_the_valid_one_with_it() -> None:
    """What they are for: fails should the topic's compaction ever be another."""
    log = Log()
    for key, value in START:
        log.publish(key, value)
    log.publish("ad_group:g", GROUP | {"bid_micros": 1})
    log.publish("account:a", ACCOUNT | {"country": "GB", "currency": "GBP"})
    fresh = read(log.compacted(len(log.records)))
    assert "g" not in fresh.ad_groups
    assert fresh.accounts["a"].latest.currency == "GBP"


def test_an_update_that_overtakes_a_repetition_is_not_lost() -> None:
    log = Log()
    for key, value in START:
        log.publish(key, value)
    log.publish("ad_group:g", GROUP | {"bid_micros": 1})
    log.read()
    log.publish("ad_group:g", GROUP | {"bid_micros": 900_000})
    log.send()  # the repetition of the first bid comes last
    assert log.settle() == 1
    fresh = read(log.compacted(len(log.records)))
    assert fresh.ad_groups["g"].latest.bid_micros == 900_000
