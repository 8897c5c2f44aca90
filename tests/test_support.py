"""What tests stand on."""

from __future__ import annotations

import subprocess
import sys

from .support import ending_with_us, needs_program

_STARTER = """
import subprocess, sys
subprocess.Popen(sys.argv[1:])
sys.stdin.read()
"""


def test_a_server_ends_with_the_process_that_was_killed() -> None:
    """It keeps no machine busy after a run of tests that was cut short."""
    needs_program("setpriv")
    # Not before it says so is it the server that runs, and no more `setpriv`.
    command = [*ending_with_us("KILL"), "sh", "-c", "echo up; exec sleep 60"]
    with subprocess.Popen(
        [sys.executable, "-c", _STARTER, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"up\n"
        starter.kill()
        assert starter.stdout.read() == b""  # both have let go of it
