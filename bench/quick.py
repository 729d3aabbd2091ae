"""A regression guard: the engine's rate as a multiple of a fixed loop's, on the same messages.

A ratio, because absolute rates differ from machine to machine and from hour to hour. The two take
turns, so that a slow moment of the machine slows both, and the best of each counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from bench.engine import EngineAlone, make_engine, turns_of
from bench.workload import CAMPAIGNS, Message, catalog, messages, prices
from pipeline.contract.vocabulary import CLICKS, MS_PER_DAY

FLOOR = 2.0
"""The ratio under which `make bench-quick` fails: lower it only with a reason in the commit."""
START_MS = 1_772_323_200_000
ROUNDS = 5
PARTITIONS = 4


def reference_loop(messages_in: Sequence[Message], bids: dict[str, tuple[str, int]]) -> int:
    """What plain Python would write first: decode, dedupe, price, sum. Never to be made faster.

    Returns the nanos charged.
    """
    seen: set[str] = set()
    spend_nanos: dict[str, int] = {}
    for message in messages_in:
        event = json.loads(message.value)
        if event["event_id"] in seen:
            continue
        seen.add(event["event_id"])
        basis, bid_micros = bids[event["ad_group_id"]]
        if (basis == "cpm") == (message.topic == CLICKS):
            continue
        micros = min(event["price_micros"], bid_micros)
        group = event["ad_group_id"]
        spend_nanos[group] = spend_nanos.get(group, 0) + micros * (1 if basis == "cpm" else 1_000)
    return sum(spend_nanos.values())


def quick(events: int) -> int:
    """Print the ratio; the exit code: 1 under the floor."""
    created_ms = START_MS - 2 * MS_PER_DAY
    given = list(messages(events, CAMPAIGNS, START_MS))
    alone = EngineAlone(make_engine(PARTITIONS, catalog(CAMPAIGNS, created_ms), created_ms))
    turns = list(turns_of(given, PARTITIONS))
    bids = prices(CAMPAIGNS)
    engine_rates, loop_rates = [], []
    share = max(1, len(turns) // ROUNDS)
    for number in range(ROUNDS):
        part = turns[number * share : (number + 1) * share]
        if not part:
            break
        taken = sum(len(chunk.values) for chunks in part for chunk in chunks)
        engine_rates.append(taken / alone.take(part))
        loop_rates.append(_loop_rate(given[:taken], bids))
    ratio = max(engine_rates) / max(loop_rates)
    print(
        f"engine {max(engine_rates):,.0f} events/s, reference loop {max(loop_rates):,.0f}: "
        f"ratio {ratio:.2f}, floor {FLOOR:.2f}"
    )
    if ratio < FLOOR:
        print(
            "the engine has become slower: profile it, or lower FLOOR in bench/quick.py and say why"
        )
        return 1
    return 0


def _loop_rate(given: Sequence[Message], bids: dict[str, tuple[str, int]]) -> float:
    started_s = time.process_time()
    reference_loop(given, bids)
    return len(given) / (time.process_time() - started_s)
