"""What a sandbox uses: seen at the next look, and hardly looked at while idle."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import psutil
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
# A sub-reaper, below it one that waits for nobody, and below that one that starts another
# and ends when it is told to.
ADOPTING = """
import os, signal
from ppio_agent.sandbox.supervisor.spawn import become_subreaper
become_subreaper()
root = os.getpid()
if os.fork() == 0:
    if os.fork() == 0:
        os.write(1, b"there\\n")
        os.read(0, 1)
        if os.fork() > 0:
            os._exit(0)
        while os.getppid() != root:
            os.sched_yield()
        os.write(1, b"adopted\\n")
    signal.pause()
signal.pause()
"""


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
    """One entry a walk over the tree, another for asking whether it found all."""
    walks: list[int] = []
    walk, is_whole = tree.walk, tree.is_whole

    def counted(root: int, *, before: Callable[[int], object]) -> list[int]:
        walks.append(root)
        return walk(root, before=before)

    def asked(root: int, found: Sequence[int]) -> bool:
        walks.append(-root)
        return is_whole(root, found)

    monkeypatch.setattr(tree, "walk", counted)
    monkeypatch.setattr(tree, "is_whole", asked)
    return walks


def _settled(gauge: Gauge) -> tree.Load:
    """Return what is used once nobody moves any more."""
    below = psutil.Process().children(recursive=True)
    idle: tree.Load | None = None

    def settled() -> bool:
        nonlocal idle
        # One that only waits for a core has not moved, and will.
        if any(each.status() == psutil.STATUS_RUNNING for each in below):
            return False
        before, idle = idle, gauge.read()
        return idle is before

    wait_until(settled, what="nobody moves")
    assert idle is not None
    return idle


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
    for _ in range(3):
        gauge.read()
    assert walks == [os.getpid(), -os.getpid()]


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


@pytest.mark.skipif(sys.platform != "linux", reason="sub-reapers are Linux's")
def test_who_changes_its_parent_behind_the_look_is_seen_by_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its new one was asked before, and its old one after that: in no list, it counts."""
    root = subprocess.Popen(
        [sys.executable, "-c", ADOPTING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    walk, stdin, stdout = tree.walk, root.stdin, root.stdout
    assert stdin is not None
    assert stdout is not None
    try:
        assert stdout.readline() == b"there\n"
        old = set(walk(root.pid))
        gauge = Gauge(root.pid)

        def overtaken(top: int, *, before: Callable[[int], object]) -> list[int]:
            def asking(pid: int) -> None:
                if pid == min(old):
                    stdin.write(b"\n")
                    assert stdout.readline() == b"adopted\n"
                before(pid)

            return walk(top, before=asking)

        with monkeypatch.context() as patch:
            patch.setattr(tree, "walk", overtaken)
            assert gauge.read().processes == len(old)
        (new,) = set(walk(root.pid)) - old
        assert set(walk(root.pid)) == {new, *old}
        assert gauge.read().processes == len(old) + 1
    finally:
        for pid in (root.pid, *walk(root.pid)):
            os.kill(pid, signal.SIGKILL)
        root.communicate()


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
