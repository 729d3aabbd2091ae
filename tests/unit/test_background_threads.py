"""What is written beside the decisions gives way to them."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from pipeline.streams.snapshots import SnapshotStore


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux")
def test_snapshots_and_runs_of_ids_are_written_at_a_lower_priority(tmp_path: Path) -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    here = niceness()
    store = SnapshotStore(tmp_path, 1 << 20)
    try:
        for threads in (store._thread, store._merges):
            assert threads.submit(niceness).result() == min(19, max(here, 10))
    finally:
        store.stop()
    assert niceness() == here
