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


_Key = tuple[Hashable, Hashable]


@frozen
class _Entry(Generic[_T]):
    fingerprint: bytes
    result: Future[_T] = field(factory=Future)


@frozen
class _Done(Generic[_T]):
    expires: float
    entry: _Entry[_T]


class Once(Generic[_T]):
    """Remembers results by key; concurrent calls with one key make one.

    A call that fails is forgotten: those who wait for it see its error, and the next
    one tries again.

    Of each owner of keys the newest 1000 results are remembered; a call that is under
    way is never forgotten.

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
        # By owner and key, those that were done first at the front.
        self._done: dict[Hashable, OrderedDict[Hashable, _Done[_T]]] = {}

    def run(
        self, key: _Key, fingerprint: bytes, call: Callable[[], _T]
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

    def _find_locked(self, key: _Key) -> _Entry[_T] | None:
        owner, name = key
        done = self._done.get(owner, OrderedDict()).get(name)
        if done is not None and done.expires > self._clock():
            return done.entry
        return self._running.get(key)

    def _remember_locked(self, key: _Key, entry: _Entry[_T]) -> None:
        owner, name = key
        now = self._clock()
        mine = self._done.setdefault(owner, OrderedDict())
        mine.pop(name, None)  # one whose time is over
        mine[name] = _Done(now + self._keep, entry)
        while len(mine) > _MOST_OF_ONE or next(iter(mine.values())).expires <= now:
            mine.popitem(last=False)
