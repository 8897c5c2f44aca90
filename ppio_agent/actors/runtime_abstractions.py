"""What actors, their callers and their runtime know of each other.

An actor sees an `IActorRuntimeContext`; callers see an `IActorClient`, which gives an
`ActorResponseHandle` for each request. Messages and stores are re-exported from the
layers below.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import Any, Literal, Protocol

from ppio_agent.agent import CancelToken
from ppio_agent.storage.actors import IActorStateStorage, IActorStore
from ppio_agent.wire.actors import (
    ActorId,
    ActorMessage,
    ActorMessageType,
    ActorRequestMessage,
    ActorResponseMessage,
    RequestStatus,
)

__all__ = [
    "ActorId",
    "ActorMessage",
    "ActorMessageType",
    "ActorRequestMessage",
    "ActorResponseHandle",
    "ActorResponseMessage",
    "IActor",
    "IActorClient",
    "IActorPlacement",
    "IActorRuntimeContext",
    "IActorStateStorage",
    "IActorStore",
    "OnBusy",
    "Params",
    "RequestStatus",
]

OnBusy = Literal["enqueue", "reject", "interrupt", "rollback"]
Params = Mapping[str, Any] | None


class IActor(ABC):  # noqa: B024 - an actor overrides one of two methods, neither is a must
    """What is written to be an actor: one turn at a time, never two at once.

    Overrides `receive`, or `run` if it wants to keep a loop of its own.
    """

    def run(self, context: IActorRuntimeContext) -> None:
        """Handle the messages of one slice; called again for the next one.

        A turn lasts from the yield of its message to the next step of the iterator, or
        the end of this method. By default each message is given to `receive`.
        """
        for message in context.watch_messages():
            value = context.settle(self.receive(context, message))
            if value is not None:
                response = ActorResponseMessage(
                    message.message_id, status=RequestStatus.COMPLETED, data=value
                )
                context.complete_request(message.message_id, response)

    def receive(
        self, context: IActorRuntimeContext, message: ActorRequestMessage
    ) -> Any:
        """Handle one message: a turn.

        Args:
            context: State, time, other actors.
            message: The request.

        Returns:
            A JSON value, which completes the request; may be a coroutine's
            (`async def`). None is no response: the request fails, code `no_response`,
            unless `context.complete_request` was called, which may also say null.
        """
        raise TypeError(
            f"{type(self).__name__} overrides neither receive nor run, so that"
            f" {context.actor_id} cannot answer {message.method!r}"
        )

    def dispose(self) -> None:  # noqa: B027 - most actors hold nothing
        """Let go of what it holds; called once an activation, on any way out."""


class IActorRuntimeContext(ABC):
    """What an actor knows of itself and its turn.

    Thread safety: the thread of the turn, but for `cancelled`.
    """

    __slots__ = ()

    actor_id: ActorId

    @property
    @abstractmethod
    def attempt(self) -> int:
        """How many turns were begun for this request, this one included."""

    @property
    @abstractmethod
    def deadline(self) -> float | None:
        """When the turn has to have ended, by `time.monotonic`; None: no limit."""

    @property
    @abstractmethod
    def cancelled(self) -> CancelToken:
        """Whether, and why, the turn's end was asked for."""

    @abstractmethod
    def time_left(self) -> float | None:
        """Return the seconds until the deadline, never negative; None: no limit."""

    @abstractmethod
    def check(self) -> None:
        """Return if the turn may go on.

        Raises:
            InvocationCancelledError: Its end was asked for.
            InvocationTimeoutError: Its deadline has passed.
        """

    @abstractmethod
    def watch_messages(self) -> Iterator[ActorRequestMessage]:
        """Yield the messages of this slice; `run` is called again for the next one."""

    @abstractmethod
    def settle(self, value: Any) -> Any:
        """Return a value; of a coroutine wait for what it gives."""

    @abstractmethod
    def read_state(self, key: str) -> Any | None:
        """Return a copy of a value, as this turn left it; None if there is none."""

    @abstractmethod
    def read_states(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return copies of the values under those keys that there are, in one go."""

    @abstractmethod
    def write_state(self, key: str, value: Any) -> bool:
        """Set a value, a copy of it, with the commit of this turn; return True.

        Raises:
            SerializationError: It has no JSON form.
            StateTooLargeError: It is larger than 1 MiB of JSON.
        """

    @abstractmethod
    def remove_state(self, key: str) -> bool:
        """Remove a value with the commit of this turn; return whether there is one."""

    @abstractmethod
    def list_keys(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with `prefix`, sorted, as this turn left them."""

    @abstractmethod
    def complete_request(self, message_id: str, response: ActorResponseMessage) -> None:
        """Say what becomes of the request of this turn; released with its commit.

        Raises:
            InvalidMessageError: It is another request, was completed before, or the
                status is not final.
        """

    @abstractmethod
    def on_progress_update(
        self, message_id: str, sequence_number: int, data: Any
    ) -> None:
        """Tell watchers a step; one whose number is not above the last is dropped."""

    @abstractmethod
    def progress(self, data: Any) -> None:
        """Tell watchers the next step."""

    @abstractmethod
    def keep(self) -> None:
        """Keep what this turn wrote if it is interrupted by another request."""

    @abstractmethod
    def ask(
        self,
        actor_id: ActorId,
        method: str,
        params: Params = None,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Ask another actor and wait; return the result.

        A turn that is run again gets the stored answer.

        Raises:
            ActorDeadlockError: It waits for this one, directly or not.
            CallChainTooDeepError: More than 32 wait for each other in a row.
            ActorFailedError: The other one failed, or whatever typed error it ended in.
        """

    @abstractmethod
    def tell(
        self,
        actor_id: ActorId,
        method: str,
        params: Params = None,
        *,
        delay: float = 0.0,
    ) -> str:
        """Send a request with the commit of this turn; return its id.

        Args:
            actor_id: To whom.
            method: What is asked for.
            params: A JSON object, or None.
            delay: Seconds to wait after the commit.
        """

    @abstractmethod
    def set_timer(
        self,
        name: str,
        due: float | datetime,
        method: str,
        params: Params = None,
        *,
        period: float | None = None,
    ) -> None:
        """Send a request to itself later; forgotten with the activation.

        Args:
            name: Replaces an earlier one of this name.
            due: Seconds from now, or an aware instant.
            method: Of the request.
            params: Of the request.
            period: Seconds between two, at least 0.01; None: once.
        """

    @abstractmethod
    def cancel_timer(self, name: str) -> bool:
        """Forget a timer; return whether there was one."""

    @abstractmethod
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
        """Send a request to itself later, even after a restart; set with the commit.

        Its params are ``{"name", "due", "missed", "params"}``.

        Args:
            name: Replaces an earlier one of this name; 100 an actor at most.
            due: Seconds from now, or an aware instant.
            method: Of the request.
            params: Given on to each request.
            period: Seconds between two, at least 1; None: once.
            count: How many at most; None: no limit.
        """

    @abstractmethod
    def cancel_reminder(self, name: str) -> bool:
        """Forget a reminder with the commit of this turn; return True."""


class ActorResponseHandle(ABC):
    """A caller's hold on one request.

    Thread safety: thread-safe; any number of threads may wait and watch.
    """

    actor_id: ActorId
    message_id: str

    @abstractmethod
    def get_response(self, timeout: float | None = None) -> ActorResponseMessage:
        """Wait for the final response, whatever its status.

        Raises:
            ResponseTimeoutError: Not in time; the request goes on.
            RuntimeStoppedError: The runtime stopped; the request is kept.
        """

    @abstractmethod
    def try_get_response(self) -> ActorResponseMessage | None:
        """Return the final response if there is one."""

    @abstractmethod
    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end and return the result.

        Raises:
            ActorFailedError: It failed.
            InvocationCancelledError: It was cancelled.
            InvocationTimeoutError: It passed its deadline.
            RequestRejectedError: It was dropped from a full mailbox.
            NotFoundError: It is not known.
            ResponseTimeoutError: Not in time; the request goes on.
        """

    @abstractmethod
    def watch_updates(self, after: int = 0) -> Iterator[ActorResponseMessage]:
        """Yield each step after number `after`, then the final response, once."""

    @abstractmethod
    def cancel(self, wait: float = 0.0) -> str:
        """Ask for the end.

        Args:
            wait: Seconds to wait for a running turn to end.

        Returns:
            `cancelled`, `requested` (its turn runs on, so far), `terminal` (it had
            ended before) or `not_found`.
        """

    @abstractmethod
    def future(self) -> Future[Any]:
        """Return a future of `result`; its `cancel` does not cancel the request."""


class IActorClient(ABC):
    """What callers use; times are seconds from now, at most 10 years."""

    @abstractmethod
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
    ) -> ActorResponseHandle:
        """Send a request; it is accepted, and kept, when this returns.

        Args:
            actor_id: To whom.
            method: What is asked for, 1 to 200 characters.
            params: A JSON object of at most 1 MiB, or None.
            message_id: Its id; one that is known for this actor runs nothing and gives
                what became of it. None makes one.
            deadline: After so many seconds it ends EXPIRED.
            on_busy: What happens if the actor has another pending request.
            block: With the mailbox policy `block`: how long to wait for a place.

        Raises:
            UnknownActorTypeError: No such type is registered.
            InvalidMessageError: The method, the parameters, the id or a time cannot be
                used.
            IdempotencyConflictError: The id is known with other content.
            ActorBusyError: With `on_busy="reject"`.
            MailboxFullError: The actor has as many as it takes.
            RuntimeOverloadedError: The runtime has.
            ActorStoppedError: The actor crashed too often; come back later.
            RuntimeNotRunningError: The runtime does not run.
        """

    @abstractmethod
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
        """Send a request and wait for its final response, whatever its status.

        Without `timeout` and `deadline` the turn of an idle actor runs on this thread.

        Raises:
            ResponseTimeoutError: Not in time; the request goes on.
            PPIOAgentError: As `send_request`.
        """

    @abstractmethod
    def get_request(self, actor_id: ActorId, message_id: str) -> ActorResponseHandle:
        """Return the hold on a request; of one that is not known, NOT_FOUND."""


class IActorPlacement(Protocol):
    """Decides where an actor's next turn runs."""

    def wake(self, actor_id: ActorId, not_before: float | None) -> None:
        """See to it that `runtime.run_actor(actor_id)` is called somewhere.

        Called after a commit that made the actor ready, on the committing thread; must
        be quick. It may be lost or repeated: the sweep of each runtime finds what waits.

        Args:
            actor_id: The actor.
            not_before: Seconds since 1970; None: now.
        """
