"""Few transactions for the writes of many threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

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


@pytest.mark.parametrize("leads", [False, True])
def test_one_who_is_interrupted_while_it_waits_holds_nobody_up(leads: bool) -> None:
    """Whether it still waits, or was just told to lead."""
    transactions = Transactions()
    group = transactions.group
    job: Job[str] = Job(lambda _: 1)
    job.leads = leads
    group._busy = True
    if not leads:
        group._waiting.append(job)

    class Interrupted:
        def acquire(self) -> None:
            raise KeyboardInterrupt

    job.wake = Interrupted()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        group._wait(job)
    assert not group._waiting
    assert group._busy is not leads
    assert not job.leads


def test_whoever_asked_is_told_how_large_each_transaction_was() -> None:
    """After it, whatever became of the jobs."""
    transactions = Transactions()
    told: list[int] = []
    transactions.group.told = told.append
    with transactions.waiting([lambda _: 1, lambda _: 1 // 0, lambda _: 3]):
        assert told == []
    assert told == transactions.sizes == [1, 2]
