"""The scenarios, as a table: what is injected, and how often in the short and the long form.

An injection is a function of the stage and of how many faults to inject; it returns when they have
happened and everything runs again. What then is in the books is looked at by `tests.fault.run`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import NodeNotReadyError

from pipeline.billing.fold import SNAPSHOT_VERSION, outline_of
from tests.fault.cluster import SESSION_TIMEOUT_S, FaultCluster
from tests.fault.load import Load
from tests.integration.cluster import PARTITIONS
from tests.integration.product import DAY_MS, EVENT_TOPICS, HOUR_MS, Message, until

GROUP = "promoted-pins-billing"
JOURNAL = "billing.journal"
SNAPSHOT_HEAD = 4 + 32
"""Magic and SHA-256 of a snapshot file; the packed state follows."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What an injection has in its hands."""

    cluster: FaultCluster
    load: Load
    random: Random


Inject = Callable[[Stage, int], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of fault."""

    name: str
    inject: Inject
    short: int
    """How many faults of it in the short form (`make test-faults`)."""
    long: int
    lane: str = ""
    """Scenarios of different lanes run at the same time; those without a lane alone."""


def _says_once_more(cluster: FaultCluster, text: str) -> Callable[[], bool]:
    """To be asked later: whether the first worker has said this again since."""
    said = cluster.log("first").count(text)
    return lambda: cluster.log("first").count(text) > said


def _owns_all(cluster: FaultCluster, worker: str) -> bool:
    return len(cluster.shards(worker)) == PARTITIONS


# -- kill -9 and others at the fail points --------------------------------------------------------


def _at_point(process: str, point: str, within: int, action: str) -> Inject:
    """A fault at a fail point, in start after start of a process: each at another passing of it."""

    def inject(stage: Stage, times: int) -> None:
        delays_ms = (0, 1, 3, 9) if action == "kill" else (0,)
        specs = []
        for _ in range(times):
            hit = stage.random.randint(1, within)
            delay_ms = stage.random.choice(delays_ms)
            specs.append(f"{point}:{hit}:{action}:{delay_ms}")
        _fire(stage.cluster, process, point, specs)

    return inject


def _fire(cluster: FaultCluster, process: str, point: str, specs: Sequence[str]) -> None:
    """Restart a process with these specs, one a start, and wait until each has fired."""
    wanted = cluster.fired(process, point) + len(specs)
    cluster.restart_armed(process, *specs)
    until(
        lambda: cluster.fired(process, point) >= wanted,
        f"{specs} of {process} to fire",
        60 + 30 * len(specs),
    )


def _store_trouble(point: str, action: str) -> Inject:
    """ClickHouse refuses, answers late, or takes an insert and its answer is lost."""

    def inject(stage: Stage, times: int) -> None:
        for _ in range(times):
            first = stage.random.randint(1, 6)
            _fire(stage.cluster, "reporter", point, [f"{point}:{first}{action}"])

    return inject


# -- the broker -----------------------------------------------------------------------------------


def _broker_killed(stage: Stage, times: int) -> None:
    for _ in range(times):
        stage.cluster.kill_broker()
        time.sleep(stage.random.uniform(1, 4))


def _broker_restarted(stage: Stage, times: int) -> None:
    for _ in range(times):
        stage.cluster.restart_broker(down_s=stage.random.uniform(0, 4))
        time.sleep(stage.random.uniform(1, 3))


def _broker_away(stage: Stage, times: int) -> None:
    """Longer than any client waits for an answer: the worker waits, says so, and goes on."""
    cluster = stage.cluster
    for number in range(times):
        pid = cluster.pid("first")
        with cluster.broker_away():
            until(lambda: cluster.health("first").get("trouble"), "the worker to say that it waits")
            time.sleep(45 if number else 5)
        until(lambda: cluster.health("first").get("trouble") == "", "the worker to go on")
        assert cluster.pid("first") == pid, "the worker ended in place of waiting"


def _broker_frozen(stage: Stage, times: int) -> None:
    for _ in range(times):
        with stage.cluster.broker_frozen():
            time.sleep(stage.random.uniform(1, 2 * SESSION_TIMEOUT_S))
        time.sleep(1)


def _appends_time_out(stage: Stage, times: int) -> None:
    """The broker takes appends and is silent past the request timeout: each is sent again."""
    cluster = stage.cluster
    for _ in range(times):
        timed_out = _says_once_more(cluster, "RequestTimedOutError")
        with cluster.broker_frozen():
            until(timed_out, "an append to time out", 90)
        until(lambda: cluster.health("first").get("trouble") == "", "the worker to go on")
        cluster.until_all_owned()


def _limit_journal(cluster: FaultCluster, max_bytes: int) -> None:
    def is_limited() -> bool:
        try:
            asyncio.run(_alter_journal(cluster.kafka.bootstrap, max_bytes))
        except NodeNotReadyError:
            return False  # it was frozen, and is no member of its cluster again yet
        return True

    until(is_limited, "the broker to take the journal's limit")


async def _alter_journal(bootstrap: str, max_bytes: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        configs = {"max.message.bytes": str(max_bytes), "retention.ms": "-1"}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, JOURNAL, configs)])
    finally:
        await admin.close()


def _ends_once_more(cluster: FaultCluster) -> Callable[[], bool]:
    """To be asked later: whether the first worker has ended by an error of its own since."""
    ended = cluster.exits["first", 70]
    return lambda: cluster.exits["first", 70] > ended


def _appends_too_large(stage: Stage, times: int) -> None:
    cluster = stage.cluster
    for _ in range(times):
        refused = _ends_once_more(cluster)
        _limit_journal(cluster, 1_000)
        until(refused, "a refused append")
        _limit_journal(cluster, 64 << 20)
        cluster.until_all_owned()


# -- workers come, go and come back ---------------------------------------------------------------


def _zombie(stage: Stage, times: int) -> None:
    """A worker is stopped past its session, its shards move, and it wakes up."""
    cluster = stage.cluster
    with _SecondWorker(cluster):
        for number in range(times):
            name = ("first", "second")[number % 2]
            other = ("second", "first")[number % 2]
            cluster.send(name, signal.SIGSTOP)
            until(partial(_owns_all, cluster, other), f"{other} to own all")
            time.sleep(stage.random.uniform(0, 1))
            cluster.send(name, signal.SIGCONT)
            cluster.until_all_owned()


def _zombie_at_append(stage: Stage, times: int) -> None:
    """It is stopped at an append, and its record arrives when others have written long since."""
    cluster = stage.cluster
    with _SecondWorker(cluster):
        for _ in range(times):
            hit = stage.random.randint(1, 10)
            _fire(cluster, "first", "decide", [f"decide:{hit}:stop"])
            until(partial(_owns_all, cluster, "second"), "the second to own all")
            time.sleep(0.5)
            cluster.send("first", signal.SIGCONT)
            cluster.until_all_owned()


def _comes_and_goes(stage: Stage, times: int) -> None:
    """A worker joins; another one is told to go."""
    cluster = stage.cluster
    for _ in range(times):
        with _SecondWorker(cluster):
            time.sleep(stage.random.uniform(0, 1.5))


class _SecondWorker:
    """A second worker, for as long as the context lasts."""

    def __init__(self, cluster: FaultCluster) -> None:
        self._cluster = cluster

    def __enter__(self) -> None:
        self._cluster.run_always("second")
        self._cluster.until_all_owned()

    def __exit__(self, *_: object) -> None:
        self._cluster.retire("second")
        self._cluster.until_all_owned()


def _frozen(process: str) -> Inject:
    """A process stands still, too short for its session to end."""

    def inject(stage: Stage, times: int) -> None:
        for _ in range(times):
            stage.cluster.send(process, signal.SIGSTOP)
            time.sleep(stage.random.uniform(0.2, SESSION_TIMEOUT_S / 2))
            stage.cluster.send(process, signal.SIGCONT)
            time.sleep(0.5)

    return inject


def _reporter_down(stage: Stage, times: int) -> None:
    """Nobody reports for a while: the journal holds the backlog, charging and signals go on."""
    cluster = stage.cluster
    for _ in range(times):
        with cluster.held_down("reporter"):
            before = cluster.health("first").get("events", 0)
            time.sleep(stage.random.uniform(3, 5))
            assert cluster.health("first")["events"] > before, "charging stopped with the reporter"


# -- snapshots ------------------------------------------------------------------------------------


def _snapshots(stage: Stage) -> list[Path]:
    return sorted((stage.cluster.directory / "first" / "snapshots").glob("*.snapshot"))


def _spoiled(spoil: Callable[[Path, Random], None], says: str) -> Inject:
    """The worker finds its snapshots spoiled when it starts, and no copies of them."""

    def inject(stage: Stage, times: int) -> None:
        cluster = stage.cluster
        for _ in range(times):
            until(lambda: _are_whole(_snapshots(stage)), "whole snapshots")
            said = _says_once_more(cluster, says)
            with cluster.held_down("first"):
                cluster.forget_copies()
                for path in _snapshots(stage):
                    spoil(path, stage.random)
            cluster.until_all_owned()
            assert said(), f"it did not say {says!r}"

    return inject


def _spoiled_ids(spoil: Callable[[Path, Random], None]) -> Inject:
    """The worker finds files of ids spoiled that its snapshots name, and no copies: it starts
    without them."""

    def named(stage: Stage, since_ns: int) -> list[Path]:
        """By snapshots written since: older ones another scenario may have spoiled."""
        directory = stage.cluster.directory / "first" / "snapshots"
        fresh = (path for path in _snapshots(stage) if path.stat().st_mtime_ns > since_ns)
        contents = b"".join(path.read_bytes() for path in fresh)
        return [p for p in sorted(directory.glob("*/*.ids")) if p.stem.encode() in contents]

    def inject(stage: Stage, times: int) -> None:
        cluster = stage.cluster
        for _ in range(times):
            began_ns = time.time_ns()
            until(partial(named, stage, began_ns), "a file that a snapshot names")
            said = _says_once_more(cluster, "not used: ids")
            with cluster.held_down("first"):
                cluster.forget_copies()
                for path in named(stage, began_ns):
                    spoil(path, stage.random)
            cluster.until_all_owned()
            assert said(), "it did not say so"

    return inject


def _goes_on_from_copies(stage: Stage, spoil: Callable[[], None]) -> bool:
    """Whether the worker starts from the copies of its snapshots, after this was done meanwhile."""
    cluster = stage.cluster
    _await_copies(stage)
    said = _says_once_more(cluster, "goes on from the copy")
    with cluster.held_down("first"):
        spoil()
    cluster.until_all_owned()
    return said()


def _lose_disk(stage: Stage) -> None:
    shutil.rmtree(stage.cluster.directory / "first" / "snapshots")


def _disk_lost(stage: Stage, times: int) -> None:
    """The worker starts on an empty disk: it goes on from the copies of its snapshots."""
    for _ in range(times):
        assert _goes_on_from_copies(stage, partial(_lose_disk, stage)), "it did not say so"


def _own_of_another_journal(stage: Stage, times: int) -> None:
    """Its own snapshots are not of this journal, which some tell only when it is read: it goes on
    from the copies."""

    def spoil() -> None:
        for path in _snapshots(stage):
            _of_another_journal(path, stage.random)

    for _ in range(times):
        refused = _says_once_more(stage.cluster, "not of this journal")
        assert _goes_on_from_copies(stage, spoil), "it did not go on from a copy"
        assert refused(), "it did not find out"


def _copies_spoiled(stage: Stage, times: int) -> None:
    """It starts on an empty disk, and the copies are damaged: it folds the journal."""

    def spoil(kind: str) -> None:
        _lose_disk(stage)
        for path in stage.cluster.copies.glob(kind):
            stage.random.choice((_flip, _cut_off))(path, stage.random)

    for _ in range(times):
        kind = stage.random.choice(("*.snapshot", "*/*.ids"))
        went_on = _goes_on_from_copies(stage, partial(spoil, kind))
        assert not went_on, f"it went on from copies with damaged {kind}"


def _copies_unwritable(stage: Stage, times: int) -> None:
    """A file stands where the copies' directory was: the worker goes on without."""
    cluster = stage.cluster
    for _ in range(times):
        tried = _says_once_more(cluster, "not copied")
        away = cluster.copies.rename(cluster.directory / "copies-before")
        shutil.rmtree(away)
        cluster.copies.write_text("")
        until(tried, "a try")
        cluster.kill("first")
        cluster.until_all_owned()
        cluster.copies.unlink()
        cluster.copies.mkdir()


def _await_copies(stage: Stage) -> None:
    """Wait until every shard has a copy that was made just now, which is whole and has runs."""
    began_ns, copies = time.time_ns(), stage.cluster.copies

    def fresh() -> bool:
        found = [copies / f"shard-{shard}.snapshot" for shard in range(PARTITIONS)]
        return all(
            path.exists()
            and path.stat().st_mtime_ns > began_ns
            and outline_of(path.read_bytes()[SNAPSHOT_HEAD:], shard).runs
            for shard, path in enumerate(found)
        )

    until(fresh, "copies of all shards")


def _are_whole(paths: list[Path]) -> bool:
    """Whether there are snapshots, and none is still one that was spoiled before."""
    return bool(paths) and all(_is_whole(path.read_bytes()) for path in paths)


def _is_whole(content: bytes) -> bool:
    packed = content[SNAPSHOT_HEAD:]
    if hashlib.sha256(packed).digest() != content[4:SNAPSHOT_HEAD]:
        return False
    state: dict[str, Any] = msgspec.msgpack.decode(packed, strict=False)
    return bool(state["version"] == SNAPSHOT_VERSION)


def _flip(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def _cut_off(path: Path, random: Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(len(content))])


def _from_the_future(path: Path, _: Random) -> None:
    def change(state: dict[str, Any]) -> None:
        state["version"] += 1

    _rewrite(path, change)


def _of_another_journal(path: Path, random: Random) -> None:
    """Its last record is not there, or is another one."""

    def change(state: dict[str, Any]) -> None:
        if random.randrange(2):
            state["last_offset"] += 1_000_000
        else:
            state["digest"] = random.randbytes(32)

    _rewrite(path, change)


def _rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Another state in a snapshot that is whole."""
    content = path.read_bytes()
    state: dict[str, Any] = msgspec.msgpack.decode(content[SNAPSHOT_HEAD:], strict=False)
    change(state)
    packed = msgspec.msgpack.encode(state)
    path.write_bytes(content[:4] + hashlib.sha256(packed).digest() + packed)


def _unwritable(stage: Stage, times: int) -> None:
    """A file stands where the snapshots' directory was."""
    directory = stage.cluster.directory / "first" / "snapshots"
    for _ in range(times):
        until(lambda: _snapshots(stage), "a snapshot")
        tried = _says_once_more(stage.cluster, "not written")
        shutil.rmtree(directory)
        directory.write_text("")
        until(tried, "a try")
        stage.cluster.kill("first")
        stage.cluster.until_all_owned()
        directory.unlink()


def _disk_full(stage: Stage, times: int) -> None:
    """Every write of a snapshot ends with ENOSPC: it goes to /dev/full."""
    directory = stage.cluster.directory / "first" / "snapshots"
    for _ in range(times):
        until(lambda: _snapshots(stage), "a snapshot")
        tried = _says_once_more(stage.cluster, "No space left")
        for path in _snapshots(stage):
            part = path.with_suffix(".part")
            part.unlink(missing_ok=True)
            part.symlink_to("/dev/full")
        until(tried, "a try")
        stage.cluster.kill("first")
        for part in directory.glob("*.part"):
            part.unlink()


# -- what the topics hold -------------------------------------------------------------------------


async def _rewind(bootstrap: str, partitions: int) -> None:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, group_id=GROUP, enable_auto_commit=False
    )
    await consumer.start()
    try:
        tps = [TopicPartition(topic, p) for topic in EVENT_TOPICS for p in range(partitions)]
        consumer.assign(tps)
        await consumer.commit(dict.fromkeys(tps, 0))
    finally:
        await consumer.stop()


def _rewound(stage: Stage, times: int) -> None:
    for _ in range(times):
        with stage.cluster.held_down("first"):
            time.sleep(SESSION_TIMEOUT_S + 1)  # the group must be empty to take it
            asyncio.run(_rewind(stage.cluster.kafka.bootstrap, 4))
        stage.cluster.until_all_owned()


def _resent_whole(stage: Stage, times: int) -> None:
    for number in range(times):
        topic = EVENT_TOPICS[number % len(EVENT_TOPICS)]
        held = stage.cluster.kafka.read(topic)
        stage.load.add(
            *(
                Message(topic, each.value, each.timestamp, each.key, each.partition)
                for each in held[:5_000]
            )
        )
        time.sleep(2)


def _resent_otherwise(change: Callable[[dict[str, Any], Message], None]) -> Inject:
    """Recent events come again, with something else in them; then again after a restart."""

    def inject(stage: Stage, times: int) -> None:
        for _ in range(times):
            again = []
            for message in stage.load.recent:
                if isinstance(message.value, dict):
                    value = dict(message.value)
                    change(value, message)
                    now_ms = stage.load.now_ms
                    again.append(replace(message, value=value, timestamp_ms=now_ms))
            stage.load.add(*again)
            time.sleep(1)
            stage.cluster.kill("first")
            stage.load.add(*again)

    return inject


def _another_time(value: dict[str, Any], _: Message) -> None:
    value["event_time_ms"] -= HOUR_MS


def _another_campaign(value: dict[str, Any], _: Message) -> None:
    value |= {"campaign_id": "busy-1-campaign", "ad_group_id": "busy-1-group"}
    value["promoted_pin_id"] = "busy-1-pin"


def _as_it_was(value: dict[str, Any], _: Message) -> None:
    json.dumps(value)


def _clock_jumps(stage: Stage, times: int) -> None:
    """A record far ahead moves the clock on; all that follows is late for its day."""
    for _ in range(times):
        ahead_ms = stage.load.now_ms + stage.random.randint(1, 30) * DAY_MS // 10
        ad = Message(EVENT_TOPICS[0], b"ahead", ahead_ms, b"busy-1-campaign")
        stage.load.add(ad)
        time.sleep(2)


def _worker_kills() -> list[Scenario]:
    within = {
        "snapshot_written": 4,
        "snapshot_copied": 4,
        "ids_written": 2,
        "offset_commit": 1,
        "taken_over": 1,
    }
    points = (
        "fetch",
        "decide",
        "append_sent",
        "append_acknowledged",
        "signals_sent",
        "snapshot_written",
        "snapshot_copied",
        "ids_written",
        "taken_over",
        "offset_commit",
    )
    return [
        Scenario(
            f"worker killed at {point.replace('_', ' ')}",
            _at_point("first", point, within.get(point, 12), "kill"),
            short=2,
            long=13,
            lane="worker",
        )
        for point in points
    ]


def _reporter_kills() -> list[Scenario]:
    within = {"plan_stored": 5, "insert_sent": 15, "insert_acknowledged": 15, "day_closed": 2}
    return [
        Scenario(
            f"reporter killed at {point.replace('_', ' ')}",
            _at_point("reporter", point, most, "kill"),
            short=2,
            long=15,
            lane="reporter",
        )
        for point, most in within.items()
    ]


SCENARIOS: tuple[Scenario, ...] = (
    *_worker_kills(),
    *_reporter_kills(),
    Scenario(
        "insert refused for seconds", _store_trouble("insert_sent", "-12:raise"), 1, 6, "reporter"
    ),
    Scenario(
        "insert's answer lost", _store_trouble("insert_acknowledged", ":raise"), 1, 12, "reporter"
    ),
    Scenario("inserts slow", _store_trouble("insert_sent", "-20:sleep:300"), 1, 6, "reporter"),
    Scenario("reporter frozen", _frozen("reporter"), 1, 8, "reporter"),
    Scenario(
        "append's answer lost",
        _at_point("first", "append_acknowledged", 12, "raise"),
        1,
        10,
        "worker",
    ),
    Scenario("fetch fails", _at_point("first", "fetch", 12, "raise"), 1, 6, "worker"),
    Scenario("worker frozen", _frozen("first"), 1, 8, "worker"),
    Scenario("reporter down, backlog", _reporter_down, 1, 5),
    Scenario("broker killed", _broker_killed, 1, 8),
    Scenario("broker restarted", _broker_restarted, 1, 6),
    Scenario("broker away for long", _broker_away, 1, 3),
    Scenario("broker frozen", _broker_frozen, 1, 6),
    Scenario("appends time out", _appends_time_out, 1, 3),
    Scenario("appends too large", _appends_too_large, 1, 3),
    Scenario("zombie worker", _zombie, 1, 6),
    Scenario("zombie at an append", _zombie_at_append, 1, 5),
    Scenario("worker joins and leaves", _comes_and_goes, 1, 6),
    Scenario("snapshot with a flipped bit", _spoiled(_flip, "is damaged"), 1, 3),
    Scenario("snapshot cut off", _spoiled(_cut_off, "is damaged"), 1, 3),
    Scenario("snapshot of a later version", _spoiled(_from_the_future, "not used"), 1, 3),
    Scenario("ids with a flipped bit", _spoiled_ids(_flip), 1, 3),
    Scenario("ids cut off", _spoiled_ids(_cut_off), 1, 3),
    Scenario(
        "snapshot of another journal", _spoiled(_of_another_journal, "not of this journal"), 1, 4
    ),
    Scenario("snapshots unwritable", _unwritable, 1, 3),
    Scenario("snapshot disk full", _disk_full, 1, 3),
    Scenario("worker's disk lost", _disk_lost, 1, 4),
    Scenario("own snapshot of another journal", _own_of_another_journal, 1, 4),
    Scenario("copies of snapshots damaged", _copies_spoiled, 1, 4),
    Scenario("copies of snapshots unwritable", _copies_unwritable, 1, 3),
    Scenario("group offsets rewound", _rewound, 1, 3),
    Scenario("topic resent whole", _resent_whole, 1, 5),
    Scenario("same ids after a restart", _resent_otherwise(_as_it_was), 1, 5),
    Scenario("same ids, other times", _resent_otherwise(_another_time), 1, 5),
    Scenario("same ids, other campaign", _resent_otherwise(_another_campaign), 1, 5),
    Scenario("clock jumps ahead", _clock_jumps, 1, 5),
)
