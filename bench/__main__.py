"""`python -m bench [what]`: measure, keep the figures, and write them into docs/performance.md."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def main() -> None:
    # Read by polars when it is first imported; what runs in this process has one core.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    arguments = _parser().parse_args()
    sys.exit(arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.set_defaults(run=_compare)
    _add_compare_options(parser)
    _add_docs_option(parser)
    commands = parser.add_subparsers(title="what", metavar="WHAT")

    compare = commands.add_parser("compare", help="the product beside its peers (the default)")
    _add_compare_options(compare)
    compare.set_defaults(run=_compare)

    latency = commands.add_parser("latency", help="from an event to the signal that it causes")
    latency.add_argument("--seconds", type=int, default=10, help="at each load")
    latency.add_argument("--probes-per-s", type=int, default=200)
    latency.set_defaults(run=_latency)

    scale = commands.add_parser("scale", help="partitions, ad groups, workers, idle and low load")
    scale.add_argument("--events", type=int, default=1_000_000, help="for each run of workers")
    scale.add_argument("--seconds", type=int, default=10, help="at each low load")
    scale.set_defaults(run=_scale)

    state = commands.add_parser("state", help="remembered ids, keys of rule 8, ad groups")
    state.add_argument(
        "--millions",
        type=int,
        nargs="*",
        default=[1, 10, 100],
        help="of ids; 100 need 4 GB of disk",
    )
    state.add_argument("--unique-millions", type=int, nargs="*", default=[10], help="of rule 8")
    state.add_argument("--ad-groups", type=int, default=1_000_000, help="0: none")
    state.add_argument("--memory-mib", type=int, default=256, help="as PIPELINE_DEDUPE_MEMORY_MIB")
    state.set_defaults(run=_state)

    close = commands.add_parser("close", help="closing a day on the embedded ClickHouse")
    close.add_argument("--events", type=int, default=50_000_000, help="5 GB of disk")
    close.set_defaults(run=_close)

    quick = commands.add_parser("quick", help="the engine against a fixed loop, under a minute")
    quick.add_argument("--events", type=int, default=300_000)
    quick.set_defaults(run=_quick)

    report = commands.add_parser("report", help="write docs/performance.md from the kept figures")
    report.set_defaults(run=_write_report)
    for command in (compare, latency, scale, state, close, report):
        _add_docs_option(command)
    return parser


def _add_docs_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--docs",
        type=Path,
        default=Path("docs"),
        help="write performance.md and performance/ in this directory",
    )


def _add_compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--peer-seconds", type=float, default=20.0, help="a run of a peer at most")
    parser.add_argument(
        "--peers-python",
        type=Path,
        default=Path(".venv-bench/bin/python"),
        help="the interpreter with the peers' packages",
    )
    parser.add_argument("--peers", nargs="+", default=[], metavar="NAME", help="only these peers")


def _keep(
    arguments: argparse.Namespace, name: str, measure: Callable[[], Mapping[str, Any]]
) -> int:
    """Measure, keep the figures under this name and write the report."""
    from bench import report

    report.keep(name, measure(), arguments.docs)
    return _write_report(arguments)


def _write_report(arguments: argparse.Namespace) -> int:
    from bench import report

    for path in report.write(arguments.docs):
        print(f"wrote {path}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from bench.compare import Settings, compare

    settings = Settings(
        events=arguments.events,
        runs=arguments.runs,
        partitions=arguments.partitions,
        peer_s=arguments.peer_seconds,
        peers_python=arguments.peers_python.absolute(),
        only_peers=frozenset(arguments.peers),
    )
    return _keep(arguments, "compare", lambda: compare(settings))


def _latency(arguments: argparse.Namespace) -> int:
    from bench.latency import latency

    return _keep(arguments, "latency", lambda: latency(arguments.seconds, arguments.probes_per_s))


def _scale(arguments: argparse.Namespace) -> int:
    from bench.scale import scale

    return _keep(arguments, "scale", lambda: scale(arguments.events, arguments.seconds))


def _state(arguments: argparse.Namespace) -> int:
    from bench.state import state

    return _keep(
        arguments,
        "state",
        lambda: state(
            arguments.millions,
            arguments.unique_millions,
            arguments.ad_groups,
            arguments.memory_mib,
        ),
    )


def _close(arguments: argparse.Namespace) -> int:
    from bench.close import close

    return _keep(arguments, "close", lambda: close(arguments.events))


def _quick(arguments: argparse.Namespace) -> int:
    from bench.quick import quick

    return quick(arguments.events)


if __name__ == "__main__":
    main()
