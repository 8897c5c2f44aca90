"""What a handler knows of its invocation, and how it learns that it should end."""

from __future__ import annotations

import contextvars
import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from attrs import define, field

from ppio_agent._util.aside import run_aside
from ppio_agent._util.clock import utc_now
from ppio_agent._util.redact import Redactor
from ppio_agent.exceptions import InvocationCancelledError, InvocationTimeoutError
from ppio_agent.wire.models import Principal

__all__ = ["CancelReason", "CancelToken", "RequestContext", "current_context"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_NOTHING: Mapping[str, Any] = MappingProxyType({})

CancelReason = Literal[
    "client", "disconnect", "deadline", "shutdown", "stalled", "superseded"
]


class CancelToken:
    """A flag that is raised once, with the reason why.

    Usable as a condition: ``if context.cancelled: return``. Whoever raises it shares
    its thread with others (the one of all deadlines, those that answer `/ping`), so
    functions that may block are not called on that.

    Thread safety: thread-safe.
    """

    __slots__ = ("_callbacks", "_lock", "_reason")

    def __init__(self) -> None:
        # Guards _reason and _callbacks.
        self._lock = threading.Lock()
        self._reason: CancelReason | None = None
        # By subscription; the second says whether it is quick.
        self._callbacks: dict[object, tuple[Callable[[], object], bool]] | None = None

    def __bool__(self) -> bool:
        return self._reason is not None

    def is_set(self) -> bool:
        """Whether the end was asked for."""
        return self._reason is not None

    @property
    def reason(self) -> CancelReason | None:
        """Why; the first reason given. None while nothing was asked for."""
        return self._reason

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the end is asked for.

        Blocking: up to `timeout` seconds; None waits for ever.

        Returns:
            Whether it was.
        """
        if self._reason is not None:
            return True
        latch = threading.Lock()
        latch.acquire()
        unsubscribe = self.subscribe(latch.release, quick=True)
        try:
            # To the lock, -1 means no limit: a negative time must not come so far.
            limit = -1.0 if timeout is None else max(0.0, timeout)
            latch.acquire(timeout=min(limit, threading.TIMEOUT_MAX))
        finally:
            unsubscribe()
        return self._reason is not None

    def subscribe(
        self, fn: Callable[[], object], *, quick: bool = False
    ) -> Callable[[], None]:
        """Call `fn()` once when the end is asked for; at once if it was already.

        It runs under no lock, on a thread of a small pool (`ppio-aside-<n>`); on the
        asking thread if that is saturated; on the calling thread if the end was asked
        for already. What it raises is logged.

        Args:
            fn: What to call.
            quick: It never blocks: it runs on the asking thread, before all others.

        Returns:
            A function that takes the subscription back, until `fn` has begun.
        """
        key = object()
        with self._lock:
            if self._reason is None:
                if self._callbacks is None:
                    self._callbacks = {}
                self._callbacks[key] = (fn, quick)
                return functools.partial(self._unsubscribe, key)
        _call_safely(fn)
        return _do_nothing

    def fire(self, reason: CancelReason) -> bool:
        """Ask for the end.

        Returns:
            Whether this was the first time.
        """
        with self._lock:
            if self._reason is not None:
                return False
            self._reason = reason
            callbacks = list((self._callbacks or {}).items())
        slow = []
        for key, (_, quick) in callbacks:
            if quick:
                self._call(key)
            else:
                slow.append(key)
        for key in slow:
            run_aside(functools.partial(self._call, key))
        return True

    def _call(self, key: object) -> None:
        with self._lock:
            fn, _ = (self._callbacks or {}).pop(key, (_do_nothing, True))
        _call_safely(fn)

    def _unsubscribe(self, key: object) -> None:
        with self._lock:
            if self._callbacks is not None:
                self._callbacks.pop(key, None)

    def __repr__(self) -> str:
        return f"CancelToken({self._reason or 'not set'})"


def _do_nothing() -> None:
    pass


def _call_safely(fn: Callable[[], object]) -> None:
    try:
        fn()
    except Exception:  # noqa: BLE001 - user code; the cancel has to go on
        _log.exception("a function given to on_cancel failed")


def _mask_headers(headers: Mapping[str, str]) -> str:
    return repr(Redactor().headers(headers))


@define(eq=False, kw_only=True)
class RequestContext:
    """Everything a handler may want to know of its invocation.

    Attributes:
        invocation_id: Id under which it can be looked up and cancelled.
        request_id: Id of the request that started it.
        attempt: 1, or more if its idempotency key was freed and used again.
        session_id: The conversation, or None.
        timestamp: When the request arrived, aware UTC.
        metadata: `metadata` of the body, if that is an object.
        state: A scratch dict that middleware and handler share.
        headers: The request's headers, lower-case names, without credentials.
        principal: Who sent the request, or None without authentication.
        sandbox_id: The sandbox this runs in, or None.
        deadline: Instant of `time.monotonic` by which it has to end; None: no limit.
        cancelled: Whether, and why, its end was asked for.

    Thread safety: thread-safe; `state` is a plain dict.
    """

    invocation_id: str
    request_id: str
    attempt: int = 1
    session_id: str | None = None
    timestamp: datetime = field(factory=utc_now)
    metadata: Mapping[str, Any] = _NOTHING
    state: dict[str, Any] = field(factory=dict, repr=False)
    headers: Mapping[str, str] = field(default=_NOTHING, repr=_mask_headers)
    principal: Principal | None = None
    sandbox_id: str | None = None
    deadline: float | None = None
    cancelled: CancelToken = field(factory=CancelToken)
    _variables: contextvars.Context | None = field(default=None, init=False, repr=False)

    def time_left(self) -> float | None:
        """Return the seconds until the deadline, never negative; None: no limit."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - time.monotonic())

    def check(self) -> None:
        """Return if the invocation may go on.

        Raises:
            InvocationCancelledError: Its end was asked for.
            InvocationTimeoutError: Its deadline has passed.
        """
        reason = self.cancelled.reason
        if reason is not None and reason != "deadline":
            raise InvocationCancelledError(
                f"invocation {self.invocation_id} was cancelled ({reason})",
                invocation_id=self.invocation_id,
            )
        if reason is not None or self.time_left() == 0.0:
            raise InvocationTimeoutError(
                f"invocation {self.invocation_id} passed its deadline",
                invocation_id=self.invocation_id,
            )

    def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than the invocation may go on; then act as `check`."""
        left = self.time_left()
        self.cancelled.wait(seconds if left is None else min(seconds, left))
        self.check()

    async def asleep(self, seconds: float) -> None:
        """Sleep without holding up the event loop; then act as `check`."""
        import asyncio

        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        unsubscribe = self.cancelled.subscribe(
            lambda: loop.call_soon_threadsafe(woken.set), quick=True
        )
        left = self.time_left()
        limit = seconds if left is None else min(seconds, left)
        try:
            await asyncio.wait_for(woken.wait(), limit)
        except asyncio.TimeoutError:
            pass
        finally:
            unsubscribe()
        self.check()

    def on_cancel(self, fn: Callable[[], object]) -> Callable[[], None]:
        """Call `fn()` once when the end is asked for, or at once if it was already.

        Meant for what wakes a blocking call, as `socket.shutdown` or `stream.close`.
        It runs on a thread of a small pool (`ppio-aside-<n>`) that all invocations
        share, after the end was asked for; what it raises is logged. A function that
        blocks holds up nobody's deadline, but those of other invocations when several
        do. If the end was asked for already, it runs on the calling thread.

        Returns:
            A function that takes it back, until it has begun.
        """
        return self.cancelled.subscribe(fn)

    def wrap(self, fn: Callable[..., _T]) -> Callable[..., _T]:
        """Return `fn` bound to the context variables of this invocation.

        For helper threads: each call runs in a copy of its own, in which
        `current_context()` is this context and log records carry its ids.
        """
        if _current.get() is self or self._variables is None:
            variables = contextvars.copy_context()
        else:
            variables = self._variables.copy()

        @functools.wraps(fn)
        def bound(*args: Any, **kwargs: Any) -> _T:
            return variables.copy().run(fn, *args, **kwargs)

        return bound


_current: contextvars.ContextVar[RequestContext | None] = contextvars.ContextVar(
    "ppio_agent_context", default=None
)


def current_context() -> RequestContext | None:
    """Return the context of the invocation this code runs for; elsewhere None."""
    return _current.get()


def bind_context(
    context: RequestContext, variables: contextvars.Context | None
) -> None:
    """Make `context` the current one in `variables`; None lets go of them."""
    context._variables = variables  # noqa: SLF001 - a friend: not for handlers
    if variables is not None:
        variables.run(_current.set, context)
