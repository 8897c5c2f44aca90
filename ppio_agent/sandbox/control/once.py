"""A call that is made once for each key, however often it is asked for."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Generic, TypeVar

from attrs import field, frozen

from ppio_agent.exceptions import IdempotencyConflictError, ServiceUnavailableError

__all__ = ["Once"]

_T = TypeVar("_T")
_MOST_KEYS = 10_000


@frozen
class _Entry(Generic[_T]):
    fingerprint: bytes
    expires: float
    result: Future[_T] = field(factory=Future)


class Once(Generic[_T]):
    """Remembers results by key; concurrent calls with one key make one.

    A call that fails is forgotten: those who wait for it see its error, and the next
    one tries again.

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
        self._lock = threading.Lock()  # Guards _entries, which are oldest first.
        self._entries: OrderedDict[Hashable, _Entry[_T]] = OrderedDict()

    def run(self, key: Hashable, fingerprint: bytes, call: Callable[[], _T]) -> _T:
        """Return the result of `call`, or of the first one with this key.

        Args:
            key: What makes two calls the same.
            fingerprint: Digest of what is asked; it must be the same, too.
            call: Does it.

        Raises:
            IdempotencyConflictError: The key was used for something else.
            ServiceUnavailableError: Another's call with this key takes too long.
        """
        with self._lock:
            self._expire_locked()
            entry = self._entries.get(key)
            first = entry is None
            if entry is None:
                entry = _Entry(fingerprint, self._clock() + self._keep)
                self._entries[key] = entry
        if first:
            return self._call(key, entry, call)
        if entry.fingerprint != fingerprint:
            raise IdempotencyConflictError(
                "the idempotency key was used with another body: use a new key"
            )
        try:
            return entry.result.result(self._wait)
        except FutureTimeoutError as error:
            if entry.result.done():  # the call's own error
                raise
            raise ServiceUnavailableError(
                "the first request with this idempotency key is not done yet"
            ) from error

    def _call(self, key: Hashable, entry: _Entry[_T], call: Callable[[], _T]) -> _T:
        try:
            result = call()
        except BaseException as error:
            with self._lock:
                if self._entries.get(key) is entry:
                    del self._entries[key]
            entry.result.set_exception(error)
            raise
        entry.result.set_result(result)
        return result

    def _expire_locked(self) -> None:
        now = self._clock()
        while self._entries:
            key, entry = next(iter(self._entries.items()))
            if entry.expires > now and len(self._entries) <= _MOST_KEYS:
                return
            del self._entries[key]
