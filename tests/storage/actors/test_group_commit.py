"""Few transactions for the writes of many threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from ppio_agent.storage.actors import group_commit
from ppio_agent.storage.actors.group_commit import GroupCommit, Job
from tests.support import wait_until


class Transactions:
    """Notes how many jobs each transaction had; each waits for `go_on`."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.running = 0
        self.overlapped = False
        self.go_on = threading.Event()
        self.group = GroupCommit(self.run)

    def run(self, jobs: Sequence[Job[str]]) -> None:
        self.running += 1
        self.overlapped |= self.running > 1
        self.sizes.append(len(jobs))
        self.go_on.wait(30.0)
        for job in jobs:
            try:
                job.result = job.work("session")
                job.error = None
            except ZeroDivisionError as error:
                job.error = error
        self.running -= 1

    @contextmanager
    def waiting(
        self, works: Sequence[Callable[[str], object]]
    ) -> Iterator[list[object]]:
        """Submit each in a thread, in this order; go on at the end of the block."""
        results: list[object] = [None] * len(works)

        def submit(number: int) -> None:
            try:
                results[number] = self.group.submit(works[number])
            except (ZeroDivisionError, InterruptedError) as error:
                results[number] = error

        threads = [
            threading.Thread(target=submit, args=(n,)) for n in range(len(works))
        ]
        for number, thread in enumerate(threads):
            thread.start()
            wait_until(
                lambda: self.sizes and len(self.group._waiting) == number  # noqa: B023
            )
        yield results
        self.go_on.set()
        for thread in threads:
            thread.join()


def test_one_who_is_alone_runs_at_once() -> None:
    """On its own thread, in a transaction of its own."""
    transactions = Transactions()
    transactions.go_on.set()
    thread = transactions.group.submit(lambda _: threading.current_thread())
    assert thread is threading.current_thread()
    assert transactions.sizes == [1]


def test_those_who_come_meanwhile_go_together() -> None:
    """At most 64, in the order in which they came."""
    transactions = Transactions()
    order: list[int] = []
    works = [lambda _, n=n: order.append(n) or n for n in range(100)]
    with transactions.waiting(works) as results:
        pass
    assert transactions.sizes == [1, 64, 35]
    assert order == results == list(range(100))
    assert not transactions.overlapped


def test_an_error_is_raised_where_its_work_came_from() -> None:
    transactions = Transactions()
    works = [lambda _: 1, lambda _: 1 // 0, lambda _: 3]
    with transactions.waiting(works) as results:
        pass
    assert results[::2] == [1, 3]
    assert isinstance(results[1], ZeroDivisionError)


def test_a_transaction_that_is_broken_off_is_told_to_all_who_were_in_it() -> None:
    """A signal ends the thread that leads; the others do not wait for ever."""
    transactions = Transactions()

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    works = [lambda _: 0, lambda _: 1, lambda _: 2]

    with transactions.waiting(works) as results:
        real = transactions.run
        transactions.group._run = lambda jobs: (
            interrupt("") if len(jobs) > 1 else real(jobs)
        )
        hook, threading.excepthook = threading.excepthook, lambda _: None
    threading.excepthook = hook
    assert results[0] == 0
    assert isinstance(results[2], InterruptedError)
    assert transactions.group.submit(lambda _: 4) == 4


def test_one_who_is_interrupted_while_it_waits_holds_nobody_up() -> None:
    """Also if it was just called to lead: the next one is then."""
    transactions = Transactions()
    group = transactions.group

    class Interrupted:
        """What it waits for is free when a signal comes."""

        def acquire(self, timeout: float) -> bool:
            group._leading.release()
            raise KeyboardInterrupt

    follower: Job[str] = Job(lambda _: 2)

    def queue(job: Job[str]) -> bool:
        job.wake = Interrupted()  # type: ignore[assignment]
        group._waiting.append(follower)
        return False

    group._may_lead = queue  # type: ignore[method-assign]
    group._leading.acquire()
    with pytest.raises(KeyboardInterrupt):
        group.submit(lambda _: 1)
    assert list(group._waiting) == [follower]
    assert not follower.wake.locked()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("lost", ["_call", "_call_next", "_begin", "_run"])
def test_a_leader_may_be_interrupted_anywhere(
    lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was not called looks after a while; who was begun is told that it failed."""
    monkeypatch.setattr(group_commit, "_LOOK_EVERY", 0.02)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    transactions = Transactions()
    group = transactions.group
    begin = group._begin

    def begin_and_lose(batch: list[Job[str]]) -> None:
        begin([])
        _interrupt()

    works = [lambda _: 0, lambda _: 1, lambda _: 2]
    with monkeypatch.context() as signals, transactions.waiting(works) as results:
        if lost == "_call":
            signals.setattr(group_commit, "_call", _interrupt)
        else:
            instead = begin_and_lose if lost == "_begin" else _interrupt
            signals.setattr(group, lost, instead)
    assert results[0] in {0, None}  # None: it was interrupted itself
    for result in results[1:]:
        assert result in {None, 1, 2} or isinstance(result, InterruptedError)
    assert not group._leading.locked()
    assert group.submit(lambda _: 4) == 4


def test_one_who_fails_to_be_told_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was written is kept, so its writer is told so."""
    transactions = Transactions()
    transactions.go_on.set()
    transactions.group.told = lambda _: 1 // 0
    assert transactions.group.submit(lambda _: 1) == 1
    assert "what was told of a transaction failed" in caplog.text


def test_whoever_asked_is_told_how_large_each_transaction_was() -> None:
    """After it, whatever became of the jobs."""
    transactions = Transactions()
    told: list[int] = []
    transactions.group.told = told.append
    with transactions.waiting([lambda _: 1, lambda _: 1 // 0, lambda _: 3]):
        assert told == []
    assert told == transactions.sizes == [1, 2]
