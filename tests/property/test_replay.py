"""A replay of a recording under its own policy is the recording, to the nano."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing.journal import decode
from pipeline.contract.log import LogRecord
from pipeline.contract.partitioning import partition_of
from pipeline.contract.signals import Signal
from pipeline.pacing.serving import PlainLimits, Standing, serving
from pipeline.pacing.serving import Policy as PacingPolicy
from pipeline.streams.replay import Change, Replay, ReplayError, Tally
from tests.auditor import SourceRecord
from tests.property.test_fold import run
from tests.property.worlds import (
    DAY_MS,
    HOUR_MS,
    PARTITIONS,
    START_MS,
    World,
    catalog_records,
    make_engine,
    worlds,
)


def replayed(
    world: World,
    journal: list[dict[int, bytes]],
    pacing: PacingPolicy,
    change: Change,
    window_from: int = 0,
) -> list[Replay]:
    """All shards' replays; records before `window_from` are folded."""
    replays = []
    for shard in range(PARTITIONS):
        replay = Replay(shard, make_engine().settings, pacing, change)
        replay.apply_catalog(catalog_records(world), world.now_ms)
        values = [turn[shard] for turn in journal if shard in turn]
        for number, value in enumerate(values):
            record = decode(value)
            sources = [
                LogRecord(r.topic, r.partition, r.offset, r.timestamp_ms, r.key, r.value)
                for r in world.records
                if r.partition == shard
                and r.topic in record.header.sources
                and record.header.sources[r.topic][0]
                <= r.offset
                < record.header.sources[r.topic][1]
            ]
            if number < window_from:
                replay.fold(record.header, record.events)
            else:
                replay.judge(record.header, record.events, sources)
        replays.append(replay)
    return replays


@given(worlds(), st.integers(1, 30), st.integers(0, 3))
def test_under_its_own_policy_a_replay_is_the_recording(
    world: World, batch: int, window_from: int
) -> None:
    _, journal = run(world, batch)
    for replay in replayed(world, journal, PlainLimits(), Change(), window_from):
        for entity, tally in replay.tallies.items():
            assert tally.differs == 0, entity
            assert tally.replayed_nanos == tally.recorded_nanos
            assert tally.replayed_free_nanos == tally.recorded_free_nanos
            if window_from == 0:
                assert tally.replayed_signals == tally.recorded_signals


def limited_world() -> World:
    """An awareness ad group whose budget is three impressions, and ten of them, 10 s apart."""
    account = {"account_id": "a", "country": "US", "currency": "USD"}
    campaign = {"campaign_id": "c", "account_id": "a", "objective": "awareness"}
    group = {
        "ad_group_id": "g",
        "campaign_id": "c",
        "budget_type": "daily",
        "budget_micros": 6_000,
        "bid_micros": 2_000_000,
        "start_ms": START_MS - DAY_MS,
    }
    pin = {"promoted_pin_id": "p", "ad_group_id": "g", "review": "approved"}
    entities: dict[str, dict[str, Any] | None] = {
        "account:a": account,
        "campaign:c": campaign,
        "ad_group:g": group,
        "promoted_pin:p": pin,
    }
    catalog = [(key, entity, START_MS) for key, entity in entities.items()]
    partition = partition_of("c", PARTITIONS)
    records = []
    for number in range(10):
        time_ms = START_MS + HOUR_MS + number * 10_000
        event = {
            "event_id": f"e{number}",
            "event_time_ms": time_ms,
            "campaign_id": "c",
            "ad_group_id": "g",
            "promoted_pin_id": "p",
            "user_id": "u",
            "impression_id": f"i{number}",
            "price_micros": 2_000_000,
            "placement": "browse",
        }
        value = json.dumps(event).encode()
        records.append(SourceRecord("ads.impressions", partition, number, time_ms, b"c", value))
    return World(catalog, records, START_MS + DAY_MS)


def tally_of(change: Change) -> Tally:
    world = limited_world()
    _, journal = run(world, 1)
    tallies = [r.tallies for r in replayed(world, journal, PlainLimits(), change)]
    return next(found["ad_group:g"] for found in tallies if found)


def test_ad_servers_that_obey_save_what_comes_after_their_reaction_time() -> None:
    tally = tally_of(Change(withholds=True, reaction_ms=15_000))
    assert (tally.recorded_nanos, tally.recorded_free_nanos) == (6_000_000, 14_000_000)
    # The limit is reached at 20 s: the impression at 30 s still comes, those from 40 s on do not.
    assert (tally.replayed_nanos, tally.replayed_free_nanos) == (6_000_000, 2_000_000)
    assert (tally.withheld, tally.differs) == (6, 6)


class Throttling(PlainLimits):
    """Serves everything with half the probability, from its first event on."""

    def review(self, standing: Standing, now_ms: int) -> Signal | None:
        return None if standing.last else serving(standing, now_ms, "test", 0.5)


def test_what_was_thinned_is_not_thinned_again() -> None:
    world, change = limited_world(), Change(withholds=True, reaction_ms=0)
    for recorded_under, is_thinned in ((Throttling(), False), (PlainLimits(), True)):
        _, journal = run(world, 1, recorded_under)
        replays = replayed(world, journal, Throttling(), change)
        tallies = [tally for replay in replays for tally in replay.tallies.values()]
        assert any(tally.withheld for tally in tallies) == is_thinned


def test_another_limit_is_judged_by() -> None:
    tally = tally_of(Change(catalog={"ad_group:g": {"budget_micros": 10_000}}))
    assert (tally.recorded_nanos, tally.replayed_nanos) == (6_000_000, 10_000_000)
    assert (tally.replayed_free_nanos, tally.withheld) == (10_000_000, 0)


def after_the_catalog_of(world: World, change: Change, *more: tuple[str, bytes]) -> Replay:
    """A replay that has read a world's catalog, and these records after it."""
    replay = Replay(0, make_engine().settings, PlainLimits(), change)
    records = catalog_records(world)
    replay.apply_catalog(records, world.now_ms)
    end = records[-1].offset + 1
    replay.apply_catalog(
        [
            LogRecord("ads.catalog", 0, end + number, START_MS, key.encode(), value)
            for number, (key, value) in enumerate(more)
        ],
        world.now_ms,
    )
    return replay


@pytest.mark.parametrize("value", [b"{not json", b"[1]", b"7", b"\xff", b"[" * 100_000])
def test_a_recorded_value_that_is_no_object_is_refused_again(value: bytes) -> None:
    change = Change(catalog={"ad_group:g": {"budget_micros": 10_000}})
    replay = after_the_catalog_of(limited_world(), change, ("ad_group:g", value))
    [version] = replay.engine.catalog.ad_groups["g"].versions
    assert version.entity.budget_micros == 10_000


@pytest.mark.parametrize(
    ("key", "fields", "text"),
    [
        ("ad_group:g", {"bid_micros": 5}, r"ad_group:g: .*bid_too_low: bid_micros 5 is under"),
        ("ad_group:g", {"budget_micros": "a lot"}, r"ad_group:g: .*malformed: budget_micros"),
        # Of another entity than the one that the policy changes.
        ("campaign:c", {"objective": "video_awareness"}, r"ad_group:g: .*bid_too_low"),
    ],
)
def test_what_the_catalog_would_refuse_is_not_replayed(
    key: str, fields: dict[str, Any], text: str
) -> None:
    with pytest.raises(ReplayError, match=text):
        after_the_catalog_of(limited_world(), Change(catalog={key: fields}))


def test_what_was_refused_when_it_was_recorded_does_not_end_a_replay() -> None:
    low = {"ad_group_id": "g", "campaign_id": "c", "budget_type": "daily", "budget_micros": 1}
    recorded = json.dumps(low | {"bid_micros": 1}).encode()
    change = Change(catalog={"ad_group:g": {"budget_micros": 10_000}, "ad_group:typo": {}})
    replay = after_the_catalog_of(limited_world(), change, ("ad_group:g", recorded))
    assert len(replay.engine.catalog.ad_groups["g"].versions) == 1
    assert replay.met == {"ad_group:g"}
