"""Everything the product wrote, held against the auditor, from where the last look ended.

The auditor judges every record of the event topics in the product's own order of judgement, with
the time of each decision, and the figures of the other tables follow from its verdicts. A
difference is a text that says what is where; none is the promise.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

from tests.auditor import Auditor, CatalogRecord, SourceRecord, Verdict, partition_of
from tests.integration.cluster import PARTITIONS, Cluster
from tests.integration.product import (
    CATALOG,
    EVENT_TOPICS,
    REJECTS,
    SIGNALS,
)

BLOCK = 1_000
OWN_DAY = ("not_serving", "counted", "repeat", "over_budget", "charged")
REJECTED = ("malformed", "future", "unknown")
COUNTER_OF_KIND = {
    "impression": "impressions",
    "click": "clicks",
    "closeup": "closeups",
    "save": "saves",
    "install": "installs",
}
COUNTER_OF_BASIS = {
    "cpm": "charged_impressions",
    "cpc": "charged_clicks",
    "cpe": "charged_engagements",
}
_EXPECTED = (
    "disposition",
    "limit",
    "amount_nanos",
    "free_nanos",
    "kind",
    "event_id",
    "basis",
    "price_micros",
    "campaign_id",
    "ad_group_id",
    "promoted_pin_id",
)
_ROWS = (
    f"SELECT {', '.join(f'`{name}`' for name in _EXPECTED)}, account_id, billing_day, posting_day, "
    "placement, country, device, source_topic, source_partition, source_offset, shard_seq, "
    "decided_at_ms, journal_partition, journal_offset FROM billing.events "
    "WHERE journal_partition = {shard:UInt16} AND shard_seq >= {seq:Int64} ORDER BY shard_seq"
)


@dataclass(frozen=True, slots=True)
class Judged:
    """An event as the auditor has it, and where the product booked it."""

    verdict: Verdict
    posting_day: str
    placement: str
    country: str
    device: str
    at: tuple[int, int]
    """Journal partition and offset."""


@dataclass(slots=True)
class Audit:
    """Goes on with each call of `look`."""

    auditor: Auditor = field(default_factory=lambda: Auditor(PARTITIONS))
    judged: list[Judged] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    _seqs: Counter[int] = field(default_factory=Counter)
    _sources: dict[tuple[str, int, int], SourceRecord] = field(default_factory=dict)
    _read: dict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    _zones: dict[str, str] = field(default_factory=dict)
    _signals: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    _sent: set[tuple[str, int]] = field(default_factory=set)
    _rejected: set[tuple[str, int, int]] = field(default_factory=set)
    _arrived: Counter[tuple[str, int, bytes | None]] = field(default_factory=Counter)
    """(topic, partition, value) of the records read, for the strays."""
    _strays: list[SourceRecord] = field(default_factory=list)

    def look(self, cluster: Cluster) -> list[str]:
        """Judge what came since the last look, and compare all tables; the new differences."""
        before = len(self.differences)
        with ThreadPoolExecutor(1) as aside:
            reconciled = aside.submit(cluster.run, "reconcile", "--json")
            self._read_catalog(cluster)
            self._read_sources(cluster)
            self._judge(cluster)
            self._check_signals_sent(cluster)
            self._check_rejects(cluster)
            self._check_strays(cluster)
            self._check_charges(cluster)
            self._check_closed_days(cluster)
            self._check_limits()
            self._check_reconciled(reconciled.result())
        return self.differences[before:]

    def _differ(self, text: str) -> None:
        self.differences.append(text)

    # -- reading ------------------------------------------------------------------------------

    def _new_records(self, cluster: Cluster, topic: str) -> Iterable[Any]:
        for record in cluster.kafka.read(topic, self._read[topic]):
            self._read[topic][record.partition] = record.offset + 1
            yield record

    def _read_catalog(self, cluster: Cluster) -> None:
        for record in self._new_records(cluster, CATALOG):
            key = record.key.decode()
            if key.startswith("close:"):
                continue
            refused = self.auditor.catalog(
                CatalogRecord(record.offset, record.timestamp, key, record.value)
            )
            if key.startswith("account:") and refused is None:
                zone = json.loads(record.value).get("time_zone", "UTC")
                self._zones[key.removeprefix("account:")] = str(ZoneInfo(zone))

    def _read_sources(self, cluster: Cluster) -> None:
        for topic in EVENT_TOPICS:
            for record in self._new_records(cluster, topic):
                place = (topic, record.partition, record.offset)
                source = SourceRecord(*place, record.timestamp, record.key, record.value)
                self._sources[place] = source
                self._arrived[topic, record.partition, record.value] += 1

    # -- events and the signals decided with them ---------------------------------------------

    def _judge(self, cluster: Cluster) -> None:
        decided = defaultdict(list)
        for signal in cluster.query("SELECT * FROM reporting.signals"):
            name = (signal["entity"], signal["version"])
            if name in self._signals:
                if self._signals[name] != signal:
                    self._differ(f"signal {name} is there twice")
                continue
            self._signals[name] = signal
            decided[signal["journal_partition"], signal["journal_offset"]].append(signal)
        for shard in range(PARTITIONS):
            self._judge_shard(cluster, shard, decided)
        for place in self._sources:
            self._differ(f"{place} has no row")
        for signals in decided.values():
            for signal in signals:
                self._differ(f"signal {signal} is of a record that is not in the tables")

    def _judge_shard(self, cluster: Cluster, shard: int, decided: dict[Any, Any]) -> None:
        rows = cluster.query(_ROWS, shard=shard, seq=self._seqs[shard])
        places = sorted(at for at in decided if at[0] == shard)
        for row in rows:
            at = (shard, row["journal_offset"])
            while places and places[0] < at:
                self._check_signals(decided.pop(places.pop(0)))
            self._judge_row(shard, row)
        for place in places:
            self._check_signals(decided.pop(place))

    def _judge_row(self, shard: int, row: dict[str, Any]) -> None:
        if row["shard_seq"] != self._seqs[shard]:
            self._differ(f"shard {shard}: seq {row['shard_seq']} in place of {self._seqs[shard]}")
        self._seqs[shard] = row["shard_seq"] + 1
        place = (row["source_topic"], row["source_partition"], row["source_offset"])
        source = self._sources.pop(place, None)
        if source is None or place[1] != shard:
            self._differ(f"{place} has a second row, or one of shard {shard}")
            return
        verdict = self.auditor.judge(source, row["decided_at_ms"])
        expected = {name: getattr(verdict, name) for name in _EXPECTED}
        expected["billing_day"] = verdict.billing_day.isoformat()
        if expected != {name: row[name] for name in expected}:
            self._differ(f"{place}: {row} in place of {expected}")
        if verdict.disposition == "misrouted":
            self._strays.append(source)
        if verdict.disposition in REJECTED:
            self._rejected.add(place)
        self.judged.append(
            Judged(
                verdict,
                row["posting_day"],
                row["placement"],
                row["country"],
                row["device"],
                (row["journal_partition"], row["journal_offset"]),
            )
        )

    def _check_signals(self, signals: list[dict[str, Any]]) -> None:
        """The figures of signals decided with a record, its events and all before being judged."""
        for signal in signals:
            limit, day = signal["limit"], date.fromisoformat(signal["billing_day"])
            if not limit:
                continue
            entity_id = signal["entity"].partition(":")[2]
            spend_nanos = self.auditor.spend(limit, entity_id, day)
            limit_micros = self.auditor.limit_micros(limit, entity_id, signal["decided_at_ms"])
            figures = (signal["spend_nanos"], signal["limit_nanos"])
            expected = (spend_nanos, (limit_micros or 0) * 1_000)
            if limit_micros is None:
                expected = (0, 0)  # it was taken away, which is why they serve again
            if figures != expected:
                self._differ(f"signal {signal}: figures {figures} in place of {expected}")

    # -- what went out ------------------------------------------------------------------------

    def _check_signals_sent(self, cluster: Cluster) -> None:
        for record in self._new_records(cluster, SIGNALS):
            sent = json.loads(record.value)
            decided = self._signals.get((record.key.decode(), sent["version"]))
            names = ("action", "limit", "limit_nanos", "spend_nanos", "billing_day")
            if decided is None or any(sent[name] != decided[name] for name in names):
                self._differ(f"signal {sent} was sent, {decided} decided")
            else:
                self._sent.add((sent["entity"], sent["version"]))
        # Compaction cannot have taken one: its lag is a day.
        for name in self._signals.keys() - self._sent:
            self._differ(f"signal {name} was never sent")

    def _check_rejects(self, cluster: Cluster) -> None:
        for record in cluster.kafka.read(REJECTS):
            reject = json.loads(record.value)
            if reject["source"] == CATALOG:
                continue
            place = (reject["source"], reject["partition"], reject["offset"])
            self._rejected.discard(place)
        for place in self._rejected:
            self._differ(f"{place} was not rejected on {REJECTS}")

    def _check_strays(self, cluster: Cluster) -> None:
        for stray in self._strays:
            campaign = json.loads(stray.value or b"")["campaign_id"]
            home = partition_of(campaign, PARTITIONS)
            if not self._arrived[stray.topic, home, stray.value]:
                self._differ(f"{stray.topic}-{stray.partition}@{stray.offset} never came home")
        self._strays.clear()

    # -- the other tables ---------------------------------------------------------------------

    def _check_charges(self, cluster: Cluster) -> None:
        expected: Counter[tuple[Any, ...]] = Counter()
        blocks = defaultdict(list)
        for event in self.judged:
            verdict = event.verdict
            if verdict.disposition != "charged":
                continue
            day = verdict.billing_day.isoformat()
            if verdict.basis == "cpm":
                key = (event.at[0], verdict.account_id, verdict.ad_group_id, day, event.posting_day)
                blocks[key].append(verdict.amount_nanos)
            else:
                expected[
                    verdict.ad_group_id,
                    day,
                    event.posting_day,
                    verdict.basis,
                    1,
                    verdict.amount_nanos,
                    verdict.event_id,
                ] += 1
        closed = self._closed_by_shards(cluster)
        for (shard, account, group, day, posting), amounts in blocks.items():
            is_closed = closed.get((shard, self._zones[account]), "") >= posting
            for start in range(0, len(amounts), BLOCK):
                block = amounts[start : start + BLOCK]
                if len(block) == BLOCK or is_closed:
                    expected[group, day, posting, "cpm", len(block), sum(block), ""] += 1
        found = Counter(
            tuple(row.values())
            for row in cluster.query(
                "SELECT ad_group_id, billing_day, posting_day, basis, quantity, amount_nanos, "
                "event_id FROM billing.charges"
            )
        )
        for charge, count in (found - expected).items():
            self._differ(f"charge {charge}: {count} too many")
        for charge, count in (expected - found).items():
            self._differ(f"charge {charge}: {count} missing")

    def _closed_by_shards(self, cluster: Cluster) -> dict[tuple[int, str], str]:
        return {
            (row["journal_partition"], row["time_zone"]): row["through"]
            for row in cluster.query(
                "SELECT journal_partition, time_zone, max(closed_through) AS through "
                "FROM reporting.shard_closes GROUP BY ALL"
            )
        }

    def _check_closed_days(self, cluster: Cluster) -> None:
        closes = {
            (row["account_id"], row["billing_day"]): row["amount_nanos"]
            for row in cluster.query("SELECT * FROM billing.day_closes")
        }
        if len(closes) != cluster.query("SELECT count() AS n FROM billing.day_closes")[0]["n"]:
            self._differ("an account's day is closed twice")
        daily: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        totals: Counter[tuple[str, str]] = Counter()
        for event in self.judged:
            verdict = event.verdict
            account_day = (verdict.account_id, event.posting_day)
            if verdict.disposition not in OWN_DAY or account_day not in closes:
                continue
            totals[account_day] += verdict.amount_nanos
            daily[_daily_key(event)].update(_daily_counts(verdict))
        for account_day, nanos in closes.items():
            if nanos != totals[account_day]:
                self._differ(f"{account_day} closed with {nanos}, not {totals[account_day]}")
        ad = ("account_id", "campaign_id", "ad_group_id", "promoted_pin_id")
        names = ("billing_day", *ad, "placement", "country", "device")
        found: dict[tuple[str, ...], Counter[str]] = {}
        for row in cluster.query("SELECT * FROM reporting.daily"):
            key = tuple(row[name] for name in names)
            if key in found:
                self._differ(f"{key} is twice in reporting.daily")
            counters = [name for name in row if name not in names and name != "currency"]
            found[key] = Counter({name: row[name] for name in counters})
        for key in found.keys() | daily.keys():
            if found.get(key, Counter()) != daily.get(key, Counter()):
                self._differ(f"daily {key}: {found.get(key)} in place of {daily.get(key)}")

    def _check_limits(self) -> None:
        """No bucket holds more than the largest limit that it ever had."""
        for text in self.auditor.exceeded():
            self._differ(text)

    def _check_reconciled(self, done: Any) -> None:
        broken = [check for check in json.loads(done.stdout)["checks"] if not check["ok"]]
        if done.returncode or broken:
            self._differ(f"reconcile: {broken} {done.stderr[-500:]}")


def _daily_key(event: Judged) -> tuple[str, ...]:
    verdict = event.verdict
    ad = (verdict.account_id, verdict.campaign_id, verdict.ad_group_id, verdict.promoted_pin_id)
    return (event.posting_day, *ad, event.placement, event.country, event.device)


def _daily_counts(verdict: Verdict) -> dict[str, int]:
    counts = {COUNTER_OF_KIND[verdict.kind]: 1}
    if verdict.disposition == "charged":
        counts[COUNTER_OF_BASIS[verdict.basis]] = 1
    return counts | {"spend_nanos": verdict.amount_nanos, "free_nanos": verdict.free_nanos}
