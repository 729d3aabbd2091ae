"""Whatever ends and whenever: nothing is lost, nothing is twice, and nothing is left running."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.integration.product import CATALOG, Ad, Message, Product, at, pipeline, until

CREATED_MS = at("2026-02-10")
NOON_MS = at("2026-03-02T12:00")
UNIT = 1_000_000_000
PARTS = ("kafka", "worker", "reporter")

_names = (f"load-{number}" for number in count())


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("restarted") / "data"


@pytest.fixture(scope="module")
def kept(directory: Path) -> Iterator[Product]:
    """One product on one directory for all these tests, which end and start it."""
    with Product(directory) as running:
        yield running


class Load:
    """Clicks of two campaigns at some 2,000 a second from a thread, of which every tenth is sent
    twice; `finish` waits for all of them to be in the tables and checks that each counted once."""

    def __init__(self, product: Product, chunks: int = 12) -> None:
        self._product = product
        self._ads = [product.ad(next(_names), "traffic", CREATED_MS) for _ in range(2)]
        self._chunks = chunks
        self._each = 500
        self._half_sent = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            for chunk in range(self._chunks):
                self._product.publish(*self._messages(chunk))
                if chunk == self._chunks // 3:
                    self._half_sent.set()
        except BaseException as error:
            self._failure = error
            self._half_sent.set()

    def _messages(self, chunk: int) -> list[Message]:
        first = chunk * self._each
        messages = []
        for number in range(first, first + self._each):
            ad: Ad = self._ads[number % 2]
            click = ad.click(f"{ad.campaign_id}-{number}", NOON_MS)
            messages += [click, click] if number % 10 == 0 else [click]
        return messages

    def until_under_way(self) -> None:
        """Wait until about a third has been sent, and some of it has been judged."""
        assert self._half_sent.wait(60)

    def finish(self) -> None:
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        self._product.assert_each_charged_once(self._ads, self._chunks * self._each, UNIT)


def kill_part(product: Product, part: str) -> None:
    """Kill it with -9 and wait until another one runs in its place."""
    killed = product.part_pid(part)
    os.kill(killed, signal.SIGKILL)

    def replaced() -> bool:
        with contextlib.suppress(FileNotFoundError):  # between the two
            return product.part_pid(part) != killed
        return False

    until(replaced, f"another {part} in place of the killed one")


@pytest.mark.parametrize("part", ["worker", "reporter"])
def test_kill_9_of_a_part_in_the_middle_of_a_load(kept: Product, part: str) -> None:
    load = Load(kept)
    load.until_under_way()
    kill_part(kept, part)
    load.finish()
    assert f"the {part} ended with code -9; starting it again" in kept.stderr()


@pytest.mark.long
def test_a_worker_and_a_reporter_killed_again_and_again(kept: Product) -> None:
    load = Load(kept, chunks=20)
    load.until_under_way()
    for part in ("worker", "reporter", "worker", "reporter"):
        kill_part(kept, part)
    load.finish()


def test_a_second_start_on_the_directory_says_what_to_do(kept: Product, directory: Path) -> None:
    second = pipeline("up", "--data", str(directory))
    assert second.returncode == 1
    assert f"in use by a running process (pid {kept.pid})" in second.stderr
    assert "or choose another data directory" in second.stderr.replace("\n", " ")
    assert "Traceback" not in second.stderr
    assert second.stdout == ""


@pytest.mark.parametrize("option", ["--kafka-port", "--clickhouse-port", "--web-port"])
def test_a_taken_port_is_named_with_the_option_to_choose_another(
    tmp_path: Path, option: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        refused = pipeline("up", "--data", str(tmp_path / "data"), option, port)
    assert refused.returncode == 1
    text = refused.stderr.replace("\n", " ")
    assert f"Port {port}" in text
    assert option in text
    assert "Traceback" not in text


def test_sigterm_ends_everything_in_time_and_the_next_start_goes_on(kept: Product) -> None:
    load = Load(kept)
    load.finish()
    pids = [kept.part_pid(part) for part in PARTS]
    before = kept.query("SELECT count() AS n, max(shard_seq) AS seq FROM billing.events")
    code, seconds = kept.end(signal.SIGTERM)
    assert code == 0
    assert seconds < 10
    assert [pid for pid in pids if is_running(pid)] == []
    assert not (kept.data_dir / "endpoints.json").exists()
    kept.start()
    assert kept.query("SELECT count() AS n, max(shard_seq) AS seq FROM billing.events") == before
    Load(kept, chunks=2).finish()


@pytest.mark.long
def test_sigint_ends_it_in_the_middle_of_a_load(kept: Product) -> None:
    ad = kept.ad("interrupted", "traffic", CREATED_MS)
    kept.publish(*(ad.click(f"interrupted-{n}", NOON_MS) for n in range(20_000)))
    code, seconds = kept.end(signal.SIGINT)
    assert (code, seconds < 10) == (0, True)
    kept.start()
    kept.settle()
    assert kept.query(
        "SELECT count() AS n, sum(amount_nanos) AS nanos FROM billing.events "
        "WHERE campaign_id = {c:String}",
        c=ad.campaign_id,
    ) == [{"n": 20_000, "nanos": 20_000 * UNIT}]
    kept.assert_reconciled()


def test_kill_9_of_it_all_leaves_nothing_running_and_the_next_start_recovers(
    kept: Product,
) -> None:
    ad = kept.ad("killed", "awareness", CREATED_MS)
    kept.publish(*(ad.impression(f"killed-{n}", NOON_MS) for n in range(20_000)))
    pids = [kept.part_pid(part) for part in PARTS]
    code, _ = kept.end(signal.SIGKILL)
    assert code == -signal.SIGKILL
    until(lambda: not any(is_running(pid) for pid in pids), "the end of every child", 10)
    kept.start()
    kept.settle()
    assert kept.query(
        "SELECT count() AS n, sum(amount_nanos) AS nanos FROM billing.events "
        "WHERE campaign_id = {c:String}",
        c=ad.campaign_id,
    ) == [{"n": 20_000, "nanos": 20_000 * (UNIT // 1_000)}]
    kept.assert_reconciled()


TAMPERING = """
import sys
import clickhouse_connect
client = clickhouse_connect.get_client(dsn=f"chdb:////{sys.argv[1].lstrip('/')}")
client.command(
    "ALTER TABLE billing.charges UPDATE amount_nanos = amount_nanos + 1 WHERE charge_id = "
    "(SELECT min(charge_id) FROM billing.charges WHERE basis = 'cpc')",
    settings={"mutations_sync": 2},
)
client.close()
"""


def test_one_nano_put_into_the_books_is_found(kept: Product, directory: Path) -> None:
    """The last of these tests: it spoils the books."""
    assert kept.end()[0] == 0
    done = subprocess.run(
        [sys.executable, "-c", TAMPERING, str(directory / "clickhouse")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    kept.start()
    told = kept.run("reconcile")
    assert told.returncode == 1
    assert "identities do NOT hold" in told.stdout
    assert "clicks_and_engagements_posted_at_once" in told.stderr


def test_a_clean_restart_sends_no_refusal_again(tmp_path: Path) -> None:
    """Though the last record is a checkpoint, which lets nothing out."""
    settings = {"checkpoint_every_records": "1"}
    with Product(tmp_path / "data", partitions=1, **settings) as product:
        ad = product.ad(next(_names), "traffic", CREATED_MS)
        invalid = {"promoted_pin_id": ad.promoted_pin_id, "ad_group_id": 7}
        product.publish_catalog(invalid, timestamp_ms=CREATED_MS)
        product.publish(ad.click("before", NOON_MS))
        product.settle()
        until(product.rejects, "the refusal of the invalid pin")
        time.sleep(1.0)  # the checkpoint comes in the next idle pass
        catalog = product.kafka.ends(CATALOG)
        assert product.end()[0] == 0
        product.start()
        product.publish(ad.click("after", NOON_MS))
        product.settle()
        assert len(product.rejects()) == 1
        assert product.kafka.ends(CATALOG) == catalog
