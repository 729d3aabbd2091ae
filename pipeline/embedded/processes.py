"""Child processes that never become orphans, and the lock on a data directory.

Three things together see to it:

- `ChildProcess` starts a command through `guard`: on Linux the kernel kills it with its parent.
- The guard leaves a pid file with the process's start time, by which the next start on the same
  directory recognises and ends what was left over, and never a stranger that has got the pid.
- `DirectoryLock` refuses a second owner while the first lives. The kernel lets go of it with the
  owner, however that ends, so that a stale lock does not exist.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.embedded import guard
from pipeline.embedded.errors import EmbeddedError

STOP_WITHIN_S = 8.0
"""How long a child may take over SIGTERM before it is killed: `pipeline up` has 10 s in all."""

LOG_ROTATE_BYTES = 8 << 20

_POLL_S = 0.02


class DirectoryLock:
    """Exclusive ownership of a directory, for as long as this process lives or until `release`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # A bare descriptor: a file object would close, and free the directory, when forgotten.
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the directory, creating it where missing.

        Raises `EmbeddedError` if another process owns it (with its pid) or it cannot be written.
        """
        with contextlib.ExitStack() as undo:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
                undo.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.truncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
            except BlockingIOError:
                raise EmbeddedError(self._owned_text()) from None
            except OSError as error:
                raise EmbeddedError(
                    f"The data directory {self.directory} cannot be written ({error.strerror}). "
                    "Choose another one, or make it writable for this user."
                ) from error
            undo.pop_all()
            self._descriptor = descriptor

    def release(self) -> None:
        """Give the directory up; nothing happens if it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _owned_text(self) -> str:
        owner = (self.directory / "lock").read_text().strip()
        return (
            f"The data directory {self.directory} is in use by a running process"
            + (f" (pid {owner}). End that one first (kill {owner})" if owner else ". End it first")
            + ", or choose another data directory."
        )

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class _Spawner:
    """Forks from one thread that lives as long as the process.

    Linux sends the parent-death signal when the *thread* that forked ends. A child started from a
    passing thread (`asyncio.to_thread`, a pool) would be killed with that thread.
    """

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[tuple[Future[subprocess.Popen[bytes]], _Launch]] = (
            queue.SimpleQueue()
        )
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def spawn(self, launch: _Launch) -> subprocess.Popen[bytes]:
        """Start it and return it. Raises OSError as `subprocess.Popen` does."""
        with self._starting:
            # Not alive after a fork of this very process: threads are not inherited.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._serve, name="spawner", daemon=True)
                self._thread.start()
        started: Future[subprocess.Popen[bytes]] = Future()
        self._requests.put((started, launch))
        return started.result()

    def _serve(self) -> None:
        while True:
            started, launch = self._requests.get()
            try:
                started.set_result(launch.run())
            except BaseException as error:
                started.set_exception(error)


@dataclass(frozen=True, slots=True)
class _Launch:
    """What `subprocess.Popen` is to be called with."""

    command: Sequence[str]
    pid_file: Path
    log_path: Path
    env: Mapping[str, str] | None
    cwd: Path | None

    def run(self) -> subprocess.Popen[bytes]:
        guarded = [
            *(sys.executable, "-I", "-S", guard.__file__),
            *(str(os.getpid()), str(self.pid_file.absolute())),
            *self.command,
        ]
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                guarded,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
                cwd=self.cwd,
                # Ctrl-C at the terminal is for the parent, which stops its children in order.
                start_new_session=True,
            )


_spawner = _Spawner()


@dataclass(slots=True)
class ChildProcess:
    """A supervised child: started guarded, recorded by a pid file, stopped within a bound.

    All methods block; none may be called by two threads at once.
    """

    name: str
    command: Sequence[str]
    run_dir: Path
    """Holds `<name>.pid`. One `run_dir` and `name` is one process at a time."""
    log_path: Path
    """Its standard output and error are appended here."""
    env: Mapping[str, str] | None = None
    """Its whole environment; None: the parent's."""
    cwd: Path | None = None
    _popen: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _log_start_bytes: int = field(default=0, init=False)

    @property
    def pid_file(self) -> Path:
        """Where the running process is recorded."""
        return self.run_dir / f"{self.name}.pid"

    @property
    def pid(self) -> int:
        """Its process id. Raises `EmbeddedError` before `start`."""
        return self._started().pid

    def end_left_over(self) -> None:
        """End the process of this name that an earlier owner of the directory left running."""
        end_left_over(self.pid_file)

    def start(self) -> None:
        """End what an earlier owner of the directory left over, then start.

        Returns at once: that the command can run at all shows by `poll`.
        """
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.end_left_over()
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_ROTATE_BYTES:
            self.log_path.replace(self.log_path.with_name(self.log_path.name + ".1"))
        self._log_start_bytes = self.log_path.stat().st_size if self.log_path.exists() else 0
        launch = _Launch(self.command, self.pid_file, self.log_path, self.env, self.cwd)
        self._popen = _spawner.spawn(launch)

    def poll(self) -> int | None:
        """Its exit code (negative: the signal that ended it), None while it runs."""
        return self._started().poll()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Its exit code, None if it still runs after the timeout."""
        try:
            return self._started().wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def terminate(self) -> None:
        """Ask it to stop, without waiting."""
        self._started().terminate()

    def stop(self, within_s: float = STOP_WITHIN_S) -> int:
        """SIGTERM, wait, SIGKILL after the bound. Returns the exit code; may be called again."""
        process = self._started()
        process.terminate()
        if (code := self.wait(within_s)) is None:
            process.kill()
            code = process.wait()
        self.pid_file.unlink(missing_ok=True)
        return code

    def log_tail(self, lines: int = 15) -> str:
        """The last lines that it wrote since `start`."""
        with self.log_path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start_bytes, size - 64 * 1024))
            text = log.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _started(self) -> subprocess.Popen[bytes]:
        if self._popen is None:
            raise EmbeddedError(f"The process {self.name} was not started.")
        return self._popen


def end_left_over(pid_file: Path, within_s: float = STOP_WITHIN_S) -> int | None:
    """End the process that this file records, if that very process still runs.

    Returns the pid it ended, None if there was nothing to end. The caller holds the directory's
    lock, so that the process cannot belong to a living owner. Raises `EmbeddedError` where the
    process may not be ended (another user's) or does not end.
    """
    try:
        recorded = json.loads(pid_file.read_text())
        pid, mark = int(recorded["pid"]), str(recorded["mark"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pid_file.unlink()  # not ours, or of an older form: it identifies nobody
        return None
    ended = None
    if guard.process_mark(pid) == mark:
        for signal_number, patience_s in ((signal.SIGTERM, within_s), (signal.SIGKILL, within_s)):
            if _signal_and_wait(pid, mark, signal_number, patience_s):
                break
        else:
            raise EmbeddedError(
                f"Process {pid}, left over from an earlier run ({pid_file}), does not end. "
                f"End it (kill -9 {pid}) and start again."
            )
        ended = pid
    pid_file.unlink(missing_ok=True)
    return ended


def _signal_and_wait(pid: int, mark: str, number: signal.Signals, patience_s: float) -> bool:
    """Whether the process was gone in time."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return True
    except PermissionError as error:
        raise EmbeddedError(
            f"Process {pid} was left over from an earlier run by another user. "
            f"End it (kill {pid}) as that user and start again."
        ) from error
    deadline_s = time.monotonic() + patience_s
    while guard.process_mark(pid) == mark:
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_POLL_S)
    return True
