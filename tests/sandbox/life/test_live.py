"""One sandbox: transitions take turns, its time runs, and a kill is never lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ppio_agent._util.threads import WorkerPool
from ppio_agent.exceptions import (
    NotFoundError,
    SandboxStartError,
    SandboxStateError,
    ServiceUnavailableError,
)
from ppio_agent.sandbox.backends.base import AgentStatus, LineAddress
from ppio_agent.sandbox.life import turns
from ppio_agent.sandbox.life.changes import Change
from ppio_agent.sandbox.life.live import LiveSandbox
from ppio_agent.sandbox.life.machine import EndReason, Event, State
from ppio_agent.sandbox.life.options import CreateOptions
from ppio_agent.sandbox.life.timers import Timers
from ppio_agent.sandbox.life.values import Identity, Life, Surroundings
from ppio_agent.sandbox.templates.records import Build
from tests.sandbox.fakes import FakeBackend
from tests.support import SLOW, wait_until


class Rig:
    """Sandboxes on a fake backend; `ends` lists those that ended, `lives` what was kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.backend = FakeBackend()
        self.timers = Timers("ppio-test-timer")
        self.pool = WorkerPool("ppio-test-pool", max_threads=4, max_waiting=9)
        self.ends: list[LiveSandbox] = []
        self.lives: list[Life] = []

    def make(self, **options: Any) -> LiveSandbox:
        identity = Identity(
            id="s" * 20,
            tenant="t",
            alias="a",
            build=Build(id="b", template_id="t", entrypoint="app.py"),
            options=CreateOptions(**options),
            root=self.folder,
            line=LineAddress(path="none", secret="s"),
        )
        around = Surroundings(
            backend=self.backend,
            timers=self.timers,
            background=self.pool.submit,
            on_life=lambda sandbox: self.lives.append(sandbox.life),
            on_end=self.ends.append,
            paused_timeout=50.0,
        )
        return LiveSandbox(identity, around)

    def started(self, **options: Any) -> LiveSandbox:
        sandbox = self.make(**options)
        sandbox.start(lambda: None)
        return sandbox


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.timers.close()
    made.pool.close()


def _left(sandbox: LiveSandbox) -> float:
    return sandbox.life.ends - sandbox._around.monotonic()


def test_a_started_sandbox_runs_for_its_time(rig: Rig) -> None:
    sandbox = rig.started(timeout=100)

    assert sandbox.life.state is State.RUNNING
    assert 99 < _left(sandbox) <= 100
    lasts = (sandbox.life.end_at - sandbox.life.started_at).total_seconds()
    assert lasts == pytest.approx(100, abs=0.1)


def test_the_end_of_its_time_kills_it(rig: Rig) -> None:
    sandbox = rig.started(timeout=100)
    sandbox.set_timeout(0.05)

    assert sandbox.ended.wait(5)
    assert (sandbox.life.state, sandbox.life.reason) == (
        State.KILLED,
        EndReason.TIMEOUT,
    )
    assert rig.backend.last.log == ["kill 2"]
    assert rig.ends == [sandbox]


def test_the_end_of_its_time_pauses_one_that_wants_it_and_later_kills_it(
    rig: Rig,
) -> None:
    sandbox = rig.started(pauses=True)
    sandbox.set_timeout(0.05)
    wait_until(lambda: sandbox.life.state is State.PAUSED)

    assert 49 < _left(sandbox) <= 50
    sandbox.extend(60)
    assert _left(sandbox) > 59
    assert rig.backend.last.log == ["pause"]


def test_pause_and_resume_freeze_and_thaw(rig: Rig) -> None:
    sandbox = rig.started()
    sandbox.pause()
    with pytest.raises(SandboxStateError, match="is paused: cannot pause"):
        sandbox.pause()
    with pytest.raises(SandboxStateError, match="resume it first"):
        sandbox.set_timeout(5)
    sandbox.resume(70, pauses=True)
    with pytest.raises(SandboxStateError, match="is running: cannot resume"):
        sandbox.resume(70)

    assert rig.backend.last.log == ["pause", "resume"]
    assert 69 < _left(sandbox) <= 70
    assert sandbox.life.pauses


def test_connect_extends_and_never_shortens(rig: Rig) -> None:
    sandbox = rig.started(timeout=100)

    assert sandbox.connect(10) is False
    assert _left(sandbox) > 99
    assert sandbox.connect(200) is False
    assert _left(sandbox) > 199
    sandbox.pause()
    assert sandbox.connect(30) is True
    assert 29 < _left(sandbox) <= 30
    assert sandbox.life.state is State.RUNNING


def test_a_pause_that_fails_changes_nothing(rig: Rig) -> None:
    sandbox = rig.started()
    rig.backend.last.alive = False

    with pytest.raises(SandboxStateError, match="is gone"):
        sandbox.pause()

    assert sandbox.life.state is State.RUNNING


def test_a_killed_sandbox_is_not_found(rig: Rig) -> None:
    sandbox = rig.started()
    assert sandbox.kill(Event.KILL, grace=1.0)

    assert not sandbox.kill(Event.KILL)
    assert rig.backend.last.log == ["kill 1"]
    for use in (sandbox.pause, lambda: sandbox.connect(5), sandbox.processes):
        with pytest.raises(NotFoundError, match="was not found"):
            use()


def test_a_kill_during_the_start_wins(rig: Rig) -> None:
    sandbox = rig.make()
    rig.backend.before_start = lambda: (
        pool.submit(kill) and wait_until(lambda: sandbox.doomed)
    )

    def kill() -> bool:
        return sandbox.kill(Event.KILL)

    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(SandboxStateError, match="killed while it started"),
    ):
        sandbox.start(lambda: None)

    assert sandbox.ended.is_set()
    assert rig.backend.last.log == ["kill 2"]
    assert sandbox.life.reason is EndReason.REQUEST
    assert rig.ends == [sandbox]


@pytest.mark.parametrize("fails", [False, True])
def test_a_create_that_meets_the_end_of_its_platform_is_told_so(
    rig: Rig, fails: bool
) -> None:
    """Whether its processes are there already or cannot be made any more."""
    sandbox = rig.make()

    def prepare() -> None:
        rig.pool.submit(lambda: sandbox.kill(Event.STOP))
        wait_until(lambda: sandbox.doomed)
        if fails:
            raise SandboxStartError("the backend is closed")

    with pytest.raises(ServiceUnavailableError, match="is stopping") as refused:
        sandbox.start(prepare)

    assert refused.value.retry_after == 1.0
    assert sandbox.ended.is_set()


def test_a_kill_during_a_pause_follows_it(rig: Rig) -> None:
    sandbox = rig.started()
    with ThreadPoolExecutor(1) as pool:
        killed: list[Any] = []

        def during_pause() -> None:
            killed.append(pool.submit(sandbox.kill, Event.KILL))
            wait_until(lambda: sandbox.doomed)
            assert not sandbox.ended.is_set()

        rig.backend.last.during["pause"] = during_pause
        sandbox.pause()
        assert killed[0].result(5)

    assert rig.backend.last.log == ["pause", "kill 2"]
    assert sandbox.life.state is State.KILLED


@pytest.mark.parametrize("fault", ["backend", "prepare"])
def test_a_start_that_fails_leaves_nothing(rig: Rig, fault: str) -> None:
    def no_room() -> None:
        raise OSError("disk full")

    sandbox = rig.make()
    rig.backend.fails = fault == "backend"
    prepare: Callable[[], object] = no_room if fault == "prepare" else lambda: None

    with pytest.raises((SandboxStartError, OSError), match=r"no room|disk full"):
        sandbox.start(prepare)

    assert sandbox.life.reason is EndReason.START_FAILED
    assert sandbox.ended.is_set()
    assert rig.ends == [sandbox]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("crashed", EndReason.CRASHED), ("memory", EndReason.MEMORY)],
)
def test_a_sandbox_that_is_lost_ends(
    rig: Rig, reason: Any, expected: EndReason
) -> None:
    sandbox = rig.started()
    rig.backend.last.lose(reason)

    assert sandbox.ended.wait(5)
    assert sandbox.life.reason is expected
    assert rig.ends == [sandbox]


def test_of_many_killers_one_kills(rig: Rig) -> None:
    sandbox = rig.started()
    start = threading.Barrier(8)

    def kill(_: int) -> bool:
        start.wait()
        return sandbox.kill(Event.KILL)

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(kill, range(8))) == [False] * 7 + [True]
    assert len(rig.ends) == 1


def test_who_waits_too_long_for_a_turn_is_told(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_TIMEOUT", 0.05)
    sandbox = rig.started()
    go_on = threading.Event()
    rig.backend.last.during["pause"] = lambda: go_on.wait(5)
    with ThreadPoolExecutor(1) as pool:
        pausing = pool.submit(sandbox.pause)
        wait_until(lambda: sandbox.changing)
        with pytest.raises(SandboxStateError, match="is changing state"):
            sandbox.connect(5)
        go_on.set()
        pausing.result(5)


def test_waiters_hear_of_the_agent(rig: Rig) -> None:
    sandbox = rig.started()
    with ThreadPoolExecutor(1) as pool:
        exited = pool.submit(
            sandbox.wait_for, lambda: sandbox.agent.phase == "exited", 5.0
        )
        assert not sandbox.wait_for(lambda: False, 0.02)
        rig.backend.last.report(AgentStatus(phase="exited", exit_code=3))

        assert exited.result(5 * SLOW)


def test_a_life_extended_at_its_very_end_goes_on(rig: Rig) -> None:
    """The timer has fired, the kill waits for its turn, then the life is extended."""
    sandbox = rig.started()
    go_on = threading.Event()
    rig.backend.last.during["pause"] = lambda: go_on.wait(5)
    sandbox.set_timeout(0.1)
    with ThreadPoolExecutor(1) as pool:
        pausing = pool.submit(sandbox.pause)
        wait_until(lambda: _left(sandbox) < 0 and rig.pool.busy == 1)
        go_on.set()
        pausing.result(5)
        assert sandbox.connect(100)

    wait_until(lambda: rig.pool.busy == 0)
    assert sandbox.life.state is State.RUNNING
    assert not sandbox.doomed


def test_one_that_nobody_uses_ends_by_its_rule(rig: Rig) -> None:
    killed = rig.started(idle_timeout=0.05)
    assert killed.ended.wait(5)
    paused = rig.started(idle_timeout=0.05, pauses=True)
    wait_until(lambda: paused.life.state is State.PAUSED)

    assert killed.life.reason is EndReason.IDLE
    assert 49 < _left(paused) <= 50


def test_traffic_keeps_it_and_a_resume_counts_anew(rig: Rig) -> None:
    sandbox = rig.started(idle_timeout=0.2, pauses=True)
    sandbox.traffic_began()
    assert not sandbox.wait_for(lambda: sandbox.life.state is State.PAUSED, 0.5)
    ended = time.monotonic()
    sandbox.traffic_ended()
    assert sandbox.wait_for(lambda: sandbox.life.state is State.PAUSED, 5.0)
    assert time.monotonic() - ended >= 0.2
    resumed = time.monotonic()
    sandbox.wake()
    assert sandbox.life.state is State.RUNNING
    assert sandbox.wait_for(lambda: sandbox.life.state is State.PAUSED, 5.0)

    assert time.monotonic() - resumed >= 0.2
    assert sandbox.identity.options.timeout == 300


def test_one_that_cannot_be_paused_at_its_end_is_killed(rig: Rig) -> None:
    sandbox = rig.started(pauses=True)
    rig.backend.last.alive = False
    sandbox.set_timeout(0.01)

    assert sandbox.ended.wait(5)
    assert sandbox.life.reason is EndReason.TIMEOUT


def test_a_kill_that_fails_ends_the_sandbox_all_the_same(rig: Rig) -> None:
    sandbox = rig.started()

    def fail() -> None:
        raise OSError("no")

    rig.backend.last.during["kill"] = fail
    with pytest.raises(OSError, match="no"):
        sandbox.kill(Event.KILL)

    assert sandbox.ended.is_set()
    assert rig.ends == [sandbox]


def test_a_kill_that_fails_is_tried_again_before_anything_is_removed(rig: Rig) -> None:
    sandbox = rig.started()
    ends: list[int] = []

    def fail_once() -> None:
        ends.append(len(rig.ends))
        if len(ends) == 1:
            raise OSError(24, "too many open files")

    rig.backend.last.during["kill"] = fail_once
    assert sandbox.kill(Event.KILL)

    assert ends == [0, 0]
    assert rig.ends == [sandbox]


def test_its_changes_are_told_in_order_and_the_last_is_its_end(rig: Rig) -> None:
    sandbox = rig.make()
    heard: list[Change] = []
    end = sandbox.subscribe(heard.append)
    sandbox.start(lambda: None)
    sandbox.pause()
    sandbox.connect(5)
    rig.backend.last.report(AgentStatus(phase="exited", exit_code=3))
    sandbox.kill(Event.KILL)
    end()

    told = [(c.kind, c.state, c.reason) for c in heard]
    assert told == [
        ("state", State.RUNNING, None),
        ("state", State.PAUSED, None),
        ("state", State.RUNNING, None),
        ("agent", State.RUNNING, None),
        ("state", State.KILLED, EndReason.REQUEST),
    ]
    assert heard[3].agent.exit_code == 3
    assert [c.at for c in heard] == sorted(c.at for c in heard)


def test_a_listener_may_use_the_sandbox(rig: Rig) -> None:
    """It is called under no lock that this needs."""
    sandbox = rig.started()
    seen: list[State] = []

    def listen(change: Change) -> None:
        seen.append(change.state)
        if change.state is State.PAUSED:
            sandbox.connect(5)

    sandbox.subscribe(listen)
    sandbox.pause()

    assert seen == [State.PAUSED, State.RUNNING]


def test_what_is_kept_of_its_life_is_true_before_the_caller_knows(rig: Rig) -> None:
    sandbox = rig.started(timeout=100)
    sandbox.pause()
    assert rig.lives[-1] == sandbox.life
    sandbox.resume(50)
    assert rig.lives[-1] == sandbox.life
    sandbox.set_timeout(20)
    assert rig.lives[-1] == sandbox.life
    sandbox.extend(90)
    assert rig.lives[-1] == sandbox.life
    sandbox.kill(Event.KILL)

    assert rig.lives[-1].reason is EndReason.REQUEST
    assert [life.state for life in rig.lives] == [
        State.RUNNING,
        State.PAUSED,
        State.RUNNING,
        State.RUNNING,
        State.RUNNING,
        State.KILLED,
    ]
