"""Where a topic begins is in the journal before anything of it is: a gap there is noticed too."""

from __future__ import annotations

from pipeline.billing.books import Shard
from pipeline.billing.id_runs import MemoryShelf
from pipeline.billing.journal import Header
from pipeline.contract.vocabulary import CLICKS, ENGAGEMENTS, IMPRESSIONS
from pipeline.streams.recovery import Owned
from pipeline.streams.writer import placed
from tests.headers import a_header


def owned() -> Owned:
    """A shard whose clicks begin at 7, and of which nothing has been journaled."""
    begun = {IMPRESSIONS: 0, CLICKS: 7, ENGAGEMENTS: 0}
    return Owned(Shard.new(0, 7, 0, MemoryShelf()), begun=begun)


def append(one: Owned, header: Header) -> Header:
    at = placed(header, one)
    one.state.chain.extend(one.state.chain.last_offset + 1, at)
    return at


def test_the_first_record_names_where_each_topic_begins() -> None:
    one = owned()
    first = append(one, a_header(sources={IMPRESSIONS: (0, 3)}))
    assert first.sources == {IMPRESSIONS: (0, 3), CLICKS: (7, 7), ENGAGEMENTS: (0, 0)}
    # And what follows goes on from there, as any reader of the journal checks.
    assert append(one, a_header(sources={CLICKS: (7, 9)})).sources == {CLICKS: (7, 9)}
    assert one.state.chain.next_offsets == {IMPRESSIONS: 3, CLICKS: 9, ENGAGEMENTS: 0}


def test_a_checkpoint_holds_the_state_before_it_and_names_none() -> None:
    assert not append(owned(), a_header(checkpoint=b"state")).sources
