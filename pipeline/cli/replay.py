"""Replaying a recorded day under its own or another policy."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from pipeline.cli import wiring
from pipeline.cli.common import CommandError, DataOption, JsonOption, err, out
from pipeline.cli.judging import PACING_POLICIES, engine_settings
from pipeline.contract.catalog_entities import Refused, parse_key
from pipeline.settings import Settings
from pipeline.streams.recording import Window, read_catalog, replay_shard
from pipeline.streams.replay import Change, Replay, ReplayError, Tally


class ReplayPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of `--policy`: what is to be different from the recording."""

    pacing: str = ""
    """A value of PIPELINE_PACING_POLICY: its signals then keep events from happening."""
    reaction_ms: int = 2_000
    catalog: dict[str, dict[str, Any]] = {}
    """Catalog key -> fields, such as {"ad_group:7": {"budget_micros": 5000000}}."""


def read_policy(path: Path | None) -> ReplayPolicy:
    """The policy in a JSON file; without one, nothing is different. Raises `CommandError`."""
    if path is None:
        return ReplayPolicy()
    try:
        policy = msgspec.json.decode(path.read_bytes(), type=ReplayPolicy)
    except (OSError, msgspec.MsgspecError) as error:
        raise CommandError(f"--policy {path}: {error}") from error
    if policy.pacing and policy.pacing not in PACING_POLICIES:
        known = ", ".join(PACING_POLICIES)
        raise CommandError(f"--policy {path}: pacing {policy.pacing!r} is none of {known}")
    for key, fields in policy.catalog.items():
        parsed = parse_key(key.encode())
        if isinstance(parsed, Refused):
            raise CommandError(f"--policy {path}: catalog {key!r}: {parsed.detail}")
        kind, _ = parsed
        unknown = fields.keys() - set(kind.entity_type.__struct_fields__)
        if unknown:
            raise CommandError(
                f"--policy {path}: {key} has no field {', '.join(sorted(map(repr, unknown)))}"
            )
    return policy


def parse_window(first: str, last: str) -> Window:
    """The times of `--from` and `--to`: days (the last one included) or times, UTC."""
    return Window(_time_ms(first, "--from"), _time_ms(last, "--to", end_of_day=True))


def _time_ms(text: str, option: str, *, end_of_day: bool = False) -> int:
    try:
        if len(text) == len("YYYY-MM-DD"):
            day = date.fromisoformat(text) + timedelta(days=int(end_of_day))
            time = datetime(day.year, day.month, day.day, tzinfo=UTC)
        else:
            time = datetime.fromisoformat(text)
            time = time.replace(tzinfo=time.tzinfo or UTC)
    except ValueError as error:
        raise CommandError(f"{option} {text!r}: a day or a time (ISO 8601): {error}") from error
    return round(time.timestamp() * 1_000)


@dataclass(slots=True)
class Replayed:
    """What a replay of all shards came to."""

    judged: int = 0
    """Journal records."""
    tallies: dict[str, Tally] = field(default_factory=dict)
    """By entity."""
    met: set[str] = field(default_factory=set)
    """Keys of the policy's catalog that the log has records of."""


async def run_replay(settings: Settings, window: Window, policy: ReplayPolicy) -> Replayed:
    """Replay every shard. Raises `ReplayError`."""
    options = settings.kafka_client_options()
    catalog = await read_catalog(options)
    # The recording's own policy, by its name.
    is_own = policy.pacing in ("", settings.pacing_policy) and not policy.catalog
    change = Change(policy.catalog, bool(policy.pacing) and not is_own, policy.reaction_ms)
    replayed = Replayed()
    for shard in range(settings.partitions):
        pacing = PACING_POLICIES[policy.pacing or settings.pacing_policy]()
        replay = Replay(shard, engine_settings(settings), pacing, change)
        replayed.judged += await replay_shard(replay, window, catalog, options)
        replayed.tallies |= replay.tallies  # an entity belongs to one shard
        replayed.met |= replay.met
    return replayed


def show_tallies(tallies: dict[str, Tally]) -> None:
    """Recorded and replayed, side by side."""
    table = Table(
        "entity", "events", "spend", "replayed", "free", "replayed", "withheld", "differs",
        "signals",
    )  # fmt: skip
    for entity in sorted(tallies, key=lambda name: -tallies[name].recorded_nanos):
        tally = tallies[entity]
        table.add_row(
            entity,
            f"{tally.events:,}",
            f"{tally.recorded_nanos:,}",
            f"{tally.replayed_nanos:,}",
            f"{tally.recorded_free_nanos:,}",
            f"{tally.replayed_free_nanos:,}",
            f"{tally.withheld:,}",
            f"{tally.differs:,}",
            f"{tally.recorded_signals} / {tally.replayed_signals}",
        )
    out.print(table)


def register(app: typer.Typer) -> None:
    """Add the commands."""

    @app.command("replay")
    def replay_command(
        first: Annotated[str, typer.Option("--from", help="First day or time, UTC.")],
        last: Annotated[str, typer.Option("--to", help="Last day (included) or end time, UTC.")],
        policy_file: Annotated[
            Path | None, typer.Option("--policy", help="JSON: pacing, reaction_ms, catalog.")
        ] = None,
        data: DataOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Judge recorded events again, under another policy or other limits; nothing is published.

        Without --policy the outcome is the recorded one, to the nano. Example:
        `pipeline replay --from 2026-03-02 --to 2026-03-02 --policy inflight.json`
        """
        settings = wiring.settings_for(data)
        window, policy = parse_window(first, last), read_policy(policy_file)
        try:
            with err.status("replaying"):
                replayed = asyncio.run(run_replay(settings, window, policy))
        except ReplayError as error:
            raise CommandError(str(error)) from error
        for key in sorted(policy.catalog.keys() - replayed.met):
            err.print(f"--policy: no record of {key} came up: it changed nothing", style="yellow")
        tallies, judged = replayed.tallies, replayed.judged
        differs = sum(tally.differs for tally in tallies.values())
        if as_json:
            found = {entity: asdict(tally) for entity, tally in tallies.items()}
            print(json.dumps({"records": judged, "differs": differs, "entities": found}))
            return
        show_tallies(tallies)
        verdict = "the same to the nano" if differs == 0 else f"{differs:,} events differ"
        out.print(f"{judged:,} journal records judged again: {verdict}")
