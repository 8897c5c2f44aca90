"""Which lane serves a request, and which request is refused."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.exceptions import ServerBusyError, ServerDrainingError
from ppio_agent.web import Lane, Lanes, retry_after
from ppio_agent.web.lanes import LaneDispatcher
from tests.support import wait_until

SECONDS = st.lists(st.floats(0, 1000), max_size=32)


@given(SECONDS, st.integers(0, 1000), st.integers(1, 1000))
def test_retry_after_is_between_1_and_30(
    durations: list[float], waiting: int, slots: int
) -> None:
    """No caller is sent away for minutes, and none is told to come back at once."""
    assert 1 <= retry_after(durations, waiting=waiting, slots=slots) <= 30


@given(SECONDS, st.integers(0, 100), st.integers(1, 100))
def test_retry_after_grows_with_the_queue(
    durations: list[float], waiting: int, slots: int
) -> None:
    """The longer the queue, the later."""
    now = retry_after(durations, waiting=waiting, slots=slots)
    assert now <= retry_after(durations, waiting=waiting + 1, slots=slots)


def test_retry_after_is_the_median_times_the_rounds() -> None:
    """10 waiting for 4 slots of 3 s each: 7.5 s, rounded up."""
    assert retry_after([3.0, 1.0, 100.0], waiting=10, slots=4) == 8


@define(eq=False)
class FakeRequest:
    path: str = "/invocations"
    command: str = "POST"
    headers: dict[str, str] = field(factory=dict)
    error: Any = None
    arrived: float = 0.0


@define(eq=False)
class FakeChannel:
    """A connection whose application waits for `gate`."""

    gate: threading.Event
    requests: list[FakeRequest] = field(factory=lambda: [FakeRequest()])
    gone: bool = False
    served_by: str = ""
    dropped: bool = False

    def service(self) -> None:
        self.served_by = threading.current_thread().name
        if self.requests[0].error is None:
            self.gate.wait(10)

    def postpone(self) -> bool:
        return False

    def client_gone(self) -> bool:
        return self.gone

    def abort(self) -> None:
        self.dropped = True

    def cancel(self) -> None:
        self.requests = []


class Fixture:
    """A dispatcher of one slot and one place, by default."""

    def __init__(self, lanes: Lanes | None = None, *, slots: int = 1, queue: int = 1):
        self.gate = threading.Event()
        self.dispatcher = LaneDispatcher(
            lanes or Lanes(), slots=slots, max_queue=queue, max_connections=100
        )

    def __enter__(self) -> Fixture:
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        assert self.dispatcher.shutdown()

    def add(self, **facts: Any) -> FakeChannel:
        channel = FakeChannel(self.gate, [FakeRequest(**facts)])
        self.dispatcher.add_task(channel)
        return channel


def _by_path(method: str, path: str, headers: Any) -> Lane:
    return {"/ping": Lane.EXPRESS, "/events": Lane.READ}.get(path, Lane.INVOKE)


@pytest.mark.parametrize(
    ("path", "lane"),
    [("/ping", "express"), ("/events", "read"), ("/invocations", "invoke")],
)
def test_each_lane_has_threads_of_its_own(path: str, lane: str) -> None:
    """A request is served by the lane that the application chose."""
    with Fixture(Lanes(classify=_by_path)) as it:
        channel = it.add(path=path)
        wait_until(lambda: channel.served_by)
        assert channel.served_by.startswith(f"ppio-web-{lane}-")


def test_a_full_lane_does_not_hold_up_the_others() -> None:
    """With every invoke thread blocked, express requests are served at once."""
    with Fixture(Lanes(classify=_by_path)) as it:
        blocked = it.add()
        wait_until(lambda: blocked.served_by)
        ping = it.add(path="/ping")
        wait_until(lambda: ping.served_by)
        assert ping.requests[0].error is None


def test_more_than_the_queue_holds_is_refused_on_the_express_lane() -> None:
    """One runs, one waits, the third is told when to come back."""
    with Fixture() as it:
        first = it.add()
        wait_until(lambda: first.served_by)
        second = it.add()
        third = it.add()
        wait_until(lambda: third.served_by)
        assert third.served_by.startswith("ppio-web-express-")
        error = third.requests[0].error.error
        assert isinstance(error, ServerBusyError)
        assert error.retry_after == 1
        assert second.served_by == ""
        assert it.dispatcher.stats()["refused"] == {"server_busy": 1}


def test_the_read_lane_refuses_likewise() -> None:
    """Readers of events are bounded as invocations are."""
    with Fixture(Lanes(classify=_by_path), queue=0) as it:
        first = it.add(path="/events")
        wait_until(lambda: first.served_by)
        second = it.add(path="/events")
        wait_until(lambda: second.served_by)
        assert isinstance(second.requests[0].error.error, ServerBusyError)


def test_what_waits_inside_the_application_counts() -> None:
    """Requests that wait for a slot, not for a thread, fill the queue as well."""
    with Fixture(Lanes(waiting=lambda: 3), slots=8, queue=3) as it:
        channel = it.add()
        wait_until(lambda: channel.served_by)
        assert isinstance(channel.requests[0].error.error, ServerBusyError)


@pytest.mark.parametrize(
    ("lane", "thread", "left"),
    [(Lane.QUEUED, "ppio-web-relay", 0), (Lane.INVOKE, "", 2)],
)
def test_only_what_the_application_queues_waits_inside_it(
    lane: Lane, thread: str, left: int
) -> None:
    """Other code is never run on more threads than there are slots."""
    with Fixture(Lanes(classify=lambda *_: lane), queue=2) as it:
        first = it.add()
        wait_until(lambda: first.served_by)
        others = [it.add() for _ in range(2)]
        for _ in range(8):
            threading.Event().wait(0.05)
            it.dispatcher.grow()
        wait_until(lambda: [one.served_by[:14] for one in others] == [thread] * 2)
        assert it.dispatcher.stats()["lanes"]["invoke"]["waiting"] == left


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "bad_request"),
        (413, "request_too_large"),
        (431, "headers_too_large"),
        (501, "not_implemented"),
    ],
)
def test_what_cannot_be_read_is_counted(status: int, code: str) -> None:
    """It is refused as any other, by the code of its answer."""
    error = type("Error", (), {"code": status})
    with Fixture() as it:
        channel = it.add(error=error)
        wait_until(lambda: channel.served_by)
        assert it.dispatcher.stats()["refused"] == {code: 1}


def test_what_the_reading_thread_served_says_nothing_of_the_others() -> None:
    """Whoever runs it looks at its time; it is not noted twice."""

    class Slow(FakeChannel):
        def service(self) -> None:
            threading.Event().wait(0.03)

    with Fixture(slots=2) as it:
        for _ in range(2):
            channel = Slow(it.gate)
            job = it.dispatcher.inline.collect(
                lambda channel=channel: it.dispatcher.add_task(channel)
            )
            assert job is not None
            it.dispatcher.inline.run(job)


def test_draining_refuses_invocations_and_closes() -> None:
    """Only the invoke lane: health checks go on."""
    with Fixture(Lanes(classify=_by_path)) as it:
        it.dispatcher.draining = True
        channel, ping = it.add(), it.add(path="/ping")
        wait_until(lambda: channel.served_by and ping.served_by)
        refusal = channel.requests[0].error
        assert isinstance(refusal.error, ServerDrainingError)
        assert refusal.close
        assert ping.requests[0].error is None


def test_a_request_whose_client_left_while_it_waited_is_not_run() -> None:
    """Nobody would read the answer."""
    with Fixture() as it:
        first = it.add()
        wait_until(lambda: first.served_by)
        second = it.add()
        second.gone = True
        second.requests[0].arrived -= 1.0
        it.gate.set()
        wait_until(lambda: second.dropped)
        assert second.served_by == ""
        assert second.requests == []


def test_a_connection_that_cannot_be_served_is_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Left open, its client would wait for ever."""
    with Fixture() as it:
        channel = FakeChannel(it.gate)
        channel.gate = None  # type: ignore[assignment]
        it.dispatcher.add_task(channel)
        wait_until(lambda: channel.dropped)


def test_express_threads_are_there_before_the_first_request() -> None:
    """They cannot be missing when the system has no thread left."""
    with Fixture() as it:
        it.dispatcher.start()
        assert it.dispatcher.stats()["lanes"]["express"]["threads"] == 2
