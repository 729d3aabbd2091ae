"""Kafka over TLS with every SASL mechanism, against a real broker with certificates made here."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from aiokafka.errors import KafkaError
from cryptography.hazmat.primitives import serialization

from pipeline.embedded import ports
from pipeline.embedded.jars import kafka_class_path
from pipeline.embedded.kafka import EmbeddedKafka, bundled_java
from pipeline.settings import load_settings
from pipeline.streams.topics import ensure_topics, topic_specs

from .conftest import pipeline
from .test_metrics import scrape

USER, PASSWORD = "billing", "correct horse battery staple"
JAAS = "org.apache.kafka.common.security"
LOGIN = "listener.name.sasl_ssl.{}.sasl.jaas.config={jaas}.{} required{};"
SECURE = "\n".join(
    [
        "",
        "listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port},"
        "SASL_SSL://127.0.0.1:{secure_port}",
        "advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_SSL://127.0.0.1:{secure_port}",
        "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL",
        "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
        "ssl.keystore.type=PEM",
        "ssl.keystore.location={keystore}",
        LOGIN.format("plain", "plain.PlainLoginModule", f' user_{USER}="{PASSWORD}"', jaas=JAAS),
        LOGIN.format("scram-sha-256", "scram.ScramLoginModule", "", jaas=JAAS),
        LOGIN.format("scram-sha-512", "scram.ScramLoginModule", "", jaas=JAAS),
        LOGIN.format(
            "oauthbearer",
            "oauthbearer.OAuthBearerLoginModule",
            ' unsecuredLoginStringClaim_sub="broker"',
            jaas=JAAS,
        ),
        "",
    ]
)


class SecureKafka(EmbeddedKafka):
    """The embedded broker with a SASL_SSL listener beside its own."""

    def __init__(self, data_dir: Path, keystore: Path) -> None:
        super().__init__(data_dir)
        self.secure_port = ports.free_port()
        self._keystore = keystore

    def _write_properties(self, name: str, log_dir: str, port: int, controller_port: int) -> None:
        super()._write_properties(name, log_dir, port, controller_port)
        with (self.home / name).open("a") as file:
            file.write(
                SECURE.format(
                    port=port,
                    controller_port=controller_port,
                    secure_port=self.secure_port,
                    keystore=self._keystore,
                )
            )

    def add_scram_user(self) -> None:
        """Make the SCRAM user, with Kafka's own tool."""
        java = [str(bundled_java()), "-cp", ":".join(map(str, kafka_class_path(print)))]
        for bits in (256, 512):
            command = [*java, "kafka.admin.ConfigCommand", "--bootstrap-server", self.bootstrap]
            command += ["--alter", "--entity-type", "users", "--entity-name", USER]
            command += ["--add-config", f"SCRAM-SHA-{bits}=[password={PASSWORD}]"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Secured:
    """A broker, and what a client needs to speak to it."""

    kafka: SecureKafka
    authority: Path
    token: Path

    def environment(self, mechanism: str) -> dict[str, str]:
        own = {name: text for name, text in os.environ.items() if not name.startswith("PIPELINE_")}
        own |= {
            "PIPELINE_KAFKA_BOOTSTRAP": f"127.0.0.1:{self.kafka.secure_port}",
            "PIPELINE_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "PIPELINE_KAFKA_SASL_MECHANISM": mechanism,
            "PIPELINE_KAFKA_SSL_CAFILE": str(self.authority),
        }
        if mechanism == "OAUTHBEARER":
            return own | {"PIPELINE_KAFKA_SASL_TOKEN_PATH": str(self.token)}
        password = self.token.with_name("password")
        password.write_text(PASSWORD + "\n")
        return own | {
            "PIPELINE_KAFKA_SASL_USERNAME": USER,
            "PIPELINE_KAFKA_SASL_PASSWORD_FILE": str(password),
        }


def unsecured_token() -> str:
    """A token that the broker's own development handler takes: signed by nobody."""

    def part(value: dict[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    now_s = time.time()
    claims = {"sub": USER, "iat": now_s - 10, "exp": now_s + 3_600}
    return f"{part({'alg': 'none'})}.{part(claims)}."


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    where = tmp_path_factory.mktemp("secure_kafka")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), password=None)
    keystore = where / "broker.pem"
    keystore.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    )
    authority.cert_pem.write_to_path(str(where / "authority.pem"))
    (where / "token").write_text(unsecured_token())
    with SecureKafka(where, keystore) as kafka:
        kafka.add_scram_user()
        yield Secured(kafka, where / "authority.pem", where / "token")


def with_environment(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name in list(os.environ):
        if name.startswith("PIPELINE_"):
            monkeypatch.delenv(name)
    for name, text in environment.items():
        if name.startswith("PIPELINE_"):
            monkeypatch.setenv(name, text)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"])
async def test_every_mechanism_is_let_in(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, mechanism: str
) -> None:
    with_environment(monkeypatch, secured.environment(mechanism))
    settings = load_settings()
    assert PASSWORD not in repr(settings)
    await ensure_topics(settings.kafka_client_options(), topic_specs(2, 7, keep_all=True), 1)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_a_wrong_password_is_not(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, mechanism: str
) -> None:
    environment = secured.environment(mechanism)
    del environment["PIPELINE_KAFKA_SASL_PASSWORD_FILE"]
    with_environment(monkeypatch, environment | {"PIPELINE_KAFKA_SASL_PASSWORD": "wrong"})
    with pytest.raises(KafkaError):
        await ensure_topics(
            load_settings().kafka_client_options(), topic_specs(2, 7, keep_all=True), 1
        )


async def test_a_broker_with_another_authoritys_certificate_is_not_believed(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    environment = secured.environment("PLAIN")
    with_environment(
        monkeypatch, environment | {"PIPELINE_KAFKA_SSL_CAFILE": str(tmp_path / "other.pem")}
    )
    with pytest.raises(KafkaError):
        await ensure_topics(
            load_settings().kafka_client_options(), topic_specs(2, 7, keep_all=True), 1
        )


def test_a_worker_judges_over_sasl_ssl_and_logs_no_secret(secured: Secured, tmp_path: Path) -> None:
    port = ports.free_port()
    environment = secured.environment("SCRAM-SHA-512") | {
        "PIPELINE_PARTITIONS": "2",
        "PIPELINE_CLOCK": "stream",
        "PIPELINE_DATA_DIR": str(tmp_path),
        "PIPELINE_WORKER_WEB_PORT": str(port),
    }
    made = pipeline("topics", "--keep-all", environment=environment)
    assert made.returncode == 0, made.stderr
    log = tmp_path / "worker.log"
    with log.open("w") as file:
        worker = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "worker"], env=environment, stderr=file, stdout=file
        )
    try:
        events = tmp_path / "events.ndjson"
        events.write_text('{"event_id": "1", "event_time_ms": 1772409600000}\n' * 5)
        sent = pipeline("simulate", "--from", str(events), environment=environment)
        assert sent.returncode == 0, sent.stderr
        deadline_s = time.monotonic() + 60
        while judged(port) < 5:
            assert worker.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.3)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(20)
    assert PASSWORD not in log.read_text()


def judged(port: int) -> float:
    try:
        samples = scrape(f"http://127.0.0.1:{port}")
    except OSError:
        return 0
    return sum(value for (name, _), value in samples.items() if name == "pins_events_total")
