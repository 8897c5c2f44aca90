"""Run a command that ends with whoever asked for it, and all that it has started.

The main of a process of its own between the platform and pip. It is the sub-reaper of
what it runs, so that what builds a package cannot slip away, and sees the end of the
platform however that ends.
"""

from __future__ import annotations

import os
import select
import subprocess
import threading
from contextlib import suppress
from functools import partial

from ppio_agent.sandbox.supervisor import tree
from ppio_agent.sandbox.supervisor.spawn import become_subreaper

__all__ = ["ENDED_EARLY", "main"]

ENDED_EARLY = 124
"""Status of a run that took too long, or whose platform has ended or given it up."""

_SWEEP = 5.0


def main(platform_pid: int, timeout: float, command: list[str]) -> None:
    """Run `command`, then end with its exit status.

    Args:
        platform_pid: The platform, the parent. It gives the run up by writing to or
            closing the standard input of this process.
        timeout: Most seconds that the command may take.
        command: The program and its arguments.
    """
    become_subreaper()
    watched = [0]
    # A fork of the platform may hold the other end of the input open.
    with suppress(AttributeError, OSError):  # not this system, or it has ended
        watched.append(os.pidfd_open(platform_pid))
    if os.getppid() != platform_pid:  # it ended before it could be watched
        return
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    ended, told = os.pipe()

    def wait() -> None:
        child.wait()
        os.close(told)

    threading.Thread(target=wait, name="ppio-installer-wait", daemon=True).start()
    ready, _, _ = select.select([*watched, ended], [], [], timeout)
    status = child.wait() if ended in ready else ENDED_EARLY
    tree.sweep(partial(_below, os.getpid()), timeout=_SWEEP)
    os._exit(status if status >= 0 else 128 - status)


def _below(me: int) -> set[tree.Process]:
    entries = tree.table()
    below = tree.descendants(me, {pid: e.parent for pid, e in entries.items()})
    return {tree.Process(p, entries[p].started) for p in below if not entries[p].zombie}
