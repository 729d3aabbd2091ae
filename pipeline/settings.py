"""Settings: environment variables `PIPELINE_...`, and nothing else.

Owns every setting's name, default and range. Read once, by the composition root
(`pipeline.cli`), which passes values on; no other module reads the environment.

A process gets its settings whole or not at all: a bad value is a `SettingsError` whose text names
the variable and what is allowed, before anything is started.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

from aiokafka.abc import AbstractTokenProvider
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.contract.vocabulary import JOURNAL_VERSIONS
from pipeline.errors import EXIT_USAGE, UserError

PREFIX = "PIPELINE_"

DEVELOPMENT_USER_HASH_KEY = "promoted-pins development key"
"""Public, so it hides nobody: production sets its own."""


class SettingsError(UserError, ValueError):
    """A setting is wrong. The text names each variable, what it holds and what is allowed."""

    exit_code = EXIT_USAGE


class Settings(BaseSettings):
    """All settings of all commands. Each is `PIPELINE_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    kafka_bootstrap: str = "127.0.0.1:9092"
    """Brokers to begin with: HOST:PORT, several separated by commas."""

    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How clients speak to Kafka. The embedded one speaks PLAINTEXT, on loopback alone."""

    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = (
        "PLAIN"
    )
    """Used with SASL_PLAINTEXT and SASL_SSL."""

    kafka_sasl_username: str = ""
    """Needed with SASL_PLAINTEXT and SASL_SSL, but for OAUTHBEARER."""

    kafka_sasl_password: SecretStr = SecretStr("")
    """Needed with SASL_PLAINTEXT and SASL_SSL, but for OAUTHBEARER. Never shown."""

    kafka_sasl_token_path: Path | None = None
    """Needed for OAUTHBEARER: a file with the token, read anew at every authentication, so that
    whoever writes it (a platform's agent) renews it there."""

    kafka_ssl_cafile: Path | None = None
    """PEM file of the certificate authorities to trust; unset: the system's."""

    kafka_ssl_certfile: Path | None = None
    """PEM file of this client's own certificate and key, where brokers ask for one."""

    kafka_replication_factor: int = Field(default=1, ge=1, le=7)
    """Of the topics that `pipeline topics` creates: 1 embedded, 3 in production."""

    data_dir: Path = Path("data")
    """The worker's snapshots (a cache: losing it costs time, never data), and with `pipeline up`
    Kafka's and ClickHouse's data too."""

    snapshot_copies_dir: Path | None = None
    """A directory that all workers see (a volume mounted in each), where they copy their snapshots
    to: who takes over a shard that it has no snapshot of goes on from the copy. Unset: it folds the
    shard's whole journal, which takes hours where there is much."""

    clickhouse_dsn: str = Field(
        default_factory=lambda fields: _embedded_dsn(fields["data_dir"]),
        repr=False,  # it may hold a password
    )
    """`http://USER:PASSWORD@HOST:8123/`, `https://...`, or `chdb:///PATH` for the engine embedded
    in this process. Unset: embedded, under the data directory."""

    clickhouse_replicated: bool = False
    """Whether `pipeline schema` creates tables with Replicated engines."""

    clickhouse_cluster: str = Field(default="", pattern=r"^[A-Za-z0-9_-]*$")
    """The cluster (of ClickHouse's remote_servers) on all of whose servers `pipeline schema`
    creates tables; unset: on the one that it is connected to."""

    partitions: int = Field(default=4, ge=1, le=1024)
    """Of each event topic and of the journal: the number of shards. Fixed once topics exist."""

    day_grace_minutes: int = Field(default=120, ge=0, le=7 * 24 * 60)
    """How long after its end a billing day still takes its own events, before it closes."""

    acceptance_horizon_days: int = Field(default=7, ge=1, le=60)
    """Events older than this at their Kafka record's timestamp are expired and never billed."""

    clock: Literal["wall", "stream"] = "wall"
    """What now is. `stream`: the largest record timestamp read, for backfills and tests."""

    worker_session_timeout_ms: int = Field(default=10_000, ge=1_000, le=300_000)
    """How long a worker may be silent before its shards move to another one. The brokers' bounds
    are `group.min.session.timeout.ms` (6,000 by default) and `group.max.session.timeout.ms`."""

    worker_journal_version: int = Field(
        default=JOURNAL_VERSIONS[-1], ge=JOURNAL_VERSIONS[0], le=JOURNAL_VERSIONS[-1]
    )
    """The version of the journal's format that workers write; all that are allowed here are read.
    Lower it while an upgrade to this release is under way: docs/operations.md, Upgrade."""

    pacing_policy: Literal["plain", "inflight"] = "inflight"
    """When ads are told to stop. `inflight`: before a limit, by what has been served and is not
    billed yet; even pacing, target CPI bids and forecasts too. `plain`: at a reached limit,
    nothing else. See docs/pacing.md."""

    billing_lag_seconds: int = Field(default=0, ge=0, le=86_400)
    """Ad servers are told to throttle while events are judged later than this after their record's
    timestamp; 0: never. Only with the wall's clock."""

    web_host: str = "127.0.0.1"
    """Where the health and metrics pages, and `pipeline dashboard`, listen. Not loopback: whoever
    reaches the port may read them; the dashboard then asks for its token."""

    worker_web_port: int = Field(default=6066, ge=1, le=65_535)
    """The worker's health and metrics pages."""

    reporter_web_port: int | None = Field(default=None, ge=1, le=65_535)
    """The reporter's health and metrics pages; unset: none of its own."""

    dashboard_token: SecretStr = SecretStr("")
    """What a browser must show to see the dashboard; needed where that is not on loopback."""

    dashboard_metrics_urls: str = ""
    """The /metrics pages of workers and reporter, separated by commas: the dashboard's operations
    page shows what they say. `pipeline up` knows its own."""

    log_format: Literal["text", "json"] = "text"
    """How log lines look; `json`: an object a line, for log collectors."""

    user_hash_key: SecretStr = SecretStr(DEVELOPMENT_USER_HASH_KEY)
    """Key of the keyed hash by which Pinners are stored (`user_hash`), 16 to 64 bytes. Secret
    and never changed in production: hashes under different keys cannot be compared, so that a
    change makes one Pinner two. The default is public and for development only."""

    dedupe_max_ids: int = Field(default=20_000_000, ge=1_000)
    """Event ids that a shard goes on remembering past the acceptance horizon: the oldest are
    forgotten once there are more. Within the horizon every id is remembered."""

    dedupe_memory_mib: int = Field(default=256, ge=1)
    """Memory of a worker for the ids of all its shards that are not in files. The newest are in
    tables there; the others are in sorted files under `PIPELINE_DATA_DIR`, some 20 bytes an id, of
    which 4 are read at each look-up and should find room in the system's page cache."""

    tick_min_ms: int = Field(default=5, ge=1, le=1_000)
    """How long a worker waits for more of what has come, before it decides."""

    chunk_max_events: int = Field(default=20_000, ge=1, le=100_000)
    """How many events a worker decides at once, as far as they wait: of up to 32 shards so many, of
    more in proportion, up to twice as many. Fewer hold signals up for less, more cost less each."""

    snapshot_every_records: int = Field(default=2_000, ge=1)
    """Journal records of a shard between two local snapshots: the longest fold at a restart."""

    checkpoint_every_records: int = Field(default=20_000, ge=1)
    """Journal records of a shard between two checkpoints in the journal itself, which carry on
    what retention deletes."""

    @field_validator("kafka_bootstrap")
    @classmethod
    def _check_bootstrap(cls, value: str) -> str:
        for address in value.split(","):
            host, _, port = address.strip().rpartition(":")
            if not host or not port.isdecimal() or not 1 <= int(port) <= 65_535:
                raise ValueError(f"{address.strip()!r} is not HOST:PORT")
        return value

    @field_validator("data_dir")
    @classmethod
    def _check_data_dir(cls, value: Path) -> Path:
        if set("?#") & set(str(value.absolute())):
            raise ValueError("a path with ? or # in it cannot be named by a chdb:// address")
        return value

    @field_validator("snapshot_copies_dir")
    @classmethod
    def _check_copies_dir(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError("where all workers see it is an absolute path")
        return value

    @field_validator("clickhouse_dsn")
    @classmethod
    def _check_dsn(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme == "chdb":
            if parts.netloc or len(parts.path) < 2:
                raise ValueError("an embedded engine is chdb:///ABSOLUTE/PATH")
        # Without the value: it may hold a password.
        elif parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("allowed: http://..., https://... or chdb:///ABSOLUTE/PATH")
        elif not _has_port_in_range(parts):
            raise ValueError("the port is not a number from 0 to 65535")
        return value

    @field_validator("user_hash_key")
    @classmethod
    def _check_user_hash_key(cls, value: SecretStr) -> SecretStr:
        length_bytes = len(value.get_secret_value().encode())
        if not 16 <= length_bytes <= 64:  # 64: the longest key that BLAKE2b takes
            raise ValueError(f"a key has 16 to 64 bytes, this one has {length_bytes}")
        return value

    @field_validator("kafka_ssl_cafile", "kafka_ssl_certfile", "kafka_sasl_token_path")
    @classmethod
    def _check_file(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError(f"there is no file {value}")
        return value

    @model_validator(mode="after")
    def _check_credentials(self) -> Settings:
        if self.kafka_security_protocol.startswith("SASL_"):
            given: dict[str, object] = {
                "KAFKA_SASL_USERNAME": self.kafka_sasl_username,
                "KAFKA_SASL_PASSWORD": self.kafka_sasl_password.get_secret_value(),
            }
            if self.kafka_sasl_mechanism == "OAUTHBEARER":
                given = {"KAFKA_SASL_TOKEN_PATH": self.kafka_sasl_token_path}
            missing = " and ".join(PREFIX + name for name, value in given.items() if not value)
            if missing:
                raise ValueError(
                    f"{PREFIX}KAFKA_SECURITY_PROTOCOL={self.kafka_security_protocol} "
                    f"needs {missing}"
                )
        return self

    @model_validator(mode="after")
    def _check_copies_are_apart(self) -> Settings:
        copies = self.snapshot_copies_dir
        if copies is not None and copies.is_relative_to(self.data_dir.absolute()):
            raise ValueError(
                f"{PREFIX}SNAPSHOT_COPIES_DIR={copies} lies in {PREFIX}DATA_DIR, which is one "
                "worker's own: name a directory that all workers see"
            )
        return self

    @property
    def has_development_user_hash_key(self) -> bool:
        """Whether user hashes are made with the public key: worth a warning outside `up`."""
        return self.user_hash_key.get_secret_value() == DEVELOPMENT_USER_HASH_KEY

    def kafka_client_options(self) -> dict[str, Any]:
        """Keyword arguments for any aiokafka client: where Kafka is and how to speak to it."""
        options: dict[str, Any] = {
            "bootstrap_servers": [a.strip() for a in self.kafka_bootstrap.split(",")],
            "security_protocol": self.kafka_security_protocol,
        }
        if self.kafka_security_protocol.startswith("SASL_"):
            options |= {"sasl_mechanism": self.kafka_sasl_mechanism} | self._credentials()
        if self.kafka_security_protocol.endswith("SSL"):
            context = ssl.create_default_context(cafile=self.kafka_ssl_cafile)
            if self.kafka_ssl_certfile is not None:
                context.load_cert_chain(self.kafka_ssl_certfile)
            options["ssl_context"] = context
        return options

    def _credentials(self) -> dict[str, Any]:
        if self.kafka_sasl_token_path is not None and self.kafka_sasl_mechanism == "OAUTHBEARER":
            return {"sasl_oauth_token_provider": _TokenFile(self.kafka_sasl_token_path)}
        return {
            "sasl_plain_username": self.kafka_sasl_username,
            "sasl_plain_password": self.kafka_sasl_password.get_secret_value(),
        }


class _TokenFile(AbstractTokenProvider):  # type: ignore[misc]
    """Gives aiokafka the token that a file holds now."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def token(self) -> str:
        text = await asyncio.to_thread(self._path.read_text, "utf-8")
        return text.strip()


SECRETS = (
    "kafka_sasl_username",
    "kafka_sasl_password",
    "clickhouse_dsn",
    "user_hash_key",
    "dashboard_token",
)
"""Settings that may be read from a file instead, named by `PIPELINE_..._FILE`: where a platform
mounts secrets as files, they are in no environment and in no process listing."""


def load_settings(**given: Any) -> Settings:
    """The settings from the environment; a keyword (a command line option) goes before it, unless
    it is None (an option that was not given).

    Raises `SettingsError` naming every variable that is wrong.
    """
    chosen = _read_secrets(os.environ)
    chosen |= {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(**chosen)
    except ValidationError as error:
        raise SettingsError("\n".join(_texts(error))) from None


def _read_secrets(environ: Mapping[str, str]) -> dict[str, Any]:
    """The secrets that `PIPELINE_..._FILE` variables name files of; a final line break is not
    part of one."""
    found: dict[str, Any] = {}
    for name in SECRETS:
        plain = PREFIX + name.upper()
        variable = f"{plain}_FILE"
        path = environ.get(variable)
        if not path:
            continue
        if environ.get(plain):
            raise SettingsError(f"{variable} and {plain} are both set; keep one")
        try:
            found[name] = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise SettingsError(
                f"{variable} names {path}, which cannot be read: {reason}"
            ) from None
    return found


def misspelt_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables with our prefix that no setting has, but nearly -> the setting that is meant.

    Others with the prefix are left alone: it is a common one, and they may be somebody else's.
    """
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    known += [f"{PREFIX}{name.upper()}_FILE" for name in SECRETS]
    unknown = (name for name in environ if name.startswith(PREFIX) and name not in known)
    near = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.85) for name in unknown}
    return {name: matches[0] for name, matches in near.items() if matches}


def _has_port_in_range(parts: SplitResult) -> bool:
    try:
        _ = parts.port
    except ValueError:
        return False
    return True


def _embedded_dsn(data_dir: Path) -> str:
    return f"chdb://{data_dir.absolute()}/clickhouse"


def _texts(error: ValidationError) -> list[str]:
    """One line for each wrong setting. Secrets are not shown."""
    lines = []
    for detail in error.errors():
        message = detail["msg"].removeprefix("Value error, ")
        if not detail["loc"]:
            lines.append(message)
            continue
        field = str(detail["loc"][0])
        # A data source name may hold a password too.
        secret = field == "clickhouse_dsn" or Settings.model_fields[field].annotation is SecretStr
        held = "" if secret else f" is {detail['input']!r}"
        lines.append(f"{PREFIX}{field.upper()}{held}: {message}")
    return lines
