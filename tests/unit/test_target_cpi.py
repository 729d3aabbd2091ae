"""Target CPI: what is bid for a click, from what was learned of installs, within bounds."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from pipeline.billing import fold
from pipeline.billing.batch import Assembler
from pipeline.billing.books import Shard
from pipeline.contract.catalog import Accepted
from pipeline.contract.log import LogRecord
from pipeline.contract.partitioning import partition_of
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import MS_PER_DAY
from pipeline.pacing.observed import Seen
from pipeline.pacing.predictive import Predictive
from pipeline.pacing.target_cpi import MILLION, InstallRates, daily_bid_micros
from pipeline.streams.engine import Engine
from tests.auditor import SourceRecord
from tests.property.worlds import (
    DAY_MS,
    HOUR_MS,
    PARTITIONS,
    START_MS,
    World,
    catalog_records,
    chunks_of,
    make_engine,
)

MINIMUM = 100_000
CAMPAIGN = 0
LONG_AFTER_MS = START_MS + 30 * MS_PER_DAY


def seen(
    row: int, clicks: float, installs: float, now_ms: int = START_MS, click_age_ms: float = 0.0
) -> Seen:
    nothing = np.zeros(1)
    return Seen(
        now_ms=now_ms,
        group=np.array([row]),
        impressions=nothing,
        mean_age_ms=nothing,
        last_impression_ms=np.zeros(1, dtype=np.int64),
        billable=np.array([clicks]),
        value_nanos=nothing,
        offered_nanos=nothing,
        clicks=np.array([clicks]),
        mean_click_age_ms=np.array([click_age_ms]),
        installs=np.array([installs]),
    )


def rates(*groups: tuple[float, float]) -> InstallRates:
    """What was learned of the ad groups of one campaign at first: (clicks, installs) of each."""
    found = InstallRates()
    for row, (clicks, installs) in enumerate(groups):
        found.observe(seen(row, clicks, installs), np.array([CAMPAIGN]))
    return found


def test_the_bid_is_the_target_times_installs_a_click() -> None:
    assert daily_bid_micros(5_000_000, 100_000, MINIMUM, 400_000) == 500_000


@pytest.mark.parametrize(
    ("installs_per_million", "last", "bid"),
    [
        (1, None, MINIMUM),  # at least the minimum
        (900_000, 500_000, 1_500_000),  # at most three times the last one
        (MILLION, None, 5_000_000),  # never more than the target
        (MILLION, 4_000_000, 5_000_000),
        (0, 2_000_000, MINIMUM),
    ],
)
def test_a_bid_has_bounds(installs_per_million: int, last: int | None, bid: int) -> None:
    assert daily_bid_micros(5_000_000, installs_per_million, MINIMUM, last) == bid


def test_nothing_is_bid_by_a_few_installs() -> None:
    assert rates((1_000.0, 19.0)).estimate(0, CAMPAIGN, LONG_AFTER_MS) is None
    assert rates((1_000.0, 20.0)).estimate(0, CAMPAIGN, LONG_AFTER_MS) is not None


def test_an_ad_group_without_data_has_its_campaigns_rate_and_one_with_much_its_own() -> None:
    learned = rates((10_000.0, 1_000.0), (0.0, 0.0), (20_000.0, 4_000.0))
    new, known = (
        learned.estimate(1, CAMPAIGN, LONG_AFTER_MS),
        learned.estimate(2, CAMPAIGN, LONG_AFTER_MS),
    )
    assert new is not None
    assert known is not None
    assert new[0] == pytest.approx(MILLION * 5_000 / 30_000, rel=0.01)
    assert known[0] == pytest.approx(MILLION * 0.2, rel=0.01)
    width_new, width_known = ((high - low) / likeliest for likeliest, low, high in (new, known))
    assert width_known < width_new / 10


def test_an_estimate_is_recorded_and_compared_with_the_day_that_followed() -> None:
    learned = rates((1_000.0, 100.0))
    estimate = learned.estimate(0, CAMPAIGN, LONG_AFTER_MS)
    assert estimate is not None
    [made] = learned.decided("ad_group:g", 0, CAMPAIGN, 20_000, estimate, 20_000 * MS_PER_DAY)
    assert (made.kind, made.predicted, made.realised_at_ms) == ("bid", estimate[0], 0)
    learned.observe(seen(0, 500.0, 25.0), np.array([CAMPAIGN]))
    later_ms = 20_001 * MS_PER_DAY
    came, again = learned.decided("ad_group:g", 0, CAMPAIGN, 20_001, estimate, later_ms)
    assert (came.predicted, came.realised, came.realised_at_ms) == (estimate[0], 50_000, later_ms)
    assert again.made_at_ms == later_ms


def test_what_is_remembered_fades_once_a_day_however_many_ad_groups_bid() -> None:
    learned = rates((1_000.0, 100.0), (1_000.0, 100.0))
    for row in (0, 1):
        estimate = learned.estimate(row, CAMPAIGN, LONG_AFTER_MS)
        assert estimate is not None
        learned.decided(f"ad_group:{row}", row, CAMPAIGN, 20_000, estimate, LONG_AFTER_MS)
    assert learned.campaigns.clicks[CAMPAIGN] == pytest.approx(0.85 * 2_000)


def test_clicks_whose_installs_are_still_to_come_are_no_failures() -> None:
    """A fifth of the clicks bring an install, half of them within three hours, some a day later;
    clicks come by day, bids are decided at nine in the evening, and bear on what is remembered."""
    rng, learned, days = np.random.default_rng(3), InstallRates(), 10
    late, of_day, estimates = np.zeros((days + 1) * 24 * 12), [0, 0], []
    for step in range(days * 24 * 12):
        day, hour = step // (24 * 12), step // 12 % 24
        now_ms = START_MS + step * 5 * 60_000
        clicks = rng.poisson(10.0) if 8 <= hour < 21 else 0
        delays = rng.exponential(4 * 12, rng.binomial(clicks, 0.2)).astype(int)
        np.add.at(late, np.minimum(step + 1 + delays, len(late) - 1), 1)
        learned.observe(seen(0, float(clicks), float(late[step]), now_ms), np.array([CAMPAIGN]))
        of_day = [of_day[0] + clicks, of_day[1] + int(late[step])]
        if step % (24 * 12) == 21 * 12:
            estimate = learned.estimate(0, CAMPAIGN, now_ms)
            assert estimate is not None
            estimates.append(estimate[0] / MILLION)
            if day == 0:
                assert of_day[1] / of_day[0] < 0.17
            learned.decided("ad_group:g", 0, CAMPAIGN, day, estimate, now_ms)
    assert estimates[2:] == pytest.approx([0.2] * (days - 2), rel=0.05)
    assert np.mean(estimates[2:]) == pytest.approx(0.2, rel=0.02)


def test_clicks_of_a_backlog_are_as_old_as_they_are() -> None:
    """Some hours of clicks and their installs, judged within a minute."""
    learned = InstallRates()
    for minute in range(60):
        now_ms, age_ms = START_MS + minute * 1_000, (600 - 10 * minute) * 60_000
        learned.observe(seen(0, 20.0, 2.0, now_ms, age_ms), np.array([CAMPAIGN]))
    estimate = learned.estimate(0, CAMPAIGN, START_MS + 60_000)
    assert estimate is not None
    assert 0.1 * MILLION < estimate[0] < 0.13 * MILLION


def test_an_estimate_is_taken_over_and_with_it_how_late_installs_are() -> None:
    worker, other = Predictive(), Predictive()
    learned = worker.installs = rates((1_000.0, 50.0))
    learned.observe(seen(0, 1_000.0, 50.0, START_MS + HOUR_MS), np.array([CAMPAIGN]))
    row = np.zeros(1, dtype=np.int64)
    kept = worker.remember((row, ["g"]), (row, ["c"]))
    assert other.recall(kept, lambda _: 0, lambda _: CAMPAIGN)
    taken = other.installs
    now_ms = START_MS + HOUR_MS
    # A quiet ad group's clicks ripen from their own time on, not from when they were taken over.
    soon = [one.estimate(0, CAMPAIGN, now_ms + HOUR_MS) for one in (learned, taken)]
    assert soon[1] == pytest.approx(soon[0], rel=0.01)
    before = learned.estimate(0, CAMPAIGN, now_ms)
    assert before is not None
    assert before[0] > 0.07 * MILLION  # of half of the clicks most installs are still to come
    assert taken.estimate(0, CAMPAIGN, now_ms) == pytest.approx(before, rel=1e-4)
    shares = taken.delays.shares(row)
    taken.observe(seen(0, 1.0, 0.0, now_ms + 1_000), np.array([CAMPAIGN]))
    assert taken.delays.shares(row) == pytest.approx(shares, rel=0.01)
    later = [one.estimate(0, CAMPAIGN, now_ms + 3 * MS_PER_DAY) for one in (learned, taken)]
    assert later[1] == pytest.approx(later[0], rel=0.01)


def test_installs_that_nobody_saw_before_a_takeover_teach_no_delays() -> None:
    worker, heir = Predictive(), Predictive()
    worker.installs.observe(seen(0, 1_000.0, 50.0, START_MS), np.array([CAMPAIGN]))
    row = np.zeros(1, dtype=np.int64)
    kept = worker.remember((row, ["g"]), (row, ["c"]))
    assert heir.recall(kept, lambda _: 0, lambda _: CAMPAIGN)
    shares = heir.installs.delays.shares(row)
    heir.installs.observe(seen(0, 1.0, 0.0, START_MS + MS_PER_DAY), np.array([CAMPAIGN]))
    assert heir.installs.delays.shares(row) == pytest.approx(shares)


def test_asking_for_an_estimate_teaches_nothing() -> None:
    """However often it is asked for while installs are still to come."""
    asked, quiet = InstallRates(), InstallRates()
    for one in (asked, quiet):
        one.observe(seen(0, 1_000.0, 100.0, START_MS), np.array([CAMPAIGN]))
    for minute in range(1, 60):
        asked.estimate(0, CAMPAIGN, START_MS + minute * 60_000)
    for one in (asked, quiet):
        one.observe(seen(0, 0.0, 100.0, START_MS + HOUR_MS), np.array([CAMPAIGN]))
    kind = np.zeros(1, dtype=np.int64)
    assert asked.delays.shares(kind) == pytest.approx(quiet.delays.shares(kind))
    later_ms = START_MS + 2 * HOUR_MS
    assert asked.estimate(0, CAMPAIGN, later_ms) == quiet.estimate(0, CAMPAIGN, later_ms)


def test_no_estimate_is_over_one_install_a_click() -> None:
    estimate = rates((100.0, 100.0)).estimate(0, CAMPAIGN, START_MS + 1)
    assert estimate is not None
    likeliest, low, high = estimate
    assert (likeliest, high) == (MILLION, MILLION)
    assert low == pytest.approx(0.88 * MILLION, rel=0.01)


GROUP = {
    "ad_group_id": "g",
    "campaign_id": "c",
    "budget_type": "daily",
    "budget_micros": 10**12,
    "bid_micros": 4_000_000,
    "bid_strategy": "target_cpi",
    "start_ms": START_MS - DAY_MS,
}


def install_world() -> World:
    """An ad group that asks for installs at 4 units, and pays at most that for a click."""
    entities = (
        ("account:a", {"account_id": "a", "country": "US", "currency": "USD"}),
        ("campaign:c", {"campaign_id": "c", "account_id": "a", "objective": "app_install"}),
        ("ad_group:g", GROUP),
        ("promoted_pin:p", {"promoted_pin_id": "p", "ad_group_id": "g", "review": "approved"}),
    )
    return World([(key, entity, START_MS) for key, entity in entities], [], START_MS)


def turn(engine: Engine, kind: str, numbers: range, time_ms: int) -> tuple[list[Signal], int]:
    """Judge one event a number; the signals, and what was charged in nanos."""
    topic = "ads.engagements" if kind == "install" else "ads.clicks"
    partition = partition_of("c", PARTITIONS)
    records = []
    for number in numbers:
        event = {
            "event_id": f"{kind}-{number}",
            "event_time_ms": time_ms,
            "campaign_id": "c",
            "ad_group_id": "g",
            "promoted_pin_id": "p",
            "user_id": f"u{number}",
            "impression_id": f"i{number}",
            "price_micros": 3_000_000,
            "placement": "browse",
        } | ({"kind": kind} if kind == "install" else {})
        value = json.dumps(event).encode()
        records.append(SourceRecord(topic, partition, number, time_ms, b"c", value))
    came = engine.turn(Assembler().assemble(chunks_of(records)), time_ms, {})
    charged = int(came.outcome.amount_nanos.sum())
    return [signal for draft in came.drafts.values() for signal in draft.signals], charged


def test_clicks_and_installs_make_a_bid_a_day_and_the_price_of_a_click() -> None:
    engine = make_engine(pacing=Predictive())
    for record in catalog_records(install_world()):
        engine.apply_catalog(record, START_MS)
    signals, charged = turn(engine, "click", range(400), START_MS + HOUR_MS)
    assert (signals, charged) == ([], 400 * 3_000_000_000)
    signals, charged = turn(engine, "install", range(40), START_MS + 3 * HOUR_MS)
    # Amid the day installs of its clicks are still to come: the first bid waits for the next.
    assert (signals, charged) == ([], 0)
    day_ms = START_MS + DAY_MS
    [bid], _ = turn(engine, "click", range(400, 401), day_ms + HOUR_MS // 60)
    # A tenth of the clicks install: a click is worth 0.40, and hardly more for late installs.
    assert (bid.action, bid.reason, bid.serve_probability) == ("bid", "target_cpi", 1.0)
    assert bid.bid_micros == pytest.approx(400_000, rel=0.03)
    assert bid.bid_micros is not None
    signals, charged = turn(engine, "click", range(401, 402), day_ms + 5 * HOUR_MS)
    assert (signals, charged) == ([], bid.bid_micros * 1_000)
    # What happened before the bid is charged as it was.
    _, charged = turn(engine, "click", range(402, 403), START_MS + 23 * HOUR_MS)
    assert charged == 3_000_000_000
    # The next day of the account has a bid of its own.
    [next_bid], _ = turn(engine, "click", range(403, 404), day_ms + DAY_MS + HOUR_MS)
    assert (next_bid.action, next_bid.version) == ("bid", bid.version + 1)


DAY_ONE_MS = START_MS + DAY_MS
OWN_BID = {"bid_strategy": "max_bid", "bid_micros": 2_500_000}


def bidding_engine() -> tuple[Engine, int]:
    """An engine in the second day, and the bid that it has decided for the ad group."""
    engine = make_engine(pacing=Predictive())
    for record in catalog_records(install_world()):
        engine.apply_catalog(record, START_MS)
    turn(engine, "click", range(400), START_MS + HOUR_MS)
    turn(engine, "install", range(40), START_MS + 3 * HOUR_MS)
    [bid], _ = turn(engine, "click", range(400, 401), DAY_ONE_MS + HOUR_MS // 60)
    assert bid.bid_micros is not None
    return engine, bid.bid_micros


def edit(engine: Engine, offset: int, now_ms: int, **fields: Any) -> None:
    """Another version of the ad group."""
    value = json.dumps(GROUP | fields).encode()
    result = engine.apply_catalog(
        LogRecord("ads.catalog", 0, offset, now_ms, b"ad_group:g", value), now_ms
    )
    assert isinstance(result, Accepted)


def shard_of(engine: Engine) -> Shard:
    return engine.shards[partition_of("c", PARTITIONS)]


def test_an_ad_group_that_bids_for_itself_again_is_told_so_once() -> None:
    engine, decided = bidding_engine()
    at_ms = DAY_ONE_MS + 2 * HOUR_MS
    edit(engine, 100, at_ms, **OWN_BID)
    assert engine.is_due(at_ms, {})
    [over], _ = turn(engine, "click", range(401, 402), at_ms + HOUR_MS)
    assert (over.action, over.reason, over.bid_micros) == ("resume", "target_cpi_over", None)
    assert over.version == 2
    assert "ad_group:g" not in shard_of(engine).standing
    # Its own bid is the price from then on; what came before is judged by the bid of its time.
    for number, time_ms, price in (
        (402, at_ms + HOUR_MS, 2_500_000),
        (403, at_ms - 1, decided),
        (404, START_MS + 23 * HOUR_MS, 3_000_000),
    ):
        assert turn(engine, "click", range(number, number + 1), time_ms) == ([], price * 1_000)
    edit(engine, 101, at_ms + 2 * HOUR_MS, **OWN_BID, budget_micros=10**11)
    assert turn(engine, "click", range(405, 406), at_ms + 2 * HOUR_MS)[0] == []
    # No bid is decided for it, on any day.
    assert turn(engine, "click", range(406, 407), at_ms + 3 * DAY_MS)[0] == []


def test_a_stopped_ad_group_stays_stopped_without_its_bid() -> None:
    engine, decided = bidding_engine()
    at_ms = DAY_ONE_MS + 2 * HOUR_MS
    edit(engine, 100, at_ms, budget_micros=1)
    [paused], _ = turn(engine, "click", range(401, 402), at_ms)
    assert (paused.action, paused.bid_micros) == ("pause", decided)
    edit(engine, 101, at_ms + 1, **OWN_BID, budget_micros=1)
    [again], _ = turn(engine, "click", range(402, 403), at_ms + 1)
    assert (again.action, again.reason, again.limit) == ("pause", "limit_reached", paused.limit)
    assert (again.bid_micros, again.version) == (None, paused.version + 1)
    edit(engine, 102, at_ms + 2, **OWN_BID)
    [resumed], _ = turn(engine, "click", range(403, 404), at_ms + 2)
    assert (resumed.action, resumed.bid_micros) == ("resume", None)


def test_a_change_to_come_takes_the_bid_back_when_it_comes() -> None:
    engine, decided = bidding_engine()
    at_ms = DAY_ONE_MS + 2 * HOUR_MS
    edit(engine, 100, at_ms, **OWN_BID, effective_ms=at_ms + HOUR_MS)
    assert turn(engine, "click", range(401, 402), at_ms) == ([], decided * 1_000)
    [over], charged = turn(engine, "click", range(402, 403), at_ms + HOUR_MS)
    assert (over.bid_micros, charged) == (None, 2_500_000_000)


def test_a_bid_that_was_taken_back_does_not_bound_the_next() -> None:
    engine, decided = bidding_engine()
    at_ms = DAY_ONE_MS + 2 * HOUR_MS
    edit(engine, 100, at_ms, **OWN_BID)
    turn(engine, "click", range(401, 402), at_ms)
    # Four in five clicks install.
    turn(engine, "click", range(1_000, 3_000), at_ms)
    turn(engine, "install", range(1_000, 2_600), at_ms + HOUR_MS)
    edit(engine, 101, at_ms + HOUR_MS)
    # Until its next bid it is charged at most the last one, as rule 9 has it.
    again = turn(engine, "click", range(402, 403), at_ms + HOUR_MS)
    assert again == ([], decided * 1_000)
    [bid], _ = turn(engine, "click", range(403, 404), DAY_ONE_MS + DAY_MS + HOUR_MS)
    assert (bid.action, bid.version) == ("bid", 3)
    assert bid.bid_micros is not None
    assert bid.bid_micros > 3.2 * decided


def test_a_recovered_shard_knows_that_the_bid_was_taken_back() -> None:
    engine, decided = bidding_engine()
    at_ms = DAY_ONE_MS + 2 * HOUR_MS
    edit(engine, 100, at_ms, **OWN_BID)
    [over], _ = turn(engine, "click", range(401, 402), at_ms)
    shard, entity = shard_of(engine), over.entity
    packed = fold.pack(shard, engine.balances, engine.terms, with_ids=True)
    heir, refolded = bidding_engine()[0], Shard.new(shard.shard, 7, 1_000)
    unpacked = heir.new_shard(shard.shard)
    fold.unpack(packed, unpacked, heir.balances, heir.terms)
    decided_at_ms = shard.bids[entity][0][0]
    bid = replace(over, action="bid", bid_micros=decided, decided_at_ms=decided_at_ms, version=1)
    for signal in (bid, over):
        refolded.note_signal(signal)
    assert shard.bids[entity][0][1] == decided
    assert unpacked.bids == refolded.bids == shard.bids
    assert [one.bid_micros(entity) for one in (shard, unpacked, refolded)] == [None] * 3
