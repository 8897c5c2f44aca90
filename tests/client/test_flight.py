"""Of many callers that want the same thing, one fetches it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ppio_agent._util.clock import Deadline
from ppio_agent.client.flight import SingleFlight
from ppio_agent.exceptions import (
    InvocationCancelledError,
    NetworkError,
    RequestTimeoutError,
)
from ppio_agent.transport import CallScope, pause
from tests.support import wait_until

UNLIMITED = Deadline.after(None)


class Fetch:
    """Counts its calls and waits until it is let go."""

    def __init__(self, outcome: str | BaseException) -> None:
        self.calls = 0
        self.go_on = threading.Event()
        self.outcome = outcome

    def __call__(self) -> str:
        self.calls += 1
        assert self.go_on.wait(5)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def _start(threads: ThreadPoolExecutor, flight: SingleFlight[str, str], fetch: Fetch):
    leader = threads.submit(flight.run, "k", fetch, UNLIMITED)
    wait_until(lambda: fetch.calls)
    followers = [threads.submit(flight.run, "k", fetch, UNLIMITED) for _ in range(5)]
    wait_until(lambda: all(f.running() for f in followers))
    fetch.go_on.set()
    return [leader, *followers]


def test_all_share_one_result() -> None:
    """Six callers, one call."""
    fetch = Fetch("found")
    with ThreadPoolExecutor(6) as threads:
        futures = _start(threads, SingleFlight(), fetch)
        results = [f.result(5) for f in futures]

    assert results == ["found"] * 6
    assert fetch.calls == 1


def test_all_share_one_error() -> None:
    """Each as a copy of its own, with the first as its cause."""
    fetch = Fetch(NetworkError("down"))
    with ThreadPoolExecutor(6) as threads:
        errors = [f.exception(5) for f in _start(threads, SingleFlight(), fetch)]

    assert fetch.calls == 1
    assert {type(e) for e in errors} == {NetworkError}
    assert len({id(e) for e in errors}) == 6


def test_nothing_is_kept() -> None:
    """Who comes later fetches anew."""
    flight: SingleFlight[str, int] = SingleFlight()
    results = iter([1, 2])

    assert flight.run("k", lambda: next(results), UNLIMITED) == 1
    assert flight.run("k", lambda: next(results), UNLIMITED) == 2


def test_an_interrupted_leader_is_replaced() -> None:
    """A KeyboardInterrupt is its own thread's affair."""
    flight: SingleFlight[str, str] = SingleFlight()
    first = Fetch(KeyboardInterrupt())
    with ThreadPoolExecutor(2) as threads:
        leader = threads.submit(flight.run, "k", first, UNLIMITED)
        wait_until(lambda: first.calls)
        follower = threads.submit(flight.run, "k", lambda: "second", UNLIMITED)
        wait_until(follower.running)
        first.go_on.set()

        assert follower.result(5) == "second"
        assert isinstance(leader.exception(5), KeyboardInterrupt)


def test_waiting_has_its_own_deadline() -> None:
    """A patient leader does not hold up the impatient."""
    flight: SingleFlight[str, str] = SingleFlight()
    fetch = Fetch("late")
    with ThreadPoolExecutor(1) as threads:
        leader = threads.submit(flight.run, "k", fetch, UNLIMITED)
        wait_until(lambda: fetch.calls)
        with pytest.raises(RequestTimeoutError):
            flight.run("k", fetch, Deadline.after(0.05))
        fetch.go_on.set()
        assert leader.result(5) == "late"


def test_a_leader_whose_time_is_up_is_not_followed() -> None:
    """Those who have more time fetch it themselves."""
    flight: SingleFlight[str, str] = SingleFlight()
    late, found = Fetch(RequestTimeoutError("late")), Fetch("found")
    found.go_on.set()
    with ThreadPoolExecutor(2) as threads:
        leader = threads.submit(flight.run, "k", late, Deadline.after(0.0))
        wait_until(lambda: late.calls)
        follower = threads.submit(flight.run, "k", found, UNLIMITED)
        wait_until(follower.running)
        late.go_on.set()

        assert isinstance(leader.exception(5), RequestTimeoutError)
        assert follower.result(5) == "found"


def test_an_aborted_leader_is_not_followed() -> None:
    """Those whom nobody cancelled fetch it themselves."""
    flight: SingleFlight[str, str] = SingleFlight()
    scope = CallScope()
    began = threading.Event()

    def lead() -> str:
        with scope.running():
            return flight.run("k", fetch, UNLIMITED)

    def fetch() -> str:
        began.set()
        pause(UNLIMITED)
        return "never"

    with ThreadPoolExecutor(2) as threads:
        leader = threads.submit(lead)
        assert began.wait(5)
        follower = threads.submit(flight.run, "k", lambda: "found", UNLIMITED)
        wait_until(lambda: any(f.followers for f in flight._flights.values()))
        scope.abort(InvocationCancelledError("not wanted any more"))

        assert isinstance(leader.exception(5), InvocationCancelledError)
        assert follower.result(5) == "found"
