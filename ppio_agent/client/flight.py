"""Single flight: of many callers that want the same thing, one fetches it."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from ppio_agent._util.clock import Deadline
from ppio_agent._util.threads import NoThreadError, start_thread
from ppio_agent.exceptions import PPIOAgentError, RequestTimeoutError
from ppio_agent.transport import CallHandle, waiting

__all__ = ["SingleFlight"]

_K = TypeVar("_K", bound=Hashable)
_T = TypeVar("_T")


class _Flight(Generic[_T]):
    """One fetch under way. Written by its leader before `done` is set.

    Neither a result nor an error: those who wait are to fetch it themselves.
    """

    __slots__ = ("done", "error", "followers", "results")

    def __init__(self) -> None:
        self.done = False
        self.followers: set[CallHandle] = set()
        self.results: list[_T] = []
        self.error: Exception | None = None


class SingleFlight(Generic[_K, _T]):
    """Runs a function once for all callers that ask at the same time.

    The first caller of a key runs it in its own thread; the others wait for its
    result or error. Nothing is kept afterwards. A leader that is interrupted
    (`KeyboardInterrupt`), whose own time is up or whose `CallScope` is aborted, is not
    followed: one of the waiting takes its place.

    Args:
        thread: Name of a thread to run it in, for what keeps to no deadline and no
            scope: the first caller waits as the others do then.

    Thread safety: thread-safe.
    """

    def __init__(self, *, thread: str | None = None) -> None:
        self._thread = thread
        # Guards _flights.
        self._lock = threading.Lock()
        self._flights: dict[_K, _Flight[_T]] = {}

    def run(self, key: _K, fetch: Callable[[], _T], deadline: Deadline) -> _T:
        """Return what `fetch()` gives, from this call or the one under way.

        Args:
            key: What is fetched.
            fetch: Fetches it; its errors go to all who wait.
            deadline: Bounds the waiting for another caller; `fetch` keeps to it itself.

        Raises:
            RequestTimeoutError: The deadline passed while waiting.
        """
        while True:
            with self._lock:
                flight = self._flights.get(key)
                leads = flight is None
                if flight is None:
                    flight = self._flights[key] = _Flight()
            if leads and not self._leads_apart(key, flight, fetch):
                return self._lead(key, flight, fetch, deadline)
            self._follow(flight, deadline)
            if flight.error is not None:
                raise _own_copy(flight.error)
            if flight.results:
                return flight.results[0]

    def _follow(self, flight: _Flight[_T], deadline: Deadline) -> None:
        """Wait until the flight is over; whoever waits may be aborted."""
        with waiting() as handle:
            with self._lock:
                flight.followers.add(handle)
            try:
                while not flight.done:
                    if deadline.expired:
                        raise RequestTimeoutError(
                            "the time ran out while another thread fetched the same"
                            " thing",
                            phase="response",
                        )
                    handle.wait(deadline.left())
            finally:
                with self._lock:
                    flight.followers.discard(handle)

    def _leads_apart(
        self, key: _K, flight: _Flight[_T], fetch: Callable[[], _T]
    ) -> bool:
        """Lead in a thread of its own; tell whether there is one."""

        def lead() -> None:
            with contextlib.suppress(Exception):  # those who wait raise it
                self._lead(key, flight, fetch, Deadline.after(None))

        if self._thread is None:
            return False
        try:
            start_thread(self._thread, lead)
        except NoThreadError:  # at exit Python 3.12.1 starts none
            return False
        return True

    def _lead(
        self,
        key: _K,
        flight: _Flight[_T],
        fetch: Callable[[], _T],
        deadline: Deadline,
    ) -> _T:
        try:
            result = fetch()
            flight.results.append(result)
        except Exception as error:
            if not (deadline.expired or _aborted()):
                flight.error = error
            raise
        else:
            return result
        finally:
            with self._lock:
                del self._flights[key]
                flight.done = True
                followers = tuple(flight.followers)
            for follower in followers:
                follower.wake()


def _aborted() -> bool:
    """Tell whether this thread's scope is aborted: others have not given up."""
    with waiting() as handle:
        return handle.error is not None


def _own_copy(error: Exception) -> Exception:
    """Return an error of this thread's own: a traceback grows where it is raised."""
    if not isinstance(error, PPIOAgentError):
        return error
    own = copy.copy(error)
    own.__cause__ = error.__cause__ or error
    return own
