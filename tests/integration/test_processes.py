"""Child processes end with their parent, left-overs with the next start, and strangers never."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.embedded.errors import EmbeddedError
from pipeline.embedded.guard import process_mark, write_pid_file
from pipeline.embedded.processes import ChildProcess, DirectoryLock, end_left_over
from tests.integration.product import until

SLEEP = ["sleep", "600"]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")


def child(directory: Path, command: list[str], name: str = "child") -> ChildProcess:
    return ChildProcess(name, command, directory, directory / f"{name}.log")


def read_pid(pid_file: Path) -> int:
    until(pid_file.exists, "its pid file is there")
    return int(json.loads(pid_file.read_text())["pid"])


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is not ours."""
    process = subprocess.Popen(SLEEP)
    yield process
    process.kill()
    process.wait()


def test_the_pid_file_names_the_running_command(tmp_path: Path) -> None:
    process = child(tmp_path, SLEEP)
    process.start()
    assert read_pid(process.pid_file) == process.pid
    assert process.poll() is None
    assert process.stop() == -signal.SIGTERM
    assert not process.pid_file.exists()


def test_a_command_that_does_not_exist_says_so_in_the_log(tmp_path: Path) -> None:
    process = child(tmp_path, ["/no/such/command"])
    process.start()
    assert process.wait(10) == 127
    assert "cannot start /no/such/command: [Errno 2]" in process.log_tail()
    assert not process.pid_file.exists()


def test_a_child_that_ignores_sigterm_is_killed_after_the_bound(tmp_path: Path) -> None:
    process = child(tmp_path, ["sh", "-c", "trap '' TERM; echo deaf; exec sleep 600"])
    process.start()
    until(lambda: process.log_path.exists() and "deaf" in process.log_tail(), "it runs")
    began_s = time.monotonic()
    assert process.stop(within_s=0.5) == -signal.SIGKILL
    assert 0.4 < time.monotonic() - began_s < 5


def test_ctrl_c_at_the_terminal_does_not_reach_the_child(tmp_path: Path) -> None:
    process = child(tmp_path, SLEEP)
    process.start()
    assert os.getpgid(process.pid) != os.getpgid(0)
    process.stop()


@on_linux
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_no_child_survives_its_parent(tmp_path: Path, end: signal.Signals) -> None:
    program = f"""
import signal, time
from pathlib import Path
from pipeline.embedded.processes import ChildProcess
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be passed over
for name in "ab":
    ChildProcess(name, {SLEEP}, Path({str(tmp_path)!r}), Path({str(tmp_path)!r}) / name).start()
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program])
    children = [read_pid(tmp_path / "a.pid"), read_pid(tmp_path / "b.pid")]
    assert all(process_mark(pid) for pid in children)
    parent.send_signal(end)
    parent.wait()
    until(lambda: not any(process_mark(pid) for pid in children), "the children are gone")


def test_a_child_survives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    # The kernel's death signal is about the forking thread: hence the spawner's own.
    process = child(tmp_path, SLEEP)
    thread = threading.Thread(target=process.start)
    thread.start()
    thread.join()
    read_pid(process.pid_file)
    time.sleep(0.3)
    assert process.poll() is None
    process.stop()


def test_a_left_over_is_ended_by_the_next_start(
    tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    process = child(tmp_path, SLEEP)
    write_pid_file(process.pid_file, stranger.pid)  # recorded: as if it had been ours
    process.start()
    assert stranger.wait(10) == -signal.SIGTERM
    until(lambda: read_pid(process.pid_file) == process.pid, "its pid file names it")
    process.stop()


def test_a_deaf_left_over_is_killed(tmp_path: Path) -> None:
    script = "trap '' TERM; echo deaf; while :; do sleep 0.05; done"
    deaf = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)
    assert deaf.stdout is not None
    deaf.stdout.readline()
    write_pid_file(tmp_path / "child.pid", deaf.pid)
    assert end_left_over(tmp_path / "child.pid", within_s=0.3) == deaf.pid
    assert deaf.wait(10) == -signal.SIGKILL
    deaf.stdout.close()


def test_a_stranger_with_a_recycled_pid_is_left_alone(
    tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    pid_file = tmp_path / "child.pid"
    write_pid_file(pid_file, stranger.pid)
    recorded = json.loads(pid_file.read_text())
    pid_file.write_text(json.dumps(recorded | {"mark": recorded["mark"] + "0"}))
    assert end_left_over(pid_file) is None
    assert stranger.poll() is None
    assert not pid_file.exists()


def test_a_zombie_is_not_running() -> None:
    process = subprocess.Popen(["true"])
    until(lambda: process_mark(process.pid) is None, "it has ended")
    process.wait()


@pytest.mark.parametrize("content", ["", "12", "{}", '{"pid": "x", "mark": 1}', "[]"])
def test_a_pid_file_that_identifies_nobody_is_dropped(tmp_path: Path, content: str) -> None:
    (tmp_path / "child.pid").write_text(content)
    assert end_left_over(tmp_path / "child.pid") is None
    assert not (tmp_path / "child.pid").exists()


def test_a_locked_directory_is_refused_with_its_owners_pid(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from pipeline.embedded.processes import DirectoryLock
DirectoryLock(Path({str(tmp_path)!r})).acquire()
print("held", flush=True)
import time; time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    owner.stdout.readline()
    with pytest.raises(EmbeddedError, match=rf"in use by a running process \(pid {owner.pid}\)"):
        DirectoryLock(tmp_path).acquire()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    with DirectoryLock(tmp_path):  # a killed owner leaves no stale lock
        pass


def test_a_child_does_not_hold_its_parents_lock(tmp_path: Path) -> None:
    process = child(tmp_path, SLEEP)
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    process.start()
    read_pid(process.pid_file)
    lock.release()
    with DirectoryLock(tmp_path):
        pass
    process.stop()


def test_a_directory_that_cannot_be_written_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedError, match=r"cannot be written .* Choose another one"):
        DirectoryLock(tmp_path / "file" / "data").acquire()
