"""An append whose answer is lost, its own or its signals', is in the journal: it counts once.

The worker ends, for it cannot know; what it leaves on its disk must not hold the decision already.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fault.cluster import FaultCluster
from tests.integration.product import at, until

NOON_MS = at("2026-03-02T12:00")


@pytest.mark.parametrize("where", ["append_acknowledged", "signals_sent"])
def test_the_books_are_the_journals_after_a_lost_answer(tmp_path: Path, where: str) -> None:
    with FaultCluster(tmp_path) as cluster:
        cluster.run_always("reporter", "first")
        cluster.until_all_owned()
        # Room for three clicks of 1 unit.
        budget = {"budget_micros": 3_000_000}
        ad = cluster.ad("lost", "traffic", at("2026-02-10"), ad_group=budget)
        cluster.publish(ad.click("lost-0", NOON_MS))
        cluster.settle()
        time.sleep(2.0)  # the clock has moved on: let the checkpoints that are due be written
        cluster.restart_armed("first", f"{where}:1:raise")
        until(lambda: "fail points are armed" in cluster.log("first"), "the armed worker")
        cluster.until_all_owned()
        assert cluster.exits["first", 70] == 0
        # Nothing follows this one: its append is waited for without a next decision.
        cluster.publish(ad.click("lost-1", NOON_MS + 1))
        until(lambda: cluster.exits["first", 70] == 1, "the worker to have ended")
        cluster.settle()
        cluster.publish(ad.click("lost-2", NOON_MS + 2))
        cluster.settle()
        assert cluster.judged(ad, "event_id", "disposition", "amount_nanos") == [
            (f"lost-{number}", "charged", 1_000_000_000) for number in range(3)
        ]
        cluster.assert_reconciled(events=3)
