"""Settings come from PIPELINE_ variables, and a bad one is named with what is allowed."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.settings import SettingsError, load_settings, misspelt_variables


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("PIPELINE_"):
            monkeypatch.delenv(name)


def test_without_any_variable_everything_is_embedded_and_local() -> None:
    settings = load_settings()
    assert settings.kafka_client_options() == {
        "bootstrap_servers": ["127.0.0.1:9092"],
        "security_protocol": "PLAINTEXT",
    }
    assert settings.clickhouse_dsn == f"chdb://{Path.cwd()}/data/clickhouse"
    assert settings.clock == "wall"
    assert settings.has_development_user_hash_key


def test_the_embedded_engine_lies_in_the_data_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_DATA_DIR", "/var/lib/pins")
    assert load_settings().clickhouse_dsn == "chdb:///var/lib/pins/clickhouse"


def test_copies_of_snapshots_do_not_lie_in_a_worker_s_own_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PIPELINE_DATA_DIR", "/var/lib/pins")
    monkeypatch.setenv("PIPELINE_SNAPSHOT_COPIES_DIR", "/var/lib/pins/copies")
    with pytest.raises(SettingsError, match=r"/copies lies in PIPELINE_DATA_DIR"):
        load_settings()
    monkeypatch.setenv("PIPELINE_SNAPSHOT_COPIES_DIR", "/var/lib/pins-copies")
    assert load_settings().snapshot_copies_dir == Path("/var/lib/pins-copies")


def test_a_command_line_option_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_PARTITIONS", "16")
    assert load_settings(partitions=8).partitions == 8
    assert load_settings(partitions=None).partitions == 16


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("CLOCK", "sundial", r"PIPELINE_CLOCK is 'sundial': .*'wall' or 'stream'"),
        ("KAFKA_SECURITY_PROTOCOL", "TLS", r"'TLS': .*'PLAINTEXT', 'SSL', 'SASL_PLAINTEXT' or"),
        ("KAFKA_BOOTSTRAP", "kafka", r"PIPELINE_KAFKA_BOOTSTRAP .*'kafka' is not HOST:PORT"),
        ("KAFKA_BOOTSTRAP", "a:1,b:99999", r"'b:99999' is not HOST:PORT"),
        ("KAFKA_SSL_CAFILE", "/no/such.pem", r"there is no file /no/such\.pem"),
        ("PARTITIONS", "0", r"PIPELINE_PARTITIONS is '0': .*greater than or equal to 1"),
        ("DAY_GRACE_MINUTES", "2h", r"PIPELINE_DAY_GRACE_MINUTES is '2h': .*integer"),
        ("CLICKHOUSE_DSN", "chdb://data", r"chdb:///ABSOLUTE/PATH"),
        ("CLICKHOUSE_DSN", "http://u:p@h:99999/", r"PIPELINE_CLICKHOUSE_DSN: the port is not"),
        ("CLICKHOUSE_DSN", "http://h:port/", r"PIPELINE_CLICKHOUSE_DSN: the port is not"),
        ("DATA_DIR", "/what?", r"PIPELINE_DATA_DIR .*\? or #"),
        ("SNAPSHOT_COPIES_DIR", "copies", r"SNAPSHOT_COPIES_DIR .*'copies': .*is an absolute path"),
        ("USER_HASH_KEY", "short", r"PIPELINE_USER_HASH_KEY: a key has 16 to 64 bytes"),
        ("USER_HASH_KEY", "é" * 33, r"16 to 64 bytes, this one has 66"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, text: str
) -> None:
    monkeypatch.setenv(f"PIPELINE_{name}", value)
    with pytest.raises(SettingsError, match=text):
        load_settings()


def test_all_bad_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_CLOCK", "x")
    monkeypatch.setenv("PIPELINE_TICK_MIN_MS", "x")
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("USER_HASH_KEY", "hunter2"),
        ("CLICKHOUSE_DSN", "ftp://user:hunter2@host/"),
        ("CLICKHOUSE_DSN", "http://user:hunter2/@host/"),
    ],
)
def test_a_bad_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"PIPELINE_{name}", value)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert f"PIPELINE_{name}" in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_secrets_are_not_in_the_text_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_KAFKA_SASL_PASSWORD", "hunter2")
    monkeypatch.setenv("PIPELINE_CLICKHOUSE_DSN", "http://user:hunter2@host:8123/")
    monkeypatch.setenv("PIPELINE_USER_HASH_KEY", "hunter2-hunter2-hunter2")
    assert "hunter2" not in repr(load_settings()) + str(load_settings())


def test_sasl_without_credentials_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("PIPELINE_KAFKA_SASL_USERNAME", "pins")
    with pytest.raises(SettingsError, match=r"SASL_SSL needs PIPELINE_KAFKA_SASL_PASSWORD$"):
        load_settings()


def test_sasl_over_ssl_gives_clients_credentials_and_a_verifying_context() -> None:
    options = load_settings(
        kafka_bootstrap="a:9092, b:9092",
        kafka_security_protocol="SASL_SSL",
        kafka_sasl_mechanism="SCRAM-SHA-512",
        kafka_sasl_username="pins",
        kafka_sasl_password="hunter2",
    ).kafka_client_options()
    context = options.pop("ssl_context")
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert options == {
        "bootstrap_servers": ["a:9092", "b:9092"],
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "pins",
        "sasl_plain_password": "hunter2",
    }


def test_settings_do_not_change() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError):
        settings.partitions = 8


def test_a_misspelt_variable_is_noticed_and_a_strangers_is_not() -> None:
    environ = {
        "PIPELINE_DAY_GRACE_MINUTE": "60",
        "PIPELINE_CLOCK": "wall",
        "PIPELINE_WORKSPACE": "/builds",
        "PATH": "/bin",
    }
    assert misspelt_variables(environ) == {
        "PIPELINE_DAY_GRACE_MINUTE": "PIPELINE_DAY_GRACE_MINUTES"
    }


# -- secrets from files -----------------------------------------------------------------------


def test_a_secret_may_lie_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a key of sixteen or more\n")
    (tmp_path / "dsn").write_text("http://reporter:hunter2@ch:8123/")
    monkeypatch.setenv("PIPELINE_USER_HASH_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("PIPELINE_CLICKHOUSE_DSN_FILE", str(tmp_path / "dsn"))
    settings = load_settings()
    assert settings.user_hash_key.get_secret_value() == "a key of sixteen or more"
    assert settings.clickhouse_dsn == "http://reporter:hunter2@ch:8123/"
    assert "hunter2" not in repr(settings)
    assert not misspelt_variables()


@pytest.mark.parametrize(
    ("content", "plain", "text"),
    [
        (None, None, r"PIPELINE_DASHBOARD_TOKEN_FILE names .*token, which cannot be read: No such"),
        ("a token", "another", r"DASHBOARD_TOKEN_FILE and PIPELINE_DASHBOARD_TOKEN are both set"),
    ],
)
def test_a_secret_file_that_cannot_be_used_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    content: str | None,
    plain: str | None,
    text: str,
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    if plain is not None:
        monkeypatch.setenv("PIPELINE_DASHBOARD_TOKEN", plain)
    monkeypatch.setenv("PIPELINE_DASHBOARD_TOKEN_FILE", str(path))
    with pytest.raises(SettingsError, match=text):
        load_settings()


def test_a_bad_secret_from_a_file_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("too short")
    monkeypatch.setenv("PIPELINE_USER_HASH_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(SettingsError, match="16 to 64 bytes") as refused:
        load_settings()
    assert "too short" not in str(refused.value)


def test_oauthbearer_needs_its_token_and_no_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIPELINE_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("PIPELINE_KAFKA_SASL_MECHANISM", "OAUTHBEARER")
    with pytest.raises(SettingsError, match="needs PIPELINE_KAFKA_SASL_TOKEN_PATH"):
        load_settings()
    (tmp_path / "token").write_text("abc")
    monkeypatch.setenv("PIPELINE_KAFKA_SASL_TOKEN_PATH", str(tmp_path / "token"))
    assert "sasl_plain_password" not in load_settings().kafka_client_options()


def test_a_cluster_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_CLICKHOUSE_CLUSTER", "a' b")
    with pytest.raises(SettingsError, match="PIPELINE_CLICKHOUSE_CLUSTER"):
        load_settings()
