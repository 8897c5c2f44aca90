"""The mark in the environment that others see of a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ppio_agent.sandbox.supervisor.marker import Marker
from ppio_agent.sandbox.supervisor.tree import MARKER

BLANK = "-" * 20

MARKED = f"""
import os
from ppio_agent.sandbox.supervisor.marker import Marker
marker = Marker("{BLANK}")
os.environ.clear()
os.environ["OTHER"] = "x" * 5000
for sandbox_id in ("short", "é" * 20):
    try:
        marker.write(sandbox_id)
    except ValueError as exc:
        print(exc)
if os.fork() == 0:
    marker.write("a" * 20)
    print(open("/proc/self/environ").read(), flush=True)
    os._exit(0)
os.wait()
print(open("/proc/self/environ").read(), flush=True)
"""


def test_a_fork_is_marked_in_the_place_of_its_parents_mark() -> None:
    """For it alone, whatever became of the variables; another length is refused."""
    found = subprocess.run(
        [sys.executable, "-u", "-c", MARKED],
        env={"A": "1", MARKER: BLANK, "Z": "2", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    short, foreign, fork, parent = found.stdout.splitlines()

    assert "'short' is no id" in short
    assert "is no id" in foreign
    assert f"\0{MARKER}={'a' * 20}\0" in fork
    assert f"\0{MARKER}={BLANK}\0" in parent


def test_a_process_without_a_mark_cannot_be_marked() -> None:
    """It says so, before it is relied on."""
    with pytest.raises(RuntimeError, match="environment"):
        Marker("no such value of the variable")
