"""Things kept ready: as many as configured, good ones, and none at the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from ppio_agent.sandbox.backends import warm
from ppio_agent.sandbox.backends.warm import WarmPool
from tests.support import new_threads, wait_until


class Maker:
    """Makes numbers, and keeps account of them."""

    def __init__(self, size: int = 2) -> None:
        self.made: list[int] = []
        self.discarded: list[int] = []
        self.spoilt: set[int] = set()
        self.failures: list[Exception] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.pool: WarmPool[int] = WarmPool(
            "ppio-test-warm",
            size,
            make=self.make,
            discard=self.discarded.append,
            usable=lambda number: number not in self.spoilt,
            quiet=0.01,
        )

    def make(self) -> int:
        self.made.append(len(self.made))
        assert self.may_go_on.wait(10)
        if self.failures:
            raise self.failures[0] if len(self.failures) == 1 else self.failures.pop(0)
        return self.made[-1]

    def wait_ready(self, count: int) -> None:
        wait_until(lambda: self.pool.ready == count)


@pytest.fixture
def maker() -> Iterator[Maker]:
    maker = Maker()
    yield maker
    maker.may_go_on.set()
    maker.pool.close()


def test_nothing_is_made_before_it_begins(maker: Maker) -> None:
    """Nor is there anything to take."""
    assert maker.pool.take() is None
    assert maker.made == []


def test_as_many_as_configured_are_ready_and_replaced(maker: Maker) -> None:
    """Never more; the oldest is taken first."""
    maker.pool.begin()
    maker.pool.begin()
    maker.wait_ready(2)
    assert maker.made == [0, 1]

    assert maker.pool.take() == 0
    maker.wait_ready(2)
    assert [maker.pool.take(), maker.pool.take()] == [1, 2]


def test_one_that_went_bad_meanwhile_is_not_given_out(maker: Maker) -> None:
    """It is ended, and the next one is taken."""
    maker.pool.begin()
    maker.wait_ready(2)
    maker.spoilt = {0}

    assert maker.pool.take() == 1
    assert maker.discarded == [0]


def test_the_end_ends_those_nobody_took_and_the_thread() -> None:
    """One that is just being made, too."""
    threads = new_threads("ppio-test-warm")
    maker = Maker()
    maker.pool.begin()
    maker.wait_ready(2)
    maker.may_go_on.clear()
    assert maker.pool.take() == 0
    wait_until(lambda: len(maker.made) == 3)
    closer = threading.Thread(target=maker.pool.close)
    closer.start()
    maker.may_go_on.set()
    closer.join(10)

    assert sorted(maker.discarded) == [1, 2]
    assert threads() == []
    maker.pool.close()
    maker.pool.begin()
    assert maker.pool.take() is None
    assert threads() == []


def test_a_size_of_nought_needs_no_thread() -> None:
    """And nothing is ever ready."""
    threads = new_threads("ppio-test-warm")
    maker = Maker(size=0)
    maker.pool.begin()

    assert threads() == []
    maker.pool.close()


def test_a_failure_is_logged_and_does_not_end_it(
    maker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """It pauses, so as not to fail again and again at once."""
    maker.failures = [OSError("no room")]
    maker.pool.begin()
    wait_until(lambda: "nothing could be kept ready" in caplog.text)

    assert maker.pool.take() is None
    assert maker.made == [0]


def test_what_fails_again_and_again_is_told_once_for_each_kind_in_one_line(
    maker: Maker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool that fails for days fills no log."""
    monkeypatch.setattr(warm, "_PAUSE_AFTER_FAILURE", 0.0)
    maker.failures = [*(OSError("no\nroom") for _ in range(5)), ValueError("bad")]
    maker.pool.begin()
    wait_until(lambda: len(maker.made) > 10)
    maker.pool.close()

    told = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [record.getMessage() for record in told] == [
        "nothing could be kept ready: OSError: no room",
        "nothing could be kept ready: ValueError: bad",
    ]
    assert all(record.exc_info is None for record in told)
