"""What closing a day costs: reporting.daily and billing.day_closes from a day's events.

The reporter's own code on the embedded ClickHouse, on one core, in a process of its own. The events
are made up by ClickHouse itself: 100,000 ads of 200 accounts, half of them paid by impressions (in
blocks of an ad group) and half by clicks.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

from bench import machine
from bench.machine import say
from pipeline.reporting import schema
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.closes import close_day
from pipeline.reporting.daybook import DueClose

DAY = date(2026, 3, 1)
START_MS = 1_772_323_200_000
ACCOUNTS = 200
ADS = 100_000
PINS_A_GROUP = 5
GROUPS_A_CAMPAIGN = 4
EVENTS_A_RECORD = 20_000
EVENTS_A_BLOCK = 25_000_000
"""An ad group's CPM impressions among so many events of the day are a block: some 1,000."""
FILL_AT_ONCE = 5_000_000

_EVENTS = f"""
INSERT INTO billing.events
  (posting_day, billing_day, account_id, campaign_id, ad_group_id, promoted_pin_id, kind,
   disposition, basis, currency, price_micros, amount_nanos, placement, country, device,
   event_time_ms, event_id, user_hash, source_topic, source_partition, source_offset, shard_seq,
   decided_at_ms, journal_partition, journal_offset)
SELECT
  '{DAY}', '{DAY}', 'a' || toString(ad % {ACCOUNTS}),
  'c' || toString(intDiv(ad, {ACCOUNTS * PINS_A_GROUP * GROUPS_A_CAMPAIGN})) || '-' ||
    toString(ad % {ACCOUNTS}) AS campaign,
  campaign || '-g' || toString(intDiv(ad, {ACCOUNTS * PINS_A_GROUP}) % {GROUPS_A_CAMPAIGN})
    AS ad_group,
  ad_group || '-p' || toString(intDiv(ad, {ACCOUNTS}) % {PINS_A_GROUP}),
  multiIf(draw < 80, 'impression', draw < 90, 'click', 'save') AS kind,
  if(paid = '', 'counted', 'charged'),
  multiIf(by_impressions AND kind = 'impression', 'cpm',
          NOT by_impressions AND kind = 'click', 'cpc', '') AS paid,
  'USD', price, if(paid = '', 0, price * 1000),
  ['browse', 'search'][1 + bitShiftRight(hash, 8) % 2],
  ['US', 'CA', 'GB'][1 + bitShiftRight(hash, 16) % 3],
  ['ios', 'android', 'web'][1 + bitShiftRight(hash, 24) % 3],
  {START_MS} + intDiv(number, 1000), lower(hex(hash)), repeat(lower(hex(hash)), 2),
  'ads.impressions', number % 4, number, number, {START_MS} + intDiv(number, 1000), number % 4,
  intDiv(number, {EVENTS_A_RECORD})
FROM
(
  SELECT number, sipHash64(number) AS hash, bitShiftRight(hash, 32) % {ADS} AS ad,
         bitShiftRight(hash, 12) % 100 AS draw, 1 + bitShiftRight(hash, 40) % 5000 AS price,
         intDiv(ad, {ACCOUNTS * PINS_A_GROUP * GROUPS_A_CAMPAIGN}) % 2 = 0 AS by_impressions
  FROM numbers({{start}}, {{count}})
)
"""

_CHARGES = f"""
INSERT INTO billing.charges
  (posting_day, billing_day, account_id, campaign_id, ad_group_id, promoted_pin_id, charge_id,
   basis, quantity, currency, amount_nanos, event_id, posted_at_ms, journal_partition,
   journal_offset, charge_number)
SELECT posting_day, billing_day, account_id, campaign_id, ad_group_id,
  if(basis = 'cpm', '', promoted_pin_id) AS pin,
  toString(max(journal_partition)) || '-' || toString(max(journal_offset)) || '-' ||
    toString(max(shard_seq) % {EVENTS_A_RECORD}),
  basis, count(), 'USD', sum(amount_nanos), if(basis = 'cpm', '', any(event_id)),
  max(decided_at_ms), max(journal_partition), max(journal_offset),
  max(shard_seq) % {EVENTS_A_RECORD}
FROM billing.events
WHERE disposition = 'charged' AND basis = {{basis}}
GROUP BY posting_day, billing_day, account_id, campaign_id, ad_group_id, pin, basis,
  if(basis = 'cpm', intDiv(shard_seq, {EVENTS_A_BLOCK}), shard_seq)
"""


def close(events: int) -> dict[str, Any]:
    """Make up a day of so many events and close it; the figures as JSON takes them."""
    about = machine.described(" ".join(["python -m bench", *sys.argv[1:]]))
    context = multiprocessing.get_context("spawn")
    figures = []
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        # Each step in a process of its own: what filling the tables needed is none of the close's.
        for step in (fill, measure):
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                figures.append(pool.submit(step, Path(directory), events).result())
            say(str(figures[-1]))
    return {"about": about, "close": figures[1]}


def fill(directory: Path, events: int) -> dict[str, Any]:
    """The tables as the reporter has them when all shards have closed the day."""
    started_s = time.monotonic()
    store = Store(f"chdb://{directory}/clickhouse")
    schema.apply(store)
    for start in range(0, events, FILL_AT_ONCE):
        count = min(FILL_AT_ONCE, events - start)
        store.command(_EVENTS.replace("{start}", str(start)).replace("{count}", str(count)))
    for basis in ("cpc", "cpm"):
        store.command(_CHARGES.replace("{basis}", f"'{basis}'"))
    store.close()
    return {"filled_s": time.monotonic() - started_s}


def measure(directory: Path, events: int) -> dict[str, Any]:
    """Close the day and check that the daily figures and the closes are what the events come to."""
    store = Store(f"chdb://{directory}/clickhouse")
    accounts = sorted(f"a{number}" for number in range(ACCOUNTS))
    due = DueClose(DAY, accounts, START_MS + 2 * 86_400_000)
    with machine.on_cores(machine.Cores.choose().job):
        before_mib = machine.peak_memory_mib("self")
        cpu_s, clock_s = time.process_time(), time.monotonic()
        refused = close_day(store, due, dict.fromkeys(accounts, "USD"), lambda: None)
        cpu_s, clock_s = time.process_time() - cpu_s, time.monotonic() - clock_s
    if refused:
        raise ValueError(f"refused: {refused}")
    [(rows, of_daily)] = store.rows("SELECT count(), sum(spend_nanos) FROM reporting.daily")
    [(charges, of_closes)] = store.rows(
        "SELECT sum(charges), sum(amount_nanos) FROM billing.day_closes"
    )
    [(counted, of_events)] = store.rows("SELECT count(), sum(amount_nanos) FROM billing.events")
    store.close()
    if not (of_daily == of_closes == of_events) or counted != events:
        raise ValueError(f"{counted} events of {of_events}, closed as {of_daily}, {of_closes}")
    return {
        "events": events,
        "accounts": ACCOUNTS,
        "daily_rows": rows,
        "charges": int(charges),
        "clock_s": clock_s,
        "cpu_s": cpu_s,
        "peak_mib": machine.peak_memory_mib("self"),
        "before_mib": before_mib,
    }
