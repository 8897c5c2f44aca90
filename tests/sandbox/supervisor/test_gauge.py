"""What a sandbox uses: seen at the next look, and hardly looked at while idle."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from ppio_agent.sandbox.supervisor import gauge as module
from ppio_agent.sandbox.supervisor import tree
from ppio_agent.sandbox.supervisor.gauge import Gauge, processor_time
from tests.sandbox.fakes import FakeClock
from tests.support import wait_until

GROWING = """
import subprocess, sys
print("there", flush=True)
sys.stdin.readline()
child = subprocess.Popen([sys.executable, "-I", "-c", "input()"], stdin=-1)
kept = bytearray(32 * 2**20)
print("grown", flush=True)
sys.stdin.readline()
"""
GROWN = 30 * 2**20


class Growing:
    """A process below this one that takes memory and starts a child when told to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", GROWING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._said(b"there\n")

    def grow(self) -> None:
        """Do both."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        self._said(b"grown\n")

    def _said(self, line: bytes) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == line


@pytest.fixture
def growing() -> Iterator[Growing]:
    growing = Growing()
    yield growing
    growing.process.communicate()  # its end is that of its child's input, too


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry a walk over the tree."""
    walks: list[int] = []
    walk = tree.walk

    def counted(root: int, *, before: Callable[[int], object]) -> list[int]:
        walks.append(root)
        return walk(root, before=before)

    monkeypatch.setattr(tree, "walk", counted)
    return walks


def _settled(gauge: Gauge) -> tree.Load:
    """Return what is used once nobody moves any more."""
    wait_until(lambda: gauge.read() is gauge.read(), what="nobody moves")
    return gauge.read()


def test_what_a_process_takes_starts_or_loses_shows_at_the_next_look(
    growing: Growing,
) -> None:
    """However idle all were before."""
    gauge = Gauge(os.getpid())
    idle = _settled(gauge)
    growing.grow()
    grown = gauge.read()
    assert grown.processes == idle.processes + 1
    assert grown.rss_bytes > idle.rss_bytes + GROWN

    (child,) = tree.walk(growing.process.pid)
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: gauge.read().rss_bytes < grown.rss_bytes)


def test_an_idle_tree_is_not_walked_but_now_and_then(
    growing: Growing, walks: list[int]
) -> None:
    """What nobody's processor time tells is seen half a minute later."""
    clock = FakeClock()
    gauge = Gauge(os.getpid(), clock=clock)
    idle = _settled(gauge)
    walks.clear()
    clock.now += 29
    assert gauge.read() is idle
    assert walks == []
    clock.now += 1
    assert gauge.read().processes == idle.processes
    assert walks == [os.getpid()]


def test_what_begins_behind_the_look_is_seen_by_the_next_one(
    growing: Growing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that had been asked for its children when it started one."""
    gauge = Gauge(os.getpid())
    idle = _settled(gauge)
    walk = tree.walk

    def overtaken(root: int, *, before: Callable[[int], object]) -> list[int]:
        found = walk(root, before=before)
        growing.grow()
        return found

    gauge.forget()
    with monkeypatch.context() as patch:
        patch.setattr(tree, "walk", overtaken)
        assert gauge.read().processes == idle.processes
    assert gauge.read().processes == idle.processes + 1


def test_the_child_of_the_calling_process_is_seen_when_it_says_so() -> None:
    """Its own processor time tells nothing, for it runs to look."""
    gauge = Gauge(os.getpid())
    before = _settled(gauge).processes
    growing = Growing()
    try:
        gauge.forget()
        assert gauge.read().processes == before + 1
    finally:
        growing.process.communicate()


def test_the_memory_of_the_calling_process_is_measured_as_it_takes_it() -> None:
    """Though nobody below it moves."""
    gauge = Gauge(os.getpid())
    _settled(gauge)
    before = gauge.own_bytes
    # Of the system, not what this process has left from before.
    with mmap.mmap(-1, 32 * 2**20) as taken:
        for page in range(0, len(taken), mmap.PAGESIZE):
            taken[page] = 1
        gauge.read()

    assert gauge.own_bytes > before + GROWN


@pytest.mark.parametrize("clocks", [True, False])
def test_processor_time_grows_with_what_a_process_does(
    growing: Growing, monkeypatch: pytest.MonkeyPatch, clocks: bool
) -> None:
    """Asked of the kernel, or where that has no such clocks, as of a measurement."""
    if not clocks:
        monkeypatch.setattr(module, "_CLOCKS", False)
    pid = os.getpid()
    first = processor_time(pid)
    assert first is not None
    while processor_time(pid) == first:
        sum(range(100_000))
    growing.process.communicate()

    assert processor_time(growing.process.pid) is None
