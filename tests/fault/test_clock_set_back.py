"""A wall clock that is set back: time stands still meanwhile, and every verdict keeps to the rules.

A limit that has come into force stays so, for what is decided later is not decided earlier. A
worker that starts while the clock is behind goes by it: to stand still until a clock that had been
ahead is right would be worse.
"""

from __future__ import annotations

import time
from pathlib import Path

from tests.fault.audit import Audit
from tests.fault.cluster import FaultCluster
from tests.integration.product import HOUR_MS, Ad, at


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _click(cluster: FaultCluster, ad: Ad, first: int, count: int) -> None:
    """Clicks of 1 unit each."""
    now_ms = _now_ms()
    cluster.publish(*(ad.click(f"{number}", now_ms) for number in range(first, first + count)))
    cluster.settle()


def _limit(cluster: FaultCluster, ad: Ad, units: int) -> None:
    """Change the campaign's limit, from now on."""
    campaign = {"campaign_id": ad.campaign_id, "account_id": ad.account_id, "objective": "traffic"}
    limit = {"lifetime_spend_limit_micros": units * 1_000_000}
    cluster.publish_catalog(campaign | limit, timestamp_ms=_now_ms())


def test_every_verdict_keeps_to_the_rules(tmp_path: Path) -> None:
    with FaultCluster(tmp_path, clock="wall") as cluster:
        cluster.run_always("reporter", "first")
        cluster.until_all_owned()
        ad = cluster.ad("back", "traffic", at("2026-01-01"))
        audit = Audit()
        _limit(cluster, ad, 3)
        _click(cluster, ad, 0, 3)
        _limit(cluster, ad, 6)
        _click(cluster, ad, 3, 1)
        assert audit.look(cluster) == []

        cluster.shift_clocks(-2 * HOUR_MS)
        _click(cluster, ad, 4, 3)
        assert audit.look(cluster) == []
        verdicts = cluster.judged(ad, "disposition", "decided_at_ms")
        assert [verdict for verdict, _ in verdicts] == ["charged"] * 6 + ["over_budget"]
        times_ms = [decided_at_ms for _, decided_at_ms in verdicts]
        assert times_ms == sorted(times_ms)
        # The limit is lowered: from a time on that the clock has not come to.
        _limit(cluster, ad, 5)
        _click(cluster, ad, 7, 1)
        assert audit.look(cluster) == []

        cluster.kill("first")
        _click(cluster, ad, 8, 2)
        assert audit.look(cluster) == []
        [*_, (_, last_ms)] = cluster.judged(ad, "disposition", "decided_at_ms")
        assert last_ms < times_ms[-1] - HOUR_MS, "it goes by the clock that there is"

        cluster.shift_clocks(0)
        _click(cluster, ad, 10, 2)
        assert audit.look(cluster) == []
        assert sum(cluster.exits.values()) == 1, "but for the kill nothing ended"
