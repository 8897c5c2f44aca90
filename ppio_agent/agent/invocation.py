"""One call of an agent: its thread, its end, and what it gives on the way.

Three threads may meet here: the one that runs user code, one that waits for the outcome
or reads the chunks, and one that asks for the end, which is the part of `lifetime`.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from ppio_agent._util.alarm import alarms
from ppio_agent._util.threads import NoThreadError, WorkerPool
from ppio_agent.exceptions import ServiceUnavailableError
from ppio_agent.wire.json import decode_json, encode_json

from .chunk import Chunk, ChunkCollector
from .context import RequestContext, bind_context
from .failure import Failure
from .handler import Around, Handler, as_payload, stream_of
from .lifetime import Departure, Lifetime
from .outcome import Outcome, terminal_events
from .progress import Step
from .record import InvocationRecord
from .ring import ReplayRing, RingReader
from .states import Happening, InvocationState
from .stream import pump, read_chunks

__all__ = ["Invocation"]


class Invocation(Lifetime):
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
        departure: What becomes of it when its last reader leaves; its maker is the
            first reader, unless it is `async`.
        detach_grace: Seconds a detached one goes on unread; then it is cancelled
            (`disconnect`).
        reserve: Whether a stream waits for its first reader, who calls `take_reader`
            when there is something to read; without that a quick stream overtakes a
            reader that attaches only then.
        describe: How an exception is told to callers.
        encode: How a returned value becomes JSON.
        on_settled: Called once when it is terminal and user code has ended.

    Attributes:
        progress: How far it has come, for those who wait.
        streams: Whether it gives chunks.
        value: What a handler that does not stream returned, once it has and until
            `forget_value`.
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
        departure: Departure = "cancel",
        detach_grace: float = 30.0,
        reserve: bool = False,
        describe: Callable[[BaseException], Failure] = Failure.of,
        encode: Callable[[Any], bytes] = encode_json,
        on_settled: Callable[[Invocation], object] | None = None,
    ) -> None:
        super().__init__(
            context,
            cancel_grace=cancel_grace,
            departure=departure,
            detach_grace=detach_grace,
            describe=describe,
        )
        self.handler = handler
        self.around = around
        self.streams = False
        self.on_settled = on_settled
        self._payload = as_payload(payload)
        self._collector = ChunkCollector(collect_bytes) if collect else None
        self._encode = encode
        # Copied once, here: one Context cannot be entered by two threads, and what
        # the request's thread has set so far (ids for logs) is meant to be seen.
        self._variables = contextvars.copy_context()
        # Guarded by the lock of its life.
        self._ring = ring
        self._reserve = reserve
        self._reserved: RingReader | None = None

    @property
    def size(self) -> int:
        """Bytes that are kept of it; the handler's own object counts as its JSON."""
        ring, collector = self._ring, self._collector
        size = len(self.result_json) * (1 if self.value is None else 2)
        if ring is not None:
            size += ring.size
        return size if collector is None else size + collector.size

    @property
    def chunk_count(self) -> int:
        """How many chunks its stream has given so far."""
        # Of a plain one, the ring that a reader of events asks for has its value.
        return self._ring.chunks if self.streams and self._ring is not None else 0

    @property
    def stream_readers(self) -> int:
        """How many readers take its events now."""
        return 0 if self._ring is None else self._ring.readers

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
            NoThreadError: A thread is needed, for it or its time, and cannot be
                started.
            RuntimeError: The pool is closed.
        """
        try:
            self._arm()
            pool.submit(self._run)
        except RuntimeError:
            alarms().clear(self)
            raise

    def run(
        self, *, on_slow: Callable[[], object] | None = None, quick: float = 0.0
    ) -> None:
        """Run in the calling thread, to the end of user code; never raises.

        It is refused if a thread is needed for its time, and cannot be started.

        Args:
            on_slow: Called on another thread when user code has run for `quick`
                seconds; on this one, when it is known to stream. Perhaps both.
            quick: Seconds.
        """
        try:
            self._arm(on_slow, quick)
        except NoThreadError:
            self.refuse(
                ServiceUnavailableError(
                    f"no thread can be started to watch the time of {self.id};"
                    " try again later",
                    retry_after=1.0,
                )
            )
            return
        self._run()

    def _run(self) -> None:
        variables = self._variables
        if not self._note(Happening.ENTERED):
            return
        bind_context(self.context, variables)
        outcome = variables.run(self._work)
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
        return self.handler.run(argument, self.context)

    def _open(self, *, streams: bool) -> None:
        """Note that the handler was reached, or that there is going to be a stream."""
        if not streams:
            self.progress.take(Step.REACHED)
            return
        with self._lock:
            self.streams = True
            if self._reserve:
                self._reserve = False
                self._reserved = self._ring_locked().attach()
        self.progress.take(Step.REACHED | Step.STREAMS)
        on_slow = self._on_slow
        if on_slow is not None:
            on_slow()

    # Ending.

    def _settle(self) -> None:
        self._payload = {}
        if self._life.state is not InvocationState.SUCCEEDED:
            with self._lock:
                self._collector = None  # part of a result is none
        self._variables = contextvars.Context()
        bind_context(self.context, None)
        on_settled, self.on_settled = self.on_settled, None
        if on_settled is not None:
            self._call_safely(on_settled)

    def _publish(self, *, ends: bool, settled: bool) -> None:
        with self._lock:
            if settled:
                self._settled, self._on_slow = True, None
            if ends and self._ring is not None:
                self._fill_ring_locked(self._ring)
            if ends or self.progress.has(Step.OVER):
                self.progress.take(
                    Step.OVER | Step.SETTLED if self._settled else Step.OVER
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

        It is the very object that the handler returned, until `forget_value`.
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

    def forget_value(self) -> None:
        """Keep the result as JSON only; `result` then gives what that reads."""
        self.value = None

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
            value = self.value  # None: it is null, or was let go of
            return decode_json(self.result_json) if value is None else value
        return None if self._collector is None else self._collector.result()

    def _json_result(self) -> Any:
        """Return the result as a reader of its JSON has it."""
        return self._kept_result() if self.streams else decode_json(self.result_json)
