"""Traces and metrics of actors by OpenTelemetry."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from ppio_agent.actors import (
    ActorId,
    ActorRequestMessage,
    InMemoryStateStorage,
    Supervision,
)
from ppio_agent.actors.http_api import create_app
from ppio_agent.exceptions import ActorFailedError, ActorStoppedError, MailboxFullError
from ppio_agent.storage.actors.records import Retention
from ppio_agent.storage.actors.sqlite import SqliteActorStore
from ppio_agent.wire.actors import RequestStatus
from tests.support import SLOW, wait_until

from .support import Gate, Receive, actor
from .support_traced import Traced

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
KEY = "sk-proj-4f9a8d7c6b5e4f3a2b1c"


@pytest.fixture
def traced() -> Traced:
    return Traced()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def is_below(span: ReadableSpan, other: ReadableSpan) -> bool:
    assert other.context is not None
    parent = span.parent
    return (
        parent is not None
        and parent.span_id == other.context.span_id
        and parent.trace_id == other.context.trace_id
    )


def echo(context: Any, message: Any) -> Any:
    return message.params


def hold_at(gate: Gate) -> Receive:
    def receive(context: Any, message: Any) -> Any:
        gate()
        return {}

    return receive


def crash(context: Any, message: Any) -> Any:
    raise LookupError(f"the key {KEY} of {message.params}")


def test_a_request_a_turn_and_a_commit_are_a_span_each(traced: Traced) -> None:
    """Each below the other, with who and how; the turn runs on the caller's thread."""

    def receive(context: Any, message: Any) -> Any:
        context.write_state("a", 1)
        context.write_state("b", 1)
        if message.method == "go":
            context.tell(actor("2"), "note")
        return {}

    with traced.running(receive) as runtime:
        answer = runtime.client().ask(actor(), "go", {})
    (request,) = traced.spans("actor.request go")
    (turn,) = traced.spans("actor.message go")
    commit = traced.spans("actor.state commit")[0]
    assert (request.name, request.kind) == ("actor.request go", SpanKind.PRODUCER)
    assert (turn.name, turn.kind) == ("actor.message go", SpanKind.CONSUMER)
    assert (commit.name, commit.kind) == ("actor.state commit", SpanKind.INTERNAL)
    assert request.parent is None
    assert is_below(turn, request)
    assert is_below(commit, turn)
    whose = {
        "actor.type": "t",
        "actor.id": "t/1",
        "message.id": answer.message_id,
        "request.status": "completed",
    }
    assert attributes(request) == whose
    assert attributes(turn) == {
        **whose,
        "actor.attempt": 1,
        "actor.queue_seconds": 0.0,
        "actor.caller_runs": True,
    }
    assert attributes(commit) == {
        "state.ops": 2,
        "outbox.count": 1,
        "state.conflict": False,
    }


def test_a_request_that_waits_is_told_as_that(traced: Traced) -> None:
    """Its turn runs on another thread, and belongs to it all the same."""
    gate = Gate()

    def receive(context: Any, message: Any) -> Any:
        if message.method == "hold":
            gate()
        return {}

    with traced.running(receive) as runtime:
        client = runtime.client()
        client.send_request(actor(), "hold")
        gate.wait()
        handle = client.send_request(actor(), "late", {})
        gate.opened.set()
        handle.result(5.0 * SLOW)
        wait_until(lambda: traced.spans("actor.message late"))
    (request,) = traced.spans("actor.request late")
    (turn,) = traced.spans("actor.message late")
    assert is_below(turn, request)
    assert attributes(request)["request.status"] == "pending"
    assert attributes(turn)["actor.caller_runs"] is False
    assert attributes(turn)["actor.queue_seconds"] > 0.0


def test_a_sender_that_runs_an_accepted_request_is_told(traced: Traced) -> None:
    """As where the request has an id, and so was accepted first."""
    with traced.running(echo) as runtime:
        runtime.client().ask(actor(), "go", {}, "m1")
    (turn,) = traced.spans("actor.message")
    assert attributes(turn)["actor.caller_runs"] is True
    assert attributes(turn)["message.id"] == "m1"


async def async_actor(context: Any, message: Any) -> Any:
    return {"span": trace.get_current_span().get_span_context().span_id}


def sync_actor(context: Any, message: Any) -> Any:
    return {"span": trace.get_current_span().get_span_context().span_id}


@pytest.mark.parametrize("receive", [sync_actor, async_actor])
def test_the_span_of_a_turn_is_current_in_it(traced: Traced, receive: Receive) -> None:
    """So what instrumented libraries do for it comes below it; and not after it."""
    with traced.running(receive) as runtime:
        seen = runtime.client().ask(actor(), "go").data
    (turn,) = traced.spans("actor.message")
    assert turn.context is not None
    assert seen == {"span": turn.context.span_id}
    assert not trace.get_current_span().get_span_context().is_valid


def test_an_agent_is_below_the_turn_of_its_conversation(traced: Traced) -> None:
    """And so are the spans that it begins."""
    tracer = trace.get_tracer("agent", tracer_provider=traced.provider)

    def agent(request: Any) -> str:
        with tracer.start_as_current_span("think"):
            return "fine"

    with traced.running(echo) as runtime:
        runtime.register_agent("poet", agent)
        said = {"messages": [{"role": "user", "content": "hi"}]}
        runtime.client().ask(ActorId("poet", "1"), "run", said)
    (think,) = traced.spans("think")
    (turn,) = traced.spans("actor.message run")
    assert is_below(think, turn)


def test_what_a_turn_sends_is_below_it(traced: Traced) -> None:
    """Whether it waits for the answer or not, and across a commit."""

    def receive(context: Any, message: Any) -> Any:
        if message.method == "go":
            context.ask(actor("2"), "asked")
            context.tell(actor("3"), "told")
        return {}

    with traced.running(receive) as runtime:
        runtime.client().ask(actor(), "go")
        wait_until(lambda: traced.spans("actor.message told"))
    (go,) = traced.spans("actor.message go")
    for name in ("asked", "told"):
        (request,) = traced.spans(f"actor.request {name}")
        (turn,) = traced.spans(f"actor.message {name}")
        assert is_below(request, go)
        assert is_below(turn, request)


def test_an_actor_that_is_called_again_has_a_turn_within(traced: Traced) -> None:
    """With spans of its own, though it has no commit of its own."""

    def receive(context: Any, message: Any) -> Any:
        if message.method == "outer":
            return {"again": context.ask(context.actor_id, "inner")}
        return {}

    with traced.running(receive, reentrancy="allow") as runtime:
        assert runtime.client().ask(actor(), "outer").data == {"again": {}}
    (inner,) = traced.spans("actor.message inner")
    (asked,) = traced.spans("actor.request inner")
    (outer,) = traced.spans("actor.message outer")
    assert is_below(inner, asked)
    assert is_below(asked, outer)
    assert attributes(inner)["request.status"] == "completed"
    assert len(traced.spans("actor.state commit")) == 1
    assert traced.counted("actor.requests", "method") == {("outer",): 1, ("inner",): 1}


def test_another_process_goes_on_with_the_trace(traced: Traced, tmp_path: Path) -> None:
    """By what the store keeps of the sender."""
    url = f"sqlite:///{tmp_path}/actors.db"
    code = f"""
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import format_span_id
from ppio_agent.actors import ActorId, IActor, InProcessActorRuntime, OpenTelemetry

class Never:
    def wake(self, actor_id, due): pass

provider = TracerProvider(shutdown_on_exit=False)
runtime = InProcessActorRuntime(
    {url!r}, placement=Never(), telemetry=OpenTelemetry(provider)
)
runtime.register_actor_type("t", lambda context: IActor())
with provider.get_tracer("user").start_as_current_span("click") as span:
    runtime.start()
    runtime.client().send_request(ActorId("t", "1"), "go")
    print(f"{{span.get_span_context().trace_id:032x}}")
runtime.stop(0.0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    with traced.running(echo, storage=url):
        wait_until(lambda: traced.spans("actor.message go"))
    (turn,) = traced.spans("actor.message go")
    assert turn.context is not None
    assert f"{turn.context.trace_id:032x}" == done.stdout.strip()
    assert turn.parent is not None
    assert turn.parent.is_remote
    assert traced.spans("actor.request") == []


def test_a_message_may_be_part_of_a_trace(traced: Traced) -> None:
    """As from a queue, or from another runtime; one that is none begins one."""
    with traced.running(echo) as runtime:
        context = runtime.get_or_create_actor(actor())
        for traceparent in (PARENT, "nonsense"):
            message = ActorRequestMessage(
                method="go", params={}, traceparent=traceparent
            )
            context.send_request(message).result(5.0 * SLOW)
    first, second = traced.spans("actor.request")
    assert first.parent is not None
    assert f"{first.parent.trace_id:032x}" == TRACE
    assert second.parent is None


def test_requests_over_http_are_part_of_their_callers_traces(traced: Traced) -> None:
    """By the header, however they are to be answered."""
    with traced.running(echo) as runtime:
        runtime.register_agent("echo", lambda request: request["prompt"])
        client = create_app(runtime).test_client()
        said = {"messages": [{"role": "user", "content": "hi"}]}
        for more in ({}, {"Accept": "text/event-stream"}, {"Prefer": "respond-async"}):
            headers = {"traceparent": PARENT, **more}
            client.post("/agents/echo/run", json=said, headers=headers).get_data()
        call = {"method": "run", "params": said}
        client.post("/actors/v1/echo/1/m1", json=call, headers={"traceparent": PARENT})
    requests = traced.spans("actor.request run")
    assert len(requests) == 4
    for span in requests:
        assert span.parent is not None
        assert f"{span.parent.trace_id:032x}" == TRACE


def test_a_failure_is_told_without_its_text(traced: Traced) -> None:
    """Which may quote what the actor was told, or a key: of spans and metrics."""
    with traced.running(crash, supervision=Supervision(backoff=0.0)) as runtime:
        client = runtime.client()
        with pytest.raises(ActorFailedError):
            client.send_request(actor(), "go", {"password": KEY}).result(5.0 * SLOW)
        client.ask(actor("2"), "go", {"password": KEY})
        wait_until(lambda: len(traced.spans("actor.message")) == 2)

        def agent(request: Any) -> str:
            raise PermissionError(f"the key {KEY} is not known")

        runtime.register_agent("model", agent)
        said = {"messages": [{"role": "user", "content": KEY}]}
        client.ask(ActorId("model", "1"), "run", said)
        told = traced.told()
    for turn in traced.spans("actor.message"):
        assert turn.status.status_code is StatusCode.ERROR
        assert turn.status.description is None
        assert turn.events == ()
        assert attributes(turn)["request.status"] == "failed"
    errors = [attributes(turn)["error.type"] for turn in traced.spans("actor.message")]
    assert errors == ["LookupError", "LookupError", "invocation_failed"]
    assert KEY not in told


def test_what_is_no_name_is_none_in_spans_and_metrics(traced: Traced) -> None:
    """Callers choose methods: neither long texts nor too many are kept apart."""
    with traced.running(echo) as runtime:
        client = runtime.client()
        for method in ("x" * 65, "give me 5", "größe"):
            client.ask(actor(), method, {})
        assert {span.name for span in traced.spans("actor.message")} == {
            "actor.message _OTHER"
        }
        for n in range(250):
            client.ask(actor(), f"m{n}", {})
    methods = {
        point.attributes.get("method") for point in traced.points()["actor.requests"]
    }
    assert methods == {"_OTHER", *(f"m{n}" for n in range(200))}


def test_a_refusal_is_an_error_of_the_request(traced: Traced) -> None:
    """Counted by its code; an id that comes again is none, but counted too."""
    gate = Gate()
    with traced.running(hold_at(gate), mailbox_limit=1) as runtime:
        client = runtime.client()
        client.send_request(actor(), "go", None, "m1")
        gate.wait()
        client.send_request(actor(), "go", None, "m1")
        with pytest.raises(MailboxFullError):
            client.send_request(actor(), "go")
        assert traced.points()["actor.mailbox.depth"][0].value == 1
        assert traced.points()["actor.workers.busy"][0].value == 1
        gate.opened.set()
    refused = traced.spans("actor.request")[2]
    assert attributes(refused)["error.type"] == "MailboxFullError"
    assert refused.status.status_code is StatusCode.ERROR
    assert traced.counted("actor.refused", "actor.type", "method", "reason") == {
        ("t", "go", "mailbox_full"): 1
    }
    assert traced.counted("actor.duplicates", "method") == {("go",): 1}


def test_each_request_is_counted_once_by_how_it_ended(traced: Traced) -> None:
    """Whoever ended it; and those that are given up as dead letters, by the reason."""
    gate = Gate()

    def receive(context: Any, message: Any) -> Any:
        if message.method == "hold":
            gate()
        return {}

    options: Any = {"mailbox_limit": 3, "mailbox_policy": "drop_oldest"}
    with traced.running(receive, **options) as runtime:
        client = runtime.client()
        held = client.send_request(actor(), "hold")
        gate.wait()
        dropped, expired = (
            client.send_request(actor(), "go", deadline=seconds)
            for seconds in (None, 0.05)
        )
        cancelled = client.send_request(actor(), "go")
        assert dropped.get_response(5.0 * SLOW).status is RequestStatus.REJECTED
        assert cancelled.cancel() == "cancelled"
        assert expired.get_response(5.0 * SLOW).status is RequestStatus.EXPIRED
        held.cancel()  # and gives a result all the same, which nobody gets
        gate.opened.set()
        held.get_response(5.0 * SLOW)
        wait_until(lambda: traced.spans("actor.message"))
    assert traced.counted("actor.requests", "method", "request.status") == {
        ("hold", "cancelled"): 1,
        ("go", "rejected"): 1,
        ("go", "expired"): 1,
        ("go", "cancelled"): 1,
    }
    assert traced.counted("actor.dead_letters", "reason") == {("dropped",): 1}
    assert traced.counted("actor.results.discarded", "method") == {("hold",): 1}


def test_crashes_are_counted(traced: Traced) -> None:
    """As restarts; and what is sent to an actor that is stopped, as refused."""
    supervision = Supervision(max_restarts=1, backoff=0.0, quarantine=60.0)
    with traced.running(crash, supervision=supervision) as runtime:
        client = runtime.client()
        for _ in range(2):
            client.ask(actor(), "go")
        for send in (client.send_request, client.ask):
            with pytest.raises(ActorStoppedError):
                send(actor(), "go")
    assert traced.counted("actor.restarts", "method") == {("go",): 1}
    assert traced.counted("actor.refused", "reason") == {("actor_stopped",): 2}


def test_circles_are_counted(traced: Traced) -> None:
    """Once, by whoever closes one."""

    def receive(context: Any, message: Any) -> Any:
        return context.ask(actor("2" if context.actor_id == actor() else "1"), "go")

    with traced.running(receive) as runtime:
        assert runtime.client().ask(actor(), "go").status is RequestStatus.FAILED
    assert traced.counted("actor.deadlocks", "actor.type") == {("t",): 1}


def test_a_lost_lease_is_counted(traced: Traced) -> None:
    """And its turn ends without a status of its own."""
    store = InMemoryStateStorage()
    gate = Gate()

    def receive(context: Any, message: Any) -> Any:
        gate()
        return {}

    with traced.running(receive, storage=store) as runtime:
        runtime.client().send_request(actor(), "go")
        gate.wait()
        store.retire(runtime.engine.worker)
        thief = store.claim("thief", actor())
        assert thief is not None
        gate.opened.set()
        wait_until(lambda: traced.spans("actor.message"))
        store.release(thief)
    assert traced.counted("actor.lease.lost", "actor.type") == {("t",): 1}
    (turn, *_) = traced.spans("actor.message")
    assert attributes(turn)["request.status"] == "pending"


def test_a_conflict_is_told_by_the_commit(traced: Traced) -> None:
    """The turn, run again, is one span."""
    store = InMemoryStateStorage()
    runs: list[int] = []

    def receive(context: Any, message: Any) -> Any:
        runs.append(1)
        context.read_state("n")
        if len(runs) == 1:
            store.write_state(actor(), {"n": 7})
        context.write_state("n", 8)
        return {}

    with traced.running(receive, storage=store) as runtime:
        runtime.client().ask(actor(), "go")
    commits = traced.spans("actor.state commit")
    assert [attributes(span)["state.conflict"] for span in commits] == [True, False]
    assert len(traced.spans("actor.message")) == 1


def test_time_is_measured_by_type_and_method_alone(traced: Traced) -> None:
    """No metric has an id, or anything of the content."""
    with traced.running(echo) as runtime:
        answer = runtime.client().ask(actor("secret-id"), "go", {"secret": "content"})
        runtime.client().send_request(actor("secret-id"), "go", {}).result(5.0 * SLOW)
        wait_until(lambda: len(traced.spans("actor.message")) == 2)
        points = traced.points()
    for name in ("actor.turn.duration", "actor.mailbox.wait"):
        (point,) = points[name]
        assert dict(point.attributes) == {"actor.type": "t", "method": "go"}
        assert point.count == 2
        assert point.explicit_bounds[0] == 0.0001
        assert point.explicit_bounds[-1] == 50.0
    (point,) = points["actor.commit.duration"]
    assert dict(point.attributes) == {"actor.type": "t"}
    assert {point.value for point in points["actor.live"]} == {1}
    assert points["actor.turns.stuck"][0].value == 0
    for secret in ("secret", "content", answer.message_id):
        assert secret not in str(points)


def test_transactions_of_a_file_are_measured(traced: Traced, tmp_path: Path) -> None:
    """By how many writes they are of."""
    store = SqliteActorStore(tmp_path / "actors.db")
    with traced.running(echo, storage=store) as runtime:
        runtime.client().ask(actor(), "go")
    (point,) = traced.points()["actor.commit.batch"]
    assert point.count >= 1
    assert point.min == 1
    store.close()


def test_the_oldest_request_is_told(traced: Traced) -> None:
    """For how long it has waited; what runs does not wait."""
    gate = Gate()
    with traced.running(hold_at(gate)) as runtime:
        handles = [runtime.client().send_request(actor(), "go") for _ in range(2)]
        gate.wait()
        wait_until(lambda: traced.points()["actor.mailbox.oldest"][0].value > 0.01)
        gate.opened.set()
        for handle in handles:
            handle.result(5.0 * SLOW)
        assert traced.points()["actor.mailbox.oldest"][0].value == 0.0
    # One that was stopped is not measured, and none that is gone.
    assert "actor.live" not in traced.points()


def test_several_runtimes_are_measured_as_one(traced: Traced) -> None:
    """Their actors are added up."""
    with traced.running(echo) as one, traced.running(echo) as two:
        one.client().ask(actor(), "go")
        two.client().ask(actor(), "go")
        assert traced.points()["actor.live"][0].value == 2


def test_threads_do_not_mix_their_spans_up(traced: Traced) -> None:
    """Each turn is below the request that its thread has sent."""
    ready = threading.Barrier(4)

    def ask(n: int) -> None:
        ready.wait(10.0 * SLOW)
        for _ in range(25):
            runtime.client().ask(actor(str(n)), f"m{n}")

    with traced.running(echo) as runtime:
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    requests = {span.context.span_id: span for span in traced.spans("actor.request")}
    turns = traced.spans("actor.message")
    assert len(turns) == len(requests) == 100
    for turn in turns:
        assert turn.parent is not None
        sender = requests[turn.parent.span_id]
        assert attributes(sender)["message.id"] == attributes(turn)["message.id"]


def test_a_runtime_that_is_not_traced_does_not_load_it() -> None:
    """And without the extra it is said how to get it."""
    code = """
import sys
import ppio_agent.actors
with ppio_agent.actors.InProcessActorRuntime():
    pass
assert not any(name.startswith("opentelemetry") for name in sys.modules)
assert "ppio_agent.actors._telling" not in sys.modules
sys.modules["opentelemetry"] = None
try:
    ppio_agent.actors.OpenTelemetry
except ppio_agent.ConfigurationError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "pip install 'ppio-agent[otel]'" in done.stdout


def test_a_turn_whose_end_is_no_longer_kept_is_told(traced: Traced) -> None:
    """As where it ignored its deadline for so long that the failure was dropped."""
    store = InMemoryStateStorage()
    gate = Gate()
    with traced.running(hold_at(gate), storage=store) as runtime:
        handle = runtime.client().send_request(actor(), "go", deadline=0.05)
        handle.get_response(5.0 * SLOW)
        store.purge(store.now(), 100, Retention(payload_bytes=0))
        record = store.get_request(actor(), handle.message_id)
        assert record is not None
        assert record.evicted
        gate.opened.set()
        wait_until(lambda: traced.spans("actor.message"))
        assert runtime.client().ask(actor(), "go").status is RequestStatus.COMPLETED
    assert attributes(traced.spans("actor.message")[0])["error.type"] == "failed"
