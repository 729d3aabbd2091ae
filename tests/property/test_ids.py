"""Ids on disk: a set that is told apart by nothing from one that remembers everything."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipeline.billing import fold
from pipeline.billing.books import Balances, Shard
from pipeline.billing.id_runs import Keys
from pipeline.billing.terms import Terms
from pipeline.contract.catalog import Catalog
from pipeline.contract.vocabulary import FUTURE_TOLERANCE_MS, LONGEST_DAY_MS, MS_PER_DAY
from pipeline.streams.snapshots import SnapshotStore

ANY_OFFSET = range(-1, 1 << 62)
SMALL = 1
"""Bytes of memory: tables are sorted into files as soon as they may be."""

Known = dict[tuple[int, int], int]
"""Key -> the log time at which it was added."""


def new_keys(seed: int, count: int, spread: int) -> Keys:
    """Keys with halves of so many bits: with few of them, halves are often equal."""
    halves = np.random.default_rng(seed).integers(0, 2**spread, (count, 2), dtype=np.uint64)
    # The rare case of equal high halves, at both ends of their range too.
    halves[: count // 8, 1] = seed % 3 * (2**63 - 1)
    return np.unique(halves, axis=0)


class RememberedIds(RuleBasedStateMachine):
    """A shard's ids over sealing, merging, expiry, snapshots, kills and lost files."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="ids-"))
        self.directory, self.copies = self.root / "own", self.root / "copies"
        self.now_ms = 1_772_323_200_000
        self.horizon_days = 1
        self.forgotten_ms = 0
        """What was added by then, some horizon since did not reach back to."""
        self.known: Known = {}
        self.saved: tuple[int, Known] | None = None
        self.begin()

    def begin(self) -> None:
        self.failures: list[None] = []
        self.copies.mkdir(exist_ok=True)
        on_failure = partial(self.failures.append, None)
        self.store = SnapshotStore(self.directory, SMALL, self.copies, on_failure)
        self.shard = Shard.new(0, self.horizon_days, 0, self.store.open(0))

    def teardown(self) -> None:
        self.store.stop()
        shutil.rmtree(self.root)

    @property
    def remembered_ms(self) -> int:
        return self.horizon_days * MS_PER_DAY + FUTURE_TOLERANCE_MS

    def files(self) -> list[Path]:
        return sorted((self.directory / "shard-0").glob("*.ids"))

    @rule(seed=st.integers(0, 2**32), count=st.integers(1, 3_000), spread=st.sampled_from((12, 63)))
    def add(self, seed: int, count: int, spread: int) -> None:
        keys = new_keys(seed, count, spread)
        keys = keys[~self.shard.ids.contains(keys)]
        self.shard.ids.add(keys, self.now_ms)
        self.shard.unique.add(keys, self.now_ms)
        for low, high in keys.tolist():
            self.known[low, high] = self.now_ms

    @rule(days=st.sampled_from((0.1, 0.6, 1.2)))
    def time_passes(self, days: float) -> None:
        self.now_ms += round(days * MS_PER_DAY)

    @rule(seed=st.integers(0, 2**32), spread=st.sampled_from((12, 63)))
    def strangers_are_not_found(self, seed: int, spread: int) -> None:
        keys = new_keys(seed, 500, spread)
        strange = [(low, high) not in self.known for low, high in keys.tolist()]
        assert not self.shard.ids.contains(keys)[strange].any()

    @rule()
    def swapped_halves_are_not_found(self) -> None:
        keys = np.array(list(self.known)[:300], dtype=np.uint64).reshape(-1, 2)[:, ::-1]
        strange = [(low, high) not in self.known for low, high in keys.tolist()]
        assert not self.shard.ids.contains(keys)[strange].any()

    @invariant()
    def all_of_the_horizon_are_found(self) -> None:
        for ids, again_ms in (
            (self.shard.ids, self.remembered_ms),
            (self.shard.unique, self.remembered_ms + LONGEST_DAY_MS),
        ):
            again_from_ms = self.now_ms - again_ms
            again_from_ms = max(again_from_ms, self.forgotten_ms - again_ms + self.remembered_ms)
            live = [key for key, at_ms in self.known.items() if at_ms > again_from_ms]
            assert ids.contains(np.array(live, dtype=np.uint64).reshape(-1, 2)).all()

    @rule()
    def a_snapshot_is_written(self) -> None:
        self.shard.log_time_ms = self.now_ms
        packed = fold.pack(self.shard, Balances(1), Terms(Catalog(), 1), with_ids=True)
        self.store.save(0, packed).result()
        assert self.store._copies is not None
        assert self.store._copies.idle_within(60)
        self.saved = self.now_ms, dict(self.known)

    def restart(self) -> None:
        self.store.stop()
        self.begin()

    def unpack(self) -> None:
        packed = asyncio.run(self.store.load(0, ANY_OFFSET))
        assert packed is not None
        fold.unpack(packed, self.shard, Balances(1), Terms(Catalog(), 1))

    @precondition(lambda self: self.saved is not None)
    @rule()
    def a_killed_worker_goes_on_from_its_snapshot(self) -> None:
        """Whatever it wrote beside and after it."""
        assert self.saved is not None
        self.restart()
        self.unpack()
        known, (self.now_ms, self.known) = self.known, (self.saved[0], dict(self.saved[1]))
        later = [key for key in known if key not in self.known]
        assert not self.shard.ids.contains(np.array(later, dtype=np.uint64).reshape(-1, 2)).any()
        assert len(self.shard.ids) <= len(self.known)

    @precondition(lambda self: self.saved is not None)
    @rule(at=st.floats(0, 1, exclude_max=True), cut=st.booleans(), which=st.integers(0, 99))
    def a_file_that_is_damaged_everywhere_makes_the_snapshot_worthless(
        self, at: float, cut: bool, which: int
    ) -> None:
        self.a_snapshot_is_written()
        named = [name for names in self.shard.ids.run_names().values() for name in names]
        if not named:
            return
        name = f"{named[which % len(named)]}.ids"
        content = bytearray((self.directory / "shard-0" / name).read_bytes())
        self.store.stop()
        place = int(at * len(content))
        content[place] ^= 1
        for directory in (self.directory, self.copies):
            (directory / "shard-0" / name).write_bytes(content[:place] if cut else content)
        self.begin()
        assert asyncio.run(self.store.load(0, ANY_OFFSET)) is None
        # From the journal, then.
        self.restart()
        self.known, self.saved = {}, None

    @rule(kept=st.booleans())
    def a_worker_on_another_disk_goes_on_from_the_copy(self, kept: bool) -> None:
        """Where its own disk is empty, and where a file on it is damaged."""
        self.a_snapshot_is_written()
        self.store.stop()
        assert not self.failures
        if kept:
            for path in self.files()[:1]:
                path.write_bytes(path.read_bytes()[:-1])
        else:
            shutil.rmtree(self.directory)
        self.begin()
        self.unpack()
        assert len(self.shard.ids) <= len(self.known)

    @rule(days=st.sampled_from((1, 2, 7)))
    def a_worker_with_another_horizon_goes_on_from_the_snapshot(self, days: int) -> None:
        """Shorter or longer: what both remember is not forgotten."""
        self.a_snapshot_is_written()
        self.forgotten_ms = max(self.forgotten_ms, self.now_ms - self.remembered_ms)
        self.horizon_days = days
        self.restart()
        self.unpack()
        self.a_snapshot_is_written()

    @rule()
    def files_that_vanished_are_written_again(self) -> None:
        shutil.rmtree(self.directory / "shard-0", ignore_errors=True)
        self.a_snapshot_is_written()
        self.a_killed_worker_goes_on_from_its_snapshot()

    @rule()
    def what_no_snapshot_names_is_deleted(self) -> None:
        self.a_snapshot_is_written()
        self.a_killed_worker_goes_on_from_its_snapshot()
        self.a_snapshot_is_written()
        ids, unique = self.shard.ids.run_names(), self.shard.unique.run_names()
        named = {name for names in (*ids.values(), *unique.values()) for name in names}
        assert named <= {path.stem for path in self.files()}
        if all(not sealing for sealing in self.sealing()):
            assert {path.stem for path in self.files()} == named

    def sealing(self) -> list[object]:
        """What is being made, and so may have a file that nothing names yet."""
        return [
            work
            for ids in (self.shard.ids, self.shard.unique)
            for one in ids._generations.values()
            for work in (*one._sealing, one._merging)
        ]


RememberedIds.TestCase.settings = settings(max_examples=40, stateful_step_count=25)
TestRememberedIds = RememberedIds.TestCase
