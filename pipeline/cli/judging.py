"""What decides, as the settings say: the engine's settings, and a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.billing.decide import Policy
from pipeline.pacing.predictive import Predictive
from pipeline.pacing.serving import PlainLimits
from pipeline.pacing.serving import Policy as PacingPolicy
from pipeline.settings import Settings
from pipeline.streams.clock import make_clock
from pipeline.streams.engine import EngineSettings
from pipeline.streams.worker import Worker, WorkerSettings

PACING_POLICIES: Mapping[str, Callable[[], PacingPolicy]] = {
    "plain": PlainLimits,
    "inflight": Predictive,
}


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
            snapshot_copies_dir=settings.snapshot_copies_dir,
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
