"""How requests get into mailboxes, beside others, deadlines and the end of a runtime."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from ppio_agent.actors import (
    InMemoryStateStorage,
    InProcessActorRuntime,
    RequestStatus,
)
from ppio_agent.exceptions import MailboxFullError, RuntimeStoppedError
from ppio_agent.storage.actors.records import Acceptance, Accepted
from tests.support import wait_until

from .support import Gate, Made, actor, running


class _Slow(InMemoryStateStorage):
    """Waits before the first accept, or answers it by itself."""

    def __init__(self, answer: Accepted | None = None) -> None:
        super().__init__()
        self.answer = answer
        self.gate = Gate()
        self.first = True

    def accept(self, request: Any, limits: Any) -> Accepted:
        if self.first:
            self.first = False
            self.gate()
            if self.answer is not None:
                return self.answer
        return super().accept(request, limits)


class _Sender(threading.Thread):
    """Sends a request, and waits for its end."""

    def __init__(self, runtime: InProcessActorRuntime, **options: Any) -> None:
        super().__init__(daemon=True)
        self.runtime = runtime
        self.options = options
        self.result: Any = None
        self.start()

    def run(self) -> None:
        try:
            client = self.runtime.client()
            handle = client.send_request(actor(), "x", message_id="m", **self.options)
            self.result = handle.get_response(20.0).status
        except Exception as error:
            self.result = type(error)

    def told(self) -> Any:
        self.join(20.0)
        return self.result


@pytest.mark.parametrize(
    ("durable", "result"),
    [(False, RequestStatus.CANCELLED), (True, RuntimeStoppedError)],
)
def test_a_request_that_is_accepted_as_the_runtime_stops_has_an_end(
    *, durable: bool, result: Any
) -> None:
    """Cancelled where nobody would ever run it; else it is kept."""
    store = _Slow()
    store.durable = durable
    with running(lambda _context, _message: 1, storage=store) as runtime:
        sender = _Sender(runtime)
        store.gate.wait()
        runtime.stop(0.0)
        store.gate.opened.set()
        assert sender.told() == result


def test_a_refused_request_leaves_no_timer() -> None:
    """Nor does it wait for its deadline in any other way."""
    gate = Gate()
    with running(lambda _context, _message: gate(), mailbox_limit=1) as runtime:
        client = runtime.client()
        client.send_request(actor(), "x")
        gate.wait()
        before = runtime.stats()
        for _ in range(3):
            with pytest.raises(MailboxFullError):
                client.send_request(actor(), "y", deadline=3600.0)
        after = runtime.stats()
        gate.opened.set()
        assert (after["timers"], after["awaited"]) == (
            before["timers"],
            before["awaited"],
        )


def test_a_deadline_that_passes_before_the_accept_is_told_as_that() -> None:
    """Not as if the request had never been there."""
    store = _Slow()
    with running(lambda _context, _message: 1, storage=store) as runtime:
        sender = _Sender(runtime, deadline=0.02)
        store.gate.wait()
        wait_until(lambda: runtime.sweep() == 0)
        assert not threading.Event().wait(0.05)
        store.gate.opened.set()
        assert sender.told() is RequestStatus.EXPIRED


def test_the_refusal_of_one_sender_keeps_nothing_from_another() -> None:
    """Two send the same request; it is accepted for one of them only."""
    store, gate = _Slow(Accepted(Acceptance.FULL)), Gate()
    runtime = InProcessActorRuntime(store)

    def receive(_context: Any, _message: Any) -> int:
        gate()
        return 1

    runtime.register_actor_type("t", lambda _context: Made(receive))
    with runtime:
        first = _Sender(runtime)
        store.gate.wait()
        handle = runtime.client().send_request(actor(), "x", message_id="m")
        future = handle.future()
        store.gate.opened.set()
        assert first.told() is MailboxFullError
        gate.opened.set()
        assert future.result(10.0) == 1
