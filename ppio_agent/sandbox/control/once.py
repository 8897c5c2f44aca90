"""A call that is made once for each key, however often it is asked for."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Final, Generic, TypeVar

from attrs import field, frozen

from ppio_agent.exceptions import IdempotencyConflictError, ServiceUnavailableError

__all__ = ["Once"]

_T = TypeVar("_T")
_MOST_OF_ONE: Final = 1000
_MOST: Final = 10_000

_Key = tuple[Hashable, Hashable]


@frozen
class _Entry(Generic[_T]):
    fingerprint: str
    result: Future[_T] = field(factory=Future)


@frozen
class _Done(Generic[_T]):
    expires: float
    entry: _Entry[_T]


class Once(Generic[_T]):
    """Remembers results by key; concurrent calls with one key make one.

    A call that fails is forgotten: those who wait for it see its error, and the next
    one tries again.

    Of each owner of keys the newest 1000 results are remembered, and the newest 10,000
    of all; a call that is under way is never forgotten.

    Args:
        keep: Seconds a result is remembered.
        wait: Most seconds to wait for another's call.
        clock: A monotonic clock.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        *,
        keep: float = 600.0,
        wait: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keep = keep
        self._wait = wait
        self._clock = clock
        self._lock = threading.Lock()  # Guards everything below.
        self._running: dict[_Key, _Entry[_T]] = {}
        # Those that were done first, and so expire first, at the front: all of them,
        # and the names of each owner's.
        self._done: OrderedDict[_Key, _Done[_T]] = OrderedDict()
        self._names: dict[Hashable, OrderedDict[Hashable, None]] = {}

    def run(
        self, key: _Key, fingerprint: str, call: Callable[[], _T]
    ) -> tuple[_T, bool]:
        """Return the result of `call`, or of the first one with this key.

        Args:
            key: What makes two calls the same: whose they are, and a name.
            fingerprint: Digest of what is asked; it must be the same, too.
            call: Does it.

        Returns:
            The result, and whether it is that of an earlier call.

        Raises:
            IdempotencyConflictError: The key was used for something else.
            ServiceUnavailableError: Another's call with this key takes too long.
        """
        with self._lock:
            entry = self._find_locked(key)
            first = entry is None
            if entry is None:
                entry = self._running[key] = _Entry(fingerprint)
        if first:
            return self._call(key, entry, call), False
        if entry.fingerprint != fingerprint:
            raise IdempotencyConflictError(
                "the idempotency key was used with another body: use a new key"
            )
        try:
            return entry.result.result(self._wait), True
        except FutureTimeoutError as error:
            if entry.result.done():  # the call's own error
                raise
            raise ServiceUnavailableError(
                "the first request with this idempotency key is not done yet"
            ) from error

    def _call(self, key: _Key, entry: _Entry[_T], call: Callable[[], _T]) -> _T:
        try:
            result = call()
        except BaseException as error:
            with self._lock:
                del self._running[key]
            entry.result.set_exception(error)
            raise
        with self._lock:
            del self._running[key]
            self._remember_locked(key, entry)
        entry.result.set_result(result)
        return result

    def seed(self, key: _Key, fingerprint: str, result: _T, *, age: float) -> None:
        """Remember a result of before; those of one clock in the order of their ages.

        Args:
            key: As of `run`.
            fingerprint: As of `run`.
            result: What the call has given.
            age: Seconds since then.
        """
        entry = _Entry[_T](fingerprint)
        entry.result.set_result(result)
        with self._lock:
            self._remember_locked(key, entry, age=age)

    def _find_locked(self, key: _Key) -> _Entry[_T] | None:
        done = self._done.get(key)
        if done is not None and done.expires > self._clock():
            return done.entry
        return self._running.get(key)

    def _remember_locked(
        self, key: _Key, entry: _Entry[_T], *, age: float = 0.0
    ) -> None:
        owner, name = key
        now = self._clock()
        if key in self._done:  # its time is over
            self._forget_locked(key)
        self._done[key] = _Done(now - age + self._keep, entry)
        mine = self._names.setdefault(owner, OrderedDict())
        mine[name] = None
        if len(mine) > _MOST_OF_ONE:
            self._forget_locked((owner, next(iter(mine))))
        while self._done:
            oldest, done = next(iter(self._done.items()))
            if len(self._done) <= _MOST and done.expires > now:
                return
            self._forget_locked(oldest)

    def _forget_locked(self, key: _Key) -> None:
        owner, name = key
        del self._done[key]
        mine = self._names[owner]
        del mine[name]
        if not mine:
            del self._names[owner]
