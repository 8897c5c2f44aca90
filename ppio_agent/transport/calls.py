"""One call, or all that a thread does, as other threads may wake and end it."""

from __future__ import annotations

import contextlib
import copy
import os
import socket
import threading
from collections.abc import Iterator
from contextvars import ContextVar

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import PPIOAgentError, StreamClosedError

__all__ = ["CallHandle", "CallScope", "pause", "shielded", "waiting"]


class CallHandle:
    """Ends one call from any thread: while it waits, connects, sends or reads.

    Give one to `Transport.send` or `Transport.stream` and keep it. A handle belongs to
    one call.

    Attributes:
        error: What it was aborted with, or None.
        inherited: Whether the process was forked during it.
        may_have_run: Whether an attempt that another one followed may have been obeyed.

    Thread safety: thread-safe; `abort` may also be called by a signal handler.
    """

    __slots__ = (
        "_lock", "_pid", "_scope", "_socket", "_woken", "error", "inherited",
        "may_have_run",
    )  # fmt: skip

    def __init__(self) -> None:
        # Guards the fields below. Re-entrant, since a signal handler that aborts runs
        # on top of whatever the thread of the call was doing.
        self._lock = threading.RLock()
        self._socket: socket.socket | None = None
        # Free once the call was woken. A bare lock: an Event has one inside, which a
        # signal handler or a finaliser that wakes would find held by its own thread.
        self._woken = threading.Lock()
        self._woken.acquire()
        self._pid = os.getpid()
        self._scope: CallScope | None = None
        self.error: PPIOAgentError | None = None
        self.inherited = False
        self.may_have_run = False

    def begin(self) -> None:
        """Say that the call is on its way, in the scope that its thread is in.

        One that goes on after an `end`, such as a stream that was cut, stays in the
        scope it was in at first, whichever thread reads it now.
        """
        scope = self._scope or _current.get()
        if scope is not None:
            self._scope = scope
            scope.add(self)

    def end(self) -> None:
        """Say that the call is over. Takes no lock: a finaliser may do it."""
        scope = self._scope
        if scope is not None:
            scope.discard(self)

    def abort(self, error: PPIOAgentError) -> bool:
        """Let the call end with `error`, at once.

        Returns:
            Whether it does; False if it was aborted before.
        """
        with self._lock:
            if self.error is not None:
                return False
            self.error = error
            self.wake()
            # Under the lock, or the connection might serve another call by now; it
            # does not block. In a forked child the connection is the parent's.
            if self._socket is not None and self._pid == os.getpid():
                with contextlib.suppress(OSError):
                    # Not the method of a TLS socket, which would also take away the
                    # state that the reader is using.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            return True

    def disown(self) -> None:
        """Say in a forked child that the call is its parent's. Takes no old lock."""
        self._lock = threading.RLock()
        self.inherited = True
        self.error = StreamClosedError(
            "the process that opened the stream reads it; open another one in this"
        )

    def check(self) -> None:
        """Raise the error the call was aborted with, if it was.

        To be called before any result, end or error of the network is believed: after
        `abort` a connection looks as if the peer had closed it. One abort may end many
        calls: each raises a copy, since a traceback grows where an error is raised.
        """
        if self.error is not None:
            raise copy.copy(self.error)

    def attach(self, sock: socket.socket) -> None:
        """Say which socket the call uses from now on."""
        with self._lock:
            # In this order, since a signal handler may abort between the two.
            self._socket = sock
            self.check()

    def detach(self) -> None:
        """Say that the call uses no socket any more; after that none is touched."""
        with self._lock:
            self._socket = None

    def wait(self, timeout: float | None) -> None:
        """Block until `wake`, `abort` or the timeout; None waits without limit.

        It may return early, so look at what is waited for. Raises what `abort` gave.
        """
        self.check()
        self._woken.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
        self.check()

    def pause(self, until: Deadline) -> None:
        """Block while the call uses no connection, yet in its scope.

        Raises what `abort` gave.
        """
        self.begin()
        try:
            while not until.expired:
                self.wait(until.left())
            self.check()
        finally:
            self.end()

    def wake(self) -> None:
        """Let `wait` return, now or the next time it is called."""
        with contextlib.suppress(RuntimeError):  # it was woken before
            self._woken.release()


class CallScope:
    """All the calls of one task, to be ended as one from another thread.

    Whatever the transport does inside `running` belongs to the scope: calls, pauses
    and waiting, one after another, and streams until they are closed. A scope inside
    another one ends with it.

    Example:
        scope = CallScope()
        # in one thread
        with scope.running():
            client.invoke_agent("my-agent", "Hello")
        # in another
        scope.abort(InvocationCancelledError("not wanted any more"))

    Attributes:
        error: What it was aborted with, or None.

    Thread safety: thread-safe; one thread is inside it at a time.
    """

    __slots__ = ("_lock", "_members", "error")

    def __init__(self) -> None:
        # Guards the fields below. Re-entrant, as in CallHandle.
        self._lock = threading.RLock()
        self._members: set[CallHandle | CallScope] = set()
        self.error: PPIOAgentError | None = None

    def abort(self, error: PPIOAgentError) -> bool:
        """End what runs in the scope, and whatever begins in it later, with `error`.

        Returns:
            Whether it does; False if it was aborted before.
        """
        with self._lock:
            if self.error is not None:
                return False
            self.error = error
            members = tuple(self._members)
        for member in members:
            member.abort(error)
        return True

    def check(self) -> None:
        """Raise a copy of the error the scope was aborted with, if it was."""
        if self.error is not None:
            raise copy.copy(self.error)

    def add(self, member: CallHandle | CallScope) -> None:
        """Let a call or an inner scope end with this one."""
        with self._lock:
            self._members.add(member)
            error = self.error
        if error is not None:
            member.abort(error)

    def discard(self, member: CallHandle | CallScope) -> None:
        """Let go of what is over. Takes no lock: a finaliser may do it."""
        self._members.discard(member)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Let what the thread does in this block belong to the scope.

        Raises:
            PPIOAgentError: The scope, or one around it, was aborted.
        """
        outer = _current.get()
        if outer is not None:
            outer.add(self)
        token = _current.set(self)
        try:
            self.check()
            yield
        finally:
            _current.reset(token)
            if outer is not None:
                outer.discard(self)


_current: ContextVar[CallScope | None] = ContextVar("ppio_call_scope", default=None)


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Let no scope end what the thread does in this block: it cleans up."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def waiting() -> Iterator[CallHandle]:
    """Give a handle to `wait` with, which ends with the scope that the thread is in."""
    handle = CallHandle()
    handle.begin()
    try:
        yield handle
    finally:
        handle.end()


def pause(until: Deadline) -> None:
    """Do nothing until then; raise at once if the scope of the thread is aborted."""
    CallHandle().pause(until)
