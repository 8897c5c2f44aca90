"""Requests: sent, asked, waited for, cancelled, sent again."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ppio_agent.actors import ActorId, RequestStatus, RuntimeOptions
from ppio_agent.exceptions import (
    ActorBusyError,
    ActorFailedError,
    IdempotencyConflictError,
    InvalidMessageError,
    InvocationCancelledError,
    InvocationTimeoutError,
    MailboxFullError,
    NotFoundError,
    RequestRejectedError,
    RequestTooLargeError,
    ResponseTimeoutError,
    RuntimeNotRunningError,
    RuntimeOverloadedError,
    UnknownActorTypeError,
)
from ppio_agent.storage.actors.records import Hint, HintKind
from tests.support import SLOW, wait_until

from .support import Gate, actor, running


def echo(_context: Any, message: Any) -> Any:
    return {"method": message.method, "params": message.params}


def test_an_ask_of_an_idle_actor_runs_on_the_asking_thread() -> None:
    """No other thread is needed for it."""
    with running(lambda *_: threading.get_ident()) as runtime:
        response = runtime.client().ask(actor(), "who")
        assert response.data == threading.get_ident()
        assert response.status is RequestStatus.COMPLETED
        assert (response.sender_id, runtime.stats()["threads"]) == (actor(), 0)


def test_an_ask_with_an_id_of_its_own_runs_on_the_asking_thread_too() -> None:
    """It is accepted first, so that it can be looked up."""
    with running(lambda *_: threading.get_ident()) as runtime:
        client = runtime.client()
        assert client.ask(actor(), "who", None, "m-1").data == threading.get_ident()
        assert client.get_request(actor(), "m-1").result() == threading.get_ident()


def test_an_ask_with_a_limit_runs_elsewhere() -> None:
    """A thread cannot time itself out."""
    gate = Gate()
    with running(lambda *_: gate()) as runtime:
        with pytest.raises(ResponseTimeoutError) as told:
            runtime.client().ask(actor(), "slow", message_id="m-1", timeout=0.05)
        assert told.value.message_id == "m-1"
        gate.opened.set()
        handle = runtime.client().get_request(actor(), "m-1")
        assert handle.get_response(5 * SLOW).status is RequestStatus.FAILED  # None


def test_params_and_results_are_copies() -> None:
    """What either side changes later is its own."""
    seen: list[Any] = []

    def receive(_context: Any, message: Any) -> Any:
        seen.append(message.params)
        return message.params

    params = {"list": [1]}
    with running(receive) as runtime:
        result = runtime.client().ask(actor(), "m", params).data
        seen[0]["list"].append(2)
        params["list"].append(3)
        assert result == {"list": [1]}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((actor(), 7), InvalidMessageError),
        ((actor(), "a\0b"), InvalidMessageError),
        ((actor(), "\ud800"), InvalidMessageError),
        ((actor(), "m", [1]), InvalidMessageError),
        ((actor(), "m", {"a": object()}), InvalidMessageError),
        ((actor(), "m", None, "no id"), InvalidMessageError),
        ((actor(), "m", {"a": "x" * 2**20}), RequestTooLargeError),
        ((ActorId("nope", "1"), "m"), UnknownActorTypeError),
    ],
)
def test_what_cannot_be_sent_is_refused(arguments: Any, error: Any) -> None:
    """With an error that says why; nothing is stored."""
    with running(echo) as runtime:
        client = runtime.client()
        with pytest.raises(error):
            client.send_request(*arguments)
        with pytest.raises(error):
            client.ask(*arguments)
        assert runtime.stats()["pending"] == runtime.stats()["live"] == 0


@pytest.mark.parametrize(
    "limits", [{"deadline": -1.0}, {"deadline": float("nan")}, {"on_busy": "maybe"}]
)
def test_limits_that_are_none_are_refused(limits: Any) -> None:
    """Nothing is accepted."""
    with running(echo) as runtime:
        with pytest.raises(InvalidMessageError):
            runtime.client().send_request(actor(), "m", **limits)
        assert runtime.stats()["awaited"] == 0


def test_outside_of_start_and_stop_requests_are_refused() -> None:
    """The error says what to do."""
    with running(echo) as runtime:
        client = runtime.client()
    with pytest.raises(RuntimeNotRunningError, match="start"):
        client.send_request(actor(), "m")
    with pytest.raises(RuntimeNotRunningError):
        client.ask(actor(), "m")


def test_one_id_runs_once() -> None:
    """From many threads at once, and again much later."""
    ran: list[str] = []

    def receive(_context: Any, message: Any) -> Any:
        ran.append(message.message_id)
        return len(ran)

    with running(receive) as runtime:
        client = runtime.client()

        def send(_n: int) -> Any:
            return client.send_request(actor(), "m", {"a": 1, "b": 2}, "m-1").result(10)

        with ThreadPoolExecutor(50) as pool:
            answers = set(pool.map(send, range(50)))
        for _ in range(1000):
            client.ask(actor(), "m")
        again = client.send_request(actor(), "m", {"b": 2, "a": 1}, "m-1").result(10)
        assert ran.count("m-1") == 1
        assert answers == {again}
        with pytest.raises(IdempotencyConflictError):
            client.send_request(actor(), "m", {"a": 2}, "m-1")


def test_an_unknown_request_is_not_found() -> None:
    """Its handle says so at once."""
    with running(echo) as runtime:
        handle = runtime.client().get_request(actor(), "nope")
        response = handle.try_get_response()
        assert response is not None
        assert response.status is RequestStatus.NOT_FOUND
        with pytest.raises(NotFoundError):
            handle.result()
        assert next(iter(handle.watch_updates())).status is RequestStatus.NOT_FOUND
        assert handle.cancel() == "not_found"


def test_a_handle_tells_the_result_to_any_number_of_waiters() -> None:
    """Before and after the end, in any of its ways."""
    gate = Gate()

    def receive(_context: Any, _message: Any) -> Any:
        gate()
        return {"x": 1}

    with running(receive) as runtime:
        handle = runtime.client().send_request(actor(), "m")
        assert handle.try_get_response() is None
        future = handle.future()
        with ThreadPoolExecutor(3) as pool:
            results = [pool.submit(handle.result, 10) for _ in range(3)]
            gate.wait()
            gate.opened.set()
            assert [one.result() for one in results] == [{"x": 1}] * 3
        assert future.result(5) == handle.future().result(5) == {"x": 1}
        assert handle.result() is not handle.result()
        assert handle.cancel() == "terminal"
        assert runtime.stats()["awaited"] == 0


def test_a_failure_is_raised_by_result() -> None:
    """As the typed error; a future has it too."""

    def receive(*_: Any) -> None:
        raise ValueError("secret")

    with running(receive) as runtime:
        handle = runtime.client().send_request(actor(), "m", None, "m-1")
        with pytest.raises(ActorFailedError) as told:
            handle.result(5 * SLOW)
        assert told.value.data["code"] == told.value.code == "actor_failed"
        assert "secret" not in str(told.value)
        with pytest.raises(ActorFailedError):
            handle.future().result(5)


# Mailboxes.


def _flood(runtime: Any, count: int) -> tuple[list[Any], int]:
    """Send from 16 threads; return the handles, and how many were refused."""
    start = threading.Barrier(16)
    handles: list[Any] = []
    full: list[Any] = []

    def send(_n: int) -> None:
        start.wait()
        for _ in range(count):
            try:
                handles.append(runtime.client().send_request(actor(), "m"))
            except MailboxFullError as error:
                full.append(error)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(send, range(16)))
    assert all(error.retry_after for error in full)
    return handles, len(full)


def test_a_full_mailbox_refuses_exactly_what_is_too_much() -> None:
    """Whoever races; what was accepted is answered."""
    gate = Gate()

    def receive(*_: Any) -> int:
        gate()
        return 1

    with running(receive, mailbox_limit=100) as runtime:
        first = runtime.client().send_request(actor(), "m")
        gate.wait()
        handles, refused = _flood(runtime, 10)
        assert (len(handles) + 1, refused) == (100, 160 - 99)
        gate.opened.set()
        assert [h.result(10 * SLOW) for h in [first, *handles]] == [1] * 100


def test_drop_oldest_makes_room() -> None:
    """The oldest that waits is REJECTED; the running one is not."""
    gate = Gate()

    def receive(_context: Any, message: Any) -> Any:
        gate()
        return message.message_id

    with running(receive, mailbox_limit=3, mailbox_policy="drop_oldest") as runtime:
        client = runtime.client()
        handles = [client.send_request(actor(), "m", None, "m-0")]
        gate.wait()
        handles += [
            client.send_request(actor(), "m", None, f"m-{n}") for n in (1, 2, 3)
        ]
        with pytest.raises(RequestRejectedError):
            handles[1].result(5 * SLOW)
        gate.opened.set()
        ended = [handles[n].result(5 * SLOW) for n in (0, 2, 3)]
        assert ended == ["m-0", "m-2", "m-3"]


def test_block_waits_for_a_place() -> None:
    """As long as it may; then the mailbox is full."""
    gate = Gate()

    def receive(*_: Any) -> int:
        gate()
        return 1

    with running(receive, mailbox_limit=1, mailbox_policy="block") as runtime:
        client = runtime.client()
        first = client.send_request(actor(), "m")
        gate.wait()
        with pytest.raises(MailboxFullError):
            client.send_request(actor(), "m")
        with pytest.raises(MailboxFullError):
            client.send_request(actor(), "m", block=0.05)
        with pytest.raises(MailboxFullError):
            client.send_request(actor(), "m", deadline=0.05)
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(client.send_request, actor(), "m", block=10 * SLOW)
            gate.opened.set()
            assert sent.result().result(5 * SLOW) == first.result(5 * SLOW) == 1


def test_a_turn_that_waits_for_a_place_lets_another_run() -> None:
    """With one thread, the actor that is to make the place runs on its place."""
    gate = Gate()

    def receive(context: Any, message: Any) -> Any:
        if message.method != "sends":
            return 1
        gate()
        client = runtime.client()
        return client.send_request(actor("b"), "m", block=10 * SLOW).result(5 * SLOW)

    one = RuntimeOptions(workers=1)
    options = {"mailbox_limit": 1, "mailbox_policy": "block"}
    with running(receive, runtime_options=one, **options) as runtime:
        client = runtime.client()
        sends = client.send_request(actor("a"), "sends")
        gate.wait()
        client.send_request(actor("b"), "m")  # for which no thread is there
        gate.opened.set()
        assert sends.result(5 * SLOW) == 1


def test_a_turn_that_waits_for_a_place_can_be_cancelled() -> None:
    """And what it was about to send is not sent."""
    gate = Gate()

    def receive(context: Any, message: Any) -> Any:
        if message.method != "sends":
            return gate()
        return runtime.client().send_request(actor("b"), "m", block=100.0)

    options = {"mailbox_limit": 1, "mailbox_policy": "block"}
    with running(receive, **options) as runtime:
        client = runtime.client()
        client.send_request(actor("b"), "m")
        gate.wait()
        sends = client.send_request(actor("a"), "sends")
        wait_until(lambda: runtime.engine._senders)
        assert sends.cancel() == "requested"
        assert sends.get_response(5 * SLOW).status is RequestStatus.CANCELLED
        gate.opened.set()


def test_a_runtime_takes_only_so_many_requests() -> None:
    """Over all actors."""
    gate = Gate()
    options = RuntimeOptions(max_pending=2)
    with running(lambda *_: gate(), runtime_options=options) as runtime:
        client = runtime.client()
        client.send_request(actor("1"), "m")
        client.send_request(actor("2"), "m")
        with pytest.raises(RuntimeOverloadedError):
            client.send_request(actor("3"), "m")
        gate.opened.set()


# Cancel.


def test_a_queued_request_that_is_cancelled_never_runs() -> None:
    """Its waiters are told at once."""
    gate, ran = Gate(), []

    def receive(_context: Any, message: Any) -> int:
        ran.append(message.message_id)
        gate()
        return 1

    with running(receive) as runtime:
        client = runtime.client()
        first = client.send_request(actor(), "m", None, "m-1")
        gate.wait()
        second = client.send_request(actor(), "m", None, "m-2")
        assert second.cancel() == "cancelled"
        with pytest.raises(InvocationCancelledError):
            second.result(1)
        gate.opened.set()
        assert first.result(5 * SLOW) == client.ask(actor(), "m").data == 1
        assert "m-2" not in ran


def test_a_turn_that_looks_is_cancelled_and_leaves_nothing() -> None:
    """Its state is as before."""
    begun = threading.Event()

    def receive(context: Any, message: Any) -> Any:
        if message.method == "read":
            return {"x": context.read_state("x")}
        context.write_state("x", 1)
        begun.set()
        while True:
            context.check()
            context.cancelled.wait(0.01)

    with running(receive) as runtime:
        client = runtime.client()
        handle = client.send_request(actor(), "loop")
        assert begun.wait(5 * SLOW)
        assert handle.cancel(wait=5 * SLOW) == "cancelled"
        assert handle.get_response().status is RequestStatus.CANCELLED
        assert client.ask(actor(), "read").data == {"x": None}


def test_a_turn_that_does_not_look_is_not_said_to_have_ended() -> None:
    """The next begins when it has; its result is dropped."""
    gate, turns = Gate(), []

    def receive(_context: Any, message: Any) -> int:
        turns.append(f"+{message.method}")
        if message.method == "a":
            gate()
        turns.append(f"-{message.method}")
        return 1

    with running(receive) as runtime:
        client = runtime.client()
        first = client.send_request(actor(), "a")
        gate.wait()
        second = client.send_request(actor(), "b")
        assert first.cancel(wait=0.05) == "requested"
        assert second.try_get_response() is None
        gate.opened.set()
        assert second.result(5 * SLOW) == 1
        assert first.get_response(5 * SLOW).status is RequestStatus.CANCELLED
        assert turns == ["+a", "-a", "+b", "-b"]


def test_an_actor_may_say_under_what_id_it_is_cancelled() -> None:
    """Also while the store does not know the request: an ask that nobody named."""
    told: list[str] = []
    gate = Gate()

    def receive(context: Any, message: Any) -> Any:
        if not told:
            told.append(message.message_id)
            gate.reached.set()
            context.cancelled.wait(10 * SLOW)
        return {"reason": context.cancelled.reason}

    with running(receive) as runtime:
        client = runtime.client()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.ask, actor(), "m")
            gate.wait()
            engine = runtime.engine
            assert engine.cancel(actor(), told[0]).value == "requested"
            assert asked.result().status is RequestStatus.CANCELLED


# Deadlines.


def test_a_running_turn_that_passes_its_deadline_is_expired_at_once() -> None:
    """Nothing of it is kept, and the next waits for its end."""
    gate, turns = Gate(), []

    def receive(context: Any, message: Any) -> Any:
        if message.method == "read":
            turns.append("read")
            return {"x": context.read_state("x")}
        context.write_state("x", 1)
        gate()
        turns.append(context.cancelled.reason)
        return 1

    with running(receive) as runtime:
        client = runtime.client()
        begun = time.monotonic()
        handle = client.send_request(actor(), "slow", deadline=0.2)
        assert handle.get_response(5 * SLOW).status is RequestStatus.EXPIRED
        assert time.monotonic() - begun < 0.3 + 0.7 * SLOW
        after = client.send_request(actor(), "read")
        gate.opened.set()
        assert after.result(5 * SLOW) == {"x": None}
        assert turns == ["deadline", "read"]
        with pytest.raises(InvocationTimeoutError):
            handle.result()


def test_a_queued_request_that_passes_its_deadline_never_runs() -> None:
    """It ends without the actor."""
    gate, ran = Gate(), []

    def receive(_context: Any, message: Any) -> int:
        ran.append(message.method)
        gate()
        return 1

    with running(receive) as runtime:
        client = runtime.client()
        client.send_request(actor(), "a")
        gate.wait()
        late = client.send_request(actor(), "b", deadline=0.05)
        assert late.get_response(5 * SLOW).status is RequestStatus.EXPIRED
        gate.opened.set()
        client.ask(actor(), "c", timeout=5 * SLOW)
        assert ran == ["a", "c"]


def test_a_turn_knows_its_deadline() -> None:
    """And without one that there is none."""
    with running(lambda context, _: {"left": context.time_left()}) as runtime:
        client = runtime.client()
        left = client.ask(actor(), "m", deadline=10.0).data["left"]
        assert 9.0 - SLOW < left <= 10.0
        assert client.ask(actor(), "m").data == {"left": None}
        wait_until(lambda: runtime.stats()["awaited"] == 0)


# Double text.


def test_reject_refuses_while_another_request_is_pending() -> None:
    """The error names it."""
    gate = Gate()
    with running(lambda *_: gate()) as runtime:
        client = runtime.client()
        client.send_request(actor(), "m", None, "m-1", on_busy="reject")
        gate.wait()
        with pytest.raises(ActorBusyError) as told:
            client.send_request(actor(), "m", on_busy="reject")
        assert told.value.message_id == "m-1"
        gate.opened.set()


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize(
    ("on_busy", "kept"), [("interrupt", "part"), ("rollback", None)]
)
def test_a_newer_request_supersedes_others(
    on_busy: Any, kept: Any, accepted: Any
) -> None:
    """Those that wait at once, the one that runs when it ends; `interrupt` keeps a part."""
    gate = Gate()

    def receive(context: Any, message: Any) -> Any:
        if message.method == "new":
            return {"kept": context.read_state("kept")}
        context.write_state("kept", "part")
        context.keep()
        gate.reached.set()
        context.cancelled.wait(10 * SLOW)
        context.check()
        return 1

    with running(receive) as runtime, ThreadPoolExecutor(1) as pool:
        client = runtime.client()
        if accepted:
            old = client.send_request(actor(), "old")
            running_one = pool.submit(old.get_response, 10 * SLOW)
        else:
            running_one = pool.submit(client.ask, actor(), "old")
        gate.wait()
        queued = client.send_request(actor(), "queued")
        new = client.send_request(actor(), "new", on_busy=on_busy)
        assert new.result(10 * SLOW) == {"kept": kept}
        for response in (running_one.result(), queued.get_response(5 * SLOW)):
            assert response.status is RequestStatus.CANCELLED
            assert response.data["code"] == "superseded"


def test_reject_sees_an_ask_that_nobody_named() -> None:
    """Although the store knows nothing of it."""
    gate = Gate()
    with running(lambda *_: gate()) as runtime, ThreadPoolExecutor(1) as pool:
        client = runtime.client()
        asked = pool.submit(client.ask, actor(), "m")
        gate.wait()
        with pytest.raises(ActorBusyError):
            client.send_request(actor(), "m", on_busy="reject")
        gate.opened.set()
        asked.result()


def test_a_turn_may_cancel_its_own_request() -> None:
    """Nothing is waited for, so it does not wait for itself."""

    def receive(context: Any, message: Any) -> Any:
        own = runtime.client().get_request(actor(), message.message_id)
        told.append(own.cancel())
        context.check()

    told: list[str] = []
    with running(receive) as runtime:
        handle = runtime.client().send_request(actor(), "m")
        assert handle.get_response(5 * SLOW).status is RequestStatus.CANCELLED
    assert told == ["requested"]


def test_a_future_is_told_of_an_end_in_another_process(tmp_path: Path) -> None:
    """Though no thread waits for it here."""
    url = f"sqlite:///{tmp_path}/actors.db"
    seldom = RuntimeOptions(sweep_every=60.0)

    def receive(*_: Any) -> int:
        return 7

    with running(receive, storage=url, runtime_options=seldom) as there:
        there.client().ask(actor(), "m")  # it lives there
        with running(receive, storage=url, runtime_options=seldom) as here:
            handle = here.client().send_request(actor(), "m")
            future = handle.future()
            there.sweep()
            ended = there.client().get_request(actor(), handle.message_id)
            assert ended.result(5 * SLOW) == 7
            here.engine._hinted(Hint(HintKind.ENDED, actor(), handle.message_id))
            assert future.result(5 * SLOW) == 7


def test_a_request_that_its_caller_runs_is_found_by_its_id() -> None:
    """It is pending while it runs, can be cancelled, and has one end for all."""
    gate, ids = Gate(), []

    def receive(context: Any, message: Any) -> int:
        ids.append(message.message_id)
        gate()
        context.check()
        return 7

    with running(receive) as runtime, ThreadPoolExecutor(1) as pool:
        client = runtime.client()
        for cancelled in (False, True):
            asked = pool.submit(client.ask, actor(), "m")
            gate.wait()
            handle = client.get_request(actor(), ids[-1])
            assert handle.try_get_response() is None
            with pytest.raises(ResponseTimeoutError):
                handle.get_response(0.01)
            if cancelled:
                assert handle.cancel() == "requested"
            gate.opened.set()
            response = handle.get_response(5 * SLOW)
            assert response.status is asked.result().status
            assert (response.status is RequestStatus.CANCELLED) is cancelled
            assert client.get_request(actor(), ids[-1]).get_response(0) is not None
            gate.reached.clear()
            gate.opened.clear()
