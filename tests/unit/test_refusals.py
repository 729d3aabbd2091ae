"""Refused records of the catalog are told of, whoever owns shard 0 when they should be."""

from __future__ import annotations

from pipeline.billing import fold
from pipeline.billing.decide import Policy
from pipeline.billing.journal import EMPTY_DIGEST, Header, seal
from pipeline.contract.catalog import Refused
from pipeline.contract.log import LogRecord
from pipeline.contract.vocabulary import CATALOG, JOURNAL
from pipeline.pacing.serving import PlainLimits
from pipeline.streams.clock import StreamClock
from pipeline.streams.engine import Engine, EngineSettings
from pipeline.streams.recovery import _Fold
from pipeline.streams.writer import checkpoint_entry
from tests.headers import a_header


def an_engine() -> Engine:
    return Engine(EngineSettings(1, Policy(7, b"0123456789abcdef"), 0), PlainLimits())


def checkpoint_with_refusals_waiting() -> Header:
    """Of a shard whose records have used the catalog up to 5, when 5 to 7 have been refused."""
    engine = an_engine()
    engine.new_shard(0)
    engine.adopt(0)
    engine.shards[0].catalog_end = 5
    for offset in range(5, 8):
        refused = engine.apply_catalog(LogRecord(CATALOG, 0, offset, 0, b"what", b"ever"), 0)
        assert isinstance(refused, Refused)
    packed = fold.pack(engine.shards[0], engine.balances, engine.terms, with_ids=False)
    return checkpoint_entry(engine, 0, packed, now_ms=0).header


def refusals_from(*headers: Header) -> int:
    """From which catalog offset on the owner after these records tells of refusals."""
    one = _Fold(0, an_engine(), StreamClock())
    one.begin(range(0, len(headers)))
    digest = EMPTY_DIGEST
    for offset, header in enumerate(headers):
        sealed, value = seal(header, b"", digest)
        digest = sealed.digest
        one.take(LogRecord(JOURNAL, 0, offset, 0, None, value))
    return one.finish(len(headers)).refusals_from


def placed(header: Header, previous: int) -> Header:
    """As a writer would append it, all before it having been sent."""
    return a_header(
        previous,
        outbox_through=previous,
        catalog_end=header.catalog_end,
        checkpoint=header.checkpoint,
    )


def test_refusals_that_wait_at_a_checkpoint_are_sent_by_the_next_owner() -> None:
    first = a_header(catalog_end=5)
    checkpoint = placed(checkpoint_with_refusals_waiting(), 0)
    # Killed after the checkpoint, or after the record that was to send them.
    assert refusals_from(first, checkpoint) == 5
    assert refusals_from(first, checkpoint, placed(a_header(catalog_end=8), 1)) == 5


def test_refusals_that_were_sent_are_not_sent_again() -> None:
    records = [a_header(catalog_end=5), placed(a_header(catalog_end=8), 0)]
    assert refusals_from(*records, a_header(1, catalog_end=8, outbox_through=1)) == 8
