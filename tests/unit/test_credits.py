"""Credits in the worker: ordered on the catalog, posted once in the open day, remembered."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from pipeline.billing import fold
from pipeline.billing.batch import Assembler
from pipeline.billing.credits import CREDITS_A_RECORD, credit_key
from pipeline.billing.journal import decode, seal
from pipeline.contract.catalog import Accepted, Refused
from pipeline.contract.log import LogRecord
from pipeline.contract.vocabulary import JOURNAL_VERSIONS
from pipeline.streams.engine import Engine, Turn
from pipeline.streams.topics import JOURNAL_MAX_BYTES
from pipeline.streams.writer import prepare
from tests.property.worlds import HOUR_MS, START_MS, TO_THE_END, chunks_of, make_engine

DAY_MS = 24 * HOUR_MS
CAMPAIGN = {"campaign_id": "c2", "account_id": "a", "objective": "traffic"}


def publish(engine: Engine, key: str, value: dict[str, Any] | None, now_ms: int = START_MS) -> Any:
    encoded = None if value is None else json.dumps(value).encode()
    offset = engine.catalog.end_offset
    record = LogRecord("ads.catalog", 0, offset, now_ms, key.encode(), encoded)
    return engine.apply_catalog(record, now_ms)


def order(**changes: Any) -> dict[str, Any]:
    return {
        "event_id": "e1",
        "account_id": "a",
        "campaign_id": "c2",
        "ad_group_id": "g",
        "promoted_pin_id": "p",
        "placement": "browse",
        "country": "",
        "device": "",
        "basis": "cpc",
        "currency": "USD",
        "billing_day": "2026-03-01",
        "charged_day": "2026-03-01",
        "amount_nanos": 5,
        "reason": "invalid traffic",
        "changed_by": "ana",
    } | changes


def engine_with_ads() -> Engine:
    engine = make_engine()
    publish(engine, "account:a", {"account_id": "a", "country": "US", "currency": "USD"})
    publish(engine, "campaign:c2", CAMPAIGN)
    return engine


def turn_at(engine: Engine, now_ms: int) -> Turn:
    return engine.turn(Assembler().assemble(chunks_of([])), now_ms, TO_THE_END)


def shard_of(turn: Turn) -> int:
    [shard] = [number for number, draft in turn.drafts.items() if draft.credits]
    return shard


def test_an_order_makes_a_turn_due_and_is_posted_in_it_once() -> None:
    engine = engine_with_ads()
    turn_at(engine, START_MS)
    assert not engine.is_due(START_MS, {})
    assert isinstance(publish(engine, "credit:e1", order()), Accepted)
    assert engine.is_due(START_MS, {})
    turn = turn_at(engine, START_MS)
    [posted] = turn.drafts[shard_of(turn)].credits
    assert (posted.event_id, posted.amount_nanos, posted.by) == ("e1", 5, "ana")
    assert not engine.is_due(START_MS, {})
    assert all(not draft.credits for draft in turn_at(engine, START_MS).drafts.values())


def test_a_credit_is_posted_in_its_own_day_while_that_is_open_and_else_in_the_open_one() -> None:
    engine = engine_with_ads()
    turn_at(engine, START_MS)
    publish(engine, "credit:e1", order())
    turn = turn_at(engine, START_MS + DAY_MS + HOUR_MS)
    assert turn.drafts[shard_of(turn)].credits[0].posting_day == "2026-03-01"
    turn_at(engine, START_MS + DAY_MS + 3 * HOUR_MS)
    publish(engine, "credit:e2", order(event_id="e2"))
    turn = turn_at(engine, START_MS + DAY_MS + 3 * HOUR_MS)
    assert turn.drafts[shard_of(turn)].credits[0].posting_day == "2026-03-02"


def test_a_second_order_for_the_event_is_refused() -> None:
    engine = engine_with_ads()
    publish(engine, "credit:e1", order())
    again = publish(engine, "credit:e1", order(amount_nanos=6))
    assert isinstance(again, Refused)
    assert again.reason == "already_credited"


def test_an_order_that_is_not_its_campaigns_is_refused() -> None:
    engine = engine_with_ads()
    for changes, reason in (
        ({"campaign_id": "nobody"}, "missing_parent"),
        ({"account_id": "b"}, "parent_changed"),
        ({"currency": "GBP"}, "currency_mismatch"),
        ({"amount_nanos": 0}, "malformed"),
        ({"billing_day": "2026-02-30"}, "malformed"),
    ):
        refused = publish(engine, "credit:e1", order(**changes))
        assert isinstance(refused, Refused)
        assert refused.reason == reason


def test_a_shard_that_starts_over_does_not_post_again() -> None:
    """By the journal, a snapshot or a checkpoint; though it reads all orders anew."""
    engine = engine_with_ads()
    publish(engine, "credit:e1", order())
    turn = turn_at(engine, START_MS)
    number = shard_of(turn)
    [entry] = [entry for entry in prepare(engine, turn) if entry.shard == number]
    _, value = seal(entry.header, entry.body, bytes(32))
    record = decode(value)
    assert record.header.accounts.keys() == {"a"}
    for with_ids in (True, False, None):
        restarted = engine_with_ads()
        if with_ids is None:
            restarted.fold(number, [(record.header, record.events)])
        else:
            shard = engine.shards[number]
            packed = fold.pack(shard, engine.balances, engine.terms, with_ids=with_ids)
            state = restarted.shards[number]
            fold.unpack(packed, state, restarted.balances, restarted.terms)
        publish(restarted, "credit:e1", order())
        publish(restarted, "credit:e2", order(event_id="e2"))
        drafts = turn_at(restarted, START_MS).drafts
        assert [credit.event_id for credit in drafts[number].credits] == ["e2"]


def record_of(engine: Engine, turn: Turn, number: int) -> bytes:
    [entry] = [entry for entry in prepare(engine, turn) if entry.shard == number]
    return seal(entry.header, entry.body, bytes(32))[1]


def test_very_many_orders_are_posted_in_several_records_each_once() -> None:
    """By a shard that starts over after the first of them too."""
    engine, restarted = engine_with_ads(), engine_with_ads()
    ids = [f"e{n}" for n in range(2 * CREDITS_A_RECORD + 1)]
    for one in (engine, restarted):
        for event_id in ids:
            publish(one, f"credit:{event_id}", order(event_id=event_id))
    first = turn_at(engine, START_MS)
    number = shard_of(first)
    posted = [[credit.event_id for credit in first.drafts[number].credits]]
    record = decode(record_of(engine, first, number))
    restarted.fold(number, [(record.header, record.events)])
    for one in (engine, restarted):
        found = list(posted)
        while one.is_due(START_MS, {}):
            found.append([c.event_id for c in turn_at(one, START_MS).drafts[number].credits])
        assert [event_id for record in found for event_id in record] == ids
        assert [len(record) for record in found] == [CREDITS_A_RECORD, CREDITS_A_RECORD, 1]


def test_a_record_of_the_longest_orders_fits_into_the_journal() -> None:
    engine = make_engine()
    account, campaign, other = ("\U0001f4cc" * 255 + end for end in "acg")
    entity = {"account_id": account, "country": "US", "currency": "USD"}
    publish(engine, f"account:{account}", entity)
    publish(engine, f"campaign:{campaign}", CAMPAIGN | entity | {"campaign_id": campaign})
    longest = {
        "account_id": account,
        "campaign_id": campaign,
        "ad_group_id": other,
        "promoted_pin_id": other,
        "reason": "\U0001f4cc" * 500,
    }
    for n in range(CREDITS_A_RECORD):
        event_id = f"{n:\U0001f4cc>128}"
        accepted = publish(engine, f"credit:{event_id}", order(event_id=event_id, **longest))
        assert isinstance(accepted, Accepted)
    turn = turn_at(engine, START_MS)
    number = shard_of(turn)
    assert len(turn.drafts[number].credits) == CREDITS_A_RECORD
    assert len(record_of(engine, turn, number)) < JOURNAL_MAX_BYTES * 3 // 4


def test_a_record_without_credits_has_no_trace_of_them() -> None:
    engine = engine_with_ads()
    turn = turn_at(engine, START_MS)
    entry = prepare(engine, turn, {0: [], 1: []})[0]
    for version in JOURNAL_VERSIONS:
        _, value = seal(entry.header, entry.body, bytes(32), version)
        assert b"credits" not in value


def test_a_state_packed_before_there_were_credits_is_read() -> None:
    engine = engine_with_ads()
    packed = fold.pack(engine.shards[0], engine.balances, engine.terms, with_ids=True)
    fields = msgspec.msgpack.decode(packed, strict=False)
    del fields["credited"]
    old = msgspec.msgpack.encode(fields)
    restored = engine_with_ads()
    fold.unpack(old, restored.shards[0], restored.balances, restored.terms)
    assert restored.shards[0].credited == set()


def test_what_is_remembered_of_an_event_is_16_bytes() -> None:
    assert len(credit_key("e1")) == 16
    assert credit_key("e1") != credit_key("e2")
