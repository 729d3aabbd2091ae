"""How long a dead worker's shards stand still: kill -9 of one of two workers under load.

    python -m tests.fault.takeover [--times N] [--session-ms MS]

Prints, for each kill, the seconds until a survivor's first append to a shard of the dead one, and
their parts: until the group has given the shards away (the session timeout, above all), the fold of
the journals, and the first decision.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path
from random import Random

from aiokafka import TopicPartition

from tests.fault.cluster import FaultCluster
from tests.fault.load import Load
from tests.integration.cluster import PARTITIONS
from tests.integration.product import until

JOURNAL = "billing.journal"
_TOOK = re.compile(r"took over shards .* in ([0-9.]+) s")


def journal_ends(cluster: FaultCluster, shards: list[int]) -> dict[int, int]:
    ends = cluster.kafka.ends(JOURNAL)
    return {shard: ends[TopicPartition(JOURNAL, shard)] for shard in shards}


def measure(cluster: FaultCluster) -> dict[str, float]:
    """One kill of `first`; it is back when this returns."""
    shards = cluster.shards("first")
    took = len(_TOOK.findall(cluster.log("second")))
    with cluster.held_down("first"):
        began_s = time.monotonic()
        before = journal_ends(cluster, shards)
        folded_s = 0.0
        while journal_ends(cluster, shards).items() & before.items():
            if not folded_s and len(_TOOK.findall(cluster.log("second"))) > took:
                folded_s = time.monotonic() - began_s
            if time.monotonic() - began_s > 120:
                raise TimeoutError("the survivor does not take over")
        charged_s = time.monotonic() - began_s
        until(lambda: len(cluster.shards("second")) == PARTITIONS, "the survivor to own all")
    cluster.until_all_owned()
    fold_s = float(_TOOK.findall(cluster.log("second"))[took])
    folded_s = folded_s or charged_s
    return {
        "until_given_s": folded_s - fold_s,
        "fold_s": fold_s,
        "until_all_append_s": charged_s - folded_s,
        "total_s": charged_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--session-ms", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="takeover-") as scratch:
        settings = {"worker_session_timeout_ms": str(given.session_ms)}
        with FaultCluster(Path(scratch), **settings) as cluster:
            load = Load(lambda: cluster.kafka, Random(1).randrange(100), PARTITIONS)
            cluster.kafka.publish(load.catalog())
            cluster.run_always("first", "second")
            cluster.until_all_owned()
            with load:
                for _ in range(given.times):
                    time.sleep(5)
                    parts = measure(cluster)
                    print({name: round(value, 2) for name, value in parts.items()}, flush=True)


if __name__ == "__main__":
    main()
