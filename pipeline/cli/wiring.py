"""The composition root: from settings to running parts. Nothing else reads the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.billing.decide import Policy
from pipeline.pacing.predictive import Predictive
from pipeline.pacing.serving import PlainLimits
from pipeline.pacing.serving import Policy as PacingPolicy
from pipeline.reporting.schema import Layout
from pipeline.settings import PREFIX, Settings, load_settings
from pipeline.streams.clock import make_clock
from pipeline.streams.engine import EngineSettings
from pipeline.streams.log_reader import KafkaLogReader
from pipeline.streams.topics import TopicSpec, topic_specs
from pipeline.streams.worker import Worker, WorkerSettings

PACING_POLICIES: Mapping[str, Callable[[], PacingPolicy]] = {
    "plain": PlainLimits,
    "inflight": Predictive,
}

ENDPOINTS_FILE = "endpoints.json"
"""In the data directory of a running `pipeline up`: where its parts listen."""


def settings_for(data_dir: Path | None = None) -> Settings:
    """The settings of a command.

    What the environment leaves open is taken from the `pipeline up` that runs on the data
    directory, so that commands beside it need no settings at all.
    """
    settings = load_settings(data_dir=data_dir)
    given = {
        name: value
        for name, value in _endpoints(settings.data_dir).items()
        if not {PREFIX + name.upper(), f"{PREFIX}{name.upper()}_FILE"} & os.environ.keys()
    }
    return load_settings(data_dir=data_dir, **given) if given else settings


def _endpoints(data_dir: Path) -> dict[str, Any]:
    try:
        found = json.loads((data_dir / ENDPOINTS_FILE).read_text())
    except (OSError, ValueError):
        return {}
    fields = ("kafka_bootstrap", "clickhouse_dsn", "partitions", "clock", "day_grace_minutes")
    return {name: found[name] for name in fields if name in found}


def write_endpoints(settings: Settings, clickhouse_dsn: str) -> None:
    """Leave word for the commands beside a running `pipeline up`."""
    content = {
        "kafka_bootstrap": settings.kafka_bootstrap,
        "clickhouse_dsn": clickhouse_dsn,
        "partitions": settings.partitions,
        "clock": settings.clock,
        "day_grace_minutes": settings.day_grace_minutes,
    }
    (settings.data_dir / ENDPOINTS_FILE).write_text(json.dumps(content))


def remove_endpoints(settings: Settings) -> None:
    """`pipeline up` ends."""
    (settings.data_dir / ENDPOINTS_FILE).unlink(missing_ok=True)


def engine_settings(settings: Settings) -> EngineSettings:
    """What judging depends on."""
    return EngineSettings(
        partitions=settings.partitions,
        judging=Policy(
            acceptance_horizon_days=settings.acceptance_horizon_days,
            user_hash_key=settings.user_hash_key.get_secret_value().encode(),
        ),
        grace_ms=settings.day_grace_minutes * 60_000,
        keep_at_most_ids=settings.dedupe_max_ids,
        lag_bound_ms=settings.billing_lag_seconds * 1_000 if settings.clock == "wall" else 0,
    )


def make_worker(settings: Settings) -> Worker:
    """A worker; must be called inside the event loop that runs it."""
    return Worker(
        WorkerSettings(
            engine=engine_settings(settings),
            client_options=settings.kafka_client_options(),
            bootstrap=settings.kafka_bootstrap,
            data_dir=settings.data_dir,
            dedupe_memory_bytes=settings.dedupe_memory_mib << 20,
            session_timeout_s=settings.worker_session_timeout_ms / 1_000,
            turn_min_s=settings.tick_min_ms / 1_000,
            max_turn_events=settings.chunk_max_events,
            checkpoint_every_records=settings.checkpoint_every_records,
            snapshot_every_records=settings.snapshot_every_records,
            journal_version=settings.worker_journal_version,
            pacing=PACING_POLICIES[settings.pacing_policy],
        ),
        make_clock(settings.clock),
    )


def reader_factory(settings: Settings) -> Callable[[str], KafkaLogReader]:
    """Makes readers of whole topics."""
    options = settings.kafka_client_options()
    return lambda topic: KafkaLogReader(topic, options)


def specs_of(settings: Settings, *, keep_all: bool) -> list[TopicSpec]:
    """The contract's topics by these settings."""
    return topic_specs(settings.partitions, settings.acceptance_horizon_days, keep_all=keep_all)


def table_layout(settings: Settings) -> Layout:
    """How the tables are laid out."""
    return Layout(settings.clickhouse_replicated, settings.clickhouse_cluster)
