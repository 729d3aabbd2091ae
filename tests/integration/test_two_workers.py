"""Two workers share the shards: whichever is killed, stopped or joins, every event counts once.

As in production: a broker, two `pipeline worker`, one `pipeline reporter`, by the wall's clock.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.embedded.kafka import EmbeddedKafka
from tests.integration.cluster import PARTITIONS, Cluster
from tests.integration.product import DAY_MS, Ad, Message, at, until

UNIT = 1_000_000_000
EACH = 600


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers at the start of each test, whatever their names, and at its end."""
    directory = tmp_path_factory.mktemp("cluster")
    with EmbeddedKafka(directory) as kafka, Cluster(directory, kafka.bootstrap, "wall") as running:
        running.start_reporter()
        running.start_worker("first")
        running.start_worker("second")
        running.until_shared("first", "second")
        yield running


class Load:
    """Clicks of 20 campaigns, which lie on all shards, 600 at a time; each tenth is sent twice."""

    def __init__(self, cluster: Cluster, name: str, rest_s: float = 0.1) -> None:
        self._cluster = cluster
        self._rest_s = rest_s
        created_ms = time.time_ns() // 1_000_000 - DAY_MS
        self._ads = [cluster.ad(f"{name}-{n}", "traffic", created_ms) for n in range(20)]
        self._enough = threading.Event()
        self._chunks = self._again = 0
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._enough.is_set():
                self._cluster.publish(*self._messages(self._chunks))
                self._chunks += 1
                time.sleep(self._rest_s)
        except BaseException as error:
            self._failure = error

    def _messages(self, chunk: int) -> list[Message]:
        messages = []
        now_ms = time.time_ns() // 1_000_000
        for number in range(chunk * EACH, (chunk + 1) * EACH):
            ad: Ad = self._ads[number % 20]
            click = ad.click(f"{ad.campaign_id}-{number}", now_ms)
            messages += [click, click] if number // 20 % 10 == 0 else [click]
        return messages

    def repeat(self) -> None:
        """Send what came first once more."""
        messages = self._messages(0)
        self._cluster.publish(*messages)
        self._again += len(messages)

    def check(self) -> None:
        """All of it is in the tables, each event charged once, and the books balance."""
        unique = self._chunks * EACH
        self._cluster.assert_each_charged_once(self._ads, unique, UNIT, self._again)
        assert self._cluster.query(
            "SELECT uniqExact(journal_partition) AS shards FROM billing.events "
            "WHERE campaign_id IN {campaigns:Array(String)}",
            campaigns=str([ad.campaign_id for ad in self._ads]),
        ) == [{"shards": PARTITIONS}]


def test_kill_9_of_one_of_two_workers_in_the_middle_of_a_load(cluster: Cluster) -> None:
    victim, survivor = cluster.workers()
    with Load(cluster, "killed") as load:
        time.sleep(2)
        cluster.send(victim, signal.SIGKILL)
        assert cluster.wait(victim) == -signal.SIGKILL
        cluster.until_shared(survivor)
        # Another one joins while the events go on.
        cluster.start_worker("third")
        cluster.until_shared(survivor, "third")
        time.sleep(1)
    load.check()


def test_a_worker_that_is_told_to_end_hands_its_shards_over(cluster: Cluster) -> None:
    leaving, staying = cluster.workers()
    with Load(cluster, "ended") as load:
        time.sleep(1)
        began_s = time.monotonic()
        cluster.send(leaving, signal.SIGTERM)
        assert cluster.wait(leaving) == 0
        assert time.monotonic() - began_s < 10
        cluster.until_shared(staying)
        # It said that it goes: nobody had to wait for its session to end.
        assert time.monotonic() - began_s < 10
        cluster.start_worker("fourth")
        cluster.until_shared(staying, "fourth")
    load.check()
    assert "Traceback" not in cluster.log(leaving)


@pytest.mark.long
def test_a_worker_that_was_away_and_comes_back_does_no_harm(cluster: Cluster) -> None:
    sleeper, awake = cluster.workers()
    with Load(cluster, "away") as load:
        time.sleep(1)
        cluster.send(sleeper, signal.SIGSTOP)
        cluster.until_shared(awake)
        time.sleep(1)
        cluster.send(sleeper, signal.SIGCONT)
        time.sleep(5)
        cluster.until_shared(sleeper, awake, supervised=True)
        time.sleep(1)
    load.check()


@pytest.mark.long
def test_workers_that_come_and_go_all_the_time(cluster: Cluster) -> None:
    """One rebalance after the other, some of them cutting off the takeover of the one before."""
    with Load(cluster, "coming-and-going", rest_s=0.0) as load:
        for number in range(6):
            leaving, staying = cluster.workers()
            cluster.start_worker(f"comer-{number}")
            time.sleep(1 + number / 2)
            cluster.send(leaving, signal.SIGKILL if number % 2 else signal.SIGTERM)
            cluster.wait(leaving)
            cluster.until_shared(staying, f"comer-{number}", supervised=True)
    load.check()


def test_a_backlog_is_punctual_however_far_the_topics_are_apart(tmp_path: Path) -> None:
    """Impressions of the 9th lie there when the clicks of the 6th are read: by the stream's clock
    the 6th is long over, but its clicks have not been read yet, so it is open."""
    with EmbeddedKafka(tmp_path) as kafka, Cluster(tmp_path, kafka.bootstrap, "stream") as running:
        ads = [running.ad(f"backlog-{n}", "traffic", at("2026-03-01")) for n in range(6)]
        on_9th_ms, on_6th_ms = at("2026-03-09T12:00"), at("2026-03-06T12:00")
        running.publish(
            *(ad.impression(f"{ad.campaign_id}-i", on_9th_ms) for ad in ads),
            *(
                ad.click(f"{ad.campaign_id}-{number}", on_6th_ms + number)
                for number in range(300)
                for ad in ads
            ),
            *(ad.engagement("save", f"{ad.campaign_id}-s", on_6th_ms) for ad in ads),
        )
        running.start_reporter()
        running.start_worker("first")
        running.start_worker("second")
        until(lambda: running.shards("first") or running.shards("second"), "a worker")
        until(lambda: running.health("reporter").get("state") == "running", "the reporter")
        running.settle()
        late = running.query(
            "SELECT count() AS n FROM billing.events WHERE posting_day != billing_day"
        )
        assert late == [{"n": 0}]
        assert running.query(
            "SELECT billing_day, disposition, count() AS n FROM billing.events "
            "GROUP BY ALL ORDER BY ALL"
        ) == [
            {"billing_day": "2026-03-06", "disposition": "charged", "n": 1_800},
            {"billing_day": "2026-03-06", "disposition": "counted", "n": 6},
            {"billing_day": "2026-03-09", "disposition": "counted", "n": 6},
        ]
