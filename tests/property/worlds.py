"""Random catalogs and events, and the product's decisions on them, for comparison."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from pipeline.billing.batch import Assembler, Chunk
from pipeline.billing.decide import Outcome, Policy
from pipeline.billing.texts import Packed
from pipeline.contract.days import iso
from pipeline.contract.log import LogRecord
from pipeline.contract.partitioning import partition_of
from pipeline.contract.vocabulary import BASES, DISPOSITIONS, EVENT_TOPICS, KINDS, LIMITS
from pipeline.pacing.serving import Policy as PacingPolicy
from pipeline.streams.engine import READ_TO_THE_END, Engine, EngineSettings
from tests.auditor import SourceRecord

PARTITIONS = 2
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
START_MS = 1_772_323_200_000  # 2026-03-01T00:00:00Z
"""The catalog is written here; events come over the days after, US clocks change on the 8th."""


@dataclass(frozen=True)
class World:
    """Catalog records in order, and source records in the order of judgement."""

    catalog: list[tuple[str, dict[str, Any] | None, int]]
    records: list[SourceRecord]
    now_ms: int


def accounts() -> list[dict[str, Any]]:
    return [
        {"account_id": "a0", "country": "US", "currency": "USD", "time_zone": "America/New_York"},
        {"account_id": "a1", "country": "GB", "currency": "GBP", "time_zone": "Asia/Kathmandu"},
    ]


OBJECTIVES = ["traffic", "engagement", "awareness", "video_awareness", "app_install"]
_small = st.integers(0, 3)


@st.composite
def zone_changes(draw: st.DrawFn) -> tuple[str, Any, int]:
    """An account that moves: west, east, and over the date line."""
    account = draw(st.sampled_from(accounts()))
    zones = ["America/Los_Angeles", "Asia/Tokyo", "Pacific/Kiritimati", "Pacific/Pago_Pago"]
    moved = account | {
        "time_zone": draw(st.sampled_from(zones)),
        "effective_ms": START_MS + draw(st.integers(0, 120)) * HOUR_MS,
    }
    return f"account:{account['account_id']}", moved, START_MS


@st.composite
def campaigns(draw: st.DrawFn, number: int) -> dict[str, Any]:
    campaign: dict[str, Any] = {
        "campaign_id": f"c{number}",
        "account_id": draw(st.sampled_from(["a0", "a1"])),
        "objective": draw(st.sampled_from(OBJECTIVES)),
    }
    if draw(st.booleans()):
        campaign["daily_spend_limit_micros"] = draw(st.integers(0, 40)) * 100_000
    if draw(st.booleans()):
        campaign["lifetime_spend_limit_micros"] = draw(st.integers(0, 80)) * 100_000
    return campaign


@st.composite
def ad_groups(draw: st.DrawFn, campaign_id: str, number: int) -> dict[str, Any]:
    budget_type = draw(st.sampled_from(["daily", "lifetime"]))
    group: dict[str, Any] = {
        "ad_group_id": f"{campaign_id}-g{number}",
        "campaign_id": campaign_id,
        "budget_type": budget_type,
        "budget_micros": draw(st.sampled_from([1, 50_000, 700_001, 3_000_000, 10**12])),
        "bid_micros": draw(st.sampled_from([6_000_000, 7_000_001, 10_000_000])),
    }
    if draw(st.booleans()):
        group["keyword_bids_micros"] = {"shoes": 6_500_000, "hats": 9_000_000}
    if draw(st.integers(0, 3)):
        group["start_ms"] = START_MS + draw(_small) * draw(_small) * 9 * HOUR_MS
    if budget_type == "lifetime" or not draw(_small):
        group["end_ms"] = START_MS + draw(st.integers(60, 240)) * HOUR_MS
    return group


@st.composite
def changes(draw: st.DrawFn, entity: dict[str, Any], key: str) -> tuple[str, Any, int]:
    """A later version of an entity, some of them invalid, with its own effective time."""
    changed = dict(entity)
    change = draw(st.sampled_from(["pause", "archive", "bid", "budget", "low_bid", "limit"]))
    if change == "pause":
        changed["status"] = "paused"
    elif change == "archive":
        changed["status"] = "archived"
    elif change == "bid" and "bid_micros" in changed:
        changed["bid_micros"] = 8_000_000
    elif change == "budget" and "budget_micros" in changed:
        changed["budget_micros"] = draw(st.sampled_from([1, 2_000_000, 10**13]))
    elif change == "low_bid" and "bid_micros" in changed:
        changed["bid_micros"] = 1_000
    elif change == "limit" and "objective" in changed:
        changed["daily_spend_limit_micros"] = draw(st.integers(0, 60)) * 100_000
    changed["effective_ms"] = START_MS + draw(st.integers(0, 200)) * HOUR_MS
    return key, changed, START_MS


@st.composite
def catalogs(draw: st.DrawFn) -> list[tuple[str, dict[str, Any] | None, int]]:
    records: list[tuple[str, dict[str, Any] | None, int]] = [
        (f"account:{account['account_id']}", account, START_MS) for account in accounts()
    ]
    later = []
    for number in range(draw(st.integers(1, 3))):
        campaign = draw(campaigns(number))
        key = f"campaign:{campaign['campaign_id']}"
        records.append((key, campaign, START_MS))
        if draw(st.booleans()):
            later.append(draw(changes(campaign, key)))
        for group_number in range(draw(st.integers(1, 2))):
            group = draw(ad_groups(campaign["campaign_id"], group_number))
            key = f"ad_group:{group['ad_group_id']}"
            records.append((key, group, START_MS))
            if draw(st.booleans()):
                later.append(draw(changes(group, key)))
            for pin_number in range(2):
                pin_id = f"{group['ad_group_id']}-p{pin_number}"
                review = draw(st.sampled_from(["approved"] * 5 + ["pending"]))
                pin = {"promoted_pin_id": pin_id, "ad_group_id": group["ad_group_id"]}
                records.append((f"promoted_pin:{pin_id}", pin | {"review": review}, START_MS))
    if draw(st.integers(0, 5)) == 0:
        later.append((records[-1][0], None, START_MS))
    later += draw(st.lists(zone_changes(), max_size=2))
    return records + later


_LAGS_MS = [0, 0, 0, 5, 5, 60_000, 60_000, HOUR_MS, 30 * HOUR_MS, 8 * DAY_MS, -6 * 60_000]


def _event(
    draw: st.DrawFn, pins: list[tuple[str, str, str]], serial: int, record_ms: int
) -> dict[str, Any]:
    campaign, group, pin = draw(st.sampled_from(pins))
    event: dict[str, Any] = {
        "event_id": f"e{serial if draw(_small) else draw(st.integers(0, serial))}",
        "event_time_ms": max(0, record_ms - draw(st.sampled_from(_LAGS_MS))),
        "campaign_id": campaign,
        "ad_group_id": group,
        "promoted_pin_id": pin,
        "user_id": f"u{draw(_small)}",
        "impression_id": f"{campaign}-i{draw(st.integers(0, 12))}",
        "price_micros": draw(st.sampled_from([0, 1, 100_000, 3_333_333, 6_200_000, 2**62])),
        "placement": draw(st.sampled_from(["browse", "search"])),
    }
    if draw(st.booleans()):
        event["keyword"] = draw(st.sampled_from(["shoes", "hats", "socks"]))
    return event


_GARBAGE = [b"", None, b"{", b"[]", b"null", b'{"event_id": 1}', b"\xff\xfe", b'{"a":1,"a":2}']


@st.composite
def worlds(draw: st.DrawFn, max_events: int = 60) -> World:
    catalog = draw(catalogs())
    pins = [
        (value["ad_group_id"].split("-")[0], value["ad_group_id"], value["promoted_pin_id"])
        for key, value, _ in catalog
        if key.startswith("promoted_pin") and value is not None
    ]
    pins = pins * 4 + [(pins[0][0], pins[-1][1], "nobody")]
    drawn = []
    record_ms = START_MS + draw(_small) * 20 * HOUR_MS
    for serial in range(draw(st.integers(1, max_events))):
        topic = draw(st.sampled_from(EVENT_TOPICS))
        record_ms += draw(st.sampled_from([0, 0, 1, 60_000, 60_000, HOUR_MS, 7 * HOUR_MS]))
        event = _event(draw, pins, serial, record_ms)
        if topic == "ads.engagements":
            event["kind"] = draw(st.sampled_from(["closeup", "save", "install"]))
        value: bytes | None = json.dumps(event).encode()
        if draw(st.integers(0, 24)) == 24:
            value = draw(st.sampled_from(_GARBAGE))
        partition = partition_of(event["campaign_id"], PARTITIONS)
        if draw(st.integers(0, 24)) == 24:
            partition = 1 - partition
        drawn.append((record_ms, topic, partition, event["campaign_id"].encode(), value))
    # The order of judgement: by record timestamp, then impressions, clicks, engagements.
    drawn.sort(key=lambda record: (record[0], EVENT_TOPICS.index(record[1])))
    return World(catalog, _with_offsets(drawn), START_MS + 20 * DAY_MS)


def _with_offsets(drawn: list[tuple[int, str, int, bytes, bytes | None]]) -> list[SourceRecord]:
    offsets: dict[tuple[str, int], int] = {}
    records = []
    for record_ms, topic, partition, key, value in drawn:
        offset = offsets.get((topic, partition), 0)
        offsets[topic, partition] = offset + 1
        records.append(SourceRecord(topic, partition, offset, record_ms, key, value))
    return records


def catalog_records(world: World) -> list[LogRecord]:
    return [
        LogRecord(
            "ads.catalog",
            0,
            offset,
            timestamp_ms,
            key.encode(),
            None if value is None else json.dumps(value).encode(),
        )
        for offset, (key, value, timestamp_ms) in enumerate(world.catalog)
    ]


def make_engine(grace_ms: int = 2 * HOUR_MS, pacing: PacingPolicy | None = None) -> Engine:
    policy = Policy(acceptance_horizon_days=7, user_hash_key=b"0123456789abcdef")
    engine = Engine(EngineSettings(PARTITIONS, policy, grace_ms), pacing)
    for shard in range(PARTITIONS):
        engine.new_shard(shard)
    return engine


def chunks_of(records: list[SourceRecord]) -> list[Chunk]:
    """One chunk for each topic partition named."""
    by_partition: dict[tuple[str, int], list[SourceRecord]] = {}
    for record in records:
        by_partition.setdefault((record.topic, record.partition), []).append(record)
    return [
        Chunk(
            source=EVENT_TOPICS.index(topic),
            shard=partition,
            start=found[0].offset,
            end=found[-1].offset + 1,
            offsets=np.array([record.offset for record in found]),
            timestamps_ms=np.array([record.timestamp_ms for record in found]),
            values=Packed.of(record.value for record in found),
            keys=Packed.of(record.key for record in found),
        )
        for (topic, partition), found in by_partition.items()
    ]


def verdict(outcome: Outcome, row: int) -> dict[str, Any]:
    disposition = DISPOSITIONS[outcome.disposition[row]]
    return {
        "topic": EVENT_TOPICS[outcome.batch.source[row]],
        "partition": int(outcome.batch.shard[row]),
        "offset": int(outcome.batch.offset[row]),
        "disposition": disposition,
        "limit": LIMITS[outcome.limit[row]],
        "amount_nanos": int(outcome.amount_nanos[row]),
        "free_nanos": int(outcome.free_nanos[row]),
        "billing_day": iso(int(outcome.billing_day[row])),
        "kind": KINDS[outcome.batch.kind[row]],
        "event_id": outcome.batch.texts.column("event_id", np.array([row]))[0],
        "basis": BASES[outcome.basis[row]] if disposition == "charged" else "",
    }


def decided(world: World, sizes: list[int]) -> tuple[Engine, list[dict[str, Any]]]:
    """The product's verdicts, with the records cut into batches of these sizes, in turn."""
    engine = make_engine()
    for record in catalog_records(world):
        engine.apply_catalog(record, world.now_ms)
    assembler = Assembler()
    verdicts = []
    start, turn = 0, 0
    while start < len(world.records):
        size = sizes[turn % len(sizes)]
        batch = assembler.assemble(chunks_of(world.records[start : start + size]))
        # Days are kept open: adjustments are not what is compared here.
        outcome = engine.turn(batch, world.now_ms, {}).outcome
        verdicts += [verdict(outcome, row) for row in range(len(batch))]
        start, turn = start + size, turn + 1
    return engine, verdicts


TO_THE_END = dict.fromkeys(range(PARTITIONS), READ_TO_THE_END)
