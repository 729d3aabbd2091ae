"""The commands beside a running product: what they do, print, refuse, and exit with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from tests.integration.product import (
    CATALOG,
    CLICKS,
    REJECTS,
    Ad,
    Message,
    Product,
    at,
    entities_of,
    pipeline,
    until,
)

CREATED_MS = at("2026-02-10")
NOON_MS = at("2026-03-02T12:00")
UNIT = 1_000_000_000

COMMANDS = (
    ("up",),
    ("topics",),
    ("schema",),
    ("worker",),
    ("reporter",),
    ("catalog", "load"),
    ("catalog", "show"),
    ("simulate",),
    ("close-day",),
    ("reconcile",),
    ("explain",),
    ("redrive",),
    ("demo",),
)


def lines_file(path: Path, *lines: Any) -> str:
    """An NDJSON file: objects as JSON, texts as they are."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts))
    return str(path)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example(command: tuple[str, ...]) -> None:
    # In this process: a process for each would take most of a minute.
    done = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    _, found, example = " ".join(done.output.split()).partition("Example:")
    assert found
    assert f"pipeline {' '.join(command)}" in example
    assert "`" not in done.output  # it is rendered


def test_help_names_every_command() -> None:
    done = pipeline("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert command[0] in done.stdout


def test_a_wrong_setting_is_named_and_nothing_is_started() -> None:
    done = pipeline("topics", environment={"PIPELINE_PARTITIONS": "none"})
    assert done.returncode == 2
    assert "PIPELINE_PARTITIONS" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_kafka_that_is_not_there_is_said_to_be_so() -> None:
    done = pipeline("topics", environment={"PIPELINE_KAFKA_BOOTSTRAP": "127.0.0.1:1"})
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


# -- catalog --------------------------------------------------------------------------------------


def test_what_a_file_holds_is_published_and_judged_by(product: Product, tmp_path: Path) -> None:
    ad, entities = entities_of("loaded", "traffic")
    keyed = {"key": f"promoted_pin:{ad.promoted_pin_id}", "value": entities.pop()}
    path = lines_file(tmp_path / "catalog.ndjson", *entities, "", keyed)
    done = product.run("catalog", "load", path, "--timestamp-ms", str(CREATED_MS))
    assert (done.returncode, done.stdout.strip()) == (0, "published 4 entities")
    product.publish(ad.click("loaded-1", NOON_MS))
    assert product.judged(ad, "disposition", "amount_nanos") == [("charged", UNIT)]


def test_one_invalid_line_and_nothing_is_published(product: Product, tmp_path: Path) -> None:
    ad, entities = entities_of("refused", "traffic", ad_group={"bid_micros": 1})
    path = lines_file(tmp_path / "catalog.ndjson", *entities, "not JSON", {"name": "what is it"})
    before = product.kafka.ends(CATALOG)
    done = product.run("catalog", "load", path, "--timestamp-ms", str(CREATED_MS))
    assert done.returncode == 1
    assert product.kafka.ends(CATALOG) == before
    text = done.stderr.replace("\n", " ")
    for number, what in ((3, "bid_too_low"), (4, "missing_parent"), (5, "JSON"), (6, "tells")):
        assert f"catalog.ndjson:{number}:" in text
        assert what in text
    assert "nothing was published" in text
    # Unless one asks for what is valid.
    skipping = product.run(
        "catalog", "load", path, "--timestamp-ms", str(CREATED_MS), "--skip-invalid"
    )
    assert (skipping.returncode, skipping.stdout.strip()) == (0, "published 2 entities")
    shown = product.run("catalog", "show", f"campaign:{ad.campaign_id}", "--json")
    assert [found["entity"] for found in json.loads(shown.stdout)] == ["campaign:refused-campaign"]


def test_a_file_that_is_not_there_is_said_to_be_so(product: Product, tmp_path: Path) -> None:
    done = product.run("catalog", "load", str(tmp_path / "nowhere.ndjson"))
    assert done.returncode == 1
    assert "nowhere.ndjson" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_catalog_is_shown_as_it_is_in_force(product: Product) -> None:
    ad, entities = entities_of("shown", "traffic")
    product.publish_catalog(*entities, timestamp_ms=CREATED_MS)
    paused = entities[1] | {"status": "paused"}
    product.publish_catalog(paused, timestamp_ms=CREATED_MS + 1)
    done = product.run("catalog", "show", f"campaign:{ad.campaign_id}", "--json")
    [found] = json.loads(done.stdout)
    assert (found["entity"], found["versions"]) == (f"campaign:{ad.campaign_id}", 2)
    assert found["value"]["status"] == "paused"
    everything = json.loads(product.run("catalog", "show", "--json").stdout)
    assert {"account:shown-account", "promoted_pin:shown-pin"} <= {
        one["entity"] for one in everything
    }
    assert f"campaign:{ad.campaign_id}" in product.run("catalog", "show").stdout
    missing = product.run("catalog", "show", "campaign:nobody")
    assert (missing.returncode, "not in the catalog" in missing.stderr) == (1, True)


# In a process of its own: a process has one embedded engine for its whole life.
_NOW_BY_EMPTY_TABLES = """
import sys
from pipeline.cli.tables import now_by_clock_ms
from pipeline.reporting import schema
from pipeline.reporting.clickhouse import Store
from pipeline.settings import load_settings
settings = load_settings(data_dir=sys.argv[1], clock="stream")
schema.apply(Store(settings.clickhouse_dsn))
print(now_by_clock_ms(settings, 77))
"""


def test_before_the_first_event_the_catalog_tells_a_streams_time(tmp_path: Path) -> None:
    """An edit at the time 0 would be from before what it edits, and have no effect."""
    done = subprocess.run(
        [sys.executable, "-c", _NOW_BY_EMPTY_TABLES, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "77\n"


# -- topics and schema ----------------------------------------------------------------------------


def test_topics_and_schema_may_be_applied_again(product: Product) -> None:
    topics = product.run("topics", "--keep-all")
    assert (topics.returncode, "created: nothing" in topics.stdout) == (0, True), topics.stderr
    schema = product.run("schema")
    assert (schema.returncode, "applied: nothing" in schema.stdout) == (0, True), schema.stderr


# -- explain --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explained(product: Product) -> Ad:
    ad = product.ad("explained", "traffic", CREATED_MS, ad_group={"budget_micros": 1_500_000})
    product.publish(
        *(ad.click(f"explained-{number}", NOON_MS) for number in range(3)),
        ad.click("explained-0", NOON_MS),
    )
    product.settle()
    entity = f"ad_group:{ad.ad_group_id}"
    until(
        lambda: product.query(
            "SELECT 1 FROM reporting.signals WHERE entity = {e:String}", e=entity
        ),
        "the pause in reporting.signals",
    )
    return ad


def test_an_event_is_explained_each_time_it_came(product: Product, explained: Ad) -> None:
    done = product.run("explain", "explained-0", "--json")
    first, again = json.loads(done.stdout)
    assert (first["disposition"], first["amount_nanos"]) == ("charged", UNIT)
    assert first["charge"]["amount_nanos"] == UNIT
    assert first["charge"]["event_id"] == "explained-0"
    assert (again["disposition"], again["charge"]) == ("duplicate", None)
    assert "rule 5" in again["why"]
    [cut] = json.loads(product.run("explain", "explained-1", "--json").stdout)
    assert (cut["limit"], cut["amount_nanos"]) == ("ad_group_daily", UNIT // 2)
    assert "ad_group_daily" in cut["why"]
    told = product.run("explain", "explained-2").stdout
    assert "over_budget" in told
    assert "ad_group_daily" in told


def test_an_ad_group_is_explained_by_what_stopped_it(product: Product, explained: Ad) -> None:
    done = product.run("explain", f"ad_group:{explained.ad_group_id}", "--json")
    found = json.loads(done.stdout)
    assert found["state"] == "stopped"
    [stop] = found["stopped_by"]
    assert (stop["limit"], stop["limit_nanos"]) == ("ad_group_daily", 1_500_000_000)
    figures = [(row["disposition"], row["events"], row["amount"]) for row in found["figures"]]
    assert sorted(figures) == [
        ("charged", 1, UNIT // 2),
        ("charged", 1, UNIT),
        ("duplicate", 1, 0),
        ("over_budget", 1, 0),
    ]
    told = product.run("explain", f"ad_group:{explained.ad_group_id}")
    assert "stopped by ad_group_daily" in told.stdout


@pytest.mark.parametrize("what", ["nobody-knows-it", "ad_group:nobody"])
def test_what_is_not_there_cannot_be_explained(product: Product, what: str) -> None:
    done = product.run("explain", what)
    assert done.returncode == 1
    assert what.rpartition(":")[2] in done.stderr
    assert "Traceback" not in done.stderr


# -- replay ---------------------------------------------------------------------------------------


def test_a_replay_tells_which_keys_of_its_policy_never_came_up(
    product: Product, explained: Ad, tmp_path: Path
) -> None:
    entity = f"ad_group:{explained.ad_group_id}"
    policy = {"catalog": {entity: {"budget_micros": 500_000}, "ad_group:typo": {"bid_micros": 1}}}
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    day = ("--from", "2026-03-02", "--to", "2026-03-02")
    done = product.run("replay", *day, "--policy", str(tmp_path / "policy.json"), "--json")
    assert done.returncode == 0, done.stderr
    assert "no record of ad_group:typo came up" in done.stderr
    assert entity not in done.stderr
    tally = json.loads(done.stdout)["entities"][entity]
    assert (tally["recorded_nanos"], tally["replayed_nanos"]) == (1_500_000_000, 500_000_000)


# -- redrive --------------------------------------------------------------------------------------


def test_unknown_events_are_sent_again_once_their_ads_are_known(product: Product) -> None:
    ad, entities = entities_of("redriven", "traffic")
    record_ms = NOON_MS + 77
    [place] = product.publish(ad.click("redriven-1", NOON_MS, record_ms=record_ms))
    assert product.judged(ad, "disposition") == [("unknown",)]
    key = f"{place.topic}-{place.partition}-{place.offset}"
    until(lambda: key in {r["message_key"] for r in product.rejects()}, "the reject")
    product.publish_catalog(*entities, timestamp_ms=CREATED_MS)
    would = product.run("redrive", "--dry-run")
    assert would.stdout.startswith("would send ")
    count = int(would.stdout.split()[2])
    assert count >= 1
    done = product.run("redrive")
    assert (done.returncode, done.stdout.strip()) == (0, f"sent {count} events again")
    until(
        lambda: product.judged(ad, "disposition") == [("unknown",), ("charged",)],
        "the redriven event charged",
    )
    found = [
        record
        for record in product.kafka.read(CLICKS)
        if record.value and b'"redriven-1"' in record.value
    ]
    assert [record.timestamp for record in found] == [record_ms, record_ms]
    assert found[0].value == found[1].value
    assert found[0].key == found[1].key
    # What is sent is not sent again; only what came back unknown meanwhile may be.
    product.settle()
    product.run("redrive")
    assert product.judged(ad, "disposition") == [("unknown",), ("charged",)]


def test_an_unknown_event_that_its_reject_had_no_room_for_is_named(product: Product) -> None:
    reject = {
        "source": CLICKS,
        "partition": 0,
        "offset": 10**9,
        "timestamp_ms": NOON_MS,
        "reason": "unknown",
        "field": "campaign_id",
        "detail": "the original is left out",
        "key": None,
        "original": None,
    }
    place = f"{CLICKS}-0-1000000000"
    product.kafka.publish([Message(REJECTS, reject, NOON_MS, key=place.encode())])
    done = product.run("redrive")
    assert done.returncode == 0
    assert f"{place}: its reject had no room for the event" in done.stderr


# -- simulate --from ------------------------------------------------------------------------------


def test_a_file_of_events_is_published_with_their_own_times(
    product: Product, tmp_path: Path
) -> None:
    ad = product.ad("from-file", "engagement", CREATED_MS)
    path = lines_file(
        tmp_path / "events.ndjson",
        ad.event("from-file-1", NOON_MS) | {"topic": "ads.clicks"},
        ad.event("from-file-2", NOON_MS + 1) | {"kind": "save"},
        ad.event("from-file-3", NOON_MS + 2),
    )
    done = product.run("simulate", "--from", path)
    assert (done.returncode, done.stdout.strip()) == (0, "published 3 events"), done.stderr
    until(
        lambda: (
            sorted(product.judged(ad, "event_id", "kind", "disposition", "event_time_ms"))
            == [
                ("from-file-1", "click", "charged", NOON_MS),
                ("from-file-2", "save", "charged", NOON_MS + 1),
                ("from-file-3", "impression", "counted", NOON_MS + 2),
            ]
        ),
        "the events of the file judged",
    )


def test_a_file_with_a_bad_line_is_not_published(product: Product, tmp_path: Path) -> None:
    ad = product.ad("bad-file", "traffic", CREATED_MS)
    path = lines_file(tmp_path / "events.ndjson", ad.event("bad-file-1", NOON_MS), "{")
    before = product.kafka.ends("ads.impressions", "ads.clicks", "ads.engagements")
    done = product.run("simulate", "--from", path)
    assert done.returncode == 1
    assert "nothing was published" in done.stderr
    assert "2" in done.stderr
    assert product.kafka.ends("ads.impressions", "ads.clicks", "ads.engagements") == before


# -- days -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("close-day", "2026-02-30"), ("reconcile", "--day", "today")])
def test_what_is_no_day_is_said_to_be_none(product: Product, command: tuple[str, ...]) -> None:
    done = product.run(*command)
    assert done.returncode == 1
    assert "is not a day" in done.stderr
    assert "Traceback" not in done.stderr
