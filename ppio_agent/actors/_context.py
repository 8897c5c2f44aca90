"""What an actor sees of its runtime."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from ppio_agent.agent import CancelToken
from ppio_agent.agent.loop import AsyncCall
from ppio_agent.exceptions import (
    ActorError,
    InvocationCancelledError,
    InvocationTimeoutError,
)
from ppio_agent.storage.actors import IActorStore
from ppio_agent.storage.actors.records import SetReminder
from ppio_agent.wire.actors import (
    ActorId,
    ActorRequestMessage,
    ActorResponseMessage,
)

from . import _nested, _progress, _reminders, _state
from ._send import encode_params
from .runtime_abstractions import ActorResponseHandle, IActorRuntimeContext, Params

if TYPE_CHECKING:
    from ._turn import Turn
    from .runtime import InProcessActorRuntime

__all__ = ["InProcessActorContext"]


class InProcessActorContext(IActorRuntimeContext):
    """One actor of a runtime in this process.

    What belongs to a turn (`write_state`, `progress`, `ask`, …) can be used in a turn
    only; elsewhere it raises `ActorError`.

    Args:
        actor_id: The actor.
        storage: Where it is kept.
        runtime: Which runs it.
    """

    __slots__ = ("_runtime", "_store", "_turn", "actor_id")

    def __init__(
        self, actor_id: ActorId, storage: IActorStore, runtime: InProcessActorRuntime
    ) -> None:
        self.actor_id = actor_id
        self._store = storage
        self._runtime = runtime
        self._turn: Turn | None = None

    def _now(self) -> Turn:
        turn = self._turn
        if turn is None:
            raise ActorError(
                f"actor {self.actor_id} runs no turn: this can be used in a turn only",
                actor_id=str(self.actor_id),
            )
        return turn

    # The turn.

    @property
    def attempt(self) -> int:
        """How many turns were begun for this request, this one included."""
        return self._now().record.attempt or 1

    @property
    def deadline(self) -> float | None:
        """When the turn has to have ended, by `time.monotonic`; None: no limit."""
        return self._now().deadline

    @property
    def cancelled(self) -> CancelToken:
        """Whether, and why, the turn's end was asked for."""
        return self._now().cancelled

    def time_left(self) -> float | None:
        """Return the seconds until the deadline, never negative; None: no limit."""
        deadline = self._now().deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def check(self) -> None:
        """Return if the turn may go on; see `IActorRuntimeContext.check`."""
        turn = self._now()
        message_id, reason = turn.record.message_id, turn.reason
        if reason == "deadline" or self.time_left() == 0.0:
            turn.cancel("deadline")  # if this one sees it before the timer
            raise InvocationTimeoutError(
                f"request {message_id} to {self.actor_id} passed its deadline",
                invocation_id=message_id,
            )
        if reason is not None:
            raise InvocationCancelledError(
                f"request {message_id} to {self.actor_id} was cancelled ({reason})",
                invocation_id=message_id,
            )

    def watch_messages(self) -> Iterator[ActorRequestMessage]:
        """Yield the message of this turn, the only one of its slice."""
        yield self._now().message

    def settle(self, value: Any) -> Any:
        """Return a value; of a coroutine wait for what it gives."""
        if type(value) is CoroutineType:
            return AsyncCall(self._now().cancelled).result(value)
        return value

    def complete_request(self, message_id: str, response: ActorResponseMessage) -> None:
        """Say what becomes of the request of this turn; released with its commit."""
        self._now().answer(message_id, response.status, response.data)

    def keep(self) -> None:
        """Keep what this turn wrote if it is interrupted by another request."""
        self._now().keep = True

    # Progress.

    def on_progress_update(
        self, message_id: str, sequence_number: int, data: Any
    ) -> None:
        """Tell watchers a step; one whose number is not above the last is dropped."""
        _progress.tell(
            self._runtime.engine, self._now(), data, sequence_number, message_id
        )

    def progress(self, data: Any) -> None:
        """Tell watchers the next step."""
        turn = self._now()
        _progress.tell(self._runtime.engine, turn, data, turn.sequence + 1)

    # State.

    def read_state(self, key: str) -> Any | None:
        """Return a copy of a value, as this turn left it; None if there is none."""
        return _state.read(self._store, self.actor_id, self._turn, key)

    def read_states(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return copies of the values under those keys that there are, in one go."""
        return _state.read_many(self._store, self.actor_id, self._turn, keys)

    def write_state(self, key: str, value: Any) -> bool:
        """Set a value, a copy of it, with the commit of this turn; return True."""
        _state.write(self._store, self._now(), key, value)
        return True

    def remove_state(self, key: str) -> bool:
        """Remove a value with the commit of this turn; return whether there is one."""
        return _state.remove(self._store, self._now(), key)

    def list_keys(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with `prefix`, sorted, as this turn left them."""
        return _state.list_keys(self._store, self.actor_id, self._turn, prefix)

    # Other actors.

    def ask(
        self,
        actor_id: ActorId,
        method: str,
        params: Params = None,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Ask another actor and wait; return the result."""
        turn = self._now()
        return _nested.ask(
            self._runtime.engine, turn, actor_id, method, params, timeout=timeout
        )

    def tell(
        self,
        actor_id: ActorId,
        method: str,
        params: Params = None,
        *,
        delay: float = 0.0,
    ) -> str:
        """Send a request with the commit of this turn; return its id."""
        turn = self._now()
        return _nested.tell(
            self._runtime.engine, turn, actor_id, method, params, delay=delay
        )

    # Time.

    def set_timer(
        self,
        name: str,
        due: float | datetime,
        method: str,
        params: Params = None,
        *,
        period: float | None = None,
    ) -> None:
        """Send a request to itself later; forgotten with the activation."""
        wanted = self._wanted(name, due, method, params, period=period)
        _reminders.set_timer(self._runtime.engine, self._now(), wanted)

    def cancel_timer(self, name: str) -> bool:
        """Forget a timer; return whether there was one."""
        return _reminders.cancel_timer(self._now(), name)

    def set_reminder(
        self,
        name: str,
        due: float | datetime,
        method: str,
        params: Params = None,
        *,
        period: float | None = None,
        count: int | None = None,
    ) -> None:
        """Send a request to itself later, even after a restart; set with the commit."""
        wanted = self._wanted(name, due, method, params, period=period, count=count)
        _reminders.set_reminder(self._runtime.engine, self._now(), wanted)

    def cancel_reminder(self, name: str) -> bool:
        """Forget a reminder with the commit of this turn; return True."""
        _reminders.cancel_reminder(self._now(), name)
        return True

    def _wanted(
        self,
        name: str,
        due: float | datetime,
        method: str,
        params: Params,
        *,
        period: float | None,
        count: int | None = None,
    ) -> SetReminder:
        return SetReminder(
            name,
            _reminders.due_at(self._store.now(), due),
            method,
            encode_params(method, params),
            period,
            count,
        )

    # Requests to this actor, from outside.

    def send_request(self, request: ActorRequestMessage) -> ActorResponseHandle:
        """Send a request to this actor as it is, but for its `timestamp`.

        The actor sees where it came from: `sender_id`, `chain`, `traceparent`.

        Raises:
            InvalidMessageError: The message is no request that can be sent.
            PPIOAgentError: As `IActorClient.send_request`.
        """
        return self._runtime.client().forward(self.actor_id, request)

    def enqueue_message(self, message: ActorRequestMessage) -> None:
        """Send a request to this actor whose response nobody waits for."""
        self.send_request(message)
