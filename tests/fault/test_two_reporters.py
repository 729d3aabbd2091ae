"""A second reporter on one ClickHouse, started by mistake, refuses or does no harm."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.fault.audit import Audit
from tests.fault.cluster import FaultCluster
from tests.fault.load import Load
from tests.fault.two_reporters import GAVE_WAY
from tests.integration.cluster import PARTITIONS
from tests.integration.product import until


class TwoReporters(FaultCluster):
    """Its reporter is two."""

    def start_reporter(self, **_: str) -> None:
        given = [sys.executable, "-m", "tests.fault.two_reporters", str(self._reporter_port)]
        dsn = f"chdb://{self.directory / 'clickhouse'}"
        with (self.directory / "reporter.log").open("ab") as log:
            self._processes["reporter"] = subprocess.Popen(
                given,
                env=self.environment(PIPELINE_CLICKHOUSE_DSN=dsn),
                stdout=log,
                stderr=log,
            )


def test_reporters_that_take_over_from_each_other_spoil_no_figure(tmp_path: Path) -> None:
    with TwoReporters(tmp_path) as cluster:
        load = Load(lambda: cluster.kafka, 5, PARTITIONS)
        cluster.kafka.publish(load.catalog())
        cluster.run_always("reporter", "first")
        cluster.until_all_owned()
        audit = Audit()
        with load:
            until(lambda: cluster.log("reporter").count(GAVE_WAY) >= 10, "ten changes", 120)
            for _ in range(2):
                time.sleep(5)
                load.pause()
                cluster.settle()
                assert audit.look(cluster) == []
                load.go_on()
        assert cluster.exits.total() == 0
        assert len(audit.judged) > 3_000
        assert cluster.query("SELECT count() AS n FROM billing.day_closes")[0]["n"] > 0


def test_a_second_process_on_the_embedded_engine_is_refused(tmp_path: Path) -> None:
    with FaultCluster(tmp_path) as cluster:
        cluster.run_always("reporter", "first")
        cluster.until_all_owned()
        cluster.settle()
        dsn = f"chdb://{tmp_path / 'clickhouse'}"
        second = subprocess.run(
            [sys.executable, "-m", "pipeline", "reporter"],
            env=cluster.environment(PIPELINE_CLICKHOUSE_DSN=dsn),
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert second.returncode != 0
        assert "Cannot lock file" in second.stderr
        assert cluster.health("reporter")["state"] == "running"
