"""`pipeline doctor` finds what is wrong and says what to do."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from pipeline.contract.vocabulary import EVENT_TOPICS
from pipeline.embedded import ports
from pipeline.streams.topics import FoundTopic, TopicSpec, differences

from .conftest import Running, pipeline


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    return {one["what"]: one for one in json.loads(done.stdout)}


def test_beside_a_running_product_all_is_well(running: Running) -> None:
    done = running.run("doctor", "--json")
    found = findings(done)
    assert done.returncode == 0, found
    for what in ("kafka", "topics", "clickhouse", "tables", "clock", "java", "data directory"):
        assert found[what]["state"] == "ok", found[what]
    assert found["worker's port"]["says"] == "a worker answers there: running"
    assert "PIPELINE_SNAPSHOT_COPIES_DIR is not set" in found["snapshot copies"]["says"]
    assert running.run("doctor").stdout.count("\nok   ") >= 8


def test_copies_of_snapshots_need_a_place_with_room(running: Running, tmp_path: Path) -> None:
    def found(path: Path) -> dict[str, str]:
        environment = running.environment | {"PIPELINE_SNAPSHOT_COPIES_DIR": str(path)}
        arguments = ("doctor", "--json", "--data", str(running.data))
        return findings(pipeline(*arguments, environment=environment))["snapshot copies"]

    assert found(tmp_path)["state"] == "ok"
    missing = found(tmp_path / "copies")
    assert (missing["state"], missing["says"]) == (
        "fail",
        f"there is no directory {tmp_path}/copies",
    )
    assert found(Path("/proc"))["state"] in ("warn", "fail")  # root may write there: no room


def test_other_numbers_of_partitions_are_found(running: Running) -> None:
    environment = running.environment | {"PIPELINE_PARTITIONS": "8"}
    done = pipeline("doctor", "--json", "--data", str(running.data), environment=environment)
    assert done.returncode == 1
    topics = findings(done)["topics"]
    assert topics["state"] == "fail"
    assert "ads.impressions has 4 partitions, needs 8" in topics["says"]
    assert "PIPELINE_PARTITIONS" in topics["fix"]


def test_what_does_not_answer_is_named_with_what_to_do(tmp_path: Path, running: Running) -> None:
    nobody = f"127.0.0.1:{ports.free_port()}"
    environment = running.environment | {
        "PIPELINE_KAFKA_BOOTSTRAP": nobody,
        "PIPELINE_CLICKHOUSE_DSN": f"http://user:secret@{nobody}/",
        "PIPELINE_DATA_DIR": str(tmp_path),
        "PIPELINE_PARTITON": "8",
    }
    done = pipeline("doctor", "--json", environment=environment)
    found = findings(done)
    assert done.returncode == 1
    for what in ("kafka", "clickhouse"):
        assert found[what]["state"] == "fail"
        assert nobody in found[what]["says"]
        assert found[what]["fix"]
    assert found["settings"]["fix"] == "did you mean PIPELINE_PARTITIONS?"
    assert "secret" not in done.stdout + done.stderr


def test_who_dates_events_is_told_with_what_follows(running: Running) -> None:
    # By another name than 127.0.0.1 it is production to doctor, which wants LogAppendTime.
    bootstrap = json.loads((running.data / "endpoints.json").read_text())["kafka_bootstrap"]
    environment = running.environment | {
        "PIPELINE_CLOCK": "wall",
        "PIPELINE_KAFKA_BOOTSTRAP": bootstrap.replace("127.0.0.1", "localhost"),
        "PIPELINE_CLICKHOUSE_DSN": running.clickhouse,
    }

    def found() -> dict[str, str]:
        return findings(pipeline("doctor", "--json", environment=environment))["time stamps"]

    by_producers = found()
    assert by_producers["state"] == "warn"
    assert "ads.impressions, ads.clicks, ads.engagements" in by_producers["says"]
    assert "LogAppendTime" in by_producers["fix"]
    set_timestamp_type(bootstrap, "LogAppendTime")
    try:
        by_broker = found()
    finally:
        set_timestamp_type(bootstrap, "CreateTime")
    assert by_broker["state"] == "ok"
    assert "in vain for events older than 7 days" in by_broker["says"]


def set_timestamp_type(bootstrap: str, wanted: str) -> None:
    async def alter() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        try:
            config = {"message.timestamp.type": wanted}
            await admin.alter_configs(
                [ConfigResource(ConfigResourceType.TOPIC, topic, config) for topic in EVENT_TOPICS]
            )
        finally:
            await admin.close()

    asyncio.run(alter())


def test_only_what_is_less_than_needed_differs() -> None:
    spec = TopicSpec("t", 4, {"retention.ms": "1000", "cleanup.policy": "delete"})
    assert differences(spec, FoundTopic(4, 3, spec.config)) == []
    more = {"retention.ms": "-1", "cleanup.policy": "delete"}
    assert differences(spec, FoundTopic(4, 3, more)) == []
    less = {"retention.ms": "999", "cleanup.policy": "compact"}
    assert differences(spec, FoundTopic(3, 3, less)) == [
        "has 3 partitions, needs 4",
        "has retention.ms=999, needs 1000",
        "has cleanup.policy=compact, needs delete",
    ]
    for_ever = TopicSpec("t", 4, {"retention.ms": "-1"})
    assert differences(for_ever, FoundTopic(4, 3, {"retention.ms": "1000"})) != []
