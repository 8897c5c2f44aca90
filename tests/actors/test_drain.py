"""Turns: one at a time, in order, each with an answer."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ppio_agent.actors import (
    ActorOptions,
    ActorResponseMessage,
    IActor,
    InMemoryStateStorage,
    InProcessActorRuntime,
    RequestStatus,
    RuntimeOptions,
    Supervision,
)
from ppio_agent.exceptions import RuntimeOverloadedError, ServiceUnavailableError
from ppio_agent.storage.actors.records import RequestRecord, SetValue
from tests.support import SLOW, new_threads, wait_until

from .support import Gate, Made, actor, running

_PATIENT = Supervision(max_restarts=1000, backoff=0.0)


def test_no_turn_is_lost_or_overlaps() -> None:
    """Two threads send to one actor, whose counter has no lock, as fast as they can."""
    count = 3_000
    busy: list[int] = []
    overlaps: list[int] = []
    counter = {"n": 0}

    def receive(_context: Any, message: Any) -> int:
        if busy:
            overlaps.append(1)
        busy.append(1)
        counter["n"] += 1
        busy.pop()
        return message.params["i"]

    with running(receive, mailbox_policy="block") as runtime:
        client = runtime.client()

        def send(_n: int) -> list[int]:
            handles = [
                client.send_request(actor(), "m", {"i": i}, block=60.0)
                for i in range(count)
            ]
            return [handle.result(30 * SLOW) for handle in handles]

        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(send, range(2)))
    assert answers == [list(range(count))] * 2
    assert (counter["n"], overlaps) == (2 * count, [])


def test_no_message_is_left_behind() -> None:
    """Of four clients that send to, and ask, many actors at once."""
    last: dict[str, list[int]] = {}
    wrong: list[Any] = []

    def receive(context: Any, message: Any) -> int:
        sender, i = message.params["sender"], message.params["i"]
        before = last.setdefault(f"{context.actor_id} {sender}", [])
        if before and before[-1] >= i:
            wrong.append((context.actor_id, sender, before[-1], i))
        before.append(i)
        return i

    with running(receive) as runtime:
        client = runtime.client()
        start = threading.Barrier(4)

        def send(sender: int) -> None:
            start.wait()
            handles = []
            for i in range(1_000):
                params = {"sender": sender, "i": i}
                to = actor(str(i * 7 % 20))
                if (i + sender) % 3:
                    handles.append(client.send_request(to, "m", params))
                else:
                    assert client.ask(to, "m", params).data == i
                if len(handles) > 50:
                    handles.pop(0).result(20 * SLOW)
            for handle in handles:
                handle.result(20 * SLOW)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(send, range(4)))
        assert sum(len(one) for one in last.values()) == 4_000
        assert wrong == []
        wait_until(lambda: runtime.stats()["busy"] == 0)
        assert runtime.stats()["pending"] == runtime.stats()["awaited"] == 0


class _Odd:
    """Not JSON."""


@pytest.mark.parametrize(
    ("method", "code"),
    [
        ("raise", "actor_failed"),
        ("exit", "actor_failed"),
        ("none", "no_response"),
        ("odd", "not_serializable"),
        ("large", "result_too_large"),
        ("twice", "actor_failed"),
        ("other", "actor_failed"),
        ("pending", "actor_failed"),
    ],
)
def test_whatever_a_turn_does_it_ends_in_an_answer(method: str, code: str) -> None:
    """Nothing that a failed one wrote is kept, and the next is answered."""

    def receive(context: Any, message: Any) -> Any:
        done = ActorResponseMessage("x", status=RequestStatus.COMPLETED)
        if message.method == "read":
            return {"x": context.read_state("x")}
        context.write_state("x", 1)
        if message.method == "raise":
            raise ValueError("why")
        if message.method == "exit":
            raise SystemExit
        if message.method == "twice":
            context.complete_request(message.message_id, done)
            context.complete_request(message.message_id, done)
        if message.method == "other":
            context.complete_request("another", done)
        if message.method == "pending":
            context.complete_request(message.message_id, ActorResponseMessage("x"))
        return {"odd": _Odd(), "large": "x" * 5_000_000}.get(message.method)

    with running(receive, supervision=_PATIENT) as runtime:
        client = runtime.client()
        for ask in (
            lambda: client.ask(actor(), method),
            lambda: client.send_request(actor(), method).get_response(5 * SLOW),
        ):
            response = ask()
            assert response.status is RequestStatus.FAILED
            assert response.data["code"] == code
        assert client.ask(actor(), "read").data == {"x": None}


def test_a_factory_that_fails_is_asked_again() -> None:
    """The request that needed it fails."""
    made: list[int] = []

    def factory(_context: Any) -> Any:
        made.append(1)
        if len(made) == 1:
            raise ValueError("not now")
        return Made(lambda *_: 1) if len(made) > 2 else object()

    runtime = InProcessActorRuntime()
    runtime.register_actor_type(
        "t", factory, options=ActorOptions(supervision=_PATIENT)
    )
    with runtime:
        data = [runtime.client().ask(actor(), "m").data for _ in range(3)]
        assert [one if one == 1 else one["code"] for one in data] == [
            "actor_failed",
            "actor_failed",
            1,
        ]


def test_a_failing_dispose_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    """It is called once an activation."""
    disposed: list[int] = []

    class Sour(IActor):
        def receive(self, _context: Any, _message: Any) -> int:
            return 1

        def dispose(self) -> None:
            disposed.append(1)
            raise ValueError("no")

    runtime = InProcessActorRuntime()
    runtime.register_actor_type("t", lambda _: Sour())
    with runtime:
        assert runtime.client().ask(actor(), "m").data == 1
    assert disposed == [1]
    assert "failed to dispose" in caplog.text


def test_failures_tell_their_text_in_debug_only() -> None:
    """Callers get to know it if the options say so."""

    def receive(*_: Any) -> None:
        raise ValueError("the reason")

    options = RuntimeOptions(debug=True)
    with running(receive, runtime_options=options) as runtime:
        data = runtime.client().ask(actor(), "m").data
        assert data["error"] == "ValueError: the reason"


def test_ctrl_c_in_a_turn_on_the_asking_thread_reaches_the_program() -> None:
    """The request fails, and is over."""

    def receive(*_: Any) -> None:
        raise KeyboardInterrupt

    with running(receive) as runtime:
        with pytest.raises(KeyboardInterrupt):
            runtime.client().ask(actor(), "m")
        with pytest.raises(KeyboardInterrupt):
            runtime.client().ask(actor("2"), "m", message_id="m-1")
        response = runtime.client().get_request(actor("2"), "m-1").get_response(1)
        assert response.status is RequestStatus.FAILED


def test_what_an_actor_raises_elsewhere_does_not_reach_the_program() -> None:
    """On any other thread than the main one nobody has pressed Ctrl-C."""

    def receive(*_: Any) -> None:
        raise KeyboardInterrupt

    with running(receive, supervision=_PATIENT) as runtime:
        response = runtime.client().send_request(actor(), "m").get_response(10 * SLOW)
        assert response.status is RequestStatus.FAILED
        with ThreadPoolExecutor(1) as pool:
            response = pool.submit(runtime.client().ask, actor(), "m").result()
        assert response.status is RequestStatus.FAILED


def test_an_actor_may_be_async() -> None:
    """Its coroutine is driven by the thread of the turn."""

    async def receive(context: Any, _message: Any) -> int:
        context.write_state("x", 1)
        return 7

    with running(receive) as runtime:
        assert runtime.client().ask(actor(), "m").data == 7


class _Looping(IActor):
    def __init__(self, behave: str) -> None:
        self.behave = behave

    def run(self, context: Any) -> None:
        if self.behave == "deaf":
            return
        if self.behave == "default":
            super().run(context)
            return
        for message in context.watch_messages():
            data = {"method": message.method}
            context.complete_request(
                message.message_id,
                ActorResponseMessage("x", status=RequestStatus.COMPLETED, data=data),
            )
            if self.behave == "breaks":
                break

    def receive(self, _context: Any, message: Any) -> Any:
        return {"method": message.method}


@pytest.mark.parametrize("behave", ["loops", "breaks", "default"])
def test_an_actor_may_have_a_loop_of_its_own(behave: str) -> None:
    """One turn for each message, also if it leaves the loop."""
    runtime = InProcessActorRuntime()
    runtime.register_actor_type("t", lambda _: _Looping(behave))
    with runtime:
        client = runtime.client()
        handles = [client.send_request(actor(), f"m{n}") for n in range(5)]
        methods = [handle.result(5 * SLOW)["method"] for handle in handles]
        assert methods == [f"m{n}" for n in range(5)]


def test_a_loop_that_takes_no_message_has_no_response() -> None:
    """It does not spin."""
    runtime = InProcessActorRuntime()
    runtime.register_actor_type("t", lambda _: _Looping("deaf"))
    with runtime:
        data = runtime.client().ask(actor(), "m").data
        assert data["code"] == "no_response"


def test_others_have_their_chance_beside_an_actor_that_is_never_done() -> None:
    """With a single thread."""
    options = RuntimeOptions(workers=1)
    turns: list[str] = []
    gate = Gate()

    def receive(context: Any, _message: Any) -> int:
        gate()
        turns.append(context.actor_id.instance_id)
        return 1

    with running(receive, runtime_options=options) as runtime:
        client = runtime.client()
        handles = [client.send_request(actor("busy"), "m") for _ in range(90)]
        gate.wait()
        handles.append(client.send_request(actor("other"), "m"))
        gate.opened.set()
        for handle in handles:
            handle.result(10 * SLOW)
    assert 0 < turns.index("other") <= 33


def test_a_turn_whose_state_others_changed_is_run_again() -> None:
    """At most three times; then it fails."""
    store = InMemoryStateStorage()
    left = [2]

    def receive(context: Any, _message: Any) -> Any:
        value = context.read_state("x") or 0
        if left[0] > 0:
            left[0] -= 1
            store.write(actor(), [SetValue("x", b"10")])
        context.write_state("x", value + 1)
        return {"x": value + 1}

    with running(receive, storage=store) as runtime:
        client = runtime.client()
        assert client.ask(actor(), "m").data == {"x": 11}
        left[0] = 100
        response = client.send_request(actor(), "m").get_response(5 * SLOW)
        assert response.data["code"] == "state_conflict"
        left[0] = 0
        assert client.ask(actor(), "m").data == {"x": 11}


def test_a_commit_that_the_store_cannot_take_now_is_tried_again() -> None:
    """The turn is not run again for it."""
    turns: list[int] = []

    class Flaky(InMemoryStateStorage):
        failures = 2

        def commit(self, lease: Any, turn: Any) -> Any:
            if self.failures:
                self.failures -= 1
                raise ServiceUnavailableError("the store is away")
            return super().commit(lease, turn)

    def receive(*_: Any) -> int:
        turns.append(1)
        return 1

    with running(receive, storage=Flaky()) as runtime:
        assert runtime.client().send_request(actor(), "m").result(10 * SLOW) == 1
        assert turns == [1]


class _Choosy(InMemoryStateStorage):
    """Keeps no state, and nothing at all that is called `bad`."""

    def commit(self, lease: Any, turn: Any) -> Any:
        if turn.state or turn.message_id == "bad":
            raise OverflowError("too large for the store")
        return super().commit(lease, turn)


@pytest.mark.parametrize("here", [True, False])
def test_what_a_store_cannot_keep_ends_the_request_at_once(
    caplog: pytest.LogCaptureFixture,
    here: bool,
) -> None:
    """The turn is not run again, and the actor has not crashed."""
    turns: list[str] = []

    def receive(context: Any, message: Any) -> int:
        turns.append(message.method)
        if message.method == "write":
            context.write_state("key", 1)
            context.tell(actor("2"), "never")
        return len(turns)

    with running(receive, storage=_Choosy()) as runtime:
        client = runtime.client()

        def ask(method: str) -> ActorResponseMessage:
            if here:
                return client.ask(actor(), method)
            return client.send_request(actor(), method).get_response(10 * SLOW)

        response = ask("write")
        assert response.status is RequestStatus.FAILED
        assert response.data["code"] == "commit_failed"
        assert ask("other").data == 2
        assert turns == ["write", "other"]
    assert "cannot keep what request" in caplog.text


def test_a_store_that_keeps_nothing_of_a_request_is_told_to_its_caller() -> None:
    """As it is not for what the turn has done."""
    with running(lambda *_: 1, storage=_Choosy()) as runtime:
        cell = runtime.engine.cell(actor())
        request = RequestRecord(actor(), "bad", "m")
        with pytest.raises(OverflowError):
            runtime.engine.ask_here(request)
        assert runtime.client().ask(actor(), "m").data == 1
        assert not cell.flag.locked()


def test_a_store_that_stays_away_costs_an_attempt_and_no_request() -> None:
    """The sweep finds what waits once it is back."""
    turns: list[int] = []
    away = threading.Event()
    away.set()

    class Away(InMemoryStateStorage):
        def take(self, lease: Any, *, crash_attempts: int = 3) -> Any:
            if away.is_set():
                raise OSError("the store is away")
            return super().take(lease, crash_attempts=crash_attempts)

    def receive(context: Any, _message: Any) -> int:
        turns.append(context.attempt)
        return 1

    options = RuntimeOptions(sweep_every=0.1)
    with running(receive, storage=Away(), runtime_options=options) as runtime:
        handle = runtime.client().send_request(actor(), "m")
        away.clear()
        assert handle.result(10 * SLOW) == 1
        assert turns == [1]


def test_turns_that_wait_for_others_do_not_use_the_workers_up() -> None:
    """Each request ends, with an answer or because too many threads wait."""
    gate = Gate()
    options = RuntimeOptions(workers=8)

    def receive(context: Any, message: Any) -> Any:
        if message.method == "slow":
            gate()
            return 1
        try:
            return context.ask(actor("busy"), "quick")
        except RuntimeOverloadedError:
            return "overloaded"

    started = new_threads("ppio-actor-")
    with running(
        lambda c, m: 1 if m.method == "quick" else receive(c, m),
        runtime_options=options,
        mailbox_limit=1000,
    ) as runtime:
        client = runtime.client()
        slow = client.send_request(actor("busy"), "slow")
        gate.wait()
        handles = [client.send_request(actor(str(n)), "ask") for n in range(200)]
        wait_until(lambda: sum(h.try_get_response() is not None for h in handles) > 0)
        assert len(started()) <= 4 * 8 + 8
        gate.opened.set()
        answers = [handle.result(20 * SLOW) for handle in handles]
        assert set(answers) == {1, "overloaded"}
        assert slow.result(5 * SLOW) == 1


def test_whatever_an_exception_says_ends_in_an_answer() -> None:
    """Also a text that has no JSON form, and one that cannot be had."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    def receive(_context: Any, message: Any) -> Any:
        raise Mute if message.method == "mute" else OSError("no file \udcff")

    options = RuntimeOptions(debug=True)
    rests = Supervision(strategy="resume")
    with running(receive, runtime_options=options, supervision=rests) as runtime:
        ask = runtime.client().ask
        assert ask(actor(), "odd").data["error"] == "OSError: no file ?"
        assert ask(actor(), "mute").data["error"] == "Mute: Mute"


def test_a_turn_that_is_run_again_gets_its_message_anew() -> None:
    """Whatever the first run has done to the one it got."""
    store = InMemoryStateStorage()
    runs: list[int] = []

    def receive(context: Any, message: Any) -> Any:
        runs.append(1)
        context.read_state("n")
        got = []
        while message.params["items"]:
            got.append(message.params["items"].pop())
        if len(runs) == 1:
            store.write_state(actor(), {"n": 9})
        context.write_state("n", 1)
        return got

    with running(receive, storage=store) as runtime:
        response = runtime.client().ask(actor(), "m", {"items": [1, 2, 3]})
        assert (response.data, len(runs)) == ([3, 2, 1], 2)
