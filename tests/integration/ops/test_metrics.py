"""Prometheus can scrape a real worker and reporter, and what they say is what the tables say."""

from __future__ import annotations

import json

from prometheus_client.parser import text_string_to_metric_families

from .conftest import Running, get, query

Samples = dict[tuple[str, tuple[str, ...]], float]


def scrape(url: str) -> Samples:
    """(sample name, label values) -> value."""
    status, body, headers = get(f"{url}/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_the_worker_counts_every_disposition_as_the_tables_do(running: Running) -> None:
    samples = scrape(running.worker)
    rows = query(running, "SELECT disposition, toUInt32(count()) FROM billing.events GROUP BY 1")
    assert len(rows) > 3
    for disposition, count in rows:
        assert samples["pins_events_total", (str(disposition),)] == count


def test_the_worker_counts_spend_and_signals_as_the_tables_do(running: Running) -> None:
    samples = scrape(running.worker)
    rows = query(
        running,
        "SELECT currency, sum(amount_nanos) / 1e9, sum(free_nanos) / 1e9 FROM billing.events "
        "WHERE currency != '' GROUP BY 1",
    )
    assert rows
    for currency, spend, free in rows:
        assert abs(samples["pins_spend_units_total", (str(currency),)] - float(str(spend))) < 0.01
        assert abs(samples["pins_free_units_total", (str(currency),)] - float(str(free))) < 0.01
    signals = query(running, "SELECT action, toUInt32(count()) FROM reporting.signals GROUP BY 1")
    assert signals
    for action, count in signals:
        assert samples["pins_signals_total", (str(action),)] == count


def test_the_worker_tells_lag_dedupe_and_latencies_of_its_shards(running: Running) -> None:
    samples = scrape(running.worker)
    assert samples["pins_shards_owned", ()] == 4
    assert samples["pins_worker_running", ()] == 1
    for shard in range(4):
        assert samples["pins_shard_lag_events", (str(shard),)] == 0
        assert samples["pins_shard_lag_seconds", (str(shard),)] == 0
    remembered = sum(v for (name, _), v in samples.items() if name == "pins_dedupe_ids")
    [[ids]] = query(
        running,
        "SELECT toUInt32(uniqExact(event_id)) FROM billing.events WHERE disposition IN "
        "('charged', 'counted', 'over_budget', 'repeat', 'not_serving')",
    )
    assert remembered >= int(str(ids))
    assert samples["pins_decision_seconds_count", ()] > 0
    assert samples["pins_append_seconds_count", ()] > 0
    assert samples["pins_journal_bytes_total", ()] > 1_000


def test_the_reporter_tells_lag_closes_and_broken_invariants(running: Running) -> None:
    samples = scrape(running.clickhouse)
    [[events]] = query(running, "SELECT toUInt32(count()) FROM billing.events")
    assert samples["pins_reporter_events_total", ()] == events
    [[closed]] = query(
        running,
        "SELECT toUnixTimestamp(toDateTime(max(billing_day), 'UTC')) FROM billing.day_closes",
    )
    assert samples["pins_last_closed_day_timestamp_seconds", ()] == closed
    assert samples["pins_oldest_open_day_timestamp_seconds", ()] > 0
    assert samples["pins_invariant_failures", ("journal_stopped",)] == 0
    assert samples["pins_invariant_failures", ("close_refused",)] == 0
    for shard in range(4):
        assert samples["pins_reporter_lag_records", (str(shard),)] == 0


def test_probes_say_live_and_ready(running: Running) -> None:
    for address in (running.worker, running.clickhouse):
        assert get(f"{address}/live")[0] == 200
        assert get(f"{address}/ready")[0] == 200


def test_logs_are_an_object_a_line(running: Running) -> None:
    lines = (running.data / "worker.log").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert any("took over shards" in entry["message"] for entry in entries)
    assert {"time", "level", "logger", "message"} <= entries[0].keys()
