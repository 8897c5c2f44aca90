"""Many invocations of one agent, a bounded number at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from attrs import field, frozen
from attrs.validators import gt

from ppio_agent._util.clock import Deadline
from ppio_agent._util.closing import Closing
from ppio_agent._util.threads import start_thread
from ppio_agent.exceptions import (
    InvocationCancelledError,
    PPIOAgentError,
    RequestTimeoutError,
    SessionNotFoundError,
    ValidationError,
)
from ppio_agent.transport import CallScope, shielded
from ppio_agent.wire.models import InvocationResponse

from .invocation import AgentRequest, encode_request
from .limits import time_left
from .progress import ProgressBar
from .session import SandboxSession
from .state import SessionState

if TYPE_CHECKING:
    pass

__all__ = ["Batch", "BatchItem", "BatchPlan", "BatchProgress", "Pool", "pool"]

_log = logging.getLogger(__name__)

# Items taken from the input ahead of the consumer, for each worker.
_AHEAD = 4
_STOP_LIMIT = 10.0

OpenSession: TypeAlias = Callable[[Deadline], SandboxSession]


@frozen
class Pool:
    """As many sandboxes, used again and again, one item each at a time."""

    size: int = field(validator=gt(0))


def pool(size: int) -> Pool:
    """Return the choice of `size` reused sandboxes, for ``invoke_many(sessions=…)``."""
    return Pool(size)


@frozen(kw_only=True)
class BatchItem:
    """What became of one request.

    Attributes:
        index: Its place in the input.
        request: The request.
        response: The answer; None after an error.
        error: What went wrong, or None.
        attempts: How many sandboxes it took: 2 if the first one had died unused.
        elapsed: Seconds from its start, its sandbox included.
    """

    index: int
    request: AgentRequest
    response: InvocationResponse | None = None
    error: Exception | None = None
    attempts: int = 1
    elapsed: float = 0.0


@frozen(kw_only=True)
class BatchProgress:
    """How far a batch is.

    Attributes:
        total: How many items there are; None if the input does not say.
        done: How many have ended, failures included.
        failed: How many of those failed.
        running: How many run.
        eta: Seconds until the end, at the pace so far; None if unknown.
        ended: Whether this is the last word.
    """

    total: int | None
    done: int
    failed: int
    running: int
    eta: float | None
    ended: bool = False


@frozen(kw_only=True)
class BatchPlan:
    """How a batch is run; see `AgentRuntimeClient.invoke_many`."""

    deadline: Deadline
    max_workers: int = field(default=8)
    sessions: Literal["per-request"] | Pool | int = field(default="per-request")
    ordered: bool = True
    return_exceptions: bool = False
    timeout: float | None = None
    on_progress: Callable[[BatchProgress], object] | None = None
    bar: bool = False

    @max_workers.validator
    def _positive(self, _: object, value: object) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValidationError("max_workers has to be a whole number above 0")

    @sessions.validator
    def _known(self, _: object, value: object) -> None:
        if value == "per-request" or isinstance(value, Pool):
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValidationError(
                'sessions has to be "per-request", pool(n) or a number greater than 0'
            )

    @property
    def workers(self) -> int:
        """How many items run at a time."""
        if isinstance(self.sessions, Pool):
            return self.sessions.size
        return self.sessions if isinstance(self.sessions, int) else self.max_workers

    @property
    def keeps_sessions(self) -> bool:
        """Whether a sandbox serves one item after another."""
        return self.sessions != "per-request"

    def tellers(self) -> list[Callable[[BatchProgress], object]]:
        """Return who is to be told of progress."""
        found = [] if self.on_progress is None else [self.on_progress]
        return [*found, ProgressBar()] if self.bar else found


class Batch(Closing):
    """The items of a batch, as they come; work has begun when it is made.

    Iterate it, or take `results`. Leaving early, by `close`, an error or an
    interrupt, drops what has not begun, aborts what runs and kills the sandboxes.

    Thread safety: one thread iterates; `close` may come from any other.

    Blocking: the next item is waited for.
    """

    def __init__(
        self,
        open_session: OpenSession,
        requests: Iterable[AgentRequest],
        plan: BatchPlan,
    ) -> None:
        if isinstance(requests, (str, bytes, Mapping)):
            raise ValidationError(
                "the requests of a batch have to be several: a list, or any iterable"
            )
        self._plan = plan
        self._work = _Work(open_session, requests, plan)
        self._work.start()

    def __iter__(self) -> Iterator[BatchItem]:
        return self

    def __next__(self) -> BatchItem:
        try:
            item = self._work.next_item()
            if item.error is not None and not self._plan.return_exceptions:
                raise item.error
        except BaseException:
            self.close()
            raise
        return item

    def results(self) -> list[InvocationResponse | Exception]:
        """Wait for all that is left and return answers and errors in input order.

        Raises:
            Exception: The first error, unless the batch returns exceptions.
        """
        items = sorted(self, key=lambda item: item.index)
        return [item.response or item.error for item in items]  # type: ignore[misc]

    def close(self) -> None:
        """Drop what has not begun, abort what runs, kill the sandboxes. Idempotent."""
        self._work.stop()
        self._work.wait(_STOP_LIMIT)

    def __del__(self) -> None:
        work = getattr(self, "_work", None)
        if work is not None:
            work.stop()


class _Work:
    """The threads of a batch and what they share; outlives a batch let go of."""

    def __init__(
        self,
        open_session: OpenSession,
        requests: Iterable[AgentRequest],
        plan: BatchPlan,
    ) -> None:
        self._open_session = open_session
        self._total = len(requests) if isinstance(requests, Sized) else None
        self._source = iter(requests)
        self._plan = plan
        self._tellers = plan.tellers()
        self._started_at = time.monotonic()
        # Guards all below. Re-entrant, since a finaliser may stop the batch.
        self._changed = threading.Condition()
        self._ready: dict[int, BatchItem] = {}
        self._taken = self._consumed = self._done = self._failed = 0
        self._pulling = False
        self._exhausted = False
        self._source_error: Exception | None = None
        self._stopped = False
        self._running: set[_Worker] = set()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        for number in range(self._plan.workers):
            worker = _Worker(self._open_session, self._plan)
            self._running.add(worker)
            name = f"ppio-client-batch-{number}"
            self._threads.append(start_thread(name, self._run, worker))
        if self._tellers:
            self._threads.append(
                start_thread("ppio-client-batch-progress", self._tell_progress)
            )

    def stop(self) -> None:
        with self._changed:
            if self._stopped:
                return
            self._stopped = True
            workers = tuple(self._running)
            self._changed.notify_all()
        for worker in workers:
            worker.abort()

    def wait(self, timeout: float) -> None:
        deadline = Deadline.after(timeout)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(deadline.left())

    def next_item(self) -> BatchItem:
        with self._changed:
            while True:
                index = self._next_index_locked()
                if index is not None:
                    self._consumed += 1
                    self._changed.notify_all()
                    return self._ready.pop(index)
                if self._stopped:
                    raise StopIteration
                if self._exhausted and self._consumed == self._taken:
                    if self._source_error is not None:
                        raise self._source_error
                    raise StopIteration
                self._changed.wait()

    def _next_index_locked(self) -> int | None:
        if self._plan.ordered:
            return self._consumed if self._consumed in self._ready else None
        return next(iter(self._ready), None)

    def _run(self, worker: _Worker) -> None:
        try:
            while True:
                taken = self._take()
                if taken is None:
                    return
                self._give(worker.run(*taken))
        finally:
            worker.end()
            with self._changed:
                self._running.discard(worker)
                self._changed.notify_all()

    def _take(self) -> tuple[int, AgentRequest] | None:
        """Return the next request and its index; None at the end of the work."""
        with self._changed:
            self._changed.wait_for(self._may_take_locked)
            if self._stopped or self._exhausted:
                return None
            self._pulling = True
        # The input is the caller's code: it may block, fail, or take its time.
        request: Any = None
        error: Exception | None = None
        exhausted = self._plan.deadline.expired and self._total is None
        try:
            if not exhausted:
                request = next(self._source)
        except StopIteration:
            exhausted = True
        except Exception as failure:  # noqa: BLE001 - raised to whoever iterates
            error, exhausted = failure, True
        with self._changed:
            self._pulling = False
            self._changed.notify_all()
            if exhausted:
                self._exhausted, self._source_error = True, error
                return None
            self._taken += 1
            return self._taken - 1, request

    def _may_take_locked(self) -> bool:
        if self._stopped or self._exhausted:
            return True
        ahead = self._taken - self._consumed
        return not self._pulling and ahead < _AHEAD * self._plan.workers

    def _give(self, item: BatchItem) -> None:
        with self._changed:
            self._ready[item.index] = item
            self._done += 1
            self._failed += item.error is not None
            self._changed.notify_all()

    def _progress_locked(self) -> BatchProgress:
        eta = None
        if self._total is not None and self._done:
            pace = (time.monotonic() - self._started_at) / self._done
            eta = pace * (self._total - self._done)
        return BatchProgress(
            total=self._total,
            done=self._done,
            failed=self._failed,
            running=self._taken - self._done,
            eta=eta,
            ended=not self._running,
        )

    def _tell_progress(self) -> None:
        told: tuple[int, int] | None = None
        over = False
        while not over:
            with self._changed:
                self._changed.wait_for(
                    lambda: (self._taken, self._done) != told or not self._running  # noqa: B023 - asked only in this turn
                )
                over = not self._running
                told = (self._taken, self._done)
                progress = self._progress_locked()
            for tell in self._tellers:
                try:
                    tell(progress)
                except Exception:  # noqa: BLE001 - the caller's code, logged
                    _log.exception("telling of a batch's progress failed")


class _Worker:
    """Runs one item after another, each in a sandbox of its own or all in one."""

    def __init__(self, open_session: OpenSession, plan: BatchPlan) -> None:
        self._open_session = open_session
        self._plan = plan
        self._scope = CallScope()
        self._session: SandboxSession | None = None

    def run(self, index: int, request: AgentRequest) -> BatchItem:
        started = time.monotonic()
        attempts = 1
        response: InvocationResponse | None = None
        error: Exception | None = None
        try:
            encode_request(request)  # refused before there is a sandbox
            with self._scope.running():
                try:
                    response = self._invoke(request)
                except SessionNotFoundError as gone:
                    # A kept sandbox that had died: nothing has reached the agent.
                    if gone.code != SessionNotFoundError.code:
                        raise
                    attempts = 2
                    response = self._invoke(request)
        except Exception as failure:  # noqa: BLE001 - it belongs to the item
            error = failure
        finally:
            if not self._plan.keeps_sessions or not self._usable():
                self.end()
        return BatchItem(
            index=index,
            request=request,
            response=response,
            error=error,
            attempts=attempts,
            elapsed=time.monotonic() - started,
        )

    def _usable(self) -> bool:
        session = self._session
        return session is not None and session.state is SessionState.ACTIVE

    def _invoke(self, request: AgentRequest) -> InvocationResponse:
        deadline = self._plan.deadline
        if deadline.expired:
            raise RequestTimeoutError("the batch's deadline passed before this item")
        session = self._session
        if session is None or not self._usable():
            self.end()
            session = self._session = self._open_session(deadline)
        return session.invoke(request, timeout=time_left(deadline, self._plan.timeout))

    def abort(self) -> None:
        """End what runs, from another thread; the worker kills its sandbox itself."""
        self._scope.abort(_stopped_error())

    def end(self) -> None:
        """Kill the sandbox, if there is one."""
        session, self._session = self._session, None
        if session is not None:
            with shielded():
                session.dispose()


def _stopped_error() -> PPIOAgentError:
    return InvocationCancelledError("the batch was stopped before this item had ended")
