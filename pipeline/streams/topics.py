"""The seven topics: how they are made, and how existing ones are checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, for_code

from pipeline.contract.vocabulary import (
    CATALOG,
    EVENT_TOPICS,
    JOURNAL,
    MS_PER_DAY,
    REJECTS,
    SIGNALS,
)
from pipeline.errors import UserError

JOURNAL_MAX_BYTES = 64 * 1024 * 1024
_RETENTION_MARGIN_DAYS = 2
_FOR_EVER_MS = 2**63 - 1


class TopicsError(UserError):
    """The topics are not as the contract needs them; the text says which and what to do."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic as the contract wants it."""

    name: str
    partitions: int
    config: dict[str, str]


def topic_specs(partitions: int, horizon_days: int, *, keep_all: bool) -> list[TopicSpec]:
    """The topics of the contract for so many shards.

    `keep_all` keeps deletable topics for ever (the embedded default, whose backfills carry old
    record timestamps that retention would delete); otherwise they are kept past the horizon.
    """
    kept_ms = (horizon_days + _RETENTION_MARGIN_DAYS) * MS_PER_DAY
    retention = {"cleanup.policy": "delete", "retention.ms": str(-1 if keep_all else kept_ms)}
    large = retention | {"max.message.bytes": str(JOURNAL_MAX_BYTES)}
    # History that late events are judged by must outlive its replacement by the horizon.
    # (The lag goes by record timestamps, which in a backfill are old on arrival.)
    lag_ms = _FOR_EVER_MS if keep_all else kept_ms
    catalog = {"cleanup.policy": "compact", "min.compaction.lag.ms": str(lag_ms)}
    signals = {"cleanup.policy": "compact", "min.compaction.lag.ms": str(MS_PER_DAY)}
    return [
        *(TopicSpec(topic, partitions, retention) for topic in EVENT_TOPICS),
        TopicSpec(CATALOG, 1, catalog),
        TopicSpec(SIGNALS, partitions, signals),
        TopicSpec(JOURNAL, partitions, large),
        TopicSpec(REJECTS, partitions, large),  # base64 makes an original a third larger
    ]


async def ensure_topics(
    client_options: Mapping[str, Any], specs: list[TopicSpec], replication_factor: int
) -> list[str]:
    """Create the topics that are missing and check the others; returns the names created.

    Raises `TopicsError` where an existing topic has another number of partitions: a campaign's
    shard is its partition, so that number can never change under the product.
    """
    admin = AIOKafkaAdminClient(**client_options)
    await admin.start()
    try:
        existing = {t["topic"]: len(t["partitions"]) for t in await _describe(admin, specs)}
        wrong = [
            f"{spec.name} has {existing[spec.name]} partitions, needs {spec.partitions}"
            for spec in specs
            if spec.name in existing and existing[spec.name] != spec.partitions
        ]
        if wrong:
            raise TopicsError(
                "; ".join(wrong) + ". Set PIPELINE_PARTITIONS to what the event topics have, "
                "or use fresh topics: a campaign's shard is its partition and cannot move."
            )
        missing = [spec for spec in specs if spec.name not in existing]
        await _create(admin, missing, replication_factor)
        return [spec.name for spec in missing]
    finally:
        await admin.close()


@dataclass(frozen=True, slots=True)
class FoundTopic:
    """One topic as Kafka has it."""

    partitions: int
    replicas: int
    """Of the partition with the fewest."""
    config: dict[str, str]


async def find_topics(
    client_options: Mapping[str, Any], specs: list[TopicSpec]
) -> dict[str, FoundTopic]:
    """Those of the contract's topics that are there, with their settings."""
    admin = AIOKafkaAdminClient(**client_options)
    await admin.start()
    try:
        described = await _describe(admin, specs)
        resources = [ConfigResource(ConfigResourceType.TOPIC, t["topic"]) for t in described]
        responses = await admin.describe_configs(resources) if resources else []
        configs = {
            name: {entry[0]: str(entry[1]) for entry in entries}
            for response in responses
            for _, _, _, name, entries in response.resources
        }
        return {
            topic["topic"]: FoundTopic(
                len(topic["partitions"]),
                min(len(partition["replicas"]) for partition in topic["partitions"]),
                configs.get(topic["topic"], {}),
            )
            for topic in described
        }
    finally:
        await admin.close()


_AT_LEAST = frozenset({"retention.ms", "min.compaction.lag.ms", "max.message.bytes"})
"""Settings that may be larger than the contract needs."""


def differences(spec: TopicSpec, found: FoundTopic) -> list[str]:
    """What of an existing topic is not as the contract needs it, in words."""
    wrong = []
    if found.partitions != spec.partitions:
        wrong.append(f"has {found.partitions} partitions, needs {spec.partitions}")
    for name, needed in spec.config.items():
        held = found.config.get(name, "")
        enough = held == needed
        if name in _AT_LEAST and held.lstrip("-").isdigit():
            for_ever = name == "retention.ms" and held == "-1"
            enough = for_ever or (needed != "-1" and int(held) >= int(needed))
        if not enough:
            wrong.append(f"has {name}={held or '(unset)'}, needs {needed}")
    return wrong


async def _describe(admin: AIOKafkaAdminClient, specs: list[TopicSpec]) -> list[dict[str, Any]]:
    names = set(await admin.list_topics())
    wanted = [spec.name for spec in specs if spec.name in names]
    return list(await admin.describe_topics(wanted)) if wanted else []


async def _create(
    admin: AIOKafkaAdminClient, specs: list[TopicSpec], replication_factor: int
) -> None:
    if not specs:
        return
    new = [
        NewTopic(
            name=spec.name,
            num_partitions=spec.partitions,
            replication_factor=replication_factor,
            topic_configs=spec.config,
        )
        for spec in specs
    ]
    response = await admin.create_topics(new)
    for name, code, message in response.topic_errors:
        if code and for_code(code) is not TopicAlreadyExistsError:
            raise TopicsError(f"Kafka did not create {name}: {message or for_code(code).__name__}")


async def count_partitions(client_options: Mapping[str, Any], topic: str) -> int:
    """How many partitions a topic has. Raises `TopicsError` where there is no such topic."""
    admin = AIOKafkaAdminClient(**client_options)
    await admin.start()
    try:
        if topic not in set(await admin.list_topics()):
            raise TopicsError(f"topic {topic} is not there; run `pipeline topics` first")
        described = await admin.describe_topics([topic])
        return len(described[0]["partitions"])
    finally:
        await admin.close()
