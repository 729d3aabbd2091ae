"""What pacing keeps of each ad group grows with them."""

from __future__ import annotations

import numpy as np

from pipeline.billing.decide import Policy
from pipeline.pacing.columns import Columns
from pipeline.pacing.predictive import Predictive
from pipeline.streams.engine import Engine, EngineSettings


def test_growing_keeps_what_was_there_and_fills_the_rest() -> None:
    columns = Columns(one=(0, -1.0), some=(3, 7.0))
    columns.reserve(np.array([2]))
    columns.one[:3], columns.some[1] = (5.0, 6.0, 8.0), (1.0, 2.0, 3.0)
    columns.reserve(np.array([1, 200]))
    assert columns.one[:3].tolist() == [5.0, 6.0, 8.0]
    assert columns.some[:3].tolist() == [[7.0] * 3, [1.0, 2.0, 3.0], [7.0] * 3]
    assert (columns.one[3:] == -1.0).all()
    assert (columns.some[2:] == 7.0).all()
    columns.one[200] = 4.0
    assert columns.rows[200]["one"] == 4.0, "columns are of the records"


def test_a_few_more_rows_need_no_more_room() -> None:
    columns = Columns(one=(0, 0.0))
    columns.reserve(np.array([999]))
    before = columns.rows
    columns.reserve(np.array([1_100]))
    assert columns.rows is before


def test_a_shard_without_ad_groups_asks_for_no_turn() -> None:
    settings = EngineSettings(2, Policy(7, b"0123456789abcdef"), 0)
    engine = Engine(settings, Predictive())
    engine.new_shard(1)
    engine.adopt(1)
    assert not engine.is_due(1_700_000_000_000, {})
