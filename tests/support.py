"""What tests of several packages share."""

from __future__ import annotations

import glob
import itertools
import os
import re
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = [
    "SLOW",
    "ending_with_us",
    "interrupt_everywhere",
    "missing_tests",
    "needs_program",
    "new_threads",
    "processes_marked",
    "wait_until",
    "write_agent",
]

# A worker among others is held up by their tests, and says nothing about speed.
_BESIDE_OTHERS = "PYTEST_XDIST_WORKER" in os.environ

SLOW = float(os.environ.get("PPIO_TEST_SLOW", "5" if _BESIDE_OTHERS else "1"))
"""Factor on every limit of the tests, for machines that are slow or busy.

Workers beside each other have five times as long, one test after another as long as
the sentences say. What must have passed at least, and what is waited out, has no factor.
"""


def wait_until(
    condition: Callable[[], object], *, timeout: float = 5.0, what: str = ""
) -> None:
    """Return as soon as `condition()` is true; fail after `timeout` seconds."""
    end = time.monotonic() + timeout * SLOW
    tick = threading.Event()
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {what or condition}")
        tick.wait(0.005)


def new_threads(prefix: str) -> Callable[[], list[str]]:
    """Return what lists the names of threads with `prefix` that start from now on."""
    before = set(threading.enumerate())

    def names() -> list[str]:
        fresh = [t.name for t in threading.enumerate() if t not in before]
        return [name for name in fresh if name.startswith(prefix)]

    return names


def needs_program(name: str) -> str:
    """Return the path of a program; without it skip the test, but in CI fail it."""
    path = os.environ.get("PATH", os.defpath)
    # Debian keeps these two out of a user's path: services, and a server's versions.
    places = [path, "/usr/sbin", *glob.glob("/usr/lib/postgresql/*/bin")]
    found = shutil.which(name, path=":".join(places))
    if found is None:
        reason = f"{name} is not installed; .ci/packages installs it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return found


def ending_with_us(signal: str) -> list[str]:
    """Return the words before a command that let it end with the process that began it.

    By the signal, and also if that process is killed and can close nothing. Where
    there is no `setpriv` (it is of util-linux), none.
    """
    program = shutil.which("setpriv")
    return [] if program is None else [program, "--pdeathsig", signal, "--"]


def missing_tests(places: Iterable[str]) -> list[str]:
    """Return those of `file::test`, files below the folder of all tests, that are not there."""
    folder = Path(__file__).parent
    missing = []
    for place in places:
        name, _, test = place.partition("::")
        source = (folder / name).read_text()
        if not re.search(rf"^ *(async )?def {test}\(", source, re.MULTILINE):
            missing.append(place)
    return missing


def processes_marked(marker: str) -> Iterator[int]:
    """Yield the ids of live processes whose environment holds `marker`."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z" and marker.encode() in environment:
            yield int(entry.name)


def write_agent(
    folder: Path, source: str, *, name: str = "test-agent", tags: str = "[]"
) -> Path:
    """Write an agent's folder, manifest and `app.py`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "app.py").write_text(textwrap.dedent(source))
    (folder / ".ppio-agent.yaml").write_text(
        textwrap.dedent(
            f"""\
            apiVersion: v1
            kind: Agent
            metadata:
              name: {name}
              version: 1.0.0
              author: tests@example.com
              description: An agent of the tests.
              tags: {tags}
            spec:
              entrypoint: app.py
              runtime:
                timeout: 30
            """
        )
    )
    return folder


def interrupt_everywhere(
    begin: Callable[[], tuple[Callable[[], object], Callable[[], object]]],
) -> None:
    """Run something again and again, interrupted at each of its steps in turn.

    As a signal handler or a finaliser does it: on top of the thread that runs.

    Args:
        begin: Returns what is to be run, which ends by itself, and what interrupts it.
    """
    for step in itertools.count():
        reached: list[int] = []
        thread = threading.Thread(
            target=_interrupted, args=(*begin(), step, reached), daemon=True
        )
        thread.start()
        thread.join(2.0 * SLOW)
        assert not thread.is_alive(), f"it hangs when interrupted at step {step}"
        if not reached:
            return


def _interrupted(
    run: Callable[[], object],
    interrupt: Callable[[], object],
    step: int,
    reached: list[int],
) -> None:
    left = itertools.count(step, -1)

    def trace(_frame: object, event: str, _argument: object) -> Any:
        if event == "line" and next(left) == 0:
            sys.settrace(None)
            reached.append(step)
            interrupt()
            return None
        return trace

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(None)
