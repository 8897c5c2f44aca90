"""Sandboxes of bubblewrap for tests, and programs in them that try things."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import attrs

from ppio_agent.sandbox.backends.bubblewrap import BubblewrapBackend, Grounds
from ppio_agent.sandbox.backends.contained import Bwrap
from ppio_agent.sandbox.backends.diagnosis import keeps_namespaces
from ppio_agent.sandbox.backends.uplink import Helper, find_helpers
from tests.sandbox.sandboxkit import Lab, Sandbox
from tests.support import needs_program

__all__ = ["Fort"]

# Told to the program in front of what it tries.
_TRY = """
import ctypes, errno, json, os, signal, socket, sys
RESULTS = {}
libc = ctypes.CDLL(None, use_errno=True)

def attempt(name, action):
    try:
        RESULTS[name] = action()
    except BaseException as exc:
        RESULTS[name] = type(exc).__name__

def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result
"""


class Fort(Lab):
    """A lab whose sandboxes are made by bubblewrap.

    Args:
        folder: Where they are; also the data directory that they must not see.
        helper: Name of the one helper that connects them; None for all there are.
        warm: How many blank ones are kept ready.
    """

    def __init__(
        self, folder: Path, *, helper: str | None = None, warm: int = 0
    ) -> None:
        super().__init__(folder)
        self.backend.close()
        path = needs_program("bwrap")
        helpers = find_helpers(os.environ["PATH"])
        self.bwrap = Bwrap(
            path=path,
            helpers=[h for h in helpers if helper in (None, h.name)],
            no_namespaces=keeps_namespaces(path),
            hidden=(str(folder),),
        )
        self.place = Grounds(blank=folder / "blank", sockets=self.sockets)
        self.backend = self.blanks = BubblewrapBackend(
            self.bwrap, self.place, warm=warm
        )

    @property
    def connected(self) -> bool:
        """Whether blank sandboxes are connected to the network."""
        return bool(self.bwrap.helpers)

    def helper(self, name: str) -> Helper:
        """Return a helper that this machine need not have."""
        return Helper(name=name, path=name)

    def hide(self, folder: Path) -> None:
        """Let no later sandbox see a folder."""
        self.backend.close()
        bwrap = attrs.evolve(self.bwrap, hidden=(str(folder),))
        self.backend = BubblewrapBackend(bwrap, self.place)

    def start(self, source: str | None = None, **options: Any) -> Sandbox:
        """Start a sandbox without a way to the network, unless told otherwise."""
        return super().start(source, **{"allow_internet": False, **options})

    def attempt(self, source: str, **options: Any) -> dict[str, Any]:
        """Run a program in a sandbox of its own; return what its attempts gave.

        What `attempt(name, action)` in it returns is in the result by its name; of an
        exception that is the name of its class.
        """
        sandbox = self.start(_TRY + source + "\nprint(json.dumps(RESULTS))", **options)
        exited = sandbox.wait_phase("exited", timeout=30.0)
        lines = exited.log_tail.splitlines()
        assert exited.exit_code == 0, exited.log_tail
        sandbox.running.kill(0.0)
        found: dict[str, Any] = json.loads(lines[-1])
        return found
