"""Every invocation that runs, and the finished ones for a while: found by id, run once.

In memory, for one process. A finished invocation is kept for replays and look-ups
until the first limit is reached; one whose user code still runs is never dropped.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable

from attrs import frozen

from ppio_agent._util.fork import renew_in_child
from ppio_agent.exceptions import (
    ConflictError,
    IdempotencyConflictError,
    InvocationNotFoundError,
)

from .context import CancelReason
from .invocation import Invocation
from .runonce import Standing, Verdict, decide
from .states import InvocationState

__all__ = ["Admission", "InvocationRegistry", "RunKey", "Totals"]

_Owned = tuple[str | None, str]  # a principal's id, or None; an id or a key


@frozen(kw_only=True)
class RunKey:
    """An idempotency key, and what it was sent with.

    Attributes:
        value: The key as sent.
        fingerprint: SHA-256 of the entrypoint and the body.
    """

    value: str
    fingerprint: bytes

    @classmethod
    def of(cls, value: str, *, entrypoint: str, body: bytes) -> RunKey:
        """Return the key for a request."""
        scope = f"{len(entrypoint)}:{entrypoint}\n".encode()
        return cls(value=value, fingerprint=hashlib.sha256(scope + body).digest())


@frozen
class Admission:
    """What a request got.

    Attributes:
        invocation: The one to wait for.
        is_new: Whether it is the request's own, still to be started.
    """

    invocation: Invocation
    is_new: bool


@frozen(kw_only=True)
class Totals:
    """Numbers over all invocations of a registry.

    Attributes:
        abandoned: Those that have ended although their user code still runs.
        chunks: Chunks given by streams, of invocations no longer kept, too.
        readers: Readers that take events now.
        size: Bytes kept of results and chunks.
    """

    abandoned: int
    chunks: int
    readers: int
    size: int


class _Kept:
    """One invocation in the registry."""

    __slots__ = ("fingerprint", "finished_at", "invocation", "key", "owner", "size")

    def __init__(
        self, invocation: Invocation, key: _Owned | None, fingerprint: bytes | None
    ) -> None:
        self.invocation = invocation
        self.key = key
        self.fingerprint = fingerprint
        self.owner = _owner(invocation)
        self.finished_at: float | None = None
        self.size = 0

    def verdict(self, fingerprint: bytes | None) -> Verdict:
        """Return what a further request gets; one that may join is a reader then."""
        verdict = self._decide(fingerprint)
        if verdict is Verdict.JOIN:
            self.invocation.join()
            # Its last reader may have left just before, and its end be under way.
            verdict = self._decide(fingerprint)
            if verdict is not Verdict.JOIN:
                self.invocation.leave()
        return verdict

    def _decide(self, fingerprint: bytes | None) -> Verdict:
        if fingerprint is None:
            return Verdict.CONFLICT
        invocation = self.invocation
        standing = Standing(
            fingerprint=self.fingerprint,
            state=invocation.state,
            confirmed=invocation.confirmed,
            cancel_reason=invocation.cancel_reason,
        )
        return decide(standing, fingerprint)


class InvocationRegistry:
    """Finds invocations by id, and by idempotency key.

    Args:
        retention: Seconds a finished invocation is kept.
        max_kept: Most finished invocations kept; the oldest go first.
        max_bytes: Most bytes of their results and chunks kept, as `Invocation.size`
            counts them.
        clock: A monotonic clock.

    Thread safety: thread-safe. A forked child knows none of its parent's invocations.
    """

    def __init__(
        self,
        *,
        retention: float = 600.0,
        max_kept: int = 1000,
        max_bytes: int = 67_108_864,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._retention = retention
        self._max_kept = max_kept
        self._max_bytes = max_bytes
        self._clock = clock
        self._forget_all()
        renew_in_child(self, InvocationRegistry._forget_all)

    def _forget_all(self) -> None:
        # Guards everything below.
        self._lock = threading.Lock()
        self._by_id: dict[_Owned, _Kept] = {}
        self._by_key: dict[_Owned, _Kept] = {}
        self._live: dict[Invocation, _Kept] = {}
        self._live_changed_at = time.time()
        self._finished: deque[_Kept] = deque()
        self._bytes = 0
        self._chunks = 0

    @property
    def live(self) -> int:
        """How many invocations are pending, or have user code that has not ended."""
        return len(self._live)

    @property
    def live_changed_at(self) -> float:
        """Unix time at which `live` became 0, or was 0 last."""
        return self._live_changed_at

    def admit(self, invocation: Invocation, key: RunKey | None = None) -> Admission:
        """Enter a new invocation, unless its key or its id is known already.

        A known id acts as an idempotency key. The invocation is not started here;
        when it cannot be, `withdraw` it. A caller that gets another invocation has
        joined it as a reader.

        Raises:
            IdempotencyConflictError: The key was used with another body.
            ConflictError: The run that has the key is being cancelled for a lost
                caller; its user code has not ended yet (`still_cancelling`).
        """
        context = invocation.context
        owner = _owner(invocation)
        own_key = None
        if key is not None:
            own_key = (owner, f"{invocation.handler.name}\n{key.value}")
        fingerprint = None if key is None else key.fingerprint
        kept = _Kept(invocation, own_key, fingerprint)
        with self._lock:
            own_id = (owner, invocation.id)
            known = self._known_locked(own_id, own_key)
            if known is not None:
                verdict = known.verdict(fingerprint)
                if verdict is Verdict.JOIN:
                    return Admission(known.invocation, is_new=False)
                if verdict is not Verdict.RUN_AGAIN:
                    raise _conflict(verdict, known.invocation)
                context.attempt = known.invocation.context.attempt + 1
            self._by_id[own_id] = kept
            if own_key is not None:
                self._by_key[own_key] = kept
            if not self._live:
                self._live_changed_at = time.time()
            self._live[invocation] = kept
            return Admission(invocation, is_new=True)

    def withdraw(self, invocation: Invocation) -> None:
        """Forget an admitted invocation that was never started."""
        with self._lock:
            self._end_locked(invocation)
            kept = self._by_id.get((_owner(invocation), invocation.id))
            if kept is None or kept.invocation is not invocation:
                return
            if kept.finished_at is not None:  # being refused counts as an end
                self._finished.remove(kept)
                self._bytes -= kept.size
            self._forget_locked(kept)

    def settled(self, invocation: Invocation) -> None:
        """Note that it is terminal and its user code has ended: keep it for a while.

        One that was refused is forgotten: what never began may be asked for again.
        """
        size = invocation.size
        with self._lock:
            kept = self._end_locked(invocation)
            if kept is None:
                return  # withdrawn
            if invocation.refused:
                self._forget_locked(kept)
                return
            kept.finished_at = self._clock()
            kept.size = size
            self._chunks += invocation.chunk_count
            self._finished.append(kept)
            self._bytes += size
            self._evict_locked()

    def _end_locked(self, invocation: Invocation) -> _Kept | None:
        kept = self._live.pop(invocation, None)
        if kept is not None and not self._live:
            self._live_changed_at = time.time()
        return kept

    def totals(self) -> Totals:
        """Return the numbers over all that is kept; looks at each of them."""
        with self._lock:
            live, kept = list(self._live), list(self._by_id.values())
            chunks, size = self._chunks, self._bytes
        return Totals(
            abandoned=sum(one.state.terminal for one in live),
            chunks=chunks + sum(one.chunk_count for one in live),
            readers=sum(one.invocation.stream_readers for one in kept),
            size=size + sum(one.size for one in live),
        )

    def get(self, invocation_id: str, *, principal: str | None = None) -> Invocation:
        """Return the invocation with this id.

        Args:
            invocation_id: Its id.
            principal: Id of who asks; only who started an invocation sees it.

        Raises:
            InvocationNotFoundError: There is none, or none for this caller.
        """
        with self._lock:
            known = self._known_locked((principal, invocation_id), None)
        if known is None:
            raise InvocationNotFoundError(
                f"no invocation {invocation_id} is known, or no longer"
            )
        return known.invocation

    def cancel_all(self, reason: CancelReason, *, pending_only: bool = False) -> None:
        """Ask for the end of every invocation that has not ended.

        Args:
            reason: Why.
            pending_only: Spare those that have begun.
        """
        with self._lock:
            live = list(self._live)
        for invocation in live:
            if not pending_only or invocation.state is InvocationState.PENDING:
                invocation.cancel(reason)

    def _known_locked(self, own_id: _Owned, own_key: _Owned | None) -> _Kept | None:
        known = self._look_up_locked(own_id, own_key)
        if known is None or known.finished_at is None:
            return known
        self._evict_locked()  # it may have been kept for long enough
        return self._look_up_locked(own_id, own_key)

    def _look_up_locked(self, own_id: _Owned, own_key: _Owned | None) -> _Kept | None:
        known = None if own_key is None else self._by_key.get(own_key)
        return known or self._by_id.get(own_id)

    def _evict_locked(self) -> None:
        finished = self._finished
        oldest = self._clock() - self._retention
        while finished and (
            len(finished) > self._max_kept
            or self._bytes > self._max_bytes
            or (finished[0].finished_at or 0.0) <= oldest
        ):
            kept = finished.popleft()
            self._bytes -= kept.size
            self._forget_locked(kept)

    def _forget_locked(self, kept: _Kept) -> None:
        own_id = (kept.owner, kept.invocation.id)
        if self._by_id.get(own_id) is kept:
            del self._by_id[own_id]
        if kept.key is not None and self._by_key.get(kept.key) is kept:
            del self._by_key[kept.key]


def _owner(invocation: Invocation) -> str | None:
    principal = invocation.context.principal
    return None if principal is None else principal.id


def _conflict(verdict: Verdict, invocation: Invocation) -> ConflictError:
    if verdict is Verdict.CONFLICT:
        return IdempotencyConflictError(
            f"the key belongs to invocation {invocation.id} with another body;"
            " use a new one"
        )
    return ConflictError(
        f"invocation {invocation.id} of this key is being cancelled; try again",
        code="still_cancelling",
        retryable=True,
        retry_after=1.0,
    )
