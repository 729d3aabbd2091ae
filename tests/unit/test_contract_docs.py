"""docs/contract.md and docs/journal.md say what the code says; links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from pipeline.billing.journal import Header
from pipeline.billing.journal_events import CODE_NAMES, EVENT_SCHEMA
from pipeline.cli.main import app, main
from pipeline.contract import catalog, catalog_entities
from pipeline.contract.asyncapi import CONTRACT_VERSION
from pipeline.contract.catalog_entities import KINDS
from pipeline.contract.events import EngagementEvent
from pipeline.contract.money import COUNTRY_CURRENCY, minimum_bid_micros
from pipeline.contract.rejects import Reject
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import DISPOSITIONS, JOURNAL_VERSIONS
from pipeline.errors import EXIT_FAILED, EXIT_USAGE
from pipeline.reporting.digest import DIGEST_COLUMNS
from pipeline.settings import Settings
from pipeline.streams.topics import topic_specs
from pipeline.streams.worker import EXIT_BROKEN
from tests.docs import DOCS, ROOT, documents, first_table, names, section

CONTRACT = DOCS / "contract.md"
JOURNAL = DOCS / "journal.md"


def _fields(struct: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(struct)}


@pytest.mark.parametrize(
    ("heading", "struct"),
    [("Events", EngagementEvent), ("Signals", Signal), ("Rejects", Reject)],
)
def test_the_fields_of_a_message_are_those_of_its_type(
    heading: str, struct: type[msgspec.Struct]
) -> None:
    documented = [name for row in first_table(section(CONTRACT, heading)) for name in names(row[0])]
    assert len(documented) == len(set(documented))
    assert set(documented) == _fields(struct)


def test_the_fields_of_each_entity_are_those_of_its_type() -> None:
    rows = {row[0]: row[1] for row in first_table(section(CONTRACT, "Catalog"))}
    common = {"effective_ms", "changed_by"}
    assert set(rows) == {kind.prefix for kind in KINDS}
    for kind in KINDS:
        for field in _fields(kind.entity_type) - common:
            assert re.search(rf"\b{field}\b", rows[kind.prefix]), f"{kind.name}.{field}"
    text = section(CONTRACT, "Catalog")
    assert all(f"`{name}`" in text for name in common)


def test_every_reason_of_a_refusal_is_told() -> None:
    sources = [Path(str(module.__file__)).read_text() for module in (catalog, catalog_entities)]
    given = re.compile(r'(?:Refused|_check_fixed)\(\s*"(\w+)"')
    reasons = {reason for source in sources for reason in given.findall(source)}
    documented = section(CONTRACT, "Catalog").partition("**Refusals.**")[2]
    assert {name for row in first_table(documented) for name in names(row[0])} == reasons


def test_the_minimum_bids_are_those_that_the_catalog_holds_bids_against() -> None:
    table = first_table(section(CONTRACT, "Catalog").partition("**Minimum bids**")[2])
    assert {row[0] for row in table} == set(COUNTRY_CURRENCY.values())
    objectives = ("traffic", "engagement", "awareness", "video_awareness")
    for currency, *units in table:
        for objective, text in zip(objectives, units, strict=True):
            micros = 2_000_000 if text == "pegged" else round(float(text) * 1_000_000)
            assert minimum_bid_micros(currency, objective, None) == micros, (currency, objective)


def test_the_topics_are_those_that_are_created() -> None:
    partitions = Settings.model_fields["partitions"].default
    specs = {spec.name: spec for spec in topic_specs(partitions, 7, keep_all=False)}
    rows = {names(row[0])[0]: row for row in first_table(section(CONTRACT, "Topics"))}
    assert set(rows) == set(specs)
    for name, spec in specs.items():
        assert rows[name][3] == ("P" if spec.partitions == partitions else str(spec.partitions))
        assert rows[name][4] == spec.config["cleanup.policy"]


def test_every_disposition_has_its_rule() -> None:
    rules = section(CONTRACT, "How an event is judged")
    told = [name for name in re.findall(r"`(\w+)`: ", rules) if name in DISPOSITIONS]
    assert told == list(DISPOSITIONS)


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command below a command (Typer brings its own click, without types)."""
    if hasattr(command, "commands"):
        for each, inner in command.commands.items():
            yield from _commands(inner, f"{name} {each}")
    else:
        yield name, command


def test_the_commands_are_those_of_the_program() -> None:
    commands = dict(_commands(typer.main.get_command(app), "pipeline"))
    rows = {names(row[0])[0]: row[1] for row in first_table(section(CONTRACT, "Commands"))}
    assert set(rows) == set(commands)
    for name, text in rows.items():
        options = {option for param in commands[name].params for option in param.opts}
        assert set(re.findall(r"--[a-z-]+", text)) <= options, name


def test_the_exit_codes_are_those_of_the_program() -> None:
    text = section(CONTRACT, "Commands").partition("**Exit codes.**")[2]
    told = {int(code) for code in re.findall(r"(?:^ |[.] )(\d+) ", text)}
    assert told == {0, EXIT_FAILED, EXIT_USAGE, EXIT_BROKEN}


def test_the_program_is_the_one_that_gives_those_exit_codes() -> None:
    # Not the Typer app itself, which ends with a traceback and 1 whatever was wrong.
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"pipeline": f"{main.__module__}:{main.__name__}"}


def test_the_query_of_the_digest_reads_the_columns_that_the_digest_is_of() -> None:
    query = re.search(r"SELECT ([\w, \n]+)FROM billing.charges", CONTRACT.read_text())
    assert query is not None
    assert tuple(re.findall(r"\w+", query.group(1))) == DIGEST_COLUMNS


def test_the_version_is_that_of_the_topics_document() -> None:
    assert f"version {CONTRACT_VERSION}." in CONTRACT.read_text()


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        found = path.parent / file if file else path
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.M)
            assert anchor in {_anchor(heading) for heading in headings}, target


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# -- docs/journal.md ----------------------------------------------------------------------------


def test_the_journals_header_and_columns_are_told() -> None:
    header = [name for row in first_table(section(JOURNAL, "Header")) for name in names(row[0])]
    columns = [name for row in first_table(section(JOURNAL, "Events")) for name in names(row[0])]
    assert header == [field.name for field in msgspec.structs.fields(Header)]
    assert columns == list(EVENT_SCHEMA)


def test_the_journals_codes_are_positions_in_the_vocabulary() -> None:
    rows = {names(row[0])[0]: row[2] for row in first_table(section(JOURNAL, "Events"))}
    for column in ("kind", "placement", "limit", "basis"):
        told = re.findall(r"(\d+) (\w+)", rows[column])
        assert told, column
        for code, name in told:
            assert CODE_NAMES[column][int(code)] == ("" if name == "none" else name)


def test_the_journals_magic_is_told() -> None:
    for version in JOURNAL_VERSIONS:
        assert f"`PPJ{version}`" in section(JOURNAL, "Record")
