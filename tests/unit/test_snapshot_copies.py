"""Copies of snapshots: what is copied and when, which one is gone on from, and what is deleted."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import subprocess
import sys
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
from pipeline.streams.id_files import NoLongerWantedError
from pipeline.streams.snapshot_files import Snapshot, SnapshotFiles
from pipeline.streams.snapshots import SnapshotStore

NOW_MS = 1_772_323_200_000
ANY_OFFSET = range(-1, 1 << 62)


class Site:
    """Workers' own directories, and the one that they all see."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.copies = root / "copies"
        self.copies.mkdir()
        self.failures = 0

    def worker(self, name: str) -> SnapshotStore:
        return SnapshotStore(self.root / name, 1, self.copies, self._note_failure)

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
    assert store._copies.idle_within(60)
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


def load(store: SnapshotStore, within: range = ANY_OFFSET) -> bytes | None:
    return asyncio.run(store.load(0, within))


def gone_on(store: SnapshotStore) -> Shard:
    """A shard as a worker finds it that takes it over."""
    shard = new_shard(store)
    found = load(store)
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
    seen: list[set[str]] = [set()]
    for number in range(12):
        seen.append(outline_of(remember(store, shard, keys(number, 2_100), number), 0).runs)
        assert set().union(*seen[-2:]) == site.runs()
    assert set().union(*seen) > site.runs(), "merged ones are gone"


def test_an_owner_that_comes_back_keeps_what_the_copy_before_its_own_needs(site: Site) -> None:
    """That is another worker's: what this one copied last is long gone."""
    first, second = site.worker("first"), site.worker("second")
    remember(first, new_shard(first), keys(1), last_offset=1)
    remember(second, shard := gone_on(second), keys(2), last_offset=2)
    needed = outline_of(remember(second, shard, keys(3), last_offset=3), 0).runs
    first.close(0)
    remember(first, gone_on(first), keys(4), last_offset=4)
    assert needed <= site.runs()


def test_a_place_that_is_not_there_costs_a_warning(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not made: what is not mounted would be a directory that nobody else sees."""
    site.copies.rmdir()
    store = site.worker("first")
    remember(store, new_shard(store), keys(1), last_offset=1)
    assert f"snapshot of shard 0 not copied to {site.copies}: FileNotFoundError" in caplog.text
    assert site.failures == 1
    assert not site.copies.exists()
    assert gone_on(site.worker("first")).chain.last_offset == 1


def test_a_place_that_is_full_is_left_as_it_was(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for what nobody needs any more, which makes room."""
    store = site.worker("first")
    shard = new_shard(store)
    (site.copies / "shard-0").mkdir()
    (site.copies / "shard-0" / "stale.ids").write_text("")

    def full(_: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", full)
        remember(store, shard, keys(1), last_offset=1)
    assert site.failures == 1
    assert [path.name for path in site.copies.rglob("*")] == ["shard-0"]
    remember(store, shard, keys(2), last_offset=2)
    assert site.failures == 1
    assert gone_on(site.worker("second")).ids.contains(keys(1)).all()


def test_a_file_that_was_cut_off_is_copied_again(site: Site) -> None:
    store = site.worker("first")
    shard = new_shard(store)
    remember(store, shard, keys(1), last_offset=1)
    for path in (site.copies / "shard-0").glob("*.ids"):
        path.write_bytes(path.read_bytes()[:-1])
    remember(store, shard, keys(2, 10), last_offset=2)
    assert gone_on(site.worker("second")).ids.contains(keys(1)).all()


@pytest.mark.parametrize("size", [0, 3, 8, 13, 20, 24, 4_096, 5_000])
def test_files_that_are_cut_off_anywhere_are_known_by_it(site: Site, size: int) -> None:
    store = site.worker("first")
    remember(store, new_shard(store), keys(1), last_offset=1)
    for path in site.root.rglob("*.ids"):
        path.write_bytes(path.read_bytes()[:size])
    again = site.worker("first")
    again.open(0)
    assert load(again) is None


def test_what_is_of_another_journal_is_passed_over(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Before anything of it is copied: another cluster's, or of a journal made anew since."""
    other = site.worker("other")
    remember(other, new_shard(other), keys(1), last_offset=1_000_000)
    store = SnapshotStore(site.root / "first", memory_bytes=1)
    shard = new_shard(store)
    save(store, shard, keys(2), last_offset=4_900)
    store.stop()
    again = site.worker("first")
    own = new_shard(again)
    packed = load(again, range(0, 5_000))
    assert packed is not None
    fold.unpack(packed, own, Balances(7), Terms(Catalog(), 1))
    assert own.chain.last_offset == 4_900
    assert "is not of this journal" in caplog.text
    assert load(again, range(4_901, 5_000)) is None


def test_runs_that_were_brought_for_nothing_are_deleted(site: Site) -> None:
    """One of them is lost; the others are not wanted without it."""
    first = site.worker("first")
    remember(first, new_shard(first), keys(1), last_offset=1)
    sorted((site.copies / "shard-0").glob("*.ids"))[-1].unlink()
    second = site.worker("second")
    shard = new_shard(second)
    assert load(second) is None
    brought = list((site.root / "second" / "shard-0").glob("*.ids"))
    assert brought
    save(second, shard, keys(2, 10), last_offset=2)
    assert not any(path.exists() for path in brought)


def test_a_copy_that_is_replaced_while_it_is_read_is_read_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = site.worker("first")
    remember(first, shard := new_shard(first), keys(1), last_offset=1)
    old = SnapshotFiles(site.copies).read(0)
    for number in (2, 3, 4):
        remember(first, shard, keys(number, 9_000), last_offset=number)
    assert old is not None
    assert not old.outline.runs <= site.runs()
    read, answers = SnapshotFiles.read, [old]

    def late(files: SnapshotFiles, number: int) -> Snapshot | None:
        is_copy = files.directory == site.copies
        return answers.pop() if is_copy and answers else read(files, number)

    monkeypatch.setattr(SnapshotFiles, "read", late)
    assert gone_on(site.worker("second")).chain.last_offset == 4
    assert not answers


def test_a_takeover_that_is_cut_off_copies_no_further(site: Site) -> None:
    first = site.worker("first")
    remember(first, new_shard(first), keys(1), last_offset=1)
    second = site.worker("second")
    second.open(0).cancel()
    with pytest.raises(NoLongerWantedError):
        load(second)


def test_a_run_that_never_comes_is_gone_on_without(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the worker's own snapshot, which is older."""
    monkeypatch.setattr("pipeline.streams.snapshots._RUN_COPIED_WITHIN_S", 0.1)
    store = SnapshotStore(site.root / "second", memory_bytes=1)
    save(store, new_shard(store), keys(1), last_offset=1)
    first = site.worker("first")
    remember(first, new_shard(first), keys(2), last_offset=2)
    for path in (site.copies / "shard-0").glob("*.ids"):
        path.unlink()
        os.mkfifo(path)  # who opens it waits for ever
    assert gone_on(site.worker("second")).chain.last_offset == 1


def test_copies_that_do_not_answer_are_gone_on_without(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.streams.snapshots._COPY_ANSWERS_WITHIN_S", 0.1)
    store = SnapshotStore(site.root / "first", memory_bytes=1)
    save(store, new_shard(store), keys(1), last_offset=1)
    os.mkfifo(site.copies / "shard-0.snapshot")  # who reads it waits for ever
    again = site.worker("first")
    assert gone_on(again).chain.last_offset == 1
    assert f"{site.copies} does not answer" in caplog.text
    caplog.clear()
    assert gone_on(again).chain.last_offset == 1
    assert caplog.text == "", "the next shard does not wait again"


def test_copies_that_fall_behind_are_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is another worker's by the time that it comes to it is not copied."""
    reading, go_on = threading.Event(), threading.Event()
    read = SnapshotFiles.read

    def held_up(files: SnapshotFiles, shard: int) -> Snapshot | None:
        if files.directory == site.root / "first":
            reading.set()
            assert go_on.wait(60)
        return read(files, shard)

    store = site.worker("first")
    shard = new_shard(store)
    remember(store, shard, keys(1, 10), last_offset=1)
    monkeypatch.setattr(SnapshotFiles, "read", held_up)
    save(store, shard, keys(2, 10), last_offset=2)
    assert reading.wait(60)
    for last_offset in (3, 4):
        save(store, shard, keys(last_offset, 10), last_offset)
    assert site.failures == 1, "one waits, and a second one comes"
    store.close(0)
    go_on.set()
    store.stop()
    copy = read(SnapshotFiles(site.copies), 0)
    assert copy is not None
    assert copy.outline.last_offset == 1


HANGING = """
import asyncio, sys
from pathlib import Path
from pipeline.streams.snapshots import SnapshotStore
import pipeline.streams.snapshots as module

module._COPY_WAIT_S = module._COPY_ANSWERS_WITHIN_S = 0.2
root = Path(sys.argv[1])
store = SnapshotStore(root / "first", 1, root / "copies")
store.open(0)
assert asyncio.run(store.load(0, range(9))) is None
store.save(0, Path(sys.argv[2]).read_bytes()).result()
store.stop()
print("ended")
"""


def test_a_place_that_never_answers_holds_up_no_end(site: Site) -> None:
    """Neither of a takeover, nor of the process."""
    other = SnapshotStore(site.root / "other", memory_bytes=1)
    packed = site.root / "packed"
    packed.write_bytes(save(other, new_shard(other), keys(1, 10), last_offset=1))
    os.mkfifo(site.copies / "shard-0.snapshot")
    done = subprocess.run(
        [sys.executable, "-c", HANGING, str(site.root), str(packed)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "ended\n"


def test_parts_of_killed_workers_are_deleted(site: Site) -> None:
    """Where others write too, once they are old."""
    (site.copies / "shard-0").mkdir(parents=True)
    (site.root / "first" / "shard-0").mkdir(parents=True)
    old, new = (site.copies / "shard-0" / f"{name}.part" for name in ("old", "new"))
    own = site.root / "first" / "shard-0" / "new.part"
    for part in (old, new, own):
        part.write_text("")
    os.utime(old, (time.time() - 7_200,) * 2)
    store = site.worker("first")
    assert not own.exists()
    remember(store, new_shard(store), keys(1, 10), last_offset=1)
    assert not old.exists()
    assert new.exists()
