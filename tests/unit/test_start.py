"""What a command takes to start."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import pipeline.cli.main
from pipeline.billing.decode import warm_up
warm_up()
print(*(name for name in ("pandas", "chdb") if name in sys.modules))
"""


def test_nothing_large_is_imported_that_no_command_needs_at_its_start() -> None:
    """pyarrow imports pandas to convert arrays, which takes a fifth of a start; the embedded engine
    is for those who use it."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
