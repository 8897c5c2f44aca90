"""One call for one key, however many ask."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ppio_agent.exceptions import (
    IdempotencyConflictError,
    RateLimitError,
    ServiceUnavailableError,
)
from ppio_agent.sandbox.control import once as once_module
from ppio_agent.sandbox.control.once import Once
from tests.sandbox.fakes import FakeClock


def test_concurrent_calls_with_one_key_make_one() -> None:
    once: Once[int] = Once()
    calls: list[int] = []
    start = threading.Barrier(8)

    def call() -> int:
        calls.append(1)
        threading.Event().wait(0.05)
        return len(calls)

    def ask(_: int) -> int:
        start.wait()
        return once.run("key", b"body", call)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) == {1}
    assert calls == [1]


def test_another_body_under_the_same_key_is_refused() -> None:
    once: Once[int] = Once()
    once.run("key", b"1", lambda: 1)

    with pytest.raises(IdempotencyConflictError, match="use a new key"):
        once.run("key", b"2", lambda: 2)


def test_a_failure_is_shared_and_then_forgotten() -> None:
    once: Once[int] = Once()
    running, go_on = threading.Event(), threading.Event()

    def fail() -> int:
        running.set()
        go_on.wait(5)
        raise RateLimitError("full")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(once.run, "key", b"", fail)
        assert running.wait(5)
        second = pool.submit(once.run, "key", b"", lambda: 2)
        threading.Event().wait(0.05)
        go_on.set()
        for asked in (first, second):
            with pytest.raises(RateLimitError, match="full"):
                asked.result(5)

    assert once.run("key", b"", lambda: 3) == 3


def test_a_result_is_forgotten_after_its_time() -> None:
    clock = FakeClock()
    once: Once[int] = Once(keep=600, clock=clock)
    once.run("key", b"", lambda: 1)
    clock.now += 599
    assert once.run("key", b"", lambda: 2) == 1
    clock.now += 2
    assert once.run("key", b"", lambda: 3) == 3


def test_nobody_waits_longer_than_the_limit() -> None:
    once: Once[int] = Once(wait=0.05)
    go_on = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(once.run, "key", b"", lambda: int(go_on.wait(5)))
        while not once._entries:
            pass
        with pytest.raises(ServiceUnavailableError, match="is not done yet"):
            once.run("key", b"", lambda: 2)
        go_on.set()
        assert slow.result(5) == 1


def test_keys_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten first, whatever is asked of it in ten minutes."""
    monkeypatch.setattr(once_module, "_MOST_KEYS", 3)
    once: Once[int] = Once()
    for number in range(10):
        once.run(number, b"", lambda: 1)

    assert len(once._entries) <= 4
    assert 9 in once._entries
