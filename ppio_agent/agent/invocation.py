"""One call of an agent: its thread, its end, and what it gives on the way.

The state machine is `states`; this is its shell. Three threads may meet here: the one
that runs user code, one that waits for the outcome or reads the chunks, and one that
asks for the end (another request, or the alarm at the deadline).
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from ppio_agent._util.clock import utc_now
from ppio_agent._util.threads import WorkerPool
from ppio_agent.wire.json import decode_json, encode_json

from .alarm import alarms
from .chunk import Chunk, ChunkCollector
from .context import CancelReason, RequestContext, bind_context
from .failure import Failure
from .handler import Around, Handler, as_payload, is_async_result, stream_of
from .outcome import Outcome, imposed_error, terminal_events
from .progress import Progress, Step
from .record import InvocationRecord
from .ring import ReplayRing, RingReader
from .states import Happening, InvocationState, Life
from .stream import pump, read_chunks

__all__ = ["Invocation"]

_log = logging.getLogger(__name__)


class Invocation:
    """One call of one handler.

    Args:
        handler: What is called.
        payload: A JSON value; what is no object becomes one, see `as_payload`.
        context: What the handler is told; its deadline and token are in force here.
        ring: Where chunks are kept; None makes one when it is first needed.
        collect: Whether the chunks of a stream are kept as its result, too.
        collect_bytes: Most JSON bytes kept for that.
        cancel_grace: Seconds user code has to react to a cancel before the invocation
            counts as cancelled without it.
        around: Runs around the handler.
        bound: Whether it is cancelled (`disconnect`) when its last reader leaves; its
            maker is the first reader.
        reserve: Whether a stream waits for its first reader, who calls `take_reader`
            when there is something to read; without that a quick stream overtakes a
            reader that attaches only then.
        describe: How an exception is told to callers.
        encode: How a returned value becomes JSON.
        on_settled: Called once when it is terminal and user code has ended.

    Attributes:
        progress: How far it has come, for those who wait.
        streams: Whether it gives chunks.
        value: What a handler that does not stream returned, once it has.
        result_json: The same as JSON.
        error: What it ended with, if not with success.
        failure: How that is told.

    Raises:
        ValidationError: The payload is None.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        handler: Handler,
        payload: Any,
        context: RequestContext,
        *,
        ring: ReplayRing | None = None,
        collect: bool = True,
        collect_bytes: int = 8 * 1024 * 1024,
        cancel_grace: float = 5.0,
        around: Around | None = None,
        bound: bool = True,
        reserve: bool = False,
        describe: Callable[[BaseException], Failure] = Failure.of,
        encode: Callable[[Any], bytes] = encode_json,
        on_settled: Callable[[Invocation], object] | None = None,
    ) -> None:
        self.handler = handler
        self.context = context
        self.around = around
        self.error: BaseException | None = None
        self.failure: Failure | None = None
        self.progress = Progress()
        self.streams = False
        self.value: Any = None
        self.result_json = b"null"
        self.on_settled = on_settled
        self._payload = as_payload(payload)
        self._collector = ChunkCollector(collect_bytes) if collect else None
        self._cancel_grace = cancel_grace
        self._describe = describe
        self._encode = encode
        self._bound = bound
        # Copied once, here: one Context cannot be entered by two threads, and what
        # the request's thread has set so far (ids for logs) is meant to be seen.
        self._variables = contextvars.copy_context()
        # Guards everything below.
        self._lock = threading.Lock()
        self._life = Life()
        self._ring = ring
        self._readers = 1
        self._reserve = reserve
        self._reserved: RingReader | None = None
        self._born = time.monotonic()
        self._ended: float | None = None
        self._started: float | None = None
        self._cancel: tuple[CancelReason, datetime] | None = None
        self._grace_ends: float | None = None
        self._slow_at: float | None = None
        self._on_slow: Callable[[], object] | None = None
        self._armed = False

    @property
    def id(self) -> str:
        """Its id."""
        return self.context.invocation_id

    @property
    def state(self) -> InvocationState:
        """Where it stands."""
        return self._life.state

    @property
    def confirmed(self) -> bool:
        """Whether user code has ended, or never began."""
        return self._life.confirmed

    @property
    def cancel_reason(self) -> CancelReason | None:
        """Why its end was asked for; None if nobody asked."""
        return None if self._cancel is None else self._cancel[0]

    @property
    def duration(self) -> float:
        """Seconds from its making to its end, or till now."""
        return (self._ended or time.monotonic()) - self._born

    @property
    def size(self) -> int:
        """Bytes that are kept of it for replays."""
        return len(self.result_json) + (0 if self._ring is None else self._ring.size)

    @property
    def ring(self) -> ReplayRing:
        """Its chunks and their end; of a plain invocation, its value as one chunk."""
        with self._lock:
            return self._ring_locked()

    def _ring_locked(self) -> ReplayRing:
        if self._ring is None:
            self._ring = ReplayRing()
            if self.progress.has(Step.OVER):
                self._fill_ring_locked(self._ring)
        return self._ring

    # Running.

    def start(self, pool: WorkerPool) -> None:
        """Run on a thread of `pool`, which may have to become free first.

        Raises:
            PoolSaturatedError: No thread is free and no more may wait for one.
        """
        self._arm()
        try:
            pool.submit(self.run)
        except RuntimeError:
            alarms().clear(self)
            self._armed = False
            raise

    def run(
        self, *, on_slow: Callable[[], object] | None = None, quick: float = 0.0
    ) -> None:
        """Run in the calling thread, to the end of user code; never raises.

        Args:
            on_slow: Called on another thread when user code has run for `quick`
                seconds; on this one, when it is known to stream. Perhaps both.
            quick: Seconds.
        """
        if on_slow is not None:
            self._on_slow = on_slow
            self._slow_at = time.monotonic() + quick
        if self._slow_at is not None or not self._armed:
            self._arm()
        variables = self._variables
        if not self._note(Happening.ENTERED):
            return
        bind_context(self.context, variables)
        outcome = variables.run(self._work)
        self._on_slow = None
        if self.context.time_left() == 0.0:
            self._expire()  # decided at the deadline, even if the alarm is late
        self._note(outcome.happening, outcome=outcome)

    def _work(self) -> Outcome:
        try:
            if self.around is None:
                value = self._reach(self._payload)
            else:
                value = self.around(self._reach, self._payload)
            items = stream_of(value)
            if items is None:
                json = self._encode(value)
                return Outcome(happening=Happening.RETURNED, value=value, json=json)
            self._open(streams=True)
            whole = pump(
                items,
                self.ring,
                collector=self._collector,
                cancelled=self.context.cancelled,
            )
            return Outcome(happening=Happening.RETURNED if whole else Happening.STOPPED)
        except BaseException as error:  # noqa: BLE001 - the outermost frame of user code
            return Outcome.of_error(error)

    def _reach(self, payload: Any) -> Any:
        """Call the handler; return its value, or the iterator of its chunks."""
        argument = self.handler.prepare(payload)
        self.context.check()
        self._open(streams=self.handler.is_stream is True)
        outcome = self.handler.call(argument, self.context)
        if is_async_result(outcome):
            from .loop import AsyncCall

            return AsyncCall(self.context.cancelled).result(outcome)
        return outcome

    def _open(self, *, streams: bool) -> None:
        """Note that the handler was reached, or that there is going to be a stream."""
        with self._lock:
            self.streams = self.streams or streams
            if streams and self._reserve:
                self._reserve = False
                self._reserved = self._ring_locked().attach()
        if not streams:
            self.progress.take(Step.REACHED)
            return
        self.progress.take(Step.REACHED | Step.STREAMS)
        on_slow = self._on_slow
        if on_slow is not None:
            on_slow()

    # Ending.

    def cancel(self, reason: CancelReason = "client") -> bool:
        """Ask for the end; acts at once on whatever waits in a way that can be woken.

        Returns:
            Whether this changed anything: not if it was asked before, or has ended.
        """
        if not self._note(Happening.CANCEL_ASKED, reason=reason):
            return False
        self.context.cancelled.fire(reason)
        with self._lock:
            ring = self._ring
            self._grace_ends = time.monotonic() + self._cancel_grace
        if ring is not None:
            ring.interrupt()
        self._arm()
        return True

    def refuse(self, error: BaseException) -> bool:
        """End it before it has begun, because no slot came free.

        Returns:
            Whether it had not begun.
        """
        outcome = Outcome(happening=Happening.REFUSED, error=error)
        return self._note(Happening.REFUSED, outcome=outcome)

    def join(self) -> None:
        """Count one more reader."""
        with self._lock:
            self._readers += 1

    def leave(self, reason: CancelReason = "disconnect") -> None:
        """Count one reader less; without any, a bound invocation is cancelled."""
        with self._lock:
            self._readers -= 1
            alone = self._readers <= 0 and self._bound
        if alone:
            self.cancel(reason)

    def on_alarm(self) -> None:
        """React to slow user code, the deadline, or the end of a cancel's grace."""
        now = time.monotonic()
        on_slow, self._slow_at = self._on_slow, None
        if on_slow is not None:
            on_slow()
        if self.context.deadline is not None and now >= self.context.deadline:
            self._expire()
        elif self._grace_ends is not None and now >= self._grace_ends:
            self._note(Happening.GRACE_OVER)
        else:
            self._arm()

    def _arm(self) -> None:
        self._armed = True
        wanted = (self.context.deadline, self._grace_ends, self._slow_at)
        instants = [instant for instant in wanted if instant is not None]
        if instants and not self._life.state.terminal:
            alarms().set(self, min(instants))

    def _expire(self) -> None:
        if self._note(Happening.DEADLINE):
            self.context.cancelled.fire("deadline")

    def _note(
        self,
        happening: Happening,
        *,
        outcome: Outcome | None = None,
        reason: CancelReason | None = None,
    ) -> bool:
        """Take one step of the state machine; return whether anything changed."""
        # User code may be asked for the text of its exception, so not under the lock.
        error = None if outcome is None else outcome.error
        failure = None if error is None else self._describe(error)
        with self._lock:
            before = self._life
            life = self._life = before.after(happening)
            if life is before:
                return False
            if happening is Happening.ENTERED:
                self._started = time.monotonic()
            if reason is not None:
                self._cancel = (reason, utc_now())
            ends = life.state.terminal and not before.state.terminal
            if ends:
                self._conclude_locked(outcome, failure)
        if ends:
            alarms().clear(self)
        if life.confirmed:
            self._settle()
        if life.state.terminal:
            self._publish(life)
        elif happening is Happening.ENTERED:
            self.progress.take(Step.STARTED)
        return True

    def _conclude_locked(
        self, outcome: Outcome | None, failure: Failure | None
    ) -> None:
        self._ended = time.monotonic()
        imposed = imposed_error(self._life.state, self.id, self.cancel_reason)
        if imposed is not None:
            self.error, self.failure = imposed, self._describe(imposed)
        elif outcome is not None:
            self.value, self.result_json = outcome.value, outcome.json
            self.error, self.failure = outcome.error, failure

    def _settle(self) -> None:
        """Let go of what only user code needed, and tell the owner."""
        self._payload = {}
        self._variables = contextvars.Context()
        bind_context(self.context, None)
        on_settled, self.on_settled = self.on_settled, None
        if on_settled is not None:
            try:
                on_settled(self)
            except Exception:  # noqa: BLE001 - those who wait have to be told
                _log.exception("nobody took note of the end of invocation %s", self.id)

    def _publish(self, life: Life) -> None:
        """Tell whoever waits or reads; only now, when the owner is up to date."""
        with self._lock:
            if self._ring is not None:
                self._fill_ring_locked(self._ring)
            self.progress.take(
                Step.OVER | Step.SETTLED if life.confirmed else Step.OVER
            )

    def _fill_ring_locked(self, ring: ReplayRing) -> None:
        if ring.closed:
            return
        life = self._life
        if life.state is InvocationState.SUCCEEDED and not self.streams:
            ring.append_value(self.result_json)
        end, error = terminal_events(
            life,
            self.failure,
            invocation_id=self.id,
            request_id=self.context.request_id,
            duration=self.duration,
            chunks=ring.last,
        )
        ring.finish(end, error)

    # Waiting and reading.

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for a terminal state; return whether it is reached."""
        return self.progress.wait(Step.OVER, timeout)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end and return the result; of a stream, all its chunks.

        The chunks of a stream are one text if all of them are texts, else a list;
        None if they were not kept, or too much.

        Raises:
            InvocationCancelledError: It was cancelled.
            InvocationTimeoutError: It passed its deadline.
            TimeoutError: It did not end within `timeout` seconds.
            BaseException: Whatever the handler raised.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"invocation {self.id} has not ended in {timeout} s")
        if self.error is not None:
            raise self.error
        return self._kept_result()

    def chunks(self, after: int = 0) -> Iterator[Chunk]:
        """Yield its chunks after number `after`, as they come.

        The handler waits for this reader, from this call on: before `start`, it
        misses none. At the end raises as `result` does.

        Raises:
            ReplayGoneError: Chunks after `after` are no longer kept.
        """
        return self._chunks(self.ring.attach(after))

    def _chunks(self, reader: RingReader) -> Iterator[Chunk]:
        yield from read_chunks(reader)
        if self.error is not None:
            raise self.error

    def take_reader(self) -> RingReader:
        """Return the first reader, of all entries from the first on; to be closed."""
        with self._lock:
            self._reserve = False
            reader, self._reserved = self._reserved, None
            return reader or self._ring_locked().attach()

    def record(self) -> InvocationRecord:
        """Return what can be told about it now."""
        ring = self.ring
        with self._lock:
            life = self._life
            succeeded = life.state is InvocationState.SUCCEEDED
            reason, requested_at = self._cancel or (None, None)
            return InvocationRecord(
                id=self.id,
                state=life.state,
                confirmed=life.confirmed,
                attempt=self.context.attempt,
                entrypoint=self.handler.name,
                session_id=self.context.session_id,
                created_at=self.context.timestamp,
                started_at=self._instant(self._started),
                finished_at=self._instant(self._ended),
                duration=round(self.duration, 6),
                stream=self.streams,
                first_event=ring.first,
                last_event=ring.last,
                cancel_reason=reason,
                cancel_requested_at=requested_at,
                result=self._json_result() if succeeded else None,
                result_truncated=(
                    self._collector is not None and self._collector.truncated
                ),
                late=life.late,
                error=self.failure,
            )

    def _instant(self, moment: float | None) -> datetime | None:
        if moment is None:
            return None
        return self.context.timestamp + timedelta(seconds=moment - self._born)

    def _kept_result(self) -> Any:
        if not self.streams:
            return self.value
        return None if self._collector is None else self._collector.result()

    def _json_result(self) -> Any:
        """Return the result as a reader of its JSON has it."""
        return self._kept_result() if self.streams else decode_json(self.result_json)
