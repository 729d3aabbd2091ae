"""The vectorised judging agrees with the naive auditor on every disposition and nano."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.auditor import Auditor, CatalogRecord
from tests.property.worlds import PARTITIONS, World, decided, worlds


def audited(world: World) -> tuple[Auditor, list[dict[str, Any]]]:
    auditor = Auditor(PARTITIONS)
    for offset, (key, value, timestamp_ms) in enumerate(world.catalog):
        encoded = None if value is None else json.dumps(value).encode()
        auditor.catalog(CatalogRecord(offset, timestamp_ms, key, encoded))
    verdicts = [auditor.judge(record, world.now_ms).compared() for record in world.records]
    return auditor, verdicts


def by_place(verdicts: list[dict[str, Any]]) -> dict[tuple[str, int, int], dict[str, Any]]:
    return {(v["topic"], v["partition"], v["offset"]): v for v in verdicts}


@given(worlds(), st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_every_disposition_and_nano_is_the_auditors(world: World, sizes: list[int]) -> None:
    _, expected = audited(world)
    _, found = decided(world, sizes)
    assert by_place(found) == by_place(expected)


@given(worlds(), st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_any_chunking_gives_the_same_dispositions(world: World, sizes: list[int]) -> None:
    _, at_once = decided(world, [len(world.records)])
    _, in_pieces = decided(world, sizes)
    assert by_place(in_pieces) == by_place(at_once)


@given(worlds())
def test_balances_are_the_sums_of_what_was_charged(world: World) -> None:
    auditor, _ = audited(world)
    engine, _ = decided(world, [7])
    terms = engine.terms
    for limit, day, balance in engine.balances.all():
        names = terms.group_ids if limit in (1, 2) else terms.campaign_ids
        for row in balance.nonzero().tolist():
            expected = auditor_spend(auditor, limit, names.text(row), day)
            assert int(balance.of(balance.nonzero()).min()) > 0
            assert balance._nanos[row] == expected


def auditor_spend(auditor: Auditor, limit: int, entity_id: str, day: int) -> int:
    from datetime import date, timedelta

    from pipeline.contract.vocabulary import LIMITS

    when = None if day < 0 else date(1970, 1, 1) + timedelta(days=day)
    return auditor.spend(LIMITS[limit], entity_id, when)
