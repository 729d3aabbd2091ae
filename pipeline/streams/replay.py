"""Judging recorded events again: the same journal and topics, under the same or another policy.

Sans-I/O: the caller feeds one shard's journal records in their order, with the source records that
each of them judged. Records before the window are folded, as at a takeover; those within it are
judged again, at the `now` that they were judged at and with the catalog as it was then. Nothing is
published. Under the policy of the recording the outcome is the recorded one, to the nano.

Under another policy some events would not have happened: an impression whose ad group or campaign
had been paused (by the replayed signals) for longer than the ad servers' reaction time is withheld,
and so is every action on an impression that was withheld. Where the replayed probability is lower
than the recorded one, by which the impression was served, it is kept by the ratio of the two.
Events that another policy would have let happen in addition are not known to anybody, and so are
not in the figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec
import numpy as np
import polars as pl
import xxhash

from pipeline.billing.batch import Assembler, Chunk
from pipeline.billing.journal import Header
from pipeline.billing.texts import Packed
from pipeline.contract.catalog import Accepted, Catalog, Refused
from pipeline.contract.log import LogRecord
from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import DISPOSITIONS, EVENT_TOPICS
from pipeline.pacing.serving import Policy as PacingPolicy
from pipeline.streams.engine import READ_TO_THE_END, Engine, EngineSettings

_DRAWS: Final = 2**32


class ReplayError(Exception):
    """The recording cannot be replayed, or not so; the text says what is missing or wrong."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is different from the recording; the default changes nothing."""

    catalog: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Catalog key (`ad_group:ID`, `campaign:ID`) -> fields that its records have instead."""
    withholds: bool = False
    """Whether the replayed signals keep events from happening."""
    reaction_ms: int = 2_000
    """How long ad servers take to obey."""


@dataclass(slots=True)
class Tally:
    """What one ad group came to."""

    recorded_nanos: int = 0
    recorded_free_nanos: int = 0
    replayed_nanos: int = 0
    replayed_free_nanos: int = 0
    events: int = 0
    withheld: int = 0
    differs: int = 0
    """Events with another disposition, amount or free value than recorded (or withheld)."""
    recorded_signals: int = 0
    replayed_signals: int = 0


class _Served(msgspec.Struct):
    """What of an event tells whether it would have been served."""

    event_time_ms: int
    campaign_id: str
    ad_group_id: str
    impression_id: str


_served = msgspec.json.Decoder(_Served)


class Replay:
    """The replay of one shard."""

    def __init__(
        self, shard: int, settings: EngineSettings, pacing: PacingPolicy, change: Change
    ) -> None:
        self.shard = shard
        # A bid is a price: what was charged by it is only to be had by the same one.
        self.engine = Engine(replace(settings, decides_bids=False), pacing)
        self.engine.new_shard(shard)
        self.tallies: dict[str, Tally] = {}
        self.met: set[str] = set()
        """Keys of the change's catalog that a record has come under."""
        self._change = change
        self._recorded = Catalog() if change.catalog else None
        self._assembler = Assembler()
        self._recorded_signals: dict[str, list[Signal]] = {}
        self._replayed_signals: dict[str, list[Signal]] = {}
        self._withheld: set[str] = set()
        self._began = False

    # -- input --------------------------------------------------------------------------------

    def apply_catalog(self, records: Iterable[LogRecord], now_ms: int) -> None:
        """Catalog records in their order, with the fields that the change names replaced.

        Raises `ReplayError` where the change would have a valid record refused: what it asks for
        would not be tried.
        """
        for record in records:
            result = self.engine.apply_catalog(self._changed(record), now_ms)
            if self._recorded is None:
                continue
            as_recorded = self._recorded.apply(record)
            if isinstance(result, Refused) and isinstance(as_recorded, Accepted):
                raise ReplayError(
                    f"{_key_of(record)}: the catalog refuses it as the policy would have it: "
                    f"{result.reason}: {result.field} {result.detail}"
                )

    def _changed(self, record: LogRecord) -> LogRecord:
        """What is no JSON object was refused, and stays as it is."""
        fields = self._change.catalog.get(_key_of(record))
        if fields is None or record.value is None:
            return record
        self.met.add(_key_of(record))
        try:
            value = msgspec.json.decode(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return record
        if not isinstance(value, dict):
            return record
        return replace(record, value=msgspec.json.encode(value | dict(fields)))

    def fold(self, header: Header, events: pl.DataFrame) -> None:
        """A journal record from before the window that counts."""
        self.engine.fold(self.shard, [(header, events)])

    def judge(self, header: Header, events: pl.DataFrame, sources: Sequence[LogRecord]) -> None:
        """A journal record within the window, and the source records that it judged."""
        if not self._began:
            self._began = True
            self.engine.adopt(self.shard)
            for entity, signal in self.engine.shards[self.shard].standing.items():
                self._recorded_signals[entity] = [signal]
                self._replayed_signals[entity] = [signal]
        kept = [record for record in sources if self._would_happen(record)]
        batch = self._assembler.assemble(_chunks(kept, self.shard, header.sources))
        through = {self.shard: READ_TO_THE_END if header.closed else 0}
        turn = self.engine.turn(batch, header.now_ms, through)
        for signal in header.signals:
            self.engine.shards[self.shard].note_bid(signal)
        if self._change.withholds:
            _note(self._recorded_signals, header.signals)
            _note(self._replayed_signals, turn.drafts[self.shard].signals)
        for signal in header.signals:
            self._tally(signal.entity).recorded_signals += 1
        for signal in turn.drafts[self.shard].signals:
            self._tally(signal.entity).replayed_signals += 1
        replayed = _columns(
            batch.source,
            batch.offset,
            turn.outcome.disposition,
            turn.outcome.amount_nanos,
            turn.outcome.free_nanos,
        )
        self._compare(header, events, replayed)

    # -- what would have happened -------------------------------------------------------------

    def _would_happen(self, record: LogRecord) -> bool:
        if not self._change.withholds or record.value is None:
            return True
        try:
            event = _served.decode(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return True  # malformed then, malformed now
        if record.topic != EVENT_TOPICS[0]:
            return event.impression_id not in self._withheld
        draw = xxhash.xxh32_intdigest(event.impression_id.encode()) / _DRAWS
        for entity in (f"ad_group:{event.ad_group_id}", f"campaign:{event.campaign_id}"):
            obeyed_ms = event.event_time_ms - self._change.reaction_ms
            # What was served in spite of a pause was served to all.
            recorded = _probability(self._recorded_signals.get(entity, ()), obeyed_ms) or 1.0
            replayed = _probability(self._replayed_signals.get(entity, ()), obeyed_ms)
            if draw * recorded >= replayed:
                self._withheld.add(event.impression_id)
                return False
        return True

    # -- side by side -------------------------------------------------------------------------

    def _tally(self, entity: str) -> Tally:
        return self.tallies.setdefault(entity, Tally())

    def _compare(self, header: Header, events: pl.DataFrame, replayed: pl.DataFrame) -> None:
        recorded = events.select(
            pl.col("source").cast(pl.Int64),
            pl.col("source_offset"),
            pl.col("ad").cast(pl.Int64),
            pl.col("disposition").cast(pl.Int64),
            pl.col("amount_nanos"),
            pl.col("free_nanos"),
        )
        both = recorded.join(replayed, on=["source", "source_offset"], how="left")
        withheld = pl.col("again").is_null()
        same = (
            (pl.col("disposition") == pl.col("again"))
            & (pl.col("amount_nanos") == pl.col("again_nanos"))
            & (pl.col("free_nanos") == pl.col("again_free_nanos"))
        )
        sums = both.group_by("ad").agg(
            pl.len(),
            pl.col("amount_nanos").sum(),
            pl.col("free_nanos").sum(),
            pl.col("again_nanos").sum(),
            pl.col("again_free_nanos").sum(),
            withheld.sum().alias("withheld"),
            (~same.fill_null(False)).sum().alias("differs"),
        )
        for row in sums.iter_rows(named=True):
            tally = self._tally(f"ad_group:{header.ads[row['ad']].ad_group_id}")
            tally.events += row["len"]
            tally.recorded_nanos += row["amount_nanos"]
            tally.recorded_free_nanos += row["free_nanos"]
            tally.replayed_nanos += row["again_nanos"]
            tally.replayed_free_nanos += row["again_free_nanos"]
            tally.withheld += row["withheld"]
            tally.differs += row["differs"]


def _note(of_entity: dict[str, list[Signal]], signals: Iterable[Signal]) -> None:
    for signal in signals:
        of_entity.setdefault(signal.entity, []).append(signal)


def _probability(signals: Sequence[Signal], obeyed_ms: int) -> float:
    """By the last of an entity's signals up to a time."""
    for signal in reversed(signals):
        if signal.decided_at_ms <= obeyed_ms:
            return signal.serve_probability
    return 1.0


def _key_of(record: LogRecord) -> str:
    return (record.key or b"").decode(errors="replace")


def _columns(
    source: np.ndarray[Any, Any],
    offset: np.ndarray[Any, Any],
    disposition: np.ndarray[Any, Any],
    amount: np.ndarray[Any, Any],
    free: np.ndarray[Any, Any],
) -> pl.DataFrame:
    assert disposition.max(initial=0) < len(DISPOSITIONS)
    return pl.DataFrame(
        {
            "source": source.astype(np.int64),
            "source_offset": offset,
            "again": disposition.astype(np.int64),
            "again_nanos": amount,
            "again_free_nanos": free,
        }
    )


def _chunks(
    records: Sequence[LogRecord], shard: int, ranges: Mapping[str, tuple[int, int]]
) -> list[Chunk]:
    """One chunk for each source, with the offsets that the journal record took."""
    chunks = []
    for source, topic in enumerate(EVENT_TOPICS):
        here = sorted((r for r in records if r.topic == topic), key=lambda r: r.offset)
        if topic not in ranges:
            continue
        start, end = ranges[topic]
        chunks.append(
            Chunk(
                source=source,
                shard=shard,
                start=start,
                end=end,
                offsets=np.array([record.offset for record in here], dtype=np.int64),
                timestamps_ms=np.array([record.timestamp_ms for record in here], dtype=np.int64),
                values=Packed.of(record.value for record in here),
                keys=Packed.of(record.key for record in here),
            )
        )
    return chunks
