"""What an app counts, read by Prometheus's own parser."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from ppio_agent import PingStatus, RequestContext
from ppio_agent._util.threads import start_thread
from ppio_agent.exceptions import AuthenticationError
from ppio_agent.serving import ApiKeyAuth
from ppio_agent.serving.metrics import Counters, Family, exposition
from ppio_agent.wire.models import Principal
from tests.serving.conftest import Serve
from tests.serving.support import SSE, Gate, hang_up, make_app
from tests.serving.support_metrics import Scraped, parse
from tests.support import wait_until

STATES = ("succeeded", "failed", "cancelled", "timed_out")
PLAIN = (
    "running",
    "waiting",
    "abandoned",
    "busy_tasks",
    "readers",
    "chunks_total",
    "idempotent_replays_total",
    "replay_bytes",
    "ping_status",
    "invocation_seconds_sum",
    "invocation_seconds_count",
)


def test_an_idle_app_tells_every_metric(serve: Serve) -> None:
    """With zeros, so that rates are right from the first event on."""
    app = make_app()
    app.entrypoint(name="a")(lambda _: 1)
    app.entrypoint(name="b")(lambda _: 2)
    scraped = Scraped(serve(app))
    for name in "ab":
        for state in STATES:
            assert scraped("invocations_total", entrypoint=name, state=state) == 0
    for reason in ("server_busy", "server_draining"):
        assert scraped("refused_total", reason=reason) == 0
    for rule in ("async", "cancel", "detach"):
        assert scraped("disconnects_total", rule=rule) == 0
    assert {name: scraped(name) for name in PLAIN} == dict.fromkeys(PLAIN, 0)
    bounds = [
        float(labels[0][1])
        for (name, labels) in scraped.values
        if name == "ppio_agent_invocation_seconds_bucket"
    ]
    assert (bounds[0], bounds[-2:]) == (0.05, [300.0, math.inf])
    assert bounds == sorted(bounds)


def test_every_end_is_counted_under_its_state(serve: Serve, gate: Gate) -> None:
    """Successes, failures, timeouts and cancels, and how long they took."""
    app = make_app()

    @app.entrypoint
    def agent(request: dict[str, Any], context: RequestContext) -> Any:
        if "fail" in request:
            raise OSError("full")
        if "sleep" in request:
            gate.stand() if "hard" in request else context.sleep(10)
        return iter("abc") if "stream" in request else 1

    http = serve(app)
    for payload in ({"n": 1}, {"n": 2}, {"stream": 1}):
        assert http.invoke(payload).status == 200
    assert http.invoke({"fail": 1}).status == 500
    assert http.invoke({"sleep": 1}, X_PPIO_Timeout="0.06").status == 504
    promised = http.invoke({"sleep": 1}, Prefer="respond-async").json["id"]
    assert http.invoke({}, f"/invocations/{promised}/cancel").status == 202
    wait_until(lambda: Scraped(http)("running") == 0)
    scraped = Scraped(http)
    found = [
        scraped("invocations_total", entrypoint="agent", state=state)
        for state in STATES
    ]
    assert found == [3, 1, 1, 1]
    assert scraped("invocation_seconds_count") == 6
    assert scraped("invocation_seconds_bucket", le="+Inf") == 6
    assert scraped("invocation_seconds_bucket", le="300.0") == 6
    assert scraped("invocation_seconds_bucket", le="0.05") <= 5
    assert 0.06 < scraped("invocation_seconds_sum") < 10
    assert scraped("chunks_total") == 3
    assert scraped("replay_bytes") > 0


def test_abandoned_code_is_told_as_long_as_it_runs(serve: Serve, gate: Gate) -> None:
    """The invocation has ended and is counted; its slot is held."""
    app = make_app()
    app.entrypoint(lambda _: gate.stand())
    http = serve(app)
    assert http.invoke({"n": 1}, X_PPIO_Timeout="0.05").status == 504
    scraped = Scraped(http)
    assert (scraped("abandoned"), scraped("running")) == (1, 1)
    assert scraped("ping_status") == 1
    timed_out = {"entrypoint": "<lambda>", "state": "timed_out"}
    assert scraped("invocations_total", **timed_out) == 1
    gate.open()
    wait_until(lambda: Scraped(http)("abandoned") == 0)
    scraped = Scraped(http)
    assert (scraped("running"), scraped("ping_status")) == (0, 0)
    assert scraped("invocations_total", **timed_out) == 1


def test_a_full_server_is_seen_from_outside(serve: Serve, gate: Gate) -> None:
    """Who waits, wherever that is, and who was refused; scraping needs no slot."""
    app = make_app(max_concurrency=1, max_queue=1)
    app.entrypoint(lambda _: gate.stand())
    http = serve(app)
    callers = [threading.Thread(target=http.invoke, args=({"n": n},)) for n in range(2)]
    callers[0].start()
    gate.wait_reached()
    callers[1].start()
    wait_until(lambda: Scraped(http)("waiting") == 1)
    assert http.invoke({"n": 3}).status == 503
    scraped = Scraped(http)
    assert (scraped("running"), scraped("waiting")) == (1, 1)
    assert scraped("refused_total", reason="server_busy") == 1
    gate.open()
    for caller in callers:
        caller.join()
    done = {"entrypoint": "<lambda>", "state": "succeeded"}
    assert Scraped(http)("invocations_total", **done) == 2
    cancelled = {"entrypoint": "<lambda>", "state": "cancelled"}
    assert Scraped(http)("invocations_total", **cancelled) == 0


def test_an_app_behind_another_server_counts_its_refusals_itself(gate: Gate) -> None:
    """As under gunicorn: no lanes, no dispatcher."""
    app = make_app(max_concurrency=1, max_queue=0)
    app.entrypoint(lambda _: gate.stand())
    with app.test_client() as client:
        first = threading.Thread(target=client.invoke, args=({"n": 1},))
        first.start()
        gate.wait_reached()
        assert client.invoke({"n": 2}).status_code == 503
        values = parse(client.get("/metrics").text)
        gate.open()
        first.join()
    name = ("ppio_agent_refused_total", (("reason", "server_busy"),))
    assert values[name] == 1


def test_streams_being_read_and_their_chunks(serve: Serve, gate: Gate) -> None:
    """While they go on."""
    app = make_app()

    @app.entrypoint
    def agent(request: Any) -> Iterator[str]:
        yield "a"
        yield "b"
        gate.stand()
        yield "c"

    http = serve(app)
    connections = [http.stream({"n": n})[0] for n in range(2)]
    gate.wait_reached(2)
    scraped = Scraped(http)
    assert (scraped("readers"), scraped("chunks_total")) == (2, 4)
    gate.open()
    wait_until(lambda: Scraped(http)("readers") == 0)
    assert Scraped(http)("chunks_total") == 6
    for connection in connections:
        connection.close()


def test_who_leaves_is_counted_by_what_becomes_of_the_work(serve: Serve) -> None:
    """A plain caller's is cancelled, a stream that can be resumed goes on."""
    app = make_app(heartbeat=0.1)

    @app.entrypoint
    def agent(request: Any, context: RequestContext) -> Iterator[str]:
        yield "a"
        context.sleep(10)

    http = serve(app)
    for headers, rule in ((SSE, "cancel"), ({**SSE, "Idempotency-Key": "k"}, "detach")):
        connection, lines = http.stream({"n": rule}, headers)
        assert any(b'"a"' in line for line in lines)
        hang_up(connection)
        wait_until(lambda r=rule: Scraped(http)("disconnects_total", rule=r) == 1)
    cancelled = {"entrypoint": "agent", "state": "cancelled"}
    wait_until(lambda: Scraped(http)("invocations_total", **cancelled) == 1)
    assert Scraped(http)("running") == 1


def test_repetitions_are_counted_and_run_nothing(serve: Serve) -> None:
    """The invocation is counted once."""
    app = make_app()
    app.entrypoint(lambda _: 1)
    http = serve(app)
    for _ in range(3):
        assert http.invoke({"n": 1}, Idempotency_Key="k").status == 200
    scraped = Scraped(http)
    assert scraped("idempotent_replays_total") == 2
    done = {"entrypoint": "<lambda>", "state": "succeeded"}
    assert scraped("invocations_total", **done) == 1
    assert http.invoke({"n": 2}, Idempotency_Key="k").status == 409
    assert Scraped(http)("refused_total", reason="idempotency_conflict") == 1


def test_health_and_background_work(serve: Serve) -> None:
    """As `/ping` says."""
    app = make_app()
    app.entrypoint(lambda _: 1)
    http = serve(app)
    with app.busy("index"), app.busy("warm up"):
        scraped = Scraped(http)
        assert (scraped("busy_tasks"), scraped("ping_status")) == (2, 1)
    app.force_ping_status(PingStatus.UNHEALTHY)
    scraped = Scraped(http)
    assert (scraped("busy_tasks"), scraped("ping_status")) == (0, 2)


def test_metrics_are_for_those_who_may_call(serve: Serve) -> None:
    """With authentication they need a key; who has none is counted."""
    app = make_app(auth=ApiKeyAuth({"prometheus": "sk-0123456789abcdef"}))
    app.entrypoint(lambda _: 1)
    http = serve(app)
    assert http.get("/metrics").status == 401
    assert http.get("/metrics", X_API_Key="wrong").status == 401
    scraped = Scraped(http, Authorization="Bearer sk-0123456789abcdef")
    assert scraped("refused_total", reason="authentication_required") == 1
    assert scraped("refused_total", reason="invalid_credentials") == 1


def test_no_caller_makes_a_label(serve: Serve) -> None:
    """Whatever is sent, the series are those that the app itself can name."""
    app = make_app()
    app.entrypoint(lambda _: 1)
    http = serve(app)
    before = set(Scraped(http).values)
    for n in range(5):
        http.invoke(
            {"n": n},
            f"/invocations?entrypoint=evil-{n}",
            Idempotency_Key=f"evil-{n}",
            X_Invocation_Id=f"evil-{n}",
            X_PPIO_Session_Id=f"evil-{n}",
        )
        http.get(f"/evil-{n}")
    assert set(Scraped(http).values) == before


def test_plug_ins_cannot_make_reasons_without_limit() -> None:
    """What is beyond it is one reason."""

    def refuse(request: Any) -> Principal:
        code = request.headers.get("x-code")
        if code is None:
            return Principal("prometheus", "test")
        raise AuthenticationError("no", code=code)

    app = make_app(auth=refuse)
    with app.test_client() as client:
        for n in range(100):
            client.get("/metrics", headers={"X-Code": f"evil-{n}"})
        values = parse(client.get("/metrics").text)
    reasons = [n for (name, _), n in values.items() if name.endswith("_refused_total")]
    assert len(reasons) < 40
    assert sum(reasons) == 100


def test_what_the_server_refuses_by_itself_is_counted(serve: Serve) -> None:
    """It never gets as far as the app."""
    app = make_app(max_request_size=10)
    app.entrypoint(lambda _: 1)
    http = serve(app)
    assert http.invoke({"much": "too long"}).status == 413
    assert http.request("POST", "/invocations", iter([b"x" * 11])).status == 413
    assert http.get("/", X_Long="x" * 300_000).status == 431
    coding = {"Transfer-Encoding": "gzip, chunked"}
    assert http.request("POST", "/invocations", b"", coding).status == 501
    with socket.create_connection(("127.0.0.1", http.port), 10) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nNo colon\r\n\r\n")
        assert b" 400 " in raw.recv(4096)
    scraped = Scraped(http)
    assert scraped("refused_total", reason="request_too_large") == 2
    for reason in ("headers_too_large", "not_implemented", "bad_request"):
        assert scraped("refused_total", reason=reason) == 1


class SlowText(str):
    """A text whose every look-up lets other threads go first."""

    __slots__ = ()

    def __hash__(self) -> int:
        threading.Event().wait(0.0001)
        return super().__hash__()


def test_recording_loses_nothing() -> None:
    """Of many threads at once."""
    counters = Counters()

    def count() -> None:
        for _ in range(50):
            counters.refused(SlowText("x"))

    threads = [start_thread("counter", count) for _ in range(4)]
    for thread in threads:
        thread.join()
    values = parse(exposition(counters.families([], {})).decode())
    assert values["ppio_agent_refused_total", (("reason", "x"),)] == 200


def test_a_forked_child_counts_from_zero() -> None:
    """It is another process for Prometheus, and no lock of its parent holds it up."""
    code = """
import os, signal
from ppio_agent import PPIOAgentRuntimeApp

app = PPIOAgentRuntimeApp()
app.entrypoint(lambda request: iter(range(10**6)))
client = app.test_client()


def use(times):
    for n in range(times):
        list(client.stream({}, disconnect_after=1))
    assert client.get("/metrics", headers={"Host": "evil.example"}).status_code == 403
    lines = client.get("/metrics").text.splitlines()
    names = ('disconnects_total{rule="cancel"}', 'refused_total{reason="host_not_allowed"}')
    return [line.rpartition(" ")[2] for line in lines for n in names if n in line]


assert use(3) == ["1", "3"], use(0)
with app._engine.counters._lock:
    child = os.fork()
    if child == 0:
        signal.alarm(15)
        os._exit(0 if use(1) == ["1", "1"] else 1)
print(os.waitpid(child, 0)[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert done.stdout == "0\n"


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=100)
@given(_texts, st.floats() | st.integers(0, 2**53), _texts.filter(str.strip))
def test_every_label_and_value_is_read_as_it_was_written(
    label: str, value: float, text: str
) -> None:
    """Quotes, backslashes, line ends, infinities."""
    family = Family(
        "x", "gauge", text, [("", {"entrypoint": label, "state": "b"}, value)]
    )
    (read,) = text_string_to_metric_families(exposition([family]).decode())
    (sample,) = read.samples
    assert sample.labels == {"entrypoint": label, "state": "b"}
    assert sample.value == value or math.isnan(value)
    assert read.type == "gauge"
