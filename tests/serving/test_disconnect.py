"""What becomes of an invocation when nobody reads it any more."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

import pytest

from ppio_agent import RequestContext
from ppio_agent.agent.lifetime import Departure
from ppio_agent.serving import PPIOAgentRuntimeApp
from tests.serving.conftest import Serve
from tests.serving.support import (
    SSE,
    Gate,
    Http,
    hang_up,
    in_background,
    live,
    make_app,
)
from tests.serving.support_metrics import Scraped
from tests.support import SLOW, wait_until

KEYED = {**SSE, "Idempotency-Key": "k"}


class Counting:
    """A stream of ten numbers that stands at its gate after the third."""

    def __init__(self, gate: Gate) -> None:
        self.starts = 0
        self._gate = gate

    def run(self, request: Any) -> Iterator[int]:
        self.starts += 1
        for n in range(1, 11):
            yield n
            if n == 3:
                self._gate.stand()


def read_ids(lines: Iterator[bytes], count: int) -> list[int]:
    """Return the next ids of a stream; read on to the data of the last."""
    found: list[int] = []
    for line in lines:
        if line.startswith(b"id: "):
            found.append(int(line[4:]))
        if line.startswith(b"data: ") and len(found) == count:
            break
    return found


def sleeping(**options: Any) -> tuple[PPIOAgentRuntimeApp, list[RequestContext]]:
    """Return an app whose handler sleeps, and the contexts of those that do."""
    app = make_app(detach_grace=options.pop("detach_grace", 30.0))
    contexts: list[RequestContext] = []

    @app.entrypoint(**options)
    def agent(request: Any, context: RequestContext) -> None:
        contexts.append(context)
        context.sleep(60)

    return app, contexts


def start_and_leave(
    http_: Http, contexts: list[RequestContext], headers: Mapping[str, str]
) -> RequestContext:
    """Call the agent, and close the connection once it runs."""
    before = len(contexts)
    connection = http.client.HTTPConnection("127.0.0.1", http_.port, timeout=20)
    connection.request("POST", "/invocations", b"{}", dict(headers))
    wait_until(lambda: len(contexts) > before)
    hang_up(connection)
    return contexts[-1]


def disconnects(http_: Http) -> dict[str, float]:
    """Return how many readers left, by what became of what they read."""
    scraped = Scraped(http_)
    found = {r: scraped("disconnects_total", rule=r) for r in get_args(Departure)}
    return {rule: n for rule, n in found.items() if n}


def test_a_stream_that_was_cut_is_read_on(serve: Serve) -> None:
    """After event 3 come 4 to 10 and the end; the handler was started once."""
    app, gate = make_app(), Gate()
    counting = Counting(gate)
    app.entrypoint(counting)
    http_ = serve(app)
    connection, response = http_.open("POST", "/invocations", b"{}", KEYED)
    assert read_ids(iter(response.readline, b""), 3) == [1, 2, 3]
    place = f"/invocations/{response.getheader('X-Invocation-Id')}"
    hang_up(connection)
    wait_until(lambda: disconnects(http_) == {"detach": 1})
    rest = in_background(lambda: http_.get(f"{place}/events", Last_Event_ID="3"))
    gate.open()
    text = rest().body.decode()
    ids = [int(line[4:]) for line in text.splitlines() if line.startswith("id: ")]
    assert ids == [4, 5, 6, 7, 8, 9, 10, 11]
    assert text.count("event: end") == 1
    assert '"status":"succeeded"' in text
    assert counting.starts == 1


def test_a_stream_goes_on_with_nobody_there(serve: Serve) -> None:
    """And a retry of the request gets all of it."""
    app, gate = make_app(), Gate()
    counting = Counting(gate)
    app.entrypoint(counting)
    http_ = serve(app)
    connection, lines = http_.stream({}, KEYED)
    read_ids(lines, 3)
    hang_up(connection)
    wait_until(lambda: disconnects(http_) == {"detach": 1})
    gate.open()
    wait_until(lambda: live(app) == 0)
    again = http_.request("POST", "/invocations", b"{}", KEYED)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.body.count(b"id: ") == 11
    assert counting.starts == 1


@pytest.mark.parametrize(
    "headers",
    [{}, SSE, {"Idempotency-Key": "k"}, {"X-Invocation-Id": "i", "Accept": "*/*"}],
    ids=["plain", "stream", "plain with a key", "plain with an id"],
)
def test_others_end_with_their_client(headers: Mapping[str, str], serve: Serve) -> None:
    """Within 0.6 s, although the handler is silent."""
    app, contexts = sleeping()
    http_ = serve(app)
    context = start_and_leave(http_, contexts, headers)
    began = time.monotonic()
    assert context.cancelled.wait(5)
    assert time.monotonic() - began < 0.6 * SLOW
    assert context.cancelled.reason == "disconnect"
    assert disconnects(http_) == {"cancel": 1}


@pytest.mark.parametrize("header", ["Idempotency-Key", "X-Invocation-Id"])
def test_a_detached_one_ends_when_nobody_comes(header: str, serve: Serve) -> None:
    """After `detach_grace`, for `disconnect`; its key is free then."""
    app, contexts = sleeping(detach_grace=0.3)
    http_ = serve(app)
    context = start_and_leave(http_, contexts, {**SSE, header: "k"})
    wait_until(lambda: disconnects(http_) == {"detach": 1})
    assert not context.cancelled
    assert context.cancelled.wait(5)
    assert context.cancelled.reason == "disconnect"
    wait_until(lambda: live(app) == 0)
    again = start_and_leave(http_, contexts, {**SSE, header: "k"})
    assert again.attempt == 2


def test_a_reader_of_its_events_stops_the_clock(serve: Serve) -> None:
    """Until that one leaves as well."""
    app, contexts = sleeping(detach_grace=0.4)
    http_ = serve(app)
    context = start_and_leave(http_, contexts, {**SSE, "X-Invocation-Id": "i"})
    wait_until(lambda: disconnects(http_) == {"detach": 1})
    connection, response = http_.open("GET", "/invocations/i/events")
    assert response.status == 200
    assert not context.cancelled.wait(0.7)
    hang_up(connection)
    assert context.cancelled.wait(5)
    assert disconnects(http_) == {"detach": 2}


@pytest.mark.parametrize(
    ("fixed", "headers", "ends"),
    [("detach", {"X-Invocation-Id": "i"}, False), ("cancel", KEYED, True)],
)
def test_an_entrypoint_may_say_what_it_wants(
    fixed: str, headers: Mapping[str, str], ends: bool, serve: Serve
) -> None:
    """Whatever the request is like."""
    app, contexts = sleeping(on_disconnect=fixed)
    http_ = serve(app)
    context = start_and_leave(http_, contexts, headers)
    wait_until(lambda: disconnects(http_) == {fixed: 1})
    assert context.cancelled.wait(0.1) is ends
    context.cancelled.fire("client")


def test_an_entrypoint_cannot_say_anything_else() -> None:
    """Where it is decorated."""
    app = make_app()
    with pytest.raises(ValueError, match="cancel or detach, not 'stay'"):
        app.entrypoint(on_disconnect="stay")(lambda request: None)  # type: ignore[call-overload] # refused


@pytest.mark.parametrize("fixed", [None, "cancel"])
def test_an_asynchronous_one_has_no_reader_to_lose(
    fixed: str | None, serve: Serve
) -> None:
    """Neither the one who started it nor one of its events."""
    app, contexts = sleeping(on_disconnect=fixed)
    http_ = serve(app)
    http_.invoke({}, Prefer="respond-async", X_Invocation_Id="i")
    connection, _ = http_.open("GET", "/invocations/i/events")
    hang_up(connection)
    wait_until(lambda: disconnects(http_) == {"async": 1})
    assert not contexts[0].cancelled.wait(0.1)
    contexts[0].cancelled.fire("client")


def test_a_promise_keeps_what_it_joined(serve: Serve) -> None:
    """Who asks again asynchronously wants it to go on without a connection."""
    app, contexts = sleeping()
    http_ = serve(app)
    key = {"Idempotency-Key": "k"}
    connection = http.client.HTTPConnection("127.0.0.1", http_.port, timeout=20)
    connection.request("POST", "/invocations", b"{}", key)
    wait_until(lambda: contexts)
    early = http_.request(
        "POST", "/invocations", b"{}", {**key, "Prefer": "respond-async"}
    )
    assert (early.status, early.headers["idempotency-replayed"]) == (202, "true")
    hang_up(connection)
    assert not contexts[0].cancelled.wait(0.6)
    contexts[0].cancelled.fire("client")


def test_who_takes_nothing_is_dropped(serve: Serve) -> None:
    """Its invocation ends; the memory stays, and other streams keep their pace."""
    app = make_app()
    over = threading.Event()
    ended: list[Any] = []

    @app.entrypoint
    def agent(request: Any, context: RequestContext) -> Iterator[str]:
        if "slow" not in request:
            yield from "abc"
            return
        try:
            while not over.is_set():
                yield "x" * 65_000
        finally:
            ended.append(context.cancelled.reason)

    server = app.server(port=0)
    drop_after(server, 1.0)
    with server:
        http_ = Http(server)
        for _ in range(20):
            http_.request("POST", "/invocations", b"{}")
        before = resident()
        stalled, lines = http_.stream({"slow": True}, SSE)
        began = time.monotonic()
        others = 0
        while not ended:
            assert time.monotonic() - began < 10 * SLOW
            asked = time.monotonic()
            assert http_.request("POST", "/invocations", b"{}").status == 200
            assert time.monotonic() - asked < 0.5 * SLOW
            others += 1
            over.wait(0.02)  # each one that is kept takes memory, too
        over.set()
        assert others > 10
        assert ended[0] in ("disconnect", "stalled")
        assert resident() - before < 8 * 1024 * 1024
        wait_until(lambda: live(app) == 0)
        hang_up(stalled)
        del lines


def drop_after(server: Any, seconds: float) -> None:
    """Let a server not started yet close connections whose readers take nothing."""
    import attrs

    web = server._server
    web._config = attrs.evolve(web._config, write_timeout=seconds)


def resident() -> int:
    """Return the bytes of memory this process holds."""
    import psutil

    found: int = psutil.Process().memory_info().rss
    return found


def test_a_joined_retry_is_answered_when_the_first_is_lost(serve: Serve) -> None:
    """Ten retries of a lost request, and one run."""
    app, gate = make_app(), Gate()
    starts: list[int] = []

    @app.entrypoint
    def agent(request: Any) -> int:
        starts.append(1)
        gate.stand()
        return len(starts)

    http_ = serve(app)
    call: Callable[[], Any] = lambda: http_.invoke({}, Idempotency_Key="k")  # noqa: E731 - one call, ten times
    lost = http.client.HTTPConnection("127.0.0.1", http_.port)
    lost.request("POST", "/invocations", b"{}", {"Idempotency-Key": "k"})
    gate.wait_reached()
    retries = [in_background(call) for _ in range(10)]
    (invocation,) = app._engine.registry._live
    wait_until(lambda: invocation._readers == 11)
    hang_up(lost)
    wait_until(lambda: invocation._readers == 10)
    gate.open()
    answers = [retry() for retry in retries]
    assert {(a.status, a.json["result"]) for a in answers} == {(200, 1)}
    assert {a.headers["idempotency-replayed"] for a in answers} == {"true"}
