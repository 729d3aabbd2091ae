"""`pipeline up` and the commands beside it go by its own Kafka and settings, not by another's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.cli import wiring
from pipeline.cli.judging import engine_settings
from pipeline.cli.up import with_own_kafka
from pipeline.settings import Settings, load_settings

OWN = "127.0.0.1:29092"
OWN_OPTIONS = {"bootstrap_servers": [OWN], "security_protocol": "PLAINTEXT"}
ANOTHER_KAFKA = {
    "PIPELINE_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "PIPELINE_KAFKA_SASL_USERNAME": "pins",
    "PIPELINE_KAFKA_SASL_PASSWORD": "hunter2",
}
OWN_VALUES = {
    "PIPELINE_CLOCK": "stream",
    "PIPELINE_PARTITIONS": "2",
    "PIPELINE_DAY_GRACE_MINUTES": "7",
    "PIPELINE_ACCEPTANCE_HORIZON_DAYS": "3",
    "PIPELINE_PACING_POLICY": "plain",
    "PIPELINE_BILLING_LAG_SECONDS": "30",
    "PIPELINE_DEDUPE_MAX_IDS": "5000",
}


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("PIPELINE_"):
            monkeypatch.delenv(name)


def left_by_up(data_dir: Path) -> Settings:
    """The settings of an `up` that has left word in a data directory."""
    settings = with_own_kafka(load_settings(data_dir=data_dir), OWN)
    wiring.write_endpoints(settings, "http://127.0.0.1:28123")
    return settings


def test_another_kafkas_credentials_are_not_used_on_the_own_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in ANOTHER_KAFKA.items():
        monkeypatch.setenv(name, value)
    assert left_by_up(tmp_path).kafka_client_options() == OWN_OPTIONS
    assert wiring.settings_for(tmp_path).kafka_client_options() == OWN_OPTIONS
    # Of the Kafka that the environment names, it says how to speak to it.
    monkeypatch.setenv("PIPELINE_KAFKA_BOOTSTRAP", "kafka:9093")
    assert wiring.settings_for(tmp_path).kafka_security_protocol == "SASL_SSL"


def test_a_command_beside_up_judges_as_it_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as of_up:
        for name, value in OWN_VALUES.items():
            of_up.setenv(name, value)
        own = left_by_up(tmp_path)
    beside = wiring.settings_for(tmp_path)
    assert engine_settings(beside) == engine_settings(own)
    assert beside.pacing_policy == "plain"
    assert beside.clickhouse_dsn == "http://127.0.0.1:28123"


def test_what_up_leaves_word_of_holds_no_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in ANOTHER_KAFKA.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIPELINE_USER_HASH_KEY", "hunter2-hunter2-hunter2")
    left_by_up(tmp_path)
    assert "hunter2" not in (tmp_path / wiring.ENDPOINTS_FILE).read_text()
