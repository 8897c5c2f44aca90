"""When the loop's thread serves a request itself, and what happens if that is slow."""

from __future__ import annotations

import itertools
import select
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent._util.alarm import alarms
from ppio_agent.web import Lane, Lanes, Reply, Server
from ppio_agent.web.crew import Crew, Load
from ppio_agent.web.inline import Inline, Pace
from tests.support import wait_until
from tests.web.conftest import Serve
from tests.web.raw import RawClient


def _pause(pace: Pace, now: float) -> float:
    """Return how long nothing more is tried, to a hundredth of a second."""
    steps = itertools.takewhile(
        lambda n: not pace.quick(now + n / 100), itertools.count()
    )
    return sum(1 for _ in steps) / 100


def test_quick_requests_are_tried_again_and_again() -> None:
    """As long as none of them disappoints."""
    pace = Pace()
    assert pace.quick(0.0)
    for now in range(10):
        pace.inline(now, took=0.0001, cpu=0.0001)
        assert pace.quick(now)


@pytest.mark.parametrize(
    ("took", "cpu", "quick"),
    [
        (0.0019, 0.0018, True),
        (0.0021, 0.0021, False),
        (0.0008, 0.0001, False),
        (0.0005, 0.0001, True),
    ],
)
def test_what_is_quick(took: float, cpu: float, quick: bool) -> None:
    """Two milliseconds at most, of which half a one at most is waiting."""
    pace = Pace()
    pace.inline(1.0, took=took, cpu=cpu)
    assert pace.quick(1.0) == quick


def test_each_disappointment_is_remembered_for_twice_as_long() -> None:
    """Up to ten seconds."""
    pace = Pace()
    found = []
    for n in range(12):
        pace.held_up(100.0 * n)
        found.append(_pause(pace, 100.0 * n))
    expected = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10, 10]
    assert found == pytest.approx(expected, abs=0.0101)


def test_all_is_forgiven_in_the_end() -> None:
    """After two hundred quick ones in a row, and not before."""
    pace = Pace()
    for _ in range(8):
        pace.held_up(0.0)
    for _ in range(199):
        pace.inline(10.0, took=0.0001, cpu=0.0001)
    pace.held_up(10.0)
    assert _pause(pace, 10.0) > 1
    for _ in range(200):
        pace.inline(100.0, took=0.0001, cpu=0.0001)
    pace.held_up(100.0)
    assert _pause(pace, 100.0) == pytest.approx(0.01, abs=0.0101)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.02)), max_size=30))
def test_a_slow_agent_is_not_tried_at_all(others: list[tuple[float, float]]) -> None:
    """Whatever else is seen: for a second after a request that took long."""
    pace = Pace()
    pace.elsewhere(5.0, took=3.0)
    for later, took in others:
        pace.elsewhere(5.0 + later, took=took)
        pace.inline(5.0 + later, took=took / 100, cpu=took / 100)
        assert 5.0 + later >= 6.0 or not pace.quick(5.0 + later)
    assert pace.quick(20.0)


def test_a_job_is_left_only_to_the_thread_that_reads() -> None:
    """And one a read: further ones go to the other threads."""
    crew = Crew("ppio-test", max_threads=2, max_waiting=1, load=Load())
    inline = Inline(crew)
    ran: list[str] = []
    taken: list[bool] = []
    jobs = [partial(ran.append, name) for name in "abc"]

    def read() -> None:
        other = threading.Thread(target=lambda: taken.append(inline.offer(jobs[0], 1)))
        other.start()
        other.join()
        taken.extend([inline.offer(jobs[1], 1), inline.offer(jobs[2], 1)])

    assert not inline.offer(jobs[0], 1)
    job = inline.collect(read)
    assert job is jobs[1]
    assert taken == [False, True, False]
    assert crew.busy == 1
    inline.run(job)
    assert (crew.busy, ran) == (0, ["b"])
    assert inline.collect(lambda: None) is None
    assert crew.close()


def test_nothing_is_left_while_others_wait_or_there_is_no_place() -> None:
    """The crew's limit holds for the reading thread, and nobody is overtaken."""
    gate = threading.Event()
    crew = Crew("ppio-test", max_threads=1, max_waiting=1, load=Load())
    inline = Inline(crew)
    crew.submit(gate.wait)
    assert inline.collect(lambda: inline.offer(int, 1)) is None
    gate.set()
    wait_until(lambda: crew.busy == 0)
    assert inline.collect(lambda: inline.offer(int, 1)) is int
    assert inline.collect(lambda: inline.offer(int, 1)) is None
    crew.submit(gate.wait)
    assert (crew.busy, crew.waiting) == (1, 1)
    inline.run(int)
    wait_until(lambda: (crew.busy, crew.waiting) == (0, 0))
    assert crew.close()


class App:
    """Tells which thread serves; `/slow/n` waits for a gate."""

    def __init__(self) -> None:
        self.gates = {f"/slow/{n}": threading.Event() for n in range(3)}
        self.inside = threading.Semaphore(0)

    def __call__(self, environ: Any, start_response: Any) -> Any:
        gate = self.gates.get(environ["PATH_INFO"])
        if gate is not None:
            self.inside.release()
            gate.wait(20)
        name = threading.current_thread().name.encode()
        return Reply(200, body=name).respond(start_response)

    def wait_inside(self) -> None:
        assert self.inside.acquire(timeout=10)


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let any request be tried, and return when one held up the loop."""
    monkeypatch.setattr(Pace, "quick", lambda self, now: True)
    instants: list[float] = []
    monkeypatch.setattr(Pace, "held_up", lambda self, now: instants.append(now))
    return instants


@pytest.fixture
def server(app: App, serve: Serve, held_up: list[float]) -> Iterator[Server]:
    """A server whose loop serves all requests that it may itself."""
    if not hasattr(select, "epoll"):
        pytest.skip("without epoll the loop serves nothing itself")
    lanes = Lanes(classify=lambda m, path, h: _lane(path))
    yield serve(app, lanes=lanes)
    for gate in app.gates.values():
        gate.set()


def _lane(path: str) -> Lane:
    return Lane.EXPRESS if path == "/ping" else Lane.INVOKE


def test_quick_requests_are_served_by_the_loop(server: Server) -> None:
    """Those of other lanes are not, ever."""
    with RawClient(server.port) as client, RawClient(server.port) as other:
        assert client.ask("/").body.startswith(b"ppio-web-loop")
        assert other.ask("/").body.startswith(b"ppio-web-loop")
        assert other.ask("/ping").body.startswith(b"ppio-web-express")


def test_the_loop_goes_on_when_a_request_holds_it_up(
    server: Server, app: App, held_up: list[float]
) -> None:
    """Everybody else is served, and it is remembered."""
    with RawClient(server.port) as held, RawClient(server.port) as other:
        held.send_request("/slow/0")
        app.wait_inside()
        assert other.ask("/ping").status == 200
        assert held_up
        assert other.ask("/").status == 200
        with RawClient(server.port) as newcomer:
            assert newcomer.ask("/").status == 200
        wait_until(lambda: server.stats()["lanes"]["invoke"]["busy"] == 1)
        app.gates["/slow/0"].set()
        assert held.answer().body.startswith(b"ppio-web-loop")
        assert held.ask("/").status == 200, "its connection is kept"


def test_what_came_together_with_a_slow_request_does_not_wait_for_it(
    server: Server, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events that one look has brought pass to the thread that goes on."""
    monkeypatch.setattr("ppio_agent.web.loop._HELD_UP", 0.5)
    clients = [RawClient(server.port) for _ in range(4)]
    try:
        for client in clients:
            client.ask("/")
        clients[0].send_request("/slow/0")
        app.wait_inside()  # the loop stands still, and does not look
        clients[1].send_request("/slow/1")
        for client in clients[2:]:
            client.send_request("/")
        app.gates["/slow/0"].set()
        assert clients[0].answer().status == 200
        app.wait_inside()
        for client in clients[2:]:
            assert client.answer().body.startswith(b"ppio-web-loop")
        app.gates["/slow/1"].set()
        assert clients[1].answer().status == 200
    finally:
        for client in clients:
            client.socket.close()


def test_without_a_further_thread_the_loop_comes_back(
    server: Server,
    app: App,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is lost: what came meanwhile is served afterwards."""

    def no_thread(job: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(server._threads, "submit", no_thread)
    with RawClient(server.port) as held, RawClient(server.port) as other:
        held.send_request("/slow/0")
        app.wait_inside()
        wait_until(lambda: "can't start new thread" in caplog.text)
        other.send_request("/")
        app.gates["/slow/0"].set()
        assert held.answer().status == 200
        assert other.answer().status == 200


def test_a_drain_waits_for_what_the_loop_serves(server: Server, app: App) -> None:
    """As for any other request."""
    with RawClient(server.port) as held:
        held.send_request("/slow/0")
        app.wait_inside()
        assert not server.drain(timeout=0.05)
        app.gates["/slow/0"].set()
        assert server.drain(timeout=5)
        assert held.answer().status == 200


def test_a_server_is_closed_although_its_loop_is_held_up(
    server: Server, app: App
) -> None:
    """In time, and it says that a thread is still inside the application."""
    with RawClient(server.port) as held:
        held.send_request("/slow/0")
        app.wait_inside()
        began = time.monotonic()
        assert not server.close(timeout=0.5)
        assert time.monotonic() - began < 5
        assert held.closed()
        app.gates["/slow/0"].set()
    assert server.close()


def test_without_an_alarm_requests_are_served_all_the_same(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When the system has no thread left, even for noticing what is slow."""

    def no_thread(owner: Any, instant: float) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(alarms(), "set", no_thread)
    with RawClient(server.port) as client:
        for _ in range(3):
            assert client.ask("/").status == 200
    assert "nobody will notice" in caplog.text


def test_an_event_is_about_the_connection_that_it_came_for(
    server: Server, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if, after a hand-over, its number is another connection's already."""
    monkeypatch.setattr("ppio_agent.web.loop._HELD_UP", 0.3)
    first, second, third = (RawClient(server.port) for _ in range(3))
    with first, second:
        for client in (first, second, third):
            client.ask("/")
        [stale] = [
            channel
            for channel in server._channels()
            if channel.addr[1] == third.socket.getsockname()[1]
        ]
        first.send_request("/slow/0")
        app.wait_inside()  # the loop stands still, and does not look
        second.send_request("/slow/1")
        third.send_request("/")
        newcomers = [RawClient(server.port) for _ in range(3)]
        app.gates["/slow/0"].set()
        assert first.answer().status == 200
        app.wait_inside()  # all the other events wait for the next thread
        stale.abort()
        for newcomer in newcomers:
            with newcomer:
                assert newcomer.ask("/").status == 200
        assert third.closed()
        third.socket.close()
        app.gates["/slow/1"].set()
        assert second.answer().status == 200
