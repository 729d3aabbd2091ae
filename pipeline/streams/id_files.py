"""Runs of ids in files: written once, mapped into memory, named by their content.

A file is a page that begins with `PPI1`, the number of keys (8 bytes) and the number of words of
the filter (8 bytes), all else of it zero; then the high halves, the low halves and the filter of
`pipeline.billing.id_runs.Run`, all 8 bytes each and little-endian. Its name is XXH3-128 of the
XXH3-128 of these four parts, so that a file is what its name says or is not used.

Like the snapshots that name them the files are a cache: losing one costs time, never data.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline import failpoints
from pipeline.billing.id_runs import (
    MAX_HOT_IDS,
    FilterMaker,
    Keys,
    Run,
    RunError,
    Words,
    merged_slices,
    run_in_memory,
    sorted_halves,
)

log = logging.getLogger(__name__)

Slices = Iterator[tuple[Words, Words]]

_MAGIC = b"PPI1"
_PAGE = 4096
_WORD = 8
_HASH_AT_ONCE = 1 << 20
_ABANDONED_AFTER_S = 3_600.0

_MIN_HOT_IDS = 1 << 10
_BYTES_A_HOT_ID = 128
"""A key's share of its table, of the one that is being sorted meanwhile, and of the sorting."""
_SETS_A_SHARD = 2
"""Event ids, and the keys of rule 8."""


def hot_ids(memory_bytes: int, shards: int) -> int:
    """How many new keys each set may have in tables, where so much memory is for all shards."""
    share = memory_bytes // (_SETS_A_SHARD * max(1, shards) * _BYTES_A_HOT_ID)
    return max(_MIN_HOT_IDS, min(MAX_HOT_IDS, share))


def write_run(directory: Path, slices: Slices, keys: int) -> str:
    """Write a run of so many keys, which come sorted, and return its name. Raises `OSError`."""
    # Of this thread alone; of this process too: two on one directory are a mistake that must not
    # mix their keys.
    part = directory / f"{os.getpid()}-{threading.get_ident()}.part"
    maker = FilterMaker(keys)
    head = _MAGIC.ljust(_WORD, b"\0") + np.array([keys, len(maker.words)], dtype="<u8").tobytes()
    head = head.ljust(_PAGE, b"\0")
    hashers = [xxhash.xxh3_128(head), xxhash.xxh3_128(), xxhash.xxh3_128(), xxhash.xxh3_128()]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file:
            _write_at(file.fileno(), memoryview(head), 0)
            at = _PAGE
            for high, low in slices:
                maker.add(high, low)
                _write_at(file.fileno(), high.data, at)
                _write_at(file.fileno(), low.data, at + keys * _WORD)
                hashers[1].update(high.data)
                hashers[2].update(low.data)
                at += len(high) * _WORD
            _write_at(file.fileno(), maker.words.data, _PAGE + 2 * keys * _WORD)
            hashers[3].update(maker.words.data)
            os.fsync(file.fileno())
        name = _name_of(hashers)
        part.replace(path_of(directory, name))
    except OSError:
        part.unlink(missing_ok=True)
        raise
    sync_directory(directory)
    return name


def _write_at(descriptor: int, content: memoryview, at: int) -> None:
    view = content.cast("B")
    while len(view):
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def _name_of(hashers: Iterable[xxhash.xxh3_128]) -> str:
    return xxhash.xxh3_128_hexdigest(b"".join(hasher.digest() for hasher in hashers))


def sync_directory(directory: Path) -> None:
    """Make what was renamed in a directory last. Raises `OSError`."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def path_of(directory: Path, name: str) -> Path:
    """Where the run of this name lies."""
    return directory / f"{name}.ids"


def map_run(directory: Path, name: str) -> Run:
    """A run that was written, its content not looked at. Raises `RunError`."""
    path = path_of(directory, name)
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise RunError(f"ids {path.name} cannot be read: {error}") from error
    words: npt.NDArray[np.uint64] = np.frombuffer(mapped, dtype="<u8", count=len(mapped) // _WORD)
    first = _PAGE // _WORD
    whole = len(words) >= first and mapped[: len(_MAGIC)] == _MAGIC
    keys, filters = (int(words[1]), int(words[2])) if whole else (0, 0)
    # A filter has a word at least, of which the compiled look-up makes sure.
    if filters < 1 or len(mapped) != _PAGE + (2 * keys + filters) * _WORD:
        raise RunError(f"ids {path.name} are damaged")
    mapped.madvise(mmap.MADV_RANDOM)
    filter_words = words[first + 2 * keys :]
    # One word of each page, so that the first look-up does not wait for all of them.
    np.bitwise_or.reduce(filter_words[:: _PAGE // _WORD])
    return Run(
        high=words[first : first + keys],
        low=words[first + keys : first + 2 * keys],
        filter=filter_words,
        name=name,
    )


def copy_run(source: Path, target: Path, name: str) -> None:
    """Copy a run's file from one directory to another. Raises `OSError`, and `RunError` where it
    is not what its name says.

    Several may do so at once, of other machines too: each has a part of its own, and what stands
    under a run's name was looked at.
    """
    part = path_of(target, name).with_suffix(f".{uuid.uuid4().hex}.part")
    try:
        shutil.copyfile(path_of(source, name), part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        check_run(part, name)
        part.replace(path_of(target, name))
    finally:
        part.unlink(missing_ok=True)
    sync_directory(target)


def remove_abandoned(directory: Path) -> None:
    """Delete parts that nobody has written to for long, by this machine's clock and the files':
    their process was killed meanwhile. Raises `OSError`."""
    for part in directory.glob("*.part"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > _ABANDONED_AFTER_S:
                part.unlink()


def check_run(path: Path, name: str) -> None:
    """Read all of a run's file. Raises `RunError` where it is not what its name says."""
    try:
        with path.open("rb") as file:
            head = file.read(_PAGE).ljust(_PAGE, b"\0")
            counts = np.frombuffer(head[_WORD : 3 * _WORD], dtype="<u8").tolist()
            hashers = [xxhash.xxh3_128(head)]
            for words in (counts[0], counts[0], counts[1]):
                hashers.append(xxhash.xxh3_128())
                left = words * _WORD
                while left and (content := file.read(min(left, _HASH_AT_ONCE))):
                    hashers[-1].update(content)
                    left -= len(content)
            more = file.read(1)
    except OSError as error:
        raise RunError(f"ids {path.name} cannot be read: {error}") from error
    if more or _name_of(hashers) != name:
        raise RunError(f"ids {path.name} are damaged")


@dataclass(slots=True)
class Share:
    """What the shelves of a worker have in common."""

    memory_bytes: int
    """For the keys that are not in runs."""
    seals: ThreadPoolExecutor
    """Sealing is short, and no table waits for a merge, which may take seconds."""
    merges: ThreadPoolExecutor
    shards: int = 0


class NoLongerWantedError(OSError):
    """The shard is another worker's, or this one stops."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A shelf's files when a snapshot was packed."""

    mapped: dict[str, Run]
    unused: set[str]


class DiskShelf:
    """A shard's runs, in a directory of its own; made on threads that all shards share.

    Where a run cannot be written it is made in memory, and its keys go into the snapshots until a
    merge has taken them to the disk.
    """

    def __init__(self, shard: int, directory: Path, share: Share) -> None:
        self._shard = shard
        self._directory = directory
        self._share = share
        self._cancelled = False
        self._mapped: dict[str, Run] = {}
        """What is in use, or made and about to be."""
        self._uses: Counter[str] = Counter()
        """Both sets of a shard may hold the same keys, and so use one file."""
        self._using = threading.Lock()
        """Held where the three around it are changed, or must not change."""
        self._unused = {path.stem for path in directory.glob("*.ids")}
        """What may be deleted once a snapshot was written that does not name it."""
        self._brought: dict[str, Run] = {}
        """Runs that were looked at, and are not in use yet."""
        self._jobs: list[Future[Run] | Future[Run | None]] = []

    def hot_ids(self) -> int:
        return hot_ids(self._share.memory_bytes, self._share.shards)

    def seal(self, keys: Keys) -> Future[Run]:
        future = self._share.seals.submit(self._seal, keys)
        self._note(future)
        return future

    def merge(self, runs: Sequence[Run]) -> Future[Run | None]:
        future = self._share.merges.submit(self._merge, list(runs))
        self._note(future)
        return future

    def _note(self, future: Future[Run] | Future[Run | None]) -> None:
        self._jobs = [job for job in self._jobs if not job.done()]
        self._jobs.append(future)

    def cancel(self) -> None:
        """Make nothing more of what was asked for."""
        self._cancelled = True
        for job in self._jobs:
            job.cancel()

    def open(self, name: str) -> Run:
        run = self._mapped.get(name)
        if run is None:
            run = self._brought.pop(name, None)
        if run is None:
            run = self._look_at(name)
        return self._in_use(run)

    def _look_at(self, name: str) -> Run:
        check_run(path_of(self._directory, name), name)
        return map_run(self._directory, name)

    def bring(self, name: str, source: Path) -> None:
        """Make it quick to open a run: its file is read whole, and mapped while it is in the page
        cache. One that is not here, or damaged, is copied from `source` first. Takes seconds, and
        where the source does not answer for ever. Raises `RunError`, and `NoLongerWantedError`."""
        if self._cancelled:
            raise NoLongerWantedError(f"shard {self._shard} is no longer wanted here")
        try:
            run = self._look_at(name)
        except RunError:
            if source == self._directory:
                raise
            self._copy_from(source, name)
            run = map_run(self._directory, name)
        self._brought[name] = run

    def take_back(self) -> None:
        """What was brought is not opened: a file that is mapped keeps its room when deleted."""
        self._brought = {}

    def _copy_from(self, source: Path, name: str) -> None:
        with self._using:
            self._unused.add(name)  # until it is opened, if it ever is
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            copy_run(source, self._directory, name)
        except OSError as error:
            raise RunError(f"ids {name} cannot be copied: {error}") from error

    def retire(self, run: Run) -> None:
        if not run.name:
            return
        with self._using:
            self._uses[run.name] -= 1
            if not self._uses[run.name]:
                del self._mapped[run.name], self._uses[run.name]
                self._unused.add(run.name)

    def _in_use(self, run: Run) -> Run:
        """The run, once more in use."""
        with self._using:
            self._uses[run.name] += 1
            self._mapped[run.name] = run
            self._unused.discard(run.name)
        return run

    # -- on the threads -----------------------------------------------------------------------

    def _seal(self, keys: Keys) -> Run:
        halves = sorted_halves(keys)
        try:
            return self._write(iter([halves]), len(keys))
        except OSError as error:
            log.warning("ids of shard %d not written, kept in memory: %s", self._shard, error)
            return run_in_memory(iter([halves]), len(keys))

    def _merge(self, runs: list[Run]) -> Run | None:
        keys = sum(len(run) for run in runs)
        try:
            return self._write(self._while_wanted(merged_slices(runs)), keys)
        except NoLongerWantedError:
            return None
        except OSError as error:
            log.warning("ids of shard %d not written, not merged: %s", self._shard, error)
            if any(run.name for run in runs):
                return None
            return run_in_memory(merged_slices(runs), keys)

    def _while_wanted(self, slices: Slices) -> Slices:
        for one in slices:
            if self._cancelled:
                raise NoLongerWantedError
            yield one

    def _write(self, slices: Slices, keys: int) -> Run:
        name = write_run(self._directory, slices, keys)
        failpoints.reach("ids_written")
        try:
            return self._in_use(map_run(self._directory, name))
        except RunError as error:
            raise OSError(str(error)) from error

    # -- beside a snapshot --------------------------------------------------------------------

    def standing(self) -> Standing:
        """What a snapshot that is packed now may name, and what it does not."""
        with self._using:
            return Standing(dict(self._mapped), set(self._unused))

    def restore(self, standing: Standing) -> None:
        """Write again what somebody deleted while it is in use. Raises `OSError`."""
        for name, run in standing.mapped.items():
            if not path_of(self._directory, name).exists():
                write_run(self._directory, merged_slices([run]), len(run))

    def clear(self, standing: Standing) -> None:
        """Delete what was not in use then, and is not now. Raises `OSError`."""
        for name in standing.unused:
            with self._using:
                if name not in self._mapped:
                    path_of(self._directory, name).unlink(missing_ok=True)
                    self._unused.discard(name)
