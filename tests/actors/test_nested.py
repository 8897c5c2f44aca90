"""What a turn asks of other actors, and tells them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ppio_agent.actors import ActorOptions, InProcessActorRuntime, RuntimeOptions
from ppio_agent.exceptions import (
    ActorDeadlockError,
    ActorError,
    ActorFailedError,
    CallChainTooDeepError,
    InvalidMessageError,
    InvocationCancelledError,
    InvocationTimeoutError,
    RuntimeOverloadedError,
    UnknownActorTypeError,
)
from ppio_agent.wire.actors import ActorId, RequestStatus
from tests.support import SLOW, wait_until

from .support import Gate, Made, Receive, actor

A, B, C = actor("a"), actor("b"), actor("c")


@pytest.fixture
def runtime() -> Iterator[InProcessActorRuntime]:
    options = RuntimeOptions(sweep_every=0.2)
    with InProcessActorRuntime(options=options) as made:
        yield made


def register(runtime: InProcessActorRuntime, receive: Receive, **options: Any) -> None:
    runtime.register_actor_type(
        "t", lambda _: Made(receive), options=ActorOptions(**options)
    )


def test_an_idle_actor_is_asked_on_the_same_thread(
    runtime: InProcessActorRuntime,
) -> None:
    """A chain is a call stack; each sees who waits for it."""

    def receive(context: Any, message: Any) -> Any:
        me = [threading.get_ident(), list(message.chain)]
        if context.actor_id == C:
            return [me]
        to = B if context.actor_id == A else C
        return [me, *context.ask(to, "go")]

    register(runtime, receive)
    response = runtime.client().ask(A, "go")
    here = threading.get_ident()
    assert response.data == [[here, []], [here, ["t/a"]], [here, ["t/a", "t/b"]]]


def test_an_actor_that_asks_one_that_waits_for_it_is_told_at_once(
    runtime: InProcessActorRuntime,
) -> None:
    """The error names the circle."""
    errors: list[ActorDeadlockError] = []

    def receive(context: Any, message: Any) -> Any:
        if message.method == "end":
            return "end"
        try:
            return context.ask(B if context.actor_id == A else A, "go")
        except ActorDeadlockError as error:
            errors.append(error)
            raise

    register(runtime, receive)
    began = time.monotonic()
    response = runtime.client().ask(A, "go")
    assert time.monotonic() - began < 0.05 * SLOW
    assert response.status is RequestStatus.FAILED
    assert "t/b -> t/a -> t/b" in str(errors[0])


def test_an_actor_that_may_be_called_again_is(runtime: InProcessActorRuntime) -> None:
    """The nested turn sees what the outer one wrote, and is kept with it."""

    def receive(context: Any, message: Any) -> Any:
        if message.method == "inner":
            seen = context.read_state("x")
            context.write_state("x", seen + 1)
            return seen
        if context.actor_id == B:
            return context.ask(A, "inner")
        context.write_state("x", 1)
        return [context.ask(B, "go"), context.read_state("x")]

    register(runtime, receive, reentrancy="allow")
    assert runtime.client().ask(A, "go").data == [1, 2]
    assert runtime.store.read_state(A) == {"x": 2}


def test_a_nested_turn_that_fails_leaves_nothing(
    runtime: InProcessActorRuntime,
) -> None:
    """And the outer one goes on, with what it had."""

    def receive(context: Any, message: Any) -> Any:
        if message.method == "inner":
            context.write_state("x", 2)
            context.tell(C, "never")
            raise LookupError("inner")
        if message.method == "never":
            context.write_state("came", 1)
            return 1
        context.write_state("x", 1)
        with pytest.raises(ActorFailedError):
            context.ask(A, "inner")
        return context.read_state("x")

    register(runtime, receive, reentrancy="allow")
    assert runtime.client().ask(A, "go").data == 1
    runtime.sweep()
    assert runtime.store.read_state(A) == {"x": 1}
    assert runtime.store.inspect(C) is None


def test_an_actor_is_called_again_from_another_thread(
    runtime: InProcessActorRuntime,
) -> None:
    """It waits there for one that was busy; its instance is used by one at a time."""
    begun, go_on = threading.Event(), threading.Event()

    def receive(context: Any, message: Any) -> Any:
        if message.method == "hold":
            begun.set()
            return go_on.wait(10.0)
        if message.method == "inner":
            return context.attempt
        if context.actor_id == B:
            return context.ask(A, "inner")
        threading.Timer(0.05, go_on.set).start()
        return context.ask(B, "go")

    register(runtime, receive, reentrancy="allow")
    client = runtime.client()
    client.send_request(B, "hold")
    assert begun.wait(5.0 * SLOW)
    assert client.send_request(A, "go").result(5.0 * SLOW) == 1


def test_a_turn_within_one_that_gives_up_ends_first(
    runtime: InProcessActorRuntime,
) -> None:
    """An instance is never used by two threads at once."""
    held, inner = Gate(), Gate()
    steps: list[str] = []

    def receive(context: Any, message: Any) -> Any:
        if message.method == "hold":
            return held()
        if message.method == "inner":
            inner()
            steps.append("inner")
            return 1
        if context.actor_id == B:
            return context.ask(A, "inner")
        with pytest.raises(InvocationTimeoutError):
            context.ask(B, "go", timeout=0.5)
        steps.append("outer")
        return 1

    register(runtime, receive, reentrancy="allow")
    client = runtime.client()
    client.send_request(B, "hold")
    held.wait()
    handle = client.send_request(A, "go")
    wait_until(lambda: A in runtime.engine.waits)
    held.opened.set()
    inner.wait()
    wait_until(lambda: A not in runtime.engine.waits)
    assert not steps
    inner.opened.set()
    assert handle.result(5.0 * SLOW) == 1
    assert steps == ["inner", "outer"]


def test_two_that_ask_each_other_at_the_same_time(
    runtime: InProcessActorRuntime,
) -> None:
    """One of them is told; the other gets its answer. Whichever way, nobody hangs."""
    both = threading.Barrier(2)

    def receive(context: Any, message: Any) -> Any:
        if message.method == "end":
            return "end"
        both.wait(5.0 * SLOW)
        try:
            return context.ask(B if context.actor_id == A else A, "end")
        except ActorDeadlockError as error:
            return str(error)

    register(runtime, receive)
    client = runtime.client()
    for _ in range(20):
        began = time.monotonic()
        handles = [client.send_request(actor, "go") for actor in (A, B)]
        results = sorted(handle.result(5.0 * SLOW) for handle in handles)
        assert time.monotonic() - began < 0.5 * SLOW
        assert "end" in results
        told = next(result for result in results if result != "end")
        assert "t/a -> t/b -> t/a" in told or "t/b -> t/a -> t/b" in told


@pytest.mark.parametrize("ask", ["ask", "send"])
def test_a_circle_by_way_of_the_client_is_found_too(
    runtime: InProcessActorRuntime, ask: str
) -> None:
    """All waits of turns are looked at, however they asked; nothing is left over."""
    errors: list[Exception] = []

    def receive(context: Any, message: Any) -> Any:
        to = B if context.actor_id == A else A
        client = runtime.client()
        try:
            if ask == "ask":
                return client.ask(to, "go").data
            return client.send_request(to, "go").result()
        except ActorDeadlockError as error:
            errors.append(error)
            raise

    register(runtime, receive)
    runtime.client().send_request(A, "go").get_response(5.0 * SLOW)
    wait_until(lambda: runtime.stats()["pending"] == 0)
    assert len(errors) == 1


def test_no_circle_is_seen_where_an_answer_is_on_its_way(
    runtime: InProcessActorRuntime,
) -> None:
    """An actor that was answered and has not woken up yet waits for nobody."""
    errors: list[Exception] = []

    def receive(context: Any, message: Any) -> Any:
        if message.method == "end":
            return "end"
        try:
            return (
                context.ask(B, "end")
                if message.method == "ab"
                else context.ask(A, "end")
            )
        except ActorDeadlockError as error:
            errors.append(error)
            raise

    # Only A asks B here, and B asks A only after that: no two are ever in a circle.
    register(runtime, receive)
    client = runtime.client()
    for _ in range(50):
        handles = [client.send_request(A, "ab")]
        handles[0].get_response(5.0 * SLOW)
        handles.append(client.send_request(B, "ba"))
        assert [handle.result(5.0 * SLOW) for handle in handles] == ["end", "end"]
    assert not errors


def test_a_chain_may_only_be_so_long(runtime: InProcessActorRuntime) -> None:
    """32 asks in a row are made, the next is refused."""

    def receive(context: Any, message: Any) -> Any:
        number = message.params["n"]
        try:
            return context.ask(ActorId("t", str(number)), "go", {"n": number + 1})
        except CallChainTooDeepError:
            return number

    register(runtime, receive)
    assert runtime.client().ask(A, "go", {"n": 0}).data == 32


def test_an_ask_has_no_more_time_than_its_turn(runtime: InProcessActorRuntime) -> None:
    """Whatever its own timeout is; the smaller one counts."""
    left: list[float] = []

    def receive(context: Any, message: Any) -> Any:
        if context.actor_id == B:
            left.append(context.time_left())
            return 1
        context.ask(B, "x")
        context.ask(B, "x", timeout=0.1)
        return context.ask(B, "x", timeout=100.0)

    register(runtime, receive)
    handle = runtime.client().send_request(A, "go", deadline=20.0)
    assert handle.result(5.0 * SLOW) == 1
    assert 10.0 < left[0] <= 20.0
    assert 0.0 < left[1] <= 0.1
    assert 10.0 < left[2] <= 20.0


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("cancel", RequestStatus.CANCELLED),
        ("deadline", RequestStatus.EXPIRED),
        ("interrupt", RequestStatus.CANCELLED),
        ("stop", RequestStatus.CANCELLED),
    ],
)
def test_a_turn_is_told_of_its_end_while_another_runs_within_it(
    runtime: InProcessActorRuntime, how: str, status: RequestStatus
) -> None:
    """And so is that one, for which it waits."""
    gate = threading.Event()
    reasons: list[Any] = []

    def receive(context: Any, message: Any) -> Any:
        if message.method == "go":
            return context.ask(B, "pass")
        if message.method == "pass":
            return context.ask(A, "inner")
        if message.method == "inner":
            gate.set()
            context.cancelled.wait(5.0 * SLOW)
            reasons.append(context.cancelled.reason)
            context.check()
        return 1

    register(runtime, receive, reentrancy="allow")
    client = runtime.client()
    handle = client.send_request(A, "go", deadline=0.1 if how == "deadline" else None)
    assert gate.wait(5.0 * SLOW)
    if how == "cancel":
        assert handle.cancel() == "requested"
    if how == "interrupt":
        later = client.send_request(A, "x", on_busy="interrupt")
        assert later.result(5.0 * SLOW) == 1
    if how == "stop":
        runtime.stop(0.0)
    assert handle.get_response(5.0 * SLOW).status is status
    wait_until(lambda: reasons)
    assert reasons[0] is not None


def test_an_ask_that_takes_too_long_is_given_up(runtime: InProcessActorRuntime) -> None:
    """Its request expires, and the turn goes on at once."""
    go_on = threading.Event()

    def receive(context: Any, message: Any) -> Any:
        if context.actor_id == B:
            return go_on.wait(10.0)
        began = time.monotonic()
        with pytest.raises(InvocationTimeoutError):
            context.ask(B, "slow", timeout=0.05)
        return time.monotonic() - began

    register(runtime, receive)
    assert runtime.client().ask(A, "go").data < 1.0 * SLOW
    go_on.set()


@pytest.mark.parametrize("busy", [False, True])
def test_who_cancels_a_request_cancels_what_it_asked(
    runtime: InProcessActorRuntime, *, busy: bool
) -> None:
    """On the same thread, or in the mailbox of another actor."""
    begun, go_on = threading.Event(), threading.Event()
    ends: list[str] = []

    def receive(context: Any, message: Any) -> Any:
        if message.method == "hold":
            begun.set()
            return go_on.wait(10.0)
        if context.actor_id == B:
            begun.set()
            assert context.cancelled.wait(5.0 * SLOW)
            ends.append("B")
            context.check()
        try:
            return context.ask(B, "wait")
        except InvocationCancelledError:
            ends.append("A")
            raise

    register(runtime, receive)
    client = runtime.client()
    held = client.send_request(B, "hold") if busy else None
    if held is not None:
        assert begun.wait(5.0 * SLOW)
    handle = client.send_request(A, "go")
    if busy:
        wait_until(lambda: runtime.inspect(B)["queued"] == 1)
    else:
        assert begun.wait(5.0 * SLOW)
    assert handle.cancel(wait=5.0 * SLOW) == "cancelled"
    assert ends == (["A"] if busy else ["B", "A"])
    wait_until(lambda: runtime.inspect(B)["queued"] == 0)
    go_on.set()
    if held is not None:
        assert held.get_response(5.0 * SLOW).status is RequestStatus.COMPLETED


def test_a_turn_that_is_run_again_gets_the_answers_it_had(
    runtime: InProcessActorRuntime,
) -> None:
    """What it asked happened once."""
    runs: list[int] = []

    def receive(context: Any, message: Any) -> Any:
        if context.actor_id == B:
            count = (context.read_state("count") or 0) + 1
            context.write_state("count", count)
            return count
        context.read_state("x")
        runs.append(1)
        answers = [context.ask(B, "add"), context.ask(B, "add")]
        if len(runs) == 1:
            runtime.store.write_state(A, {"x": 1})  # behind its back
        context.write_state("y", 1)
        return answers

    register(runtime, receive)
    assert runtime.client().ask(A, "go").data == [1, 2]
    assert len(runs) == 2
    assert runtime.store.read_state(B) == {"count": 2}


def test_what_an_actor_raises_is_raised_by_ask(runtime: InProcessActorRuntime) -> None:
    """With what is kept of it."""

    def receive(context: Any, message: Any) -> Any:
        if context.actor_id == B:
            raise LookupError("no")
        with pytest.raises(ActorFailedError) as caught:
            context.ask(B, "x")
        return [caught.value.code, caught.value.actor_id]

    register(runtime, receive)
    assert runtime.client().ask(A, "go").data == ["actor_failed", "t/b"]


def test_ask_and_tell_belong_to_a_turn(runtime: InProcessActorRuntime) -> None:
    """A context that was kept is of no use outside of one."""
    kept: list[Any] = []
    register(runtime, lambda context, _: kept.append(context) or 1)
    runtime.client().ask(A, "go")
    with pytest.raises(ActorError, match="runs no turn"):
        kept[0].ask(B, "x")
    with pytest.raises(ActorError, match="runs no turn"):
        kept[0].tell(B, "x")


# Requests that leave with the commit.


def test_what_is_told_leaves_with_the_commit(runtime: InProcessActorRuntime) -> None:
    """Not before, once, in order, and by the id that was returned."""
    got: list[Any] = []

    def receive(context: Any, message: Any) -> Any:
        if context.actor_id == B:
            got.append(
                [message.message_id, message.params["n"], str(message.sender_id)]
            )
            return 1
        ids = [context.tell(B, "note", {"n": n}) for n in range(3)]
        assert runtime.store.inspect(B) is None
        return ids

    register(runtime, receive)
    ids = runtime.client().ask(A, "go").data
    wait_until(lambda: len(got) == 3)
    assert got == [[ids[n], n, "t/a"] for n in range(3)]
    answer = runtime.client().get_request(B, ids[0]).get_response(5.0 * SLOW)
    assert answer.data == 1


@pytest.mark.parametrize("how", ["raises", "cancelled"])
def test_a_turn_that_failed_told_nothing(
    runtime: InProcessActorRuntime, how: str
) -> None:
    """Nor does one that was cancelled."""

    def receive(context: Any, message: Any) -> Any:
        context.tell(B, "never")
        if how == "raises":
            raise LookupError("no")
        runtime.client().get_request(A, message.message_id).cancel()
        return 1

    register(runtime, receive)
    response = runtime.client().send_request(A, "go").get_response(5.0 * SLOW)
    assert response.status is not RequestStatus.COMPLETED
    runtime.sweep()
    assert runtime.store.inspect(B) is None


def test_what_is_told_later_comes_later(runtime: InProcessActorRuntime) -> None:
    """To a tenth of a second, not to that of a sweep."""
    came: list[float] = []

    def receive(context: Any, message: Any) -> Any:
        if context.actor_id == B:
            came.append(time.monotonic())
            return 1
        return context.tell(B, "note", delay=0.1)

    register(runtime, receive)
    began = time.monotonic()
    runtime.client().ask(A, "go")
    wait_until(lambda: came)
    assert 0.095 <= came[0] - began < 0.1 + 0.5 * SLOW


def test_a_full_mailbox_is_tried_again(runtime: InProcessActorRuntime) -> None:
    """What is told is not lost when its actor has no place for it."""
    go_on = threading.Event()
    got: list[int] = []

    def receive(context: Any, message: Any) -> Any:
        if message.method == "hold":
            return go_on.wait(10.0)
        if context.actor_id == B:
            got.append(message.params["n"])
            return 1
        return [context.tell(B, "note", {"n": n}) for n in range(4)]

    register(runtime, receive, mailbox_limit=2)
    runtime.client().send_request(B, "hold")
    runtime.client().ask(A, "go")
    wait_until(lambda: runtime.inspect(B)["queued"] == 1)
    go_on.set()
    wait_until(lambda: len(got) == 4)
    assert sorted(got) == [0, 1, 2, 3]


def test_what_cannot_be_sent_is_refused_in_the_turn(
    runtime: InProcessActorRuntime,
) -> None:
    """Before anything is stored."""

    def receive(context: Any, message: Any) -> Any:
        for delay in (-1.0, float("nan"), float("inf")):
            with pytest.raises(InvalidMessageError, match="delay"):
                context.tell(B, "x", delay=delay)
        with pytest.raises(UnknownActorTypeError):
            context.tell(ActorId("nobody", "1"), "x")
        with pytest.raises(UnknownActorTypeError):
            context.ask(ActorId("nobody", "1"), "x")
        with pytest.raises(InvalidMessageError, match="mapping"):
            context.ask(B, "x", [1])
        return 1

    register(runtime, receive)
    assert runtime.client().ask(A, "go").data == 1


def test_a_turn_tells_only_so_much() -> None:
    """As many as may wait in the runtime."""

    def receive(context: Any, message: Any) -> Any:
        told = [context.tell(B, "x", delay=100.0) for _ in range(10)]
        with pytest.raises(RuntimeOverloadedError, match="tell later, or less"):
            context.tell(B, "x", delay=100.0)
        return len(told)

    options = RuntimeOptions(max_pending=10)
    with InProcessActorRuntime(options=options) as runtime:
        register(runtime, receive)
        assert runtime.client().ask(A, "go").data == 10


def test_turns_tell_only_so_much_together() -> None:
    """What is on its way still is counted, as of the latest look."""

    def receive(context: Any, message: Any) -> Any:
        context.tell(B, "x", delay=100.0)
        return 1

    options = RuntimeOptions(max_pending=2, sweep_every=60.0)
    with InProcessActorRuntime(options=options) as runtime:
        register(runtime, receive)
        client = runtime.client()
        for _ in range(2):
            assert client.ask(A, "go").data == 1
            runtime.sweep()
        assert client.ask(A, "go").status is RequestStatus.FAILED


def test_all_that_a_turn_tells_one_actor_arrives_at_once() -> None:
    """More than a page of it, too, without waiting for the sweep."""
    arrived: list[int] = []
    done = threading.Event()

    def receive(context: Any, message: Any) -> Any:
        if message.method == "go":
            for number in range(600):
                context.tell(B, "x", {"number": number})
            return 1
        arrived.append(message.params["number"])
        if len(arrived) == 600:
            done.set()
        return 1

    with InProcessActorRuntime(options=RuntimeOptions(sweep_every=60.0)) as runtime:
        register(runtime, receive, mailbox_limit=1000)
        assert runtime.client().ask(A, "go").data == 1
        assert done.wait(5.0 * SLOW)
    assert arrived == list(range(600))
