"""The processes of a sandbox: found, measured, never mistaken for others."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent._util.ids import new_id
from ppio_agent.sandbox.supervisor import tree
from tests.support import processes_marked, wait_until

SLEEP = "import threading; threading.Event().wait(60)"
GROUPS = """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who ends is gone
for _ in range(2):
    if os.fork() == 0:
        os.setpgid(0, 0)
        os.fork()
        break
print(flush=True)
signal.pause()
"""
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {SLEEP!r}])
"""


class Started:
    """A process with a child of its own, both with a marker."""

    def __init__(self) -> None:
        self.sandbox_id = new_id()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", PARENT],
            env={tree.MARKER: self.sandbox_id},
        )
        wait_until(lambda: len(self.pids()) == 2, what="parent and child")

    def pids(self) -> set[int]:
        """The living ones."""
        return set(processes_marked(self.sandbox_id))


@pytest.fixture
def started() -> Iterator[Started]:
    """Two processes that do not outlive the test."""
    both = Started()
    yield both
    tree.sweep(partial(tree.marked, both.sandbox_id), timeout=5)
    both.process.wait()


@settings(max_examples=100)
@given(
    parents=st.dictionaries(st.integers(1, 12), st.integers(0, 12)),
    root=st.integers(1, 12),
)
def test_descendants_are_those_whose_line_of_parents_meets_the_root(
    parents: dict[int, int], root: int
) -> None:
    """Also with circles, which a table read over time may show."""

    def descends(pid: int) -> bool:
        seen: set[int] = set()
        while pid in parents and pid not in seen:
            seen.add(pid)
            pid = parents[pid]
            if pid == root:
                return True
        return False

    expected = {pid for pid in parents if pid != root and descends(pid)}
    assert expected == tree.descendants(root, parents)


def test_members_are_descendants_and_marked_ones(started: Started) -> None:
    """By descent, by marker, and never the root itself."""
    pids = started.pids()

    assert pids == {p.pid for p in tree.marked(started.sandbox_id)}
    assert pids <= {p.pid for p in tree.members(os.getpid(), "no such sandbox")}
    assert pids - {started.process.pid} == {
        p.pid for p in tree.members(started.process.pid, started.sandbox_id)
    }
    assert tree.marked(started.sandbox_id[:-1]) == set(), "a marker matches as a whole"


def test_walk_finds_the_same_as_the_table(started: Started) -> None:
    """Asking each process for its children gives all below a root."""
    assert started.pids() - {started.process.pid} == set(tree.walk(started.process.pid))
    assert started.pids() <= set(tree.walk(os.getpid()))


@settings(max_examples=100)
@given(
    parents=st.lists(st.integers(0, 9), min_size=1, max_size=9),
    begin=st.integers(0, 9),
    moves=st.sets(st.integers(0, 9)),
)
def test_whoever_gets_from_one_parent_to_another_is_met_below_one_of_them(
    parents: list[int], begin: int, moves: set[int]
) -> None:
    """As by sub-reapers above sub-reapers, whenever that is: the tree is not whole."""
    above = {n: parent % n for n, parent in enumerate(parents, start=1)}
    new, place, asked = 99, min(begin, len(above)), itertools.count()

    def children(pid: int) -> list[int]:
        nonlocal place
        found = [n for n, parent in above.items() if parent == pid]
        found += [new] if pid == place else []
        if next(asked) in moves:
            place = above.get(place, 0)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "_children", children)
        assert not tree.is_whole(0, list(above))
        above[new] = place
        assert tree.is_whole(0, list(above))


@pytest.mark.parametrize("listed", [True, False])
def test_a_tree_is_whole_when_nobody_is_missing(
    started: Started, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    """Also where the system does not list children."""
    if not listed:
        monkeypatch.setattr(tree, "_children", {}.get)
    found = tree.walk(started.process.pid)

    assert tree.is_whole(started.process.pid, found)
    assert not tree.is_whole(started.process.pid, [])


def test_a_walk_ends_soon_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is known by then that they are too many."""
    asked: list[int] = []
    monkeypatch.setattr(tree, "_children", lambda pid: asked.append(pid) or [pid] * 100)

    assert 256 < len(tree.walk(1)) < 400
    assert len(asked) < 400


def test_all_groups_of_a_session_are_killed_but_that_of_its_leader() -> None:
    """At once: no process of a group can start another one meanwhile."""
    command = [sys.executable, "-I", "-c", GROUPS]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        try:
            wait_until(lambda: len(tree.walk(leader.pid)) == 4, what="two groups")
            assert leader.stdout is not None
            for _ in range(5):
                leader.stdout.readline()  # all are in their groups by then
            tree.kill_groups(leader.pid)
            wait_until(lambda: tree.walk(leader.pid) == [], what="their end")
            assert leader.poll() is None
        finally:
            leader.kill()


def test_psutil_says_the_same_where_there_is_no_proc(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other systems' way finds, measures and kills the same processes."""
    monkeypatch.setattr(tree, "_HAS_PROC", False)
    below = started.pids() - {started.process.pid}

    assert below == set(tree.walk(started.process.pid))
    load = tree.measure(started.pids())
    assert load.processes == 2
    assert load.rss_bytes > 2**20
    assert tree.sweep(partial(tree.marked, started.sandbox_id), timeout=5) == set()
    wait_until(lambda: not started.pids())


def test_measure_adds_up(started: Started) -> None:
    """Memory and count are those of all; a pid that is gone counts nothing."""
    one = tree.measure([started.process.pid])
    both = tree.measure([*started.pids(), 2**22 + 1])

    assert one.processes == 1
    assert both.processes == 2
    assert 0 < one.rss_bytes < both.rss_bytes
    assert both.cpu_seconds > 0


@pytest.mark.parametrize("handles", [True, False])
def test_a_pid_that_is_another_process_now_is_not_signalled(
    started: Started, monkeypatch: pytest.MonkeyPatch, handles: bool
) -> None:
    """The start time tells them apart, with process handles or without."""
    if not handles:
        monkeypatch.delattr(os, "pidfd_open")
    (process,) = (
        p for p in tree.marked(started.sandbox_id) if p.pid == started.process.pid
    )

    earlier = process._replace(started=process.started - 1)
    assert not tree.send(earlier, signal.SIGKILL)
    assert started.process.poll() is None
    assert tree.send(process, signal.SIGKILL)
    assert started.process.wait() == -signal.SIGKILL
    assert not tree.send(process, signal.SIGKILL)


def test_freeze_stops_all_and_a_stopped_tree_can_be_killed(started: Started) -> None:
    """Every process is stopped when it returns; SIGKILL needs no SIGCONT."""
    find = partial(tree.marked, started.sandbox_id)

    assert tree.freeze(find)
    for pid in started.pids():
        wait_until(lambda pid=pid: state(pid) == "T")
    assert tree.sweep(find, timeout=5) == set()
    started.process.wait()
    assert started.pids() == set()


def test_freeze_looks_twice_before_it_believes_that_all_are_still(
    started: Started,
) -> None:
    """A child that was being made at one look is there at the next."""
    everyone = tree.marked(started.sandbox_id)
    looks = itertools.chain([set()], itertools.repeat(everyone))

    assert tree.freeze(lambda: next(looks))
    assert {state(pid) for pid in started.pids()} == {"T"}


def test_freeze_stops_again_what_another_lets_go_on(started: Started) -> None:
    """When it returns all are stopped, whatever they did to one another meanwhile."""
    everyone = tree.marked(started.sandbox_id)
    looks = itertools.count()

    def find() -> set[tree.Process]:
        if next(looks) == 1:
            tree.thaw(lambda: everyone)
        return everyone

    assert tree.freeze(find)
    assert {state(pid) for pid in started.pids()} == {"T"}


def test_freeze_says_when_it_cannot_keep_up(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tree that always shows a new process is not frozen, and what was goes on."""
    monkeypatch.setattr(tree, "_FREEZE_LIMIT", 0.05)
    everyone = tree.marked(started.sandbox_id)
    pids = itertools.count(2**22 + 1)

    assert not tree.freeze(lambda: {tree.Process(next(pids), 0), *everyone})
    wait_until(lambda: "T" not in {state(pid) for pid in started.pids()})


def test_sweep_gives_up_on_what_cannot_be_killed() -> None:
    """What is left is said."""
    ghost = tree.Process(2**22 + 1, 0)

    assert {ghost} == tree.sweep(lambda: {ghost}, timeout=0.05)


def state(pid: int) -> str:
    """Return the state letter of a process."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0]
