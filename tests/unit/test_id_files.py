"""Ids in files: merges in pieces, disks that fail, how much is in memory."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import numpy as np
import pytest

from pipeline.billing import fold, id_runs
from pipeline.billing.books import Balances, Shard
from pipeline.billing.id_runs import MAX_HOT_IDS, Keys, MemoryShelf, merged_slices
from pipeline.billing.ids import IdSet
from pipeline.billing.terms import Terms
from pipeline.contract.catalog import Catalog
from pipeline.contract.vocabulary import MS_PER_DAY
from pipeline.streams.id_files import hot_ids
from pipeline.streams.snapshots import SnapshotStore

NOW_MS = 1_772_323_200_000
MANY = 40_000
ANY_OFFSET = range(-1, 1 << 62)


def random_keys(seed: int, count: int) -> Keys:
    return np.random.default_rng(seed).integers(0, 2**64 - 1, (count, 2), dtype=np.uint64)


def filled(store: SnapshotStore, keys: Keys) -> Shard:
    """A shard that remembers these, added some at a time."""
    shard = Shard.new(0, 7, 1_000, store.open(0))
    for start in range(0, len(keys), 500):
        shard.ids.add(keys[start : start + 500], NOW_MS)
    return shard


def packed(shard: Shard) -> bytes:
    return fold.pack(shard, Balances(7), Terms(Catalog(), 1), with_ids=True)


def unpacked(store: SnapshotStore) -> Shard:
    shard = Shard.new(0, 7, 1_000, store.open(0))
    found = asyncio.run(store.load(0, ANY_OFFSET))
    assert found is not None
    fold.unpack(found, shard, Balances(7), Terms(Catalog(), 1))
    return shard


def test_a_merge_in_many_pieces_is_the_sorted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """And pieces that meet in the middle of a word of the filter both leave their bits in it."""
    keys = random_keys(1, 4_001)
    shelf = MemoryShelf()
    runs = [shelf.seal(part).result() for part in np.array_split(keys, 4)]
    monkeypatch.setattr(id_runs, "_SLICE_KEYS", 7)
    assert sum(1 for _ in merged_slices(runs)) > 500
    merged = shelf.merge(runs).result()
    assert merged is not None
    assert (np.sort(keys[:, 1]) == merged.high).all()
    found = np.zeros(len(keys), dtype=np.bool_)
    merged.mark(keys, found)
    assert found.all()


def test_many_small_runs_become_few() -> None:
    ids = IdSet(MS_PER_DAY, 0, MemoryShelf(hot_ids=100))
    keys = random_keys(2, 20_000)
    for start in range(0, len(keys), 100):
        ids.add(keys[start : start + 100], NOW_MS)
    [generation] = ids._generations.values()
    assert 1 < len(generation.runs) < 20
    assert len(ids) == len(keys)
    assert ids.contains(keys).all()
    assert not ids.contains(random_keys(3, 20_000)).any()


def test_a_snapshot_holds_only_what_is_new(tmp_path: Path) -> None:
    """The others are in files that are written once."""
    store = SnapshotStore(tmp_path, memory_bytes=1)
    keys = random_keys(4, MANY)
    shard = filled(store, keys)
    store._thread.submit(lambda: None).result()  # what was asked for before is made
    shard.ids.add(random_keys(5, 10), NOW_MS)
    assert len(packed(shard)) < 10_000 + 16 * 2 * hot_ids(1, 1)
    store.save(0, packed(shard))
    store.stop()
    restored = unpacked(SnapshotStore(tmp_path, memory_bytes=1))
    assert restored.ids.contains(keys).all()
    assert len(restored.ids) == len(keys) + 10


def test_a_disk_that_cannot_be_written_leaves_ids_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker says so and goes on; once the disk is back, merges and snapshots take them."""
    directory = tmp_path / "snapshots"
    directory.write_text("in the way")
    store = SnapshotStore(directory, memory_bytes=1)
    keys = random_keys(6, MANY)
    with caplog.at_level(logging.WARNING):
        shard = filled(store, keys[: MANY // 2])
        store.save(0, packed(shard)).result()
    assert "ids of shard 0 not written" in caplog.text
    assert "snapshot of shard 0 not written" in caplog.text
    assert shard.ids.run_names() == {}
    assert shard.ids.contains(keys[: MANY // 2]).all()

    directory.unlink()
    for start in range(MANY // 2, MANY, 500):
        shard.ids.add(keys[start : start + 500], NOW_MS)
    store.save(0, packed(shard))
    store.stop()
    assert list((directory / "shard-0").glob("*.ids"))
    restored = unpacked(SnapshotStore(directory, memory_bytes=1))
    assert restored.ids.contains(keys).all()
    assert len(restored.ids) == len(keys)


def test_a_snapshot_of_the_first_form_is_read(tmp_path: Path) -> None:
    """All its ids are in it, however many: they are sorted into runs as they are taken over."""
    keys = random_keys(7, MANY)
    memory = Shard.new(0, 7, 1_000, MemoryShelf(hot_ids=10 * MANY))
    memory.ids.add(keys, NOW_MS)
    old = packed(memory).replace(b"\xa7version\x02", b"\xa7version\x01")
    store = SnapshotStore(tmp_path, memory_bytes=1)
    store.save(0, old).result()
    shard = unpacked(store)
    assert shard.ids.contains(keys).all()
    store.stop()


def test_a_shard_given_up_leaves_what_its_snapshot_needs(tmp_path: Path) -> None:
    """Taken back later it goes on from there, though other runs were made and lost between."""
    store = SnapshotStore(tmp_path, memory_bytes=1)
    keys = random_keys(8, MANY)
    shard = filled(store, keys[: MANY // 2])
    store.save(0, packed(shard))
    for start in range(MANY // 2, MANY, 500):
        shard.ids.add(keys[start : start + 500], NOW_MS)
    store.close(0)
    restored = unpacked(store)
    assert restored.ids.contains(keys[: MANY // 2]).all()
    assert not restored.ids.contains(keys[MANY // 2 :]).any()
    store.stop()


def test_only_the_last_generation_is_in_tables(tmp_path: Path) -> None:
    """However few ids the ones before had: the memory is for the newest."""
    store = SnapshotStore(tmp_path, memory_bytes=1)
    shard = Shard.new(0, 7, 1_000, store.open(0))
    keys = random_keys(9, 300)
    for number, part in enumerate(np.split(keys, 3)):
        shard.ids.add(part, NOW_MS + 4 * number * MS_PER_DAY)
    store._thread.submit(lambda: None).result()
    shard.ids.add(random_keys(10, 1), NOW_MS + 8 * MS_PER_DAY)
    assert sum(map(len, shard.ids.dump().values())) == 16 * 101
    assert shard.ids.contains(keys).all()
    store.stop()


def test_the_memory_is_shared_by_the_shards() -> None:
    assert hot_ids(256 << 20, 1) == MAX_HOT_IDS
    assert hot_ids(256 << 20, 64) * 64 * 2 * 128 <= 256 << 20
    assert 1_000 <= hot_ids(1, 64) <= 2_000


def test_a_file_that_both_sets_use_lasts_as_long_as_the_longer_of_them(tmp_path: Path) -> None:
    """Of the same keys they make the same file, and charged keys are remembered a day longer."""
    store = SnapshotStore(tmp_path, memory_bytes=1)
    shard = Shard.new(0, 7, 0, store.open(0))
    shared = random_keys(11, 5)
    now_ms, number = NOW_MS, 12
    shard.ids.add(shared, now_ms)
    shard.unique.add(shared, now_ms)
    now_ms += 5 * MS_PER_DAY  # both are in their next generation, so the keys are in a file
    while shard.ids.contains(shared).any():
        now_ms, number = now_ms + MS_PER_DAY // 4, number + 1
        shard.ids.add(random_keys(number, 1), now_ms)
        shard.unique.add(random_keys(number, 1), now_ms)
        store._thread.submit(lambda: None).result()  # what was asked for before is made
    assert shard.unique.contains(shared).all()
    for _ in range(2):  # what one does not name, the next may delete
        store.save(0, packed(shard)).result()
    store.stop()
    restored = unpacked(SnapshotStore(tmp_path, memory_bytes=1))
    assert restored.unique.contains(shared).all()
