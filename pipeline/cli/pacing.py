"""Comparing pacing policies, without Kafka."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pipeline.cli.common import CommandError, JsonOption, err, out
from pipeline.simulate.bench import BenchOptions
from pipeline.simulate.compare import POLICIES, Run, compare
from pipeline.simulate.curves import CurveError
from pipeline.simulate.plot import PlotError, write_spend_curves

_COLUMNS = (
    "policy",
    "seed",
    "free / limits",
    "spend / min(limit, demand)",
    "off target curve",
    "used where demand allows",
    "signals a day, median (most)",
    "last served after the pause, median (95 %)",
    "foretold an hour ahead within 10 min (knowing all but coming prices; all)",
    "on record an hour ahead within 10 min",
    "within the interval of 80 %",
)


def _cells(run: Run) -> list[str]:
    figures = run.figures
    return [
        run.policy,
        str(run.seed),
        f"{figures.overdelivery:.4%}",
        f"{figures.utilisation:.2%}",
        f"{figures.unevenness:.2%}",
        f"{figures.used_where_demand:.2%}",
        f"{figures.signals_median:g} ({figures.signals_most})",
        f"{figures.stop_s_median:.1f} s ({figures.stop_s_p95:.1f} s)",
        f"{figures.forecast_hit:.0%} of {figures.ran_out} "
        f" ({figures.informed_hit:.0%}; {figures.oracle_hit:.0%})",
        f"{figures.recorded_hit:.0%}",
        f"{figures.inside_interval:.0%}",
    ]


def show_runs(runs: list[Run]) -> None:
    """The figures of every run, a row each."""
    table = Table(*_COLUMNS)
    for run in runs:
        table.add_row(*_cells(run))
    out.print(table)


def _print_row(cells: Sequence[str]) -> None:
    """A row of a Markdown table, as soon as it is known."""
    print(f"| {' | '.join(cells)} |", flush=True)


def _plot(path: Path, runs: list[Run]) -> None:
    first = runs[0].seed
    curves = {run.policy: run.curve for run in runs if run.seed == first}
    try:
        write_spend_curves(path, curves, runs[0].target)
    except PlotError as error:
        raise CommandError(str(error)) from error


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise CommandError(f"--seeds {text!r}: whole numbers, separated by commas") from error


def register(app: typer.Typer) -> None:
    """Add the commands."""

    @app.command("pacing-bench")
    def pacing_bench_command(
        policies: Annotated[
            str, typer.Option(help=f"Of {', '.join(POLICIES)}; separated by commas.")
        ] = ",".join(POLICIES),
        seeds: Annotated[str, typer.Option(help="Separated by commas.")] = "1",
        groups: Annotated[int, typer.Option(min=2, help="Ad groups.")] = 100,
        days: Annotated[int, typer.Option(min=1, help="Days measured.")] = 3,
        impressions: Annotated[
            int, typer.Option(min=1, help="Impressions that a mean day could bring.")
        ] = 3_000_000,
        data_dir: Annotated[
            Path | None, typer.Option(help="Recorded traffic and prices; else made up.")
        ] = None,
        plot: Annotated[Path | None, typer.Option(help="Write spend curves here (SVG).")] = None,
        as_markdown: Annotated[
            bool, typer.Option("--markdown", help="Print the table as Markdown.")
        ] = False,
        as_json: JsonOption = False,
    ) -> None:
        """Compare pacing policies on the same simulated demand, in one process, without Kafka.

        The same options give the same figures. Example:
        `pipeline pacing-bench --policies plain,inflight --seeds 1,2 --plot spend.svg`
        """
        names = policies.split(",")
        unknown = [name for name in names if name not in POLICIES]
        if unknown:
            raise CommandError(f"--policies: {unknown[0]!r} is none of {', '.join(POLICIES)}")
        if as_markdown:
            _print_row(_COLUMNS)
            _print_row(["---"] * len(_COLUMNS))

        def done(run: Run) -> None:
            status.update(f"{run.policy}, seed {run.seed}: done")
            if as_markdown:
                _print_row(_cells(run))

        options = BenchOptions(
            groups=groups, days=days, impressions_per_day=impressions, data_dir=data_dir
        )
        try:
            with err.status("simulating") as status:
                runs = compare(names, _seeds(seeds), options, done)
        except CurveError as error:
            raise CommandError(str(error)) from error
        if plot is not None:
            _plot(plot, runs)
        if as_json:
            found = [
                {"policy": run.policy, "seed": run.seed} | run.figures.to_dict() for run in runs
            ]
            print(json.dumps(found))
        elif not as_markdown:
            show_runs(runs)
