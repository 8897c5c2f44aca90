"""How one state of a session follows another, and which calls run in it meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ppio_agent._util.clock import Deadline
from ppio_agent._util.fork import renew_in_child
from ppio_agent.exceptions import ConflictError, RequestTimeoutError

from .call import Line
from .state import Action, SessionState, refusal

__all__ = ["SessionPulse"]


class SessionPulse:
    """The state of one session and the calls that run in it, seen by all threads alike.

    Args:
        sandbox_id: For messages.
        state: The first one.
        on_change: Is told each new state and the one before; called without a lock, so
            two changes that come at once may be told in either order.

    Attributes:
        calls: The calls that run. Taken out without a lock, as a finaliser does.

    Thread safety: thread-safe; no lock is held while a transition goes on. In a forked
    child the calls are forgotten and there is nothing to end: it is the parent's.
    """

    def __init__(
        self,
        sandbox_id: str,
        state: SessionState = SessionState.ACTIVE,
        *,
        on_change: Callable[[SessionState, SessionState], object] | None = None,
    ) -> None:
        self._sandbox_id = sandbox_id
        self._on_change = on_change
        self._state = state
        self._gone = False
        self._gone_by_itself = False
        self._forget_calls()
        renew_in_child(self, SessionPulse._disown)

    def _forget_calls(self) -> None:
        # Guards all below, the state and what is known of the end; told when a
        # transition has ended.
        self._changed = threading.Condition()
        self.calls: set[Line] = set()
        self._changing = False
        self._version = 0

    def _disown(self) -> None:
        self._forget_calls()
        self._gone = True  # for this process: there is nothing it has to end

    @property
    def state(self) -> SessionState:
        """The state as last seen."""
        return self._state

    @property
    def version(self) -> int:
        """Counts the changes of the state, for `observe`."""
        return self._version

    @property
    def gone(self) -> bool:
        """Whether there is nothing left that this session would have to end."""
        return self._gone

    @property
    def lost(self) -> bool:
        """Whether the sandbox is gone, and was not ended here."""
        return self._gone_by_itself

    def check(self, action: Action) -> None:
        """Raise if the state does not allow this."""
        self._check(action, changing=False)

    def _check(self, action: Action, *, changing: bool) -> None:
        refused = refusal(
            action,
            self._state,
            self._sandbox_id,
            changing=changing,
            gone=self._gone_by_itself,
        )
        if refused is not None:
            raise refused

    def admit(self, call: Line) -> None:
        """Count a call in; raise if the session takes none."""
        with self._changed:
            if self._changing or self._state is not SessionState.ACTIVE:
                self._check(Action.INVOKE, changing=self._changing)
            self.calls.add(call)

    @contextmanager
    def transition(
        self, action: Action, *, to: SessionState, deadline: Deadline
    ) -> Iterator[bool]:
        """Be the only one to change the state for a while; calls are not admitted.

        Args:
            action: What is done.
            to: Where it leads.
            deadline: Bounds the waiting for another thread's transition.

        Yields:
            Whether there is anything to do.

        Raises:
            ConflictError: The state does not allow it.
            RequestTimeoutError: Another one took too long.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._changing, deadline.left()):
                raise RequestTimeoutError(
                    f"another thread pauses or resumes sandbox {self._sandbox_id}",
                    phase="response",
                )
            self._check(action, changing=False)
            needed = self._state is not to
            self._changing = needed
        if not needed:
            yield False
            return
        try:
            yield True
        finally:
            with self._changed:
                self._changing = False
                self._changed.notify_all()

    def become(self, state: SessionState) -> None:
        """Change the state, unless the session has ended meanwhile."""
        with self._changed:
            before = self._state
            if before is SessionState.CLOSED:
                return
            self._move_locked(state)
        self._tell(before, state)

    def observe(self, state: SessionState, *, since: int) -> None:
        """Note a state that was seen, unless it has changed `since` this version.

        Who asks the platform may hear of what was before another thread's `pause`. And
        what was given up or closed here stays so, also if its sandbox lives.
        """
        with self._changed:
            before = self._state
            if self._changing or since != self._version:
                return
            given_up = before is SessionState.INACTIVE and self._gone
            if given_up or before is SessionState.CLOSED:
                return
            self._move_locked(state)
        self._tell(before, state)

    def _move_locked(self, state: SessionState) -> None:
        self._state = state
        self._version += 1

    def _tell(self, before: SessionState, state: SessionState) -> None:
        if self._on_change is not None and before is not state:
            self._on_change(before, state)

    def begin_close(self) -> bool:
        """Take no more calls; tell whether there is a sandbox left to end."""
        with self._changed:
            before = self._state
            self._move_locked(SessionState.CLOSED)
            ours = not self._gone
        self._tell(before, SessionState.CLOSED)
        return ours

    def give_up(self, *, force: bool = False) -> None:
        """Let go of the sandbox without ending it; raise if calls run in it.

        Args:
            force: Whatever runs, and also if it is at its end.
        """
        with self._changed:
            if not force:
                self._check(Action.DETACH, changing=False)
            if not force and (self.calls or self._changing):
                raise ConflictError(
                    f"{len(self.calls)} invocations run in sandbox"
                    f" {self._sandbox_id}; wait for them, then detach"
                )
            self._gone = True  # for this session: there is nothing left to end
            before = self._state
            if before is SessionState.CLOSED:
                return
            self._move_locked(SessionState.INACTIVE)
        self._tell(before, SessionState.INACTIVE)

    def mark_gone(self) -> bool:
        """Note that the sandbox does not exist any more; tell whether that is news."""
        with self._changed:
            if self._gone and self._state is SessionState.CLOSED:
                return False
            self._gone = True
            before = self._state
            self._gone_by_itself = before is not SessionState.CLOSED
            self._move_locked(SessionState.CLOSED)
        self._tell(before, SessionState.CLOSED)
        return True
