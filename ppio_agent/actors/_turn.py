"""One running turn: its request, what it has read and written, and its answer.

Nothing of it is seen by others before its commit. The thread of the turn uses it; other
threads only ask for its end.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ppio_agent.agent import CancelToken
from ppio_agent.agent.context import CancelReason
from ppio_agent.exceptions import InvalidMessageError, SerializationError
from ppio_agent.storage.actors.ends import failure
from ppio_agent.storage.actors.records import (
    Cancellation,
    Outgoing,
    ProgressItem,
    Reminder,
    RemoveKey,
    RequestRecord,
    SetValue,
)
from ppio_agent.wire.actors import (
    ActorId,
    ActorMessageType,
    ActorRequestMessage,
    ActorResponseMessage,
    RequestStatus,
)
from ppio_agent.wire.json import decode_own, encode_json

from ._cells import Activation, Cell
from ._outage import is_outage

if TYPE_CHECKING:
    from ._context import InProcessActorContext

__all__ = ["MAX_RESULT", "Turn", "current_turn"]

MAX_RESULT = 4 * 1024 * 1024
"""Most bytes of a result's JSON."""

# Members of enums are slow to look up.
_REQUEST, _RESPONSE = ActorMessageType.REQUEST, ActorMessageType.RESPONSE
_COMPLETED, _FAILED = RequestStatus.COMPLETED, RequestStatus.FAILED
_NO_ANSWER = {None, _FAILED}

current_turn: contextvars.ContextVar[Turn | None] = contextvars.ContextVar(
    "ppio_agent_actor_turn", default=None
)
"""The turn that this code runs for; None outside of actors."""


_OF_A_RUN = (
    "_message",
    "crash",
    "data",
    "dead",
    "etag",
    "keep",
    "nested",
    "outage",
    "outbox",
    "reminders",
    "sequence",
    "status",
    "writes",
)
"""What a turn forgets before it is run again."""


class Turn:
    """One turn.

    Args:
        cell: The actor; the caller has its flag.
        activation: It lives.
        record: The request.
        accepted: Whether the store knows the request; else it goes with the commit.

    Attributes:
        deadline: When it has to have ended, by `time.monotonic`; None: no limit.
        status: What it answered, or what ended it; None: nothing so far.
        data: JSON of that.
        etag: Of the state as it was first read; None: it was not.
        writes: By key, JSON or None for "removed".
        keep: Whether the writes are kept if another request interrupts it.
        outbox: Requests that leave with the commit.
        reminders: Changes that are made with the commit.
        steps: Progress that the store does not know yet, and goes with the commit.
        flushing: Held by the thread that tells the store of them; made with the first.
        over: Whether it has ended, in whatever way.
        lost: Whether that was the loss of the lease: the next owner will run it.
        position: Number of the last step.
        sequence: The actor's own number of the last step.
        crash: What escaped the actor, if anything did.
        dead: Reason for which the request becomes a dead letter.
        reason: Why its end was asked for; None: it was not.
        how: Why it is to end, where that is not the store's to know.
        nested: Number of requests made by it, see `message_id` of nested ones.
        last_at: From when on it is the last one, by `time.monotonic`; None: never.
        caller: The turn on whose thread it runs, that asked for it.
        outer: The turn of the same actor within which it runs (reentrancy).
        asking: For whom, and which request, it waits.
        awaited: Whether others wait for it though no store knows of it before its end.
        within: Held by a turn within it, while it waits on a thread of its own.
        child: The turn on its thread that it asked for.
        runs: How often it was begun here: again after each conflict, and each outage.
        outage: What the store failed it with; None: it did not.
        outages: For how many it was begun again.
    """

    # Of the class, as most turns leave them so: a turn is made for each message.
    deadline: float | None = None
    how: Cancellation | None = None
    last_at: float | None = None
    caller: Turn | None = None
    outer: Turn | None = None
    asking: tuple[ActorId, str] | None = None
    awaited = False
    child: Turn | None = None
    within: threading.Lock | None = None
    steps: Sequence[ProgressItem] = ()
    flushing: threading.Lock | None = None
    over = False
    lost = False
    runs = 1
    outage: BaseException | None = None
    outages = 0
    status: RequestStatus | None = None
    data = b"null"
    etag: str | None = None
    writes: dict[str, bytes | None] | None = None
    keep = False
    outbox: list[Outgoing] | None = None
    reminders: list[Reminder] | None = None
    sequence = 0
    crash: BaseException | None = None
    dead: str | None = None
    nested = 0
    _message: ActorRequestMessage | None = None
    reason: CancelReason | None = None
    _token: CancelToken | None = None

    def __init__(
        self,
        cell: Cell,
        activation: Activation,
        record: RequestRecord,
        *,
        accepted: bool = True,
    ) -> None:
        self.cell = cell
        self.activation = activation
        self.record = record
        self.accepted = accepted
        self.position = record.position

    def begin_again(self) -> None:
        """Forget what it did: it is about to run again."""
        self.runs += 1
        for name in _OF_A_RUN:
            self.__dict__.pop(name, None)

    def failed_by(self, error: Exception) -> None:
        """Note what a call of the store raised, or of another actor that needs it."""
        if is_outage(error):
            self.outage = error

    @property
    def is_void(self) -> bool:
        """Whether the store failed it, and its actor had no answer nevertheless."""
        return self.outage is not None and self.status in _NO_ANSWER

    @property
    def context(self) -> InProcessActorContext:
        """What the actor sees."""
        return self.activation.context

    @property
    def outermost(self) -> Turn:
        """Itself, or the turn of the actor that waits for it, and is in no other."""
        turn = self
        while turn.outer is not None:
            turn = turn.outer
        return turn

    # Its end is asked for: by any thread.

    @property
    def cancelled(self) -> CancelToken:
        """The flag that the actor sees; made when it is looked at first."""
        token = self._token
        if token is None:
            token = self._token = CancelToken()
            if self.reason is not None:  # whoever asked may not have seen the token
                token.fire(self.reason)
        return token

    def cancel(self, reason: CancelReason, how: Cancellation | None = None) -> None:
        """Ask for its end.

        Args:
            reason: What the actor is told.
            how: What becomes of it, if the store does not know.
        """
        if how is not None and not self.accepted:
            self.how = how
        if self.reason is None:
            self.reason = reason
        if self._token is not None:
            self._token.fire(reason)
        if self.child is not None:
            self.child.cancel(reason, Cancellation.CANCEL)

    # Turns that it asks for on its thread, or runs within.

    def asks(self, child: Turn) -> None:
        """Note the turn that it waits for on its thread, which is to end with it."""
        child.caller, self.child = self, child
        if self.reason is not None:  # whoever asked may not have seen the child
            child.cancel(self.reason, Cancellation.CANCEL)

    def enter(self, outer: Turn) -> None:
        """Begin within another turn of the actor, which waits: on what that has done."""
        self.outer = outer
        self.etag = outer.etag
        self.writes = None if outer.writes is None else dict(outer.writes)
        self.outbox = None if outer.outbox is None else list(outer.outbox)
        self.reminders = None if outer.reminders is None else list(outer.reminders)
        self.keep = outer.keep
        self.cell.turn = self

    def leave(self, outer: Turn) -> None:
        """Go back to the outer turn, which has what this did if it was completed."""
        self.cell.turn = outer
        if self.status is RequestStatus.COMPLETED:
            outer.etag, outer.writes, outer.keep = self.etag, self.writes, self.keep
            outer.outbox, outer.reminders = self.outbox, self.reminders

    # The message.

    @property
    def message(self) -> ActorRequestMessage:
        """The request as the actor sees it; a copy that the turn keeps."""
        if self._message is None:
            self._message = _message_of(self.record)
        return self._message

    # The answer.

    def answer(self, message_id: str, status: RequestStatus, value: Any) -> None:
        """Note the answer.

        Raises:
            InvalidMessageError: It is no answer to this request, or a second one.
            SerializationError: It has no JSON form.
        """
        if message_id != self.record.message_id:
            raise InvalidMessageError(
                f"request {message_id} is not the one of this turn, which is"
                f" {self.record.message_id}"
            )
        if self.status is not None:
            raise InvalidMessageError(f"request {message_id} was completed before")
        if status is RequestStatus.PENDING or status is RequestStatus.NOT_FOUND:
            raise InvalidMessageError(
                f"request {message_id} cannot be completed as {status.value}"
            )
        self.data = encode_json(value)
        self.status = status
        if len(self.data) > MAX_RESULT:
            self.fail(failure("result_too_large"))

    def returned(self, value: Any) -> None:
        """Note what the actor returned; None, and what follows an answer, is nothing."""
        if value is None or self.status is not None:
            return
        try:
            self.data = encode_json(value)
        except SerializationError as error:
            self.fail(failure(error.code, f"the result: {error.message}"))
            return
        self.status = _COMPLETED
        if len(self.data) > MAX_RESULT:
            self.fail(failure("result_too_large"))

    def fail(self, data: bytes, status: RequestStatus = RequestStatus.FAILED) -> None:
        """End it without a result; what it wrote is dropped."""
        self.etag = self.writes = None
        self.end_early(data, status)

    def end_early(self, data: bytes, status: RequestStatus) -> None:
        """End it without a result; what it wrote is kept if it said so."""
        self.status, self.data = status, data
        self.outbox = self.reminders = None
        if not self.keep:
            self.etag = self.writes = None

    def response(self) -> ActorResponseMessage:
        """Return what became of it."""
        record = self.record
        return ActorResponseMessage(
            record.message_id,
            datetime.now(timezone.utc),
            _RESPONSE,
            record.actor_id,
            self.status or _FAILED,
            decode_own(self.data),
            self.position,
        )

    def state_ops(self) -> Sequence[SetValue | RemoveKey]:
        """Return what it wrote, for the commit."""
        return [
            RemoveKey(key) if value is None else SetValue(key, value)
            for key, value in (self.writes or {}).items()
        ]


def _message_of(record: RequestRecord) -> ActorRequestMessage:
    deadline, params = record.deadline, record.params
    return ActorRequestMessage(
        record.message_id,
        _REQUEST,
        datetime.fromtimestamp(record.created_at, timezone.utc),
        record.method,
        # Empty if it has ended just now: what the turn answers is discarded.
        decode_own(params) if params else None,
        ActorId.parse(record.sender) if record.sender else None,
        None if deadline is None else datetime.fromtimestamp(deadline, timezone.utc),
        record.chain,
        record.traceparent or None,
    )


def monotonic_of(instant: float, now: float) -> float:
    """Return what an instant of a store's clock, which says `now`, is on this one's."""
    return time.monotonic() + (instant - now)
