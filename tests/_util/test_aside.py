"""What runs aside, and where when there is no room."""

from __future__ import annotations

import threading

import pytest

from ppio_agent._util import aside
from ppio_agent._util.aside import run_aside
from ppio_agent.agent.context import CancelToken
from tests.support import wait_until


class Crowd:
    """Holds every thread aside, and fills what waits for them, until it is let go."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.ended = 0

    def fill(self, *, waiting: bool) -> None:
        pool = aside._pool
        for _ in range(8):
            run_aside(self._stand)
        assert pool.busy == 8
        for _ in range(64 if waiting else 0):
            run_aside(self._stand)

    def _stand(self) -> None:
        self.gate.wait(20)
        self.ended += 1

    def leave(self) -> None:
        self.gate.set()
        wait_until(lambda: aside._pool.busy == 0)


@pytest.fixture
def crowd() -> Crowd:
    wait_until(lambda: aside._pool.busy == 0, what="other tests' functions ended")
    return Crowd()


def test_it_runs_on_a_thread_of_its_own() -> None:
    """Which has a name to be known by."""
    names: list[str] = []
    run_aside(lambda: names.append(threading.current_thread().name))
    wait_until(lambda: names)
    assert names[0].startswith("ppio-aside-")


def test_with_all_threads_busy_and_no_room_to_wait_it_runs_here(crowd: Crowd) -> None:
    """Nothing is dropped, and nothing piles up."""
    crowd.fill(waiting=True)
    names: list[str] = []
    run_aside(lambda: names.append(threading.current_thread().name))
    assert names == [threading.current_thread().name]
    crowd.leave()
    assert crowd.ended == 72


def test_a_subscription_is_taken_back_until_it_has_begun(crowd: Crowd) -> None:
    """Though the end was asked for: what it would close may be closed by then."""
    token = CancelToken()
    called: list[str] = []
    take_back = token.subscribe(lambda: called.append("taken back"))
    token.subscribe(lambda: called.append("called"))
    crowd.fill(waiting=False)
    token.fire("client")
    take_back()
    crowd.leave()
    assert called == ["called"]


def test_without_a_thread_to_be_had_it_runs_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Late is better than never."""
    monkeypatch.setattr(aside, "_pool", aside.WorkerPool("ppio-aside", max_threads=1))

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    called: list[int] = []
    run_aside(lambda: called.append(1))
    assert called == [1]
