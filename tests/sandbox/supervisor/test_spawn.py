"""Starting a program: what others do to the child does not hold the supervisor up."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Stops itself where another program of the sandbox could have stopped it.
SCRIPT = """
import os, signal, sys
from ppio_agent.sandbox.supervisor import spawn

class Stopped:
    def apply(self):
        while True:
            os.kill(os.getpid(), signal.SIGSTOP)
            if sys.argv[1] == "once":
                return

spawn._START_LIMIT = 0.3
try:
    child = spawn.spawn(spawn.Command(["/bin/true"], {}, "/"), Stopped())
except OSError as exc:
    print(exc.strerror.lower(), flush=True)
else:
    print("started", flush=True)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.parametrize(
    ("what", "told"),
    [("once", "started\n0\n"), ("always", "connection timed out\n-9\n")],
)
def test_a_child_that_is_stopped_before_it_is_a_program(what: str, told: str) -> None:
    """It is let go on; one that is stopped again and again is killed."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, what],
        timeout=30,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )

    assert done.stdout == told
