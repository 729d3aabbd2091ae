"""What the running parts say of themselves: read off their /metrics pages."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import aiohttp
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

_WITHIN_S: Final = 2.0


@dataclass(slots=True)
class Shard:
    """One shard as its worker and the reporter have it now."""

    worker: str = ""
    lag_events: int = 0
    lag_s: float = 0.0
    dedupe_ids: int = 0
    reporter_lag_records: int = 0
    reporter_lag_s: float = 0.0


@dataclass(slots=True)
class Parts:
    """All that answered, and which did not."""

    shards: dict[int, Shard] = field(default_factory=dict)
    latencies: list[tuple[str, str, float, float, int]] = field(default_factory=list)
    """(address, what, median s, 99th percentile s, how many)."""
    failures: dict[str, int] = field(default_factory=dict)
    """Kind of broken invariant -> how many hold something up."""
    silent: list[str] = field(default_factory=list)


_LATENCIES: Final = {
    "pins_decision_seconds": "decide a turn",
    "pins_append_seconds": "append to the journal",
    "pins_oldest_event_age_seconds": "oldest event when decided",
}


async def read_parts(addresses: Sequence[str]) -> Parts:
    """Ask every `/metrics` address; one that does not answer is named, not waited for."""
    parts = Parts()
    timeout = aiohttp.ClientTimeout(total=_WITHIN_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        texts = await asyncio.gather(*(_read(session, address) for address in addresses))
    for address, text in zip(addresses, texts, strict=True):
        if text is None:
            parts.silent.append(address)
        else:
            _take(parts, address, text_string_to_metric_families(text))
    return parts


async def _read(session: aiohttp.ClientSession, address: str) -> str | None:
    try:
        async with session.get(address) as response:
            return await response.text() if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError):
        return None


def _take(parts: Parts, address: str, families: Iterable[Metric]) -> None:
    for family in families:
        if family.name in _LATENCIES:
            parts.latencies.append((address, _LATENCIES[family.name], *_quantiles(family)))
        for sample in family.samples:
            if sample.name == "pins_invariant_failures":
                parts.failures[sample.labels["kind"]] = int(sample.value)
            if "shard" in sample.labels:
                shard = parts.shards.setdefault(int(sample.labels["shard"]), Shard())
                _set(shard, address, sample.name, sample.value)


def _set(shard: Shard, address: str, name: str, value: float) -> None:
    if name == "pins_shard_lag_events":
        shard.worker, shard.lag_events = address, int(value)
    elif name == "pins_shard_lag_seconds":
        shard.lag_s = value
    elif name == "pins_dedupe_ids":
        shard.dedupe_ids = int(value)
    elif name == "pins_reporter_lag_records":
        shard.reporter_lag_records = int(value)
    elif name == "pins_reporter_lag_seconds":
        shard.reporter_lag_s = value


def _quantiles(family: Metric) -> tuple[float, float, int]:
    """Median and 99th percentile (upper bounds of their buckets), and the count."""
    buckets = sorted(
        (float(sample.labels["le"]), int(sample.value))
        for sample in family.samples
        if sample.name.endswith("_bucket")
    )
    total = buckets[-1][1] if buckets else 0
    median, p99 = (
        next((bound for bound, below in buckets if below >= share * total), 0.0)
        for share in (0.5, 0.99)
    )
    return median, p99, total
