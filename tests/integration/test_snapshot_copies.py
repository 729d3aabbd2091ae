"""A worker dies and its disk with it: another one goes on from the copies of its snapshots."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

from pipeline.embedded.kafka import EmbeddedKafka
from tests.integration.cluster import PARTITIONS, Cluster
from tests.integration.product import until
from tests.integration.test_two_workers import Load


def test_the_next_owner_goes_on_from_the_copies(tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    settings = {
        "snapshot_copies_dir": str(copies),
        "snapshot_every_records": "5",
        "dedupe_memory_mib": "1",
    }

    def are_there() -> bool:
        """Of all shards, each with ids in files."""
        return len(list(copies.glob("*.snapshot"))) == PARTITIONS and all(
            any((copies / f"shard-{shard}").glob("*.ids")) for shard in range(PARTITIONS)
        )

    with EmbeddedKafka(tmp_path) as kafka, Cluster(tmp_path, kafka.bootstrap, "wall") as cluster:
        cluster.start_reporter()
        cluster.start_worker("first", **settings)
        cluster.until_shared("first")
        with Load(cluster, "copied") as load:
            until(are_there, "copies of all shards")
            cluster.send("first", signal.SIGKILL)
            cluster.wait("first")
            shutil.rmtree(cluster.data_dir("first"))
            cluster.start_worker("second", **settings)
            cluster.until_shared("second")
            load.repeat()
            time.sleep(1)
        load.check()
        for shard in range(PARTITIONS):
            assert f"shard {shard} goes on from the copy in {copies}" in cluster.log("second")
