"""From the environment to settings, and from them to what most commands need.

`judging` makes what decides, `tables` what concerns ClickHouse: together the composition root.
Nothing else reads the environment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.settings import PREFIX, Settings, load_settings
from pipeline.streams.log_reader import KafkaLogReader
from pipeline.streams.topics import TopicSpec, topic_specs

ENDPOINTS_FILE = "endpoints.json"
"""In the data directory of a running `pipeline up`: where its parts listen, and its settings."""

_TOLD = (
    "kafka_bootstrap",
    "partitions",
    "clock",
    "day_grace_minutes",
    "acceptance_horizon_days",
    "pacing_policy",
    "billing_lag_seconds",
    "dedupe_max_ids",
)
"""Settings that a command needs to find and to judge what `pipeline up` does; no secrets."""
OWN_KAFKA = {"kafka_security_protocol": "PLAINTEXT"}
"""How the Kafka of `pipeline up` is spoken to, whatever the environment says of another one."""


def settings_for(data_dir: Path | None = None) -> Settings:
    """The settings of a command.

    What the environment leaves open is taken from the `pipeline up` that runs on the data
    directory, so that commands beside it need no settings at all.
    """
    settings = load_settings(data_dir=data_dir)
    given: dict[str, Any] = {
        name: value
        for name, value in _endpoints(settings.data_dir).items()
        if not {PREFIX + name.upper(), f"{PREFIX}{name.upper()}_FILE"} & os.environ.keys()
    }
    if "kafka_bootstrap" in given:
        given |= OWN_KAFKA
    return load_settings(data_dir=data_dir, **given) if given else settings


def _endpoints(data_dir: Path) -> dict[str, Any]:
    try:
        found = json.loads((data_dir / ENDPOINTS_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return {name: found[name] for name in (*_TOLD, "clickhouse_dsn") if name in found}


def write_endpoints(settings: Settings, clickhouse_dsn: str) -> None:
    """Leave word for the commands beside a running `pipeline up`."""
    content = {name: getattr(settings, name) for name in _TOLD}
    content["clickhouse_dsn"] = clickhouse_dsn
    (settings.data_dir / ENDPOINTS_FILE).write_text(json.dumps(content))


def remove_endpoints(settings: Settings) -> None:
    """`pipeline up` ends."""
    (settings.data_dir / ENDPOINTS_FILE).unlink(missing_ok=True)


def reader_factory(settings: Settings) -> Callable[[str], KafkaLogReader]:
    """Makes readers of whole topics."""
    options = settings.kafka_client_options()
    return lambda topic: KafkaLogReader(topic, options)


def specs_of(settings: Settings, *, keep_all: bool) -> list[TopicSpec]:
    """The contract's topics by these settings."""
    return topic_specs(settings.partitions, settings.acceptance_horizon_days, keep_all=keep_all)
