"""A process that is marked after it was started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ppio_agent.sandbox.supervisor.marker import Marker
from ppio_agent.sandbox.supervisor.tree import MARKER
from tests.support import processes_marked

_PROGRAM = """
import os, sys
from ppio_agent.sandbox.supervisor.marker import Marker

marker = Marker("blank")
for refused in ("longer", "s", "\\u00fcmlau"):
    try:
        marker.write(refused)
    except ValueError:
        continue
    sys.exit(1)
marker.write("other")
if os.fork() == 0:
    marker.write("child")
    print("ready", flush=True)
    sys.stdin.read()
os.wait()
"""


def test_a_process_and_its_fork_are_found_by_their_own_marks() -> None:
    """As if each had been started with its own."""
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        env={MARKER: "blank", "PYTHONPATH": str(Path(__file__).parents[3])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            assert list(processes_marked(f"{MARKER}=other")) == [process.pid]
            (child,) = processes_marked(f"{MARKER}=child")
            assert child != process.pid
            assert process.pid not in processes_marked(f"{MARKER}=blank")
        finally:
            process.stdin.close()
    assert process.returncode == 0


def test_a_process_that_carries_no_mark_cannot_be_marked() -> None:
    """Its memory is not written to at random."""
    with pytest.raises(RuntimeError, match="environment"):
        Marker("no-such-value-in-any-environment")
