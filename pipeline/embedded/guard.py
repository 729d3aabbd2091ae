"""Becomes a command that dies with its parent and that can be recognised later.

Run as a script between fork and exec: `python -I -S guard.py PARENT_PID PID_FILE COMMAND...`.
A script of its own, rather than a function run in the forked child, because Python code between
fork and exec may deadlock when the parent has threads. It imports the standard library alone, so
that it costs some 20 ms, and execs the command, so that the command has the pid its parent knows.

The pid file is written here, before the command runs: there is no moment at which the command is
alive and the pid file is not there.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1

EXIT_CANNOT_START = 127
EXIT_PARENT_GONE = 125


def process_mark(pid: int) -> str | None:
    """What tells this process from every other that has had or will have its pid.

    None if no such process is running; a zombie is not running. On Linux the boot's id and the
    start time in clock ticks after boot, elsewhere the start time that `ps` shows.
    """
    return _mark_of_proc(pid) if Path("/proc/self/stat").exists() else _mark_of_ps(pid)


def _mark_of_proc(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Fields are counted from after the command name: it may itself hold spaces and brackets.
    state, *rest = stat.rpartition(")")[2].split()
    started_ticks = rest[18]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None if state in "ZX" else f"{boot}:{started_ticks}"


def _mark_of_ps(pid: int) -> str | None:
    shown = subprocess.run(
        ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    ).stdout.split(maxsplit=1)
    return None if len(shown) < 2 or shown[0].startswith("Z") else shown[1].strip()


def write_pid_file(path: Path, pid: int) -> None:
    """Record a running process, with its mark; the file is whole at every moment."""
    partial = path.with_name(path.name + ".new")
    partial.write_text(json.dumps({"pid": pid, "mark": process_mark(pid)}))
    partial.replace(path)


def die_with_parent(parent_pid: int) -> None:
    """Be killed when the thread that forked this process ends. Linux only; a no-op elsewhere.

    The signal is SIGKILL: a signal that can be handled can be hung on to.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        # It may have died between the fork and the prctl, which then says nothing.
        if os.getppid() != parent_pid:
            sys.exit(EXIT_PARENT_GONE)


def main(arguments: list[str]) -> None:
    """Become the command, or say on standard error why not."""
    parent_pid, pid_file, *command = arguments
    try:
        die_with_parent(int(parent_pid))
        write_pid_file(Path(pid_file), os.getpid())
        os.execvp(command[0], command)
    except OSError as error:
        Path(pid_file).unlink(missing_ok=True)
        sys.stderr.write(f"cannot start {command[0]}: {error}\n")
        sys.exit(EXIT_CANNOT_START)


if __name__ == "__main__":
    main(sys.argv[1:])
