"""The pool of threads."""

from __future__ import annotations

import gc
import logging
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ppio_agent._util import threads
from ppio_agent._util.threads import (
    NoThreadError,
    PoolClosedError,
    PoolSaturatedError,
    WorkerPool,
    start_thread,
)
from tests.support import SLOW, wait_until

MakePool = Callable[..., WorkerPool]


@pytest.fixture
def make_pool() -> Iterator[MakePool]:
    """Make pools that are closed with the test."""
    pools: list[WorkerPool] = []

    def make(*, max_threads: int = 2, max_waiting: int = 0) -> WorkerPool:
        pools.append(
            WorkerPool("ppio-test", max_threads=max_threads, max_waiting=max_waiting)
        )
        return pools[-1]

    yield make
    for pool in pools:
        assert pool.close()


class Gate:
    """A job that says when it runs and goes on when it is told."""

    def __init__(self) -> None:
        self.running = threading.Semaphore(0)
        self.open = threading.Event()

    def __call__(self) -> None:
        self.running.release()
        self.open.wait()

    def wait_running(self, jobs: int = 1) -> None:
        for _ in range(jobs):
            assert self.running.acquire(timeout=5 * SLOW)


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that is opened at the end, so that no thread is left behind it."""
    gate = Gate()
    yield gate
    gate.open.set()


def run(pool: WorkerPool) -> threading.Thread:
    """Run a job to its end, its thread's parking included; return the thread."""
    found: list[threading.Thread] = []
    pool.submit(lambda: found.append(threading.current_thread()))
    wait_until(lambda: found and pool.busy == 0)
    return found[0]


def test_a_lone_thread_is_named_and_no_hindrance() -> None:
    """It is a daemon, already running, with its arguments."""
    found: list[int] = []
    thread = start_thread("ppio-lone-1", found.append, 7)
    thread.join(5 * SLOW)
    assert (thread.name, thread.daemon, found) == ("ppio-lone-1", True, [7])


def test_threads_are_made_on_demand(make_pool: MakePool, gate: Gate) -> None:
    """None before the first job, one more only if all others are busy."""
    pool = make_pool(max_threads=8)
    assert (pool.threads, pool.busy, pool.waiting) == (0, 0, 0)
    thread = run(pool)
    assert (thread.name, thread.daemon) == ("ppio-test-1", True)
    assert run(pool) is thread
    assert (pool.threads, pool.busy, pool.waiting) == (1, 0, 0)
    pool.submit(gate)
    pool.submit(gate)
    gate.wait_running(2)
    assert (pool.threads, pool.busy, pool.waiting) == (2, 2, 0)


def test_the_thread_that_parked_last_is_used_first(make_pool: MakePool) -> None:
    """Its stack is warm, and the others may stay asleep."""
    pool = make_pool(max_threads=3)
    gates = [Gate() for _ in range(3)]
    for gate in gates:
        pool.submit(gate)
        gate.wait_running()
    for number, gate in enumerate((gates[1], gates[2], gates[0])):
        gate.open.set()
        wait_until(lambda number=number: pool.busy == 2 - number)
    assert [run(pool).name for _ in range(3)] == ["ppio-test-1"] * 3
    pool.submit(again := Gate())
    again.wait_running()
    found: list[str] = []
    pool.submit(lambda: found.append(threading.current_thread().name))
    wait_until(lambda: found == ["ppio-test-3"])
    again.open.set()


def test_jobs_beyond_the_threads_wait_in_order(make_pool: MakePool, gate: Gate) -> None:
    """The waiting room is first in, first out, and empties without new submits."""
    pool = make_pool(max_threads=1, max_waiting=3)
    order: list[int] = []
    pool.submit(gate)
    gate.wait_running()
    for number in range(3):
        pool.submit(lambda number=number: order.append(number))
    assert (pool.threads, pool.busy, pool.waiting) == (1, 1, 3)
    gate.open.set()
    wait_until(lambda: pool.busy == 0)
    assert order == [0, 1, 2]


def test_a_full_pool_says_so(make_pool: MakePool, gate: Gate) -> None:
    """The error names the pool and its bounds; nothing of the job is kept."""
    pool = make_pool(max_threads=1, max_waiting=1)
    refused: list[int] = []
    pool.submit(gate)
    pool.submit(gate)
    with pytest.raises(
        PoolSaturatedError, match="all 1 threads of ppio-test are busy and 1 jobs wait"
    ):
        pool.submit(lambda: refused.append(1))
    gate.open.set()
    wait_until(lambda: pool.busy == 0)
    assert refused == []
    assert run(pool).name == "ppio-test-1"


def test_a_pool_without_threads_is_refused() -> None:
    """Its jobs would wait for ever."""
    with pytest.raises(ValueError, match="at least 1"):
        WorkerPool("ppio-none", max_threads=0, max_waiting=5)


@pytest.mark.parametrize("failure", [ValueError("broken"), SystemExit(3)])
def test_a_failing_job_does_not_end_its_thread(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture, failure: BaseException
) -> None:
    """The failure is logged with the pool's name, and the thread serves on."""

    def fail() -> None:
        raise failure

    pool = make_pool(max_threads=1, max_waiting=1)
    thread = run(pool)
    with caplog.at_level(logging.ERROR, logger=threads.__name__):
        pool.submit(fail)
        wait_until(lambda: pool.busy == 0 and caplog.records)
    assert run(pool) is thread
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is failure
    assert record.__dict__["pool"] == "ppio-test"


def test_a_thread_lost_to_a_log_handler_frees_its_place(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even then the pool does not shrink for good."""
    failures: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(threads._log, "exception", refuse)
    pool = make_pool(max_threads=1)
    pool.submit(lambda: int("no number"))
    wait_until(lambda: failures and pool.threads == 0)
    assert run(pool).name == "ppio-test-2"


def test_a_parked_thread_keeps_no_job_alive(make_pool: MakePool) -> None:
    """A request is freed when it is done, not when the next one comes."""

    class Job:
        def __call__(self) -> None:
            pass

    pool = make_pool(max_threads=1, max_waiting=1)
    refs = []
    for _ in range(2):  # the first makes the thread, the second is handed over
        job = Job()
        refs.append(weakref.ref(job))
        pool.submit(job)
        del job
        wait_until(lambda: pool.busy == 0)
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


def test_a_machine_without_threads_refuses_the_job_only(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place of the thread that could not start is free again."""

    def refuse(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    pool = make_pool(max_threads=1)
    with monkeypatch.context() as patch:
        patch.setattr(threads, "start_thread", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            pool.submit(lambda: None)
    assert pool.threads == 0
    assert run(pool).name == "ppio-test-2"


def test_close_ends_idle_threads_and_refuses_new_jobs() -> None:
    """After it no thread of the pool is alive; closing again is no error."""
    pool = WorkerPool("ppio-closing", max_threads=3)
    thread = run(pool)
    assert pool.close()
    assert not thread.is_alive()
    assert (pool.threads, pool.busy) == (0, 0)
    assert pool.close()
    with pytest.raises(RuntimeError, match="the thread pool ppio-closing is closed"):
        pool.submit(lambda: None)


def test_close_of_an_unused_pool_returns_at_once() -> None:
    """There is nothing to wait for."""
    assert WorkerPool("ppio-unused", max_threads=1).close(0.0)


def test_close_waits_for_a_running_job_and_drops_what_waits(gate: Gate) -> None:
    """With too little time it says so, and may be asked again."""
    pool = WorkerPool("ppio-closing", max_threads=1, max_waiting=5)
    dropped: list[int] = []
    pool.submit(gate)
    gate.wait_running()
    pool.submit(lambda: dropped.append(1))
    assert not pool.close(0.02)
    assert (pool.threads, pool.waiting) == (1, 0)
    gate.open.set()
    assert pool.close(None)
    assert (pool.threads, dropped) == (0, [])


def test_a_job_may_close_its_own_pool() -> None:
    """It does not wait for itself."""
    pool = WorkerPool("ppio-closing", max_threads=2)
    answers: list[bool] = []
    run(pool)
    pool.submit(lambda: answers.append(pool.close()))
    wait_until(lambda: pool.threads == 0)
    assert answers == [True]


def test_close_waits_for_a_thread_that_is_just_being_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job accepted before `close` is not missed by it."""
    started, go_on = threading.Event(), threading.Event()
    real = threads.start_thread

    def slowly(
        name: str, target: Callable[..., object], *args: object
    ) -> threading.Thread:
        started.set()
        go_on.wait()
        return real(name, target, *args)

    monkeypatch.setattr(threads, "start_thread", slowly)
    pool = WorkerPool("ppio-starting", max_threads=1)
    done: list[int] = []
    submitter = real("ppio-submitter", pool.submit, lambda: done.append(1))
    assert started.wait(5 * SLOW)
    assert not pool.close(0.02)
    go_on.set()
    assert pool.close()
    submitter.join()
    assert done == [1]


def test_submits_from_many_threads_lose_no_job_and_pass_no_bound() -> None:
    """Each accepted job runs exactly once; never more run than there are threads."""
    for round_ in range(5):
        pool = WorkerPool("ppio-stress", max_threads=4, max_waiting=8)
        stress = _Stress(pool)
        together = threading.Barrier(8)

        def submit(
            seed: int, stress: _Stress = stress, together: threading.Barrier = together
        ) -> None:
            chance = random.Random(seed)
            together.wait()
            for _ in range(200):
                stress.submit(chance)

        submitters = [
            start_thread("ppio-submitter", submit, round_ * 8 + i) for i in range(8)
        ]
        for submitter in submitters:
            submitter.join()
        wait_until(lambda stress=stress: stress.done == stress.accepted)
        assert pool.close()
        assert stress.accepted + stress.refused == 8 * 200
        assert stress.done == stress.accepted
        assert 1 <= stress.most <= 4
        assert pool.threads == 0


class _Stress:
    """Counts the jobs of a pool: accepted, refused, done, and at most at once."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._now = self.most = self.accepted = self.refused = self.done = 0

    def submit(self, chance: random.Random) -> None:
        try:
            self._pool.submit(self._job)
        except PoolSaturatedError:
            with self._lock:
                self.refused += 1
            threading.Event().wait(chance.random() / 5000)
        else:
            with self._lock:
                self.accepted += 1

    def _job(self) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        with self._lock:
            self._now -= 1
            self.done += 1


def test_closing_while_others_submit_leaves_nothing_running() -> None:
    """Each submit is refused or its job has ended or been dropped when close returns.

    Above all no job runs after close has returned.
    """
    for _ in range(100):
        pool = WorkerPool("ppio-race", max_threads=2, max_waiting=1)
        closed = threading.Event()
        late: list[int] = []
        together = threading.Barrier(4)

        def job(closed: threading.Event = closed, late: list[int] = late) -> None:
            if closed.is_set():
                late.append(1)

        def submit(
            pool: WorkerPool = pool,
            together: threading.Barrier = together,
            job: Callable[[], None] = job,
        ) -> None:
            together.wait()
            for _ in range(20):
                try:
                    pool.submit(job)
                except PoolSaturatedError:
                    continue
                except RuntimeError:
                    return

        submitters = [start_thread("ppio-submitter", submit) for _ in range(3)]
        together.wait()
        assert pool.close()
        closed.set()
        for submitter in submitters:
            submitter.join()
        assert (pool.threads, pool.waiting, late) == (0, 0, [])


FORKING = """
import os, sys, threading
from ppio_agent._util.threads import WorkerPool

pool = WorkerPool("ppio-fork", max_threads=1, max_waiting=1)
gate, running = threading.Event(), threading.Event()
pool.submit(lambda: (running.set(), gate.wait()))
running.wait()
pool.submit(lambda: os.write(1, b"parent\\n"))
pool._lock.acquire()  # as another thread of the parent may hold it
child = os.fork()
if child == 0:
    assert (pool.threads, pool.busy, pool.waiting) == (0, 0, 0)
    done = threading.Barrier(2)
    pool.submit(lambda: (os.write(1, b"child\\n"), done.wait()))
    done.wait()
    assert pool.threads == 1
    assert pool.close()
    os._exit(0 if pool.threads == 0 else 1)
pool._lock.release()
assert os.waitpid(child, 0)[1] == 0
assert (pool.busy, pool.waiting) == (1, 1)
ended = threading.Event()
gate.set()
while pool.busy:
    ended.wait(0.001)
assert pool.close()
"""


def test_a_forked_child_starts_with_an_empty_pool() -> None:
    """Threads, jobs and locks of the parent stay the parent's."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING],
        capture_output=True,
        text=True,
        timeout=30 * SLOW,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["child", "parent"]


def test_a_forgotten_pool_is_not_kept_alive() -> None:
    """What empties pools after a fork does not keep them."""
    ref = weakref.ref(WorkerPool("ppio-forgotten", max_threads=1))
    gc.collect()
    assert ref() is None


def test_a_caller_may_take_the_place_of_a_thread(
    make_pool: MakePool, gate: Gate
) -> None:
    """The limit holds for both; what waited meanwhile runs when the place is free."""
    pool = make_pool(max_threads=1, max_waiting=1)
    inside, names = [], []

    def job() -> None:
        inside.append((pool.busy, pool.run_here(gate)))
        pool.submit(lambda: names.append(threading.current_thread().name))
        inside.append((pool.busy, pool.waiting))

    assert pool.run_here(job)
    assert inside == [(1, False), (1, 1)]
    wait_until(lambda: names == ["ppio-test-1"])
    wait_until(lambda: pool.busy == 0)


def test_a_parked_thread_is_not_used_while_callers_take_all_places(
    make_pool: MakePool,
) -> None:
    """There may then be more threads than places, but not more at work."""
    pool = make_pool(max_threads=1)
    pool.submit(lambda: None)
    wait_until(lambda: pool.busy == 0)

    def job() -> None:
        with pytest.raises(PoolSaturatedError):
            pool.submit(lambda: None)

    assert pool.run_here(job)


def test_what_a_caller_raises_frees_its_place(make_pool: MakePool) -> None:
    """It is raised where it was asked for."""
    pool = make_pool(max_threads=1)

    def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        pool.run_here(fail)
    assert pool.busy == 0


def test_a_caller_may_give_its_place_back_early(make_pool: MakePool) -> None:
    """Once, for all that it still has to do; others' places are not its own."""
    pool = make_pool(max_threads=1)
    pool.free_place()
    seen = []

    def job() -> None:
        start_thread("other", pool.free_place).join()
        seen.append(pool.busy)
        pool.free_place()
        seen.append(pool.busy)
        seen.append(pool.run_here(lambda: seen.append(pool.busy)))

    assert pool.run_here(job)
    assert seen == [1, 0, 1, True]
    assert pool.busy == 0


def test_close_waits_for_callers_too() -> None:
    """As for its own threads; afterwards none gets in."""
    pool = WorkerPool("ppio-test", max_threads=1)
    entered, leave = threading.Event(), threading.Event()

    def job() -> None:
        entered.set()
        leave.wait(5)

    thread = start_thread("guest", pool.run_here, job)
    assert entered.wait(5)
    assert not pool.close(0.01)
    leave.set()
    assert pool.close()
    thread.join(5)
    assert not pool.run_here(lambda: None)


def test_a_waiting_job_is_not_lost_for_want_of_a_thread(
    make_pool: MakePool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It goes on waiting, and who made room for it is not told."""
    pool = make_pool(max_threads=1, max_waiting=1)
    done: list[str] = []
    ended = threading.Event()

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert pool.run_here(lambda: pool.submit(ended.set))
        with pytest.raises(NoThreadError, match="ppio-test-2 cannot be started"):
            pool.submit(lambda: done.append("never"))
    assert pool.waiting == 1
    assert "a job of ppio-test goes on waiting" in caplog.text
    pool.submit(lambda: done.append("next"))
    assert ended.wait(5 * SLOW)
    assert done == ["next"]


def test_a_job_that_waits_can_be_withdrawn(make_pool: MakePool, gate: Gate) -> None:
    """It is not run then; one that has begun stays."""
    pool = make_pool(max_threads=1, max_waiting=2)
    done: list[str] = []
    pool.submit(gate)
    gate.wait_running()
    withdrawn, kept = lambda: done.append("withdrawn"), lambda: done.append("kept")
    pool.submit(withdrawn)
    pool.submit(kept)
    assert pool.withdraw(withdrawn)
    assert not pool.withdraw(withdrawn)
    assert not pool.withdraw(gate)
    gate.open.set()
    wait_until(lambda: done == ["kept"])


def test_close_may_run_what_waits(gate: Gate) -> None:
    """With drop=False every job is run before its thread ends."""
    pool = WorkerPool("ppio-closing", max_threads=1, max_waiting=5)
    done: list[int] = []
    pool.submit(gate)
    gate.wait_running()
    for number in range(5):
        pool.submit(lambda number=number: done.append(number))
    assert not pool.close(0.0, drop=False)
    gate.open.set()
    assert pool.close(drop=False)
    assert done == [0, 1, 2, 3, 4]


def test_the_threads_of_an_abandoned_pool_end(gate: Gate) -> None:
    """Those that are parked at once, the others after their job and what waits."""
    pool = WorkerPool("ppio-abandoned", max_threads=2, max_waiting=1)
    done: list[str] = []
    gates = [gate, Gate()]
    for each in gates:
        pool.submit(each)
        each.wait_running()
    pool.submit(lambda: done.append("waited"))
    gates[1].open.set()
    wait_until(lambda: pool.busy == 1 and done)
    pool.abandon()
    wait_until(lambda: pool.threads == 1)
    with pytest.raises(PoolClosedError):
        pool.submit(gate)
    gate.open.set()
    wait_until(lambda: pool.threads == 0)


def test_no_thread_parks_in_a_pool_that_was_just_abandoned(
    make_pool: MakePool,
) -> None:
    """Nobody would wake it; abandoning takes no lock that could keep them apart."""

    class Idle(list[Any]):
        def append(self, worker: Any) -> None:
            pool.abandon()
            super().append(worker)

    pool = make_pool()
    pool._idle = Idle()
    pool.submit(lambda: None)
    wait_until(lambda: pool.threads == 0)


def test_a_thread_that_waits_lets_another_job_have_its_place() -> None:
    """Up to so many threads; one that is not the pool's changes nothing."""
    pool = WorkerPool("test-blocking", max_threads=1, max_waiting=10)
    hold, ran = threading.Event(), threading.Event()
    granted: list[bool] = []

    def waits(most: int) -> None:
        with pool.blocking(most) as place, pool.blocking(most) as again:
            granted.extend((place, again))
            hold.wait(10 * SLOW)

    try:
        pool.submit(lambda: waits(2))
        pool.submit(lambda: waits(2))
        pool.submit(ran.set)
        wait_until(lambda: len(granted) == 4)
        # The second one found as many threads as may be.
        assert sorted(granted) == [False, False, True, True]
        assert not ran.is_set()
        with pool.blocking(0) as place:
            assert place
        hold.set()
        assert ran.wait(10 * SLOW)
        assert pool.threads <= 2
    finally:
        hold.set()
        assert pool.close()


def test_a_thread_that_has_nothing_to_do_ends_after_a_while() -> None:
    """And another one is started when there is something."""
    pool = WorkerPool("test-idle", max_threads=2, idle_timeout=0.05)
    try:
        for _ in range(2):
            ran = threading.Event()
            pool.submit(ran.set)
            assert ran.wait(10 * SLOW)
            wait_until(lambda: pool.threads == 0)
    finally:
        assert pool.close()
