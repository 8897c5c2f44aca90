"""The life of an invocation as a pure state machine.

Three facts make up a life: its state, whether user code has ended, and whether it
ended too late to matter. A terminal state is final, even while user code still runs:
a thread cannot be killed, and nothing here claims that it was.
"""

from __future__ import annotations

import enum

from attrs import field, frozen

__all__ = ["Happening", "InvocationState", "Life"]


class InvocationState(enum.Enum):
    """Where an invocation stands; the last four are terminal and final."""

    PENDING = "pending"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"

    # Enum's own hash is Python code, and these are looked up for every step.
    __hash__ = object.__hash__

    def __init__(self, word: str) -> None:
        self.terminal = word in ("succeeded", "failed", "cancelled", "timed_out")


class Happening(enum.Enum):
    """What may happen to an invocation."""

    __hash__ = object.__hash__

    ENTERED = "its thread enters the chain of middleware"
    CANCEL_ASKED = "somebody asked for its end"
    GRACE_OVER = "user code had its time to react to that"
    DEADLINE = "its deadline passed"
    REFUSED = "no slot came free for it in time"
    RETURNED = "user code returned, or ended its stream"
    FAILED = "user code raised"
    STOPPED = "user code ended by the exception that a cancel raises in it"


_S, _H = InvocationState, Happening
_NEXT = {
    (_S.PENDING, _H.ENTERED): _S.RUNNING,
    (_S.PENDING, _H.CANCEL_ASKED): _S.CANCELLED,
    (_S.PENDING, _H.REFUSED): _S.CANCELLED,
    (_S.PENDING, _H.DEADLINE): _S.TIMED_OUT,
    (_S.RUNNING, _H.CANCEL_ASKED): _S.CANCELLING,
    (_S.RUNNING, _H.DEADLINE): _S.TIMED_OUT,
    (_S.RUNNING, _H.RETURNED): _S.SUCCEEDED,
    (_S.RUNNING, _H.FAILED): _S.FAILED,
    # Nobody asked it to stop, so whatever it raised is a failure of its own.
    (_S.RUNNING, _H.STOPPED): _S.FAILED,
    (_S.CANCELLING, _H.GRACE_OVER): _S.CANCELLED,
    (_S.CANCELLING, _H.DEADLINE): _S.TIMED_OUT,
    (_S.CANCELLING, _H.RETURNED): _S.SUCCEEDED,
    (_S.CANCELLING, _H.FAILED): _S.FAILED,
    (_S.CANCELLING, _H.STOPPED): _S.CANCELLED,
}
_ENDS = (_H.RETURNED, _H.FAILED, _H.STOPPED)


@frozen
class Life:
    """The state of one invocation; `after` gives the next one.

    There are few of them, and each knows those that may follow.

    Attributes:
        state: Where it stands.
        confirmed: Whether user code has ended, or never began.
        late: Whether user code ended with an outcome nobody waited for any more.

    Thread safety: immutable.
    """

    state: InvocationState = InvocationState.PENDING
    confirmed: bool = False
    late: bool = False
    _next: dict[Happening, Life] = field(factory=dict, init=False, eq=False, repr=False)

    def after(self, happening: Happening) -> Life:
        """Return the life after something happened; this very one if nothing changes."""
        life = self._next.get(happening)
        if life is None:
            life = self._next[happening] = self._after(happening)
        return life

    def _after(self, happening: Happening) -> Life:
        ended = happening in _ENDS
        if self.state.terminal:
            if not ended or self.confirmed:
                return self
            late = happening is not Happening.STOPPED
            return Life(self.state, confirmed=True, late=late)
        state = _NEXT.get((self.state, happening))
        if state is None:
            return self
        never_ran = self.state is InvocationState.PENDING and state.terminal
        return Life(state, confirmed=ended or never_ran)
