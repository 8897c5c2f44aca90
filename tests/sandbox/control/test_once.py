"""One call for one key, however many ask."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from ppio_agent.exceptions import (
    IdempotencyConflictError,
    RateLimitError,
    ServiceUnavailableError,
)
from ppio_agent.sandbox.control import once as once_module
from ppio_agent.sandbox.control.once import Once
from tests.sandbox.fakes import FakeClock

KEY = ("red", "key")
WAIT = 17.0


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], bool]:
    """Returns once so many calls wait for another's, of a `Once(wait=WAIT)`."""
    begun = threading.Semaphore(0)
    result = Future.result

    def noted(self: Future[Any], timeout: float | None = None) -> Any:
        if timeout == WAIT:
            begun.release()
        return result(self, timeout)

    monkeypatch.setattr(Future, "result", noted)
    return lambda count: all(begun.acquire(timeout=5) for _ in range(count))


def test_concurrent_calls_with_one_key_make_one(waits: Callable[[int], bool]) -> None:
    once: Once[int] = Once(wait=WAIT)
    calls: list[int] = []

    def call() -> int:
        calls.append(1)
        assert waits(7)
        return len(calls)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: once.run(KEY, "body", call), range(8)))
    assert sorted(found) == [(1, False), *[(1, True)] * 7]
    assert calls == [1]


def test_another_body_under_the_same_key_is_refused() -> None:
    once: Once[int] = Once()
    once.run(KEY, "1", lambda: 1)

    with pytest.raises(IdempotencyConflictError, match="use a new key"):
        once.run(KEY, "2", lambda: 2)


def test_a_failure_is_shared_and_then_forgotten(waits: Callable[[int], bool]) -> None:
    once: Once[int] = Once(wait=WAIT)
    running = threading.Event()

    def fail() -> int:
        running.set()
        assert waits(1)
        raise RateLimitError("full")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(once.run, KEY, "", fail)
        assert running.wait(5)
        second = pool.submit(once.run, KEY, "", lambda: 2)
        for asked in (first, second):
            with pytest.raises(RateLimitError, match="full"):
                asked.result(5)

    assert once.run(KEY, "", lambda: 3) == (3, False)


def test_a_result_is_forgotten_after_its_time() -> None:
    clock = FakeClock()
    once: Once[int] = Once(keep=600, clock=clock)
    once.run(KEY, "", lambda: 1)
    clock.now += 599
    assert once.run(KEY, "", lambda: 2) == (1, True)
    clock.now += 2
    assert once.run(KEY, "", lambda: 3) == (3, False)


def test_nobody_waits_longer_than_the_limit() -> None:
    once: Once[int] = Once(wait=0.05)
    running, go_on = threading.Event(), threading.Event()

    def call() -> int:
        running.set()
        return int(go_on.wait(5))

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(once.run, KEY, "", call)
        assert running.wait(5)
        with pytest.raises(ServiceUnavailableError, match="is not done yet"):
            once.run(KEY, "", lambda: 2)
        go_on.set()
        assert slow.result(5) == (1, False)


def test_keys_are_bounded_in_number_for_each_owner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The oldest are forgotten first; those of another owner, and what runs, never."""
    monkeypatch.setattr(once_module, "_MOST_OF_ONE", 3)
    once: Once[int] = Once()
    once.run(("blue", 0), "", lambda: 1)

    def many() -> int:
        for number in range(1, 10):
            once.run(("red", number), "", lambda: 1)
        # Of itself it would have to be asked in vain: it is not done.
        with pytest.raises(IdempotencyConflictError):
            once.run(("red", 0), "other", lambda: 2)
        return 3

    assert once.run(("red", 0), "", many) == (3, False)

    def ask(owner: str, number: int) -> bool:
        return once.run((owner, number), "", lambda: 1)[1]

    assert [ask("red", number) for number in (0, 9, 8)] == [True] * 3
    assert ask("blue", 0)
    assert not ask("red", 1)


def test_what_is_over_leaves_nothing() -> None:
    clock = FakeClock()
    once: Once[int] = Once(keep=600, clock=clock)
    for number in range(5):
        once.run(("red", number), "", lambda: 1)
        clock.now += 300

    assert list(once._done) == [("red", 3), ("red", 4)]
    clock.now += 3000
    once.run(("blue", 0), "", lambda: 1)

    assert list(once._done) == [("blue", 0)]
    assert list(once._names) == ["blue"]
    assert once._running == {}


def test_results_are_bounded_in_number_for_all_owners(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(once_module, "_MOST", 3)
    once: Once[int] = Once()
    for owner in range(5):
        once.run((owner, "key"), "", lambda: 1)

    assert [owner for owner, _ in once._done] == list(once._names) == [2, 3, 4]


def test_a_result_of_before_counts_until_its_time_is_over() -> None:
    clock = FakeClock()
    once: Once[int] = Once(keep=600, clock=clock)
    once.seed(KEY, "body", 1, age=500.0)
    once.seed(("red", "old"), "", 1, age=601.0)

    assert once.run(("red", "old"), "", lambda: 2) == (2, False)
    assert once.run(KEY, "body", lambda: 2) == (1, True)
    with pytest.raises(IdempotencyConflictError):
        once.run(KEY, "other", lambda: 2)
    clock.now += 101
    assert once.run(KEY, "body", lambda: 3) == (3, False)
