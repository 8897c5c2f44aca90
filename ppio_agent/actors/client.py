"""What callers in this process use: the client of a runtime, and its handles."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from ppio_agent.exceptions import ResponseTimeoutError
from ppio_agent.storage.actors.records import Cancelled
from ppio_agent.wire.actors import (
    ActorId,
    ActorRequestMessage,
    ActorResponseMessage,
    RequestStatus,
    check_message_id,
)

from . import _progress, _send, _waiting
from ._answers import result_of
from ._call import Call
from ._checks import (
    check_actor_id,
    check_count,
    check_message,
    check_seconds,
    keep_origin,
    seconds_until,
)
from .runtime_abstractions import ActorResponseHandle, IActorClient, OnBusy, Params

if TYPE_CHECKING:
    from ._engine import Engine
    from ._turn import Turn
    from .runtime import InProcessActorRuntime

__all__ = ["InProcessActorClient", "InProcessResponseHandle"]


class InProcessResponseHandle(ActorResponseHandle):
    """A hold on one request of a runtime in this process."""

    __slots__ = ("_engine", "_held", "actor_id", "message_id")

    def __init__(self, engine: Engine, call: Call) -> None:
        self.actor_id = call.actor_id
        self.message_id = call.message_id
        self._engine = engine
        self._held = call

    def _call(self) -> Call:
        call = self._held
        if not call.listed and not call.over:
            call = self._held = _waiting.join(
                self._engine, self.actor_id, self.message_id
            )
        return call

    def get_response(self, timeout: float | None = None) -> ActorResponseMessage:
        """Wait for the final response; see `ActorResponseHandle.get_response`."""
        if timeout is not None:
            check_seconds("timeout", timeout)
        call = self._held
        if not call.over:
            call = self._call()
            if not _waiting.wait(self._engine, call, timeout):
                raise ResponseTimeoutError(
                    f"request {self.message_id} to {self.actor_id} has not ended within"
                    f" {timeout} s: it goes on",
                    actor_id=str(self.actor_id),
                    message_id=self.message_id,
                )
        return call.response()

    def try_get_response(self) -> ActorResponseMessage | None:
        """Return the final response if there is one."""
        call = self._call()
        if not call.over and self._engine.store.shared:
            _waiting.look(self._engine, call)
        return call.response() if call.over else None

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end and return the result."""
        return result_of(self.get_response(timeout))

    def watch_updates(self, after: int = 0) -> Iterator[ActorResponseMessage]:
        """Yield each step after number `after`, then the final response, once."""
        check_count("after", after)
        return _progress.watch(self._engine, self._call(), after)

    def read_updates(
        self, after: int, timeout: float | None
    ) -> list[ActorResponseMessage]:
        """Return steps after number `after`, or the final response if there are none.

        Args:
            after: Number of the last step that is known.
            timeout: Seconds to wait for one; None: as long as it takes.

        Returns:
            None of them if none came in time.
        """
        return _progress.read(self._engine, self._call(), after, timeout)

    def last_seen(self) -> int:
        """Return a number above which nobody can have seen a step, by the store."""
        return _progress.last_seen(self._engine, self._held)

    def cancel(self, wait: float = 0.0) -> str:
        """Ask for the end; see `ActorResponseHandle.cancel`."""
        check_seconds("wait", wait)
        engine = self._engine
        outcome: Cancelled = engine.cancel(self.actor_id, self.message_id)
        if outcome is Cancelled.REQUESTED:
            call = self._call()
            if call.over if wait <= 0.0 else _waiting.wait(engine, call, wait):
                ended = call.status is RequestStatus.CANCELLED
                outcome = Cancelled.CANCELLED if ended else Cancelled.TERMINAL
        return str(outcome.value)

    def future(self) -> Future[Any]:
        """Return a future of `result`; its `cancel` does not cancel the request."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        while True:
            call = self._call()
            if self._engine.calls.on_end(call, partial(_settle, future, call)):
                return future
            if call.over:
                _settle(future, call)
                return future

    def __repr__(self) -> str:
        return f"<request {self.message_id} to {self.actor_id}>"


def _settle(future: Future[Any], call: Call) -> None:
    try:
        future.set_result(result_of(call.response()))
    except Exception as error:  # noqa: BLE001 - all of it is the future's to tell
        future.set_exception(error)


class InProcessActorClient(IActorClient):
    """Sends requests to the actors of one runtime.

    Args:
        runtime: The runtime; it has to be started before requests are sent.

    Thread safety: thread-safe.
    """

    def __init__(self, runtime: InProcessActorRuntime) -> None:
        self._runtime = runtime

    def send_request(
        self,
        actor_id: ActorId,
        method: str,
        params: Params = None,
        message_id: str | None = None,
        *,
        deadline: float | None = None,
        on_busy: OnBusy = "enqueue",
        block: float = 0.0,
    ) -> InProcessResponseHandle:
        """Send a request; see `IActorClient.send_request`."""
        engine = self._runtime.engine
        request = _send.request_of(actor_id, method, params, message_id)
        call = _send.send(
            engine, request, deadline=deadline, on_busy=on_busy, block=block
        )
        return InProcessResponseHandle(engine, call)

    def ask(
        self,
        actor_id: ActorId,
        method: str,
        params: Params = None,
        message_id: str | None = None,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        on_busy: OnBusy = "enqueue",
    ) -> ActorResponseMessage:
        """Send a request and wait for its final response; see `IActorClient.ask`."""
        engine = self._runtime.engine
        request = _send.request_of(actor_id, method, params, message_id)
        if timeout is not None:
            check_seconds("timeout", timeout)
        # A thread cannot time itself out.
        here = timeout is None and deadline is None
        if here and message_id is None and on_busy == "enqueue":
            turn = engine.ask_here(request)
            if turn is not None:
                return turn.response()
        call = _send.send(
            engine, request, deadline=deadline, on_busy=on_busy, here=here
        )
        return InProcessResponseHandle(engine, call).get_response(timeout)

    def ask_here(
        self, actor_id: ActorId, method: str, params: Params = None
    ) -> Turn | None:
        """Run a request on this thread if its actor is idle, as most of `ask` does.

        Returns:
            The turn, which has ended; None: it was not run.
        """
        request = _send.request_of(actor_id, method, params, None)
        return self._runtime.engine.ask_here(request)

    def forward(
        self, actor_id: ActorId, message: ActorRequestMessage
    ) -> InProcessResponseHandle:
        """Send a whole message to an actor; see `InProcessActorContext.send_request`."""
        engine = self._runtime.engine
        check_message(message)
        message_id = check_message_id(message.message_id)
        request = _send.request_of(actor_id, message.method, message.params, message_id)
        keep_origin(request, message)
        deadline = seconds_until(message.deadline, time.time())
        call = _send.send(engine, request, deadline=deadline)
        return InProcessResponseHandle(engine, call)

    def get_request(
        self, actor_id: ActorId, message_id: str
    ) -> InProcessResponseHandle:
        """Return the hold on a request; see `IActorClient.get_request`."""
        engine = self._runtime.engine
        check_actor_id(actor_id)
        call = _waiting.join(engine, actor_id, check_message_id(message_id))
        return InProcessResponseHandle(engine, call)
