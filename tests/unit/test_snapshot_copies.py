"""Copies of snapshots: what is copied and when, which one is gone on from, and what is deleted."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pipeline.billing import fold
from pipeline.billing.books import Balances, Shard
from pipeline.billing.fold import outline_of
from pipeline.billing.id_runs import Keys
from pipeline.billing.terms import Terms
from pipeline.contract.catalog import Catalog
from pipeline.streams import snapshot_copies
from pipeline.streams.snapshot_copies import SnapshotCopies
from pipeline.streams.snapshot_files import SnapshotFiles
from pipeline.streams.snapshots import SnapshotStore

NOW_MS = 1_772_323_200_000


class Site:
    """Workers' own directories, and the one that they all see."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.copies = root / "copies"
        self.failures = 0

    def worker(self, name: str) -> SnapshotStore:
        copies = SnapshotCopies(self.copies, self._note_failure)
        return SnapshotStore(self.root / name, memory_bytes=1, copies=copies)

    def _note_failure(self) -> None:
        self.failures += 1

    def runs(self) -> set[str]:
        return {path.stem for path in (self.copies / "shard-0").glob("*.ids")}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def keys(seed: int, count: int = 4_000) -> Keys:
    return np.random.default_rng(seed).integers(0, 2**64 - 1, (count, 2), dtype=np.uint64)


def remember(store: SnapshotStore, shard: Shard, some: Keys, last_offset: int) -> bytes:
    """Add these, save a snapshot that stands on this offset, and await its copy; the snapshot."""
    packed = save(store, shard, some, last_offset)
    assert store._copies is not None
    if store._copies._last is not None:
        store._copies._last.result()
    return packed


def save(store: SnapshotStore, shard: Shard, some: Keys, last_offset: int) -> bytes:
    for start in range(0, len(some), 500):
        shard.ids.add(some[start : start + 500], NOW_MS)
    for threads in (store._thread, store._merges):
        threads.submit(lambda: None).result()  # what was asked for before is made
    shard.ids.add(keys(-last_offset % 2**32, 1), NOW_MS)
    shard.chain.last_offset = last_offset
    packed = fold.pack(shard, Balances(7), Terms(Catalog(), 1), with_ids=True)
    store.save(0, packed).result()
    return packed


def new_shard(store: SnapshotStore) -> Shard:
    return Shard.new(0, 7, 1_000, store.open(0))


def gone_on(store: SnapshotStore) -> Shard:
    """A shard as a worker finds it that takes it over."""
    shard = new_shard(store)
    found = store.load(0)
    assert found is not None
    fold.unpack(found, shard, Balances(7), Terms(Catalog(), 1))
    return shard


def test_who_has_no_snapshot_goes_on_from_the_copy(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    first = site.worker("first")
    remember(first, new_shard(first), keys(1), last_offset=7)
    assert site.runs()
    with caplog.at_level(logging.INFO):
        shard = gone_on(site.worker("second"))
    assert shard.chain.last_offset == 7
    assert shard.ids.contains(keys(1)).all()
    assert f"shard 0 goes on from the copy in {site.copies}" in caplog.text
    own = {path.stem for path in (site.root / "second" / "shard-0").glob("*.ids")}
    assert own == site.runs(), "its runs are its own now"


def test_what_was_copied_is_not_copied_again(site: Site) -> None:
    store = site.worker("first")
    shard = new_shard(store)
    remember(store, shard, keys(1), last_offset=1)
    before = {path: path.stat().st_ino for path in (site.copies / "shard-0").glob("*.ids")}
    remember(store, shard, keys(2, 1_100), last_offset=2)
    again = {path: path.stat().st_ino for path in before if path.exists()}
    assert again
    assert again.items() <= before.items()
    assert len(site.runs()) > len(again)


@pytest.mark.parametrize(("own", "copy"), [(9, 5), (5, 9), (5, 5)])
def test_the_snapshot_that_is_further_is_gone_on_from(site: Site, own: int, copy: int) -> None:
    alone = SnapshotStore(site.root / "second", memory_bytes=1)
    shard = new_shard(alone)
    shard.chain.last_offset = own
    shard.ids.add(keys(1, 10), NOW_MS)
    packed = fold.pack(shard, Balances(7), Terms(Catalog(), 1), with_ids=True)
    alone.save(0, packed).result()
    other = site.worker("first")
    remember(other, new_shard(other), keys(2), last_offset=copy)
    found = gone_on(site.worker("second"))
    assert found.chain.last_offset == max(own, copy)
    assert found.ids.contains(keys(1, 10)).all() == (own >= copy)


def test_a_copy_that_cannot_be_read_is_passed_over(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a later version, or with a run lost: the worker's own is older, and whole."""
    store = site.worker("first")
    shard = new_shard(store)
    remember(store, shard, keys(1), last_offset=3)
    state = msgspec.msgpack.decode(remember(store, shard, keys(2), last_offset=4), strict=False)
    SnapshotFiles(site.root / "first").write(0, _changed(state, last_offset=3))
    later = SnapshotFiles(site.copies, is_shared=True)
    later.write(0, _changed(state, version=fold.SNAPSHOT_VERSION + 1))
    assert gone_on(site.worker("first")).chain.last_offset == 3
    assert "not used: packed state of version" in caplog.text
    later.write(0, _changed(state, id_runs={0: ["lost"]}))
    assert gone_on(site.worker("first")).chain.last_offset == 3
    assert "not used: ids lost" in caplog.text


def _changed(state: dict[str, object], **fields: object) -> bytes:
    return msgspec.msgpack.encode(state | fields)


def test_a_damaged_run_is_copied_back(site: Site) -> None:
    store = site.worker("first")
    remember(store, new_shard(store), keys(1), last_offset=1)
    for path in (site.root / "first" / "shard-0").glob("*.ids"):
        path.write_bytes(path.read_bytes()[:-1])
    assert gone_on(site.worker("first")).ids.contains(keys(1)).all()


def test_runs_that_two_copies_do_without_are_deleted(site: Site) -> None:
    """Not before: somebody may be reading the copy that has just been replaced."""
    store = site.worker("first")
    shard = new_shard(store)
    seen: list[set[str]] = []
    for number in range(12):
        packed = remember(store, shard, keys(number, 2_100), last_offset=number)
        seen.append(outline_of(packed).runs)
        assert set().union(*seen[-2:]) == site.runs()
    assert set().union(*seen) > site.runs(), "merged ones are gone"


def test_a_new_owner_keeps_what_the_copy_before_it_needs(site: Site) -> None:
    first = site.worker("first")
    remember(first, new_shard(first), keys(1), last_offset=1)
    before = site.runs()
    second = site.worker("second")
    remember(second, new_shard(second), keys(2), last_offset=2)
    assert before < site.runs()
    remember(second, second_shard := gone_on(second), keys(3), last_offset=3)
    assert not before & site.runs()
    assert second_shard.ids.contains(keys(2)).all()


def test_a_place_that_cannot_be_written_costs_a_warning(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.copies.write_text("in the way")
    store = site.worker("first")
    remember(store, new_shard(store), keys(1), last_offset=1)
    assert "snapshot of shard 0 not copied" in caplog.text
    assert site.failures == 1
    assert gone_on(site.worker("first")).chain.last_offset == 1


def test_what_is_another_worker_s_by_now_is_not_copied(site: Site) -> None:
    store = site.worker("first")
    shard = new_shard(store)
    remember(store, shard, keys(1, 10), last_offset=1)
    assert store._copies is not None
    busy = threading.Event()
    store._copies._thread.submit(busy.wait, 60)
    save(store, shard, keys(2, 10), last_offset=2)
    store.close(0)
    busy.set()
    store.stop()
    packed = SnapshotFiles(site.copies).read(0)
    assert packed is not None
    assert outline_of(packed).last_offset == 1


def test_a_place_that_does_not_answer_holds_up_no_end(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was not copied by then is not written afterwards."""
    monkeypatch.setattr("pipeline.streams.snapshots._COPY_WAIT_S", 0.2)
    hanging, go_on = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        hanging.set()
        assert go_on.wait(60)

    monkeypatch.setattr(snapshot_copies, "copy_run", hang)
    store = site.worker("first")
    shard = new_shard(store)
    save(store, shard, keys(1), last_offset=1)
    assert hanging.wait(60)
    store.stop()
    go_on.set()
    assert store._copies is not None
    assert store._copies._last is not None
    store._copies._last.result()
    assert not (site.copies / "shard-0.snapshot").exists()


def test_parts_of_killed_workers_are_deleted_once_they_are_old(site: Site) -> None:
    (site.copies / "shard-0").mkdir(parents=True)
    old, new = (site.copies / "shard-0" / f"{name}.part" for name in ("old", "new"))
    for part in (old, new):
        part.write_text("")
    os.utime(old, (time.time() - 7_200,) * 2)
    store = site.worker("first")
    remember(store, new_shard(store), keys(1, 10), last_offset=1)
    assert not old.exists()
    assert new.exists()
