"""The HTTP of an agent inside its sandbox: ping, invocations, cancel."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

from attrs import evolve, frozen

from ppio_agent._util.aside import run_aside
from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import (
    InvocationError,
    NetworkError,
    NotFoundError,
    PPIOAgentError,
    ProtocolError,
    ResponseTooLargeError,
    SessionNotFoundError,
    WireError,
)
from ppio_agent.transport import (
    NO_RETRY,
    Auth,
    RawStream,
    Request,
    RetryPolicy,
    Transport,
    shielded,
)
from ppio_agent.wire import headers as h
from ppio_agent.wire.json import Json, decode_json, encode_json
from ppio_agent.wire.models import InvocationResponse, PingResponse, PingStatus
from ppio_agent.wire.sse import CONTENT_TYPE, SSEEvent

from .answers import is_event_stream, make_response, read_ping, read_value
from .call import Call, Line, name_call
from .endpoint import Route
from .events import EventReader, decode_chunk, join_chunks
from .feed import EventFeed, WayBack
from .invocation import envelope_error, is_envelope
from .resume import next_resume
from .stream import CancelResult, Run, StreamHost, StreamingResponse
from .watch import watch_events

__all__ = ["AgentPort"]

_T = TypeVar("_T")

_ANY_ANSWER = f"application/json, {CONTENT_TYPE};q=0.9"
_PING_LIMIT = 2.0
# Whoever has given up a call waits that long for the agent to hear of it.
_STOP_LIMIT = 1.0


@frozen(eq=False, kw_only=True)
class AgentPort:
    """Speaks to the agent of one sandbox.

    Thread safety: immutable.
    """

    transport: Transport
    route: Route
    sandbox_id: str
    session_id: str
    auth: Auth
    idle_timeout: float
    max_event_bytes: int
    max_response_bytes: int

    def ping(self, deadline: Deadline) -> tuple[PingResponse, bool]:
        """Ask the agent how it is; a refusal with a ping's body is an answer.

        Bounded by 2 s, or the deadline if that is earlier; asked once.

        Returns:
            What it said, and whether that means that it takes invocations.
        """
        request = self._request(
            "GET",
            "/ping",
            deadline=deadline.earlier(_PING_LIMIT),
            ok_statuses=(503,),
            retry=NO_RETRY,
        )
        response = self.transport.send(request)
        answer = read_ping(response)
        well = response.status == 200 and answer.status != PingStatus.UNHEALTHY
        return answer, well

    def invoke(self, call: Call) -> InvocationResponse:
        """Run the agent and return its whole answer, also if it streams."""
        started = time.monotonic()
        return self._insist(call, lambda: self._answer(call, started))

    def open_stream(self, call: Call, host: StreamHost) -> StreamingResponse:
        """Run the agent and return its answer piece by piece.

        Args:
            call: What is asked.
            host: Who has to know what becomes of the stream.
        """
        return self._insist(call, lambda: self._stream(call, host))

    def open(
        self, call: Call, host: StreamHost
    ) -> InvocationResponse | StreamingResponse:
        """Run the agent and return its answer as it comes: whole, or piece by piece.

        Args:
            call: What is asked.
            host: Who has to know what becomes of it, if it is a stream.
        """
        started = time.monotonic()
        return self._insist(call, lambda: self._either(call, host, started))

    def resume_stream(
        self, line: Line, host: StreamHost, after: str | None
    ) -> StreamingResponse:
        """Return the stream of a run that was begun elsewhere.

        Args:
            line: What it has for itself here.
            host: Who has to know what becomes of the stream.
            after: Id of the event after which it begins; None is the first.
        """
        run = Run(
            invocation_id=line.invocation_id,
            session_id=self.session_id,
            sandbox_id=self.sandbox_id,
        )
        raw = self._events(run, line, after, idle_timeout=self.idle_timeout)
        run = evolve(run, request_id=raw.request_id)
        return self._streaming(raw, run, line, host=host, after=after, resumed=True)

    def cancel(
        self,
        invocation_id: str,
        deadline: Deadline,
        *,
        retry: RetryPolicy | None = None,
    ) -> CancelResult:
        """Ask the agent to stop a run."""
        request = self._request(
            "POST",
            _place(invocation_id, "cancel"),
            deadline=deadline,
            retry=retry,
        )
        try:
            answer = self.transport.send(request).json()
        except SessionNotFoundError:
            raise
        except NotFoundError:
            answer = None  # it keeps no runs, or this one no longer
        facts = answer if isinstance(answer, dict) else {}
        return CancelResult(
            confirmed=facts.get("confirmed") is True,
            state=str(facts.get("state", "unknown")),
        )

    def stop(self, invocation_ids: Sequence[str]) -> None:
        """Ask for the end of runs that nobody waits for any more, as far as it goes.

        Within a second, and only an agent that is known to give its runs ids. By the
        id that a run was asked for with: one that another call has begun under the
        same key has another one, and goes on.
        """
        if not invocation_ids or not self._runs_once():
            return
        limit = Deadline.after(_STOP_LIMIT)
        asked = threading.Semaphore(0)

        def ask(invocation_id: str) -> None:
            try:
                with shielded(), contextlib.suppress(PPIOAgentError):
                    self.cancel(invocation_id, limit, retry=NO_RETRY)
            finally:
                asked.release()

        first, *others = invocation_ids
        for other in others:
            run_aside(partial(ask, other))
        ask(first)
        for _ in invocation_ids:
            asked.acquire(timeout=limit.left())

    def _insist(self, call: Call, ask: Callable[[], _T]) -> _T:
        """Return what `ask` gives; ask again for an answer that was lost on its way.

        A peer that runs a key once lets the same request join the run, or gives it the
        stored answer. What its caller gives up such a peer is asked to cancel.
        """
        asked = 0
        try:
            while True:
                try:
                    return ask()
                except NetworkError as error:
                    asked += max(1, error.attempts)
                    self._wait_to_join(call, error, asked)
        except BaseException as error:
            if type(error) is SessionNotFoundError and call.handle.may_have_run:
                error.code = error.lost_code
            if call.was_given_up(error):
                self.stop([call.invocation_id])
            raise

    def _wait_to_join(self, call: Call, error: NetworkError, asked: int) -> None:
        """Wait until the run of a call may be joined; raise the error if it cannot."""
        name_call(error, key=call.idempotency_key, sandbox_id=self.sandbox_id)
        if not self._runs_once():
            raise error
        delay = next_resume(
            self.transport.config.retry,
            error,
            resumes=asked - 1,
            left=call.deadline.left(),
            random=random.random,
        )
        if delay is None:
            raise error
        call.handle.may_have_run = True
        call.handle.pause(Deadline.after(delay))

    def _runs_once(self) -> bool:
        sandbox_id = self.route.headers.get(h.SANDBOX_ID, "")
        return self.transport.is_run_once(self.route.origin, sandbox_id)

    def _answer(self, call: Call, started: float) -> InvocationResponse:
        raw = self._open(call, accept=_ANY_ANSWER)
        run = self._run_of(raw, call)
        if is_event_stream(raw.headers):
            with self._streaming(raw, run, call) as stream:
                return self._collect(stream, raw, started)
        return self._response(raw, run, started)

    def _either(
        self, call: Call, host: StreamHost, started: float
    ) -> InvocationResponse | StreamingResponse:
        raw = self._open(call, accept=_ANY_ANSWER)
        run = self._run_of(raw, call)
        if is_event_stream(raw.headers):
            return self._streaming(raw, run, call, host=host)
        return self._response(raw, run, started)

    def _response(self, raw: RawStream, run: Run, started: float) -> InvocationResponse:
        value = self._whole(raw)
        if not is_envelope(value):
            value = {"result": value, "duration": time.monotonic() - started}
        return make_response(value, run, raw.headers)

    def _stream(self, call: Call, host: StreamHost) -> StreamingResponse:
        raw = self._open(call, accept=CONTENT_TYPE)
        run = self._run_of(raw, call)
        if is_event_stream(raw.headers):
            return self._streaming(raw, run, call, host=host)
        value = self._whole(raw)
        if is_envelope(value):
            value = value["result"]
        ready = [] if value is None else [SSEEvent(encode_json(value).decode())]
        return self._streaming(raw, run, call, host=host, ready=ready)

    def _open(self, call: Call, *, accept: str) -> RawStream:
        left = call.deadline.left()
        headers = {
            **call.headers,
            "Accept": accept,
            "Content-Type": "application/json",
            h.IDEMPOTENCY_KEY: call.idempotency_key,
            h.INVOCATION_ID: call.invocation_id,
            h.SESSION_ID: self.session_id,
        }
        if left is not None:
            headers[h.TIMEOUT] = f"{left:.3f}"
        request = self._request(
            "POST",
            "/invocations",
            headers=headers,
            body=call.body,
            deadline=call.deadline,
            idle_timeout=self.idle_timeout if accept == CONTENT_TYPE else None,
            raise_for_status=False,
        )
        raw = self.transport.stream(request, call=call.handle)
        if 200 <= raw.status < 300:
            return raw
        raise self._failure(raw, request)

    def _events(
        self,
        run: Run,
        line: Line,
        after: str | None,
        *,
        idle_timeout: float | None,
        retry: RetryPolicy | None = None,
    ) -> RawStream:
        """Ask for the events of a run after the one with the id `after`."""
        headers = {"Accept": CONTENT_TYPE}
        if after is not None:
            headers[h.LAST_EVENT_ID] = after
        request = self._request(
            "GET",
            _place(str(run.invocation_id), "events"),
            headers=headers,
            deadline=line.deadline,
            idle_timeout=idle_timeout,
            retry=retry,
        )
        raw = self.transport.stream(request, call=line.handle)
        if not is_event_stream(raw.headers):
            raw.close()
            raise ProtocolError(
                f"the agent answered no event stream for the events of invocation"
                f" {run.invocation_id}",
                request_id=raw.request_id,
            )
        named = raw.headers.get(h.INVOCATION_ID, run.invocation_id)
        if named != run.invocation_id:
            raw.close()
            raise ProtocolError(
                f"the agent answered with the events of invocation {named} for those"
                f" of invocation {run.invocation_id}",
                request_id=raw.request_id,
            )
        return raw

    def _failure(self, raw: RawStream, request: Request) -> Exception:
        response = raw.response(self.max_response_bytes)
        try:
            body = decode_json(response.body)
        except WireError:
            body = None
        # Above 500 and without a result it may be what a gateway says of itself.
        if (
            is_envelope(body)
            and raw.status >= 499
            and (raw.status <= 500 or "result" in body)
        ):
            return self._failed(body, raw)
        return self.transport.error_for(request, response)

    def _whole(self, raw: RawStream) -> Json:
        """Return the value of an answer that is no stream; raise a failed run's error."""
        value = read_value(raw.response(self.max_response_bytes))
        if is_envelope(value) and value["status"] == "error":
            raise self._failed(value, raw)
        return value

    def _failed(self, envelope: Mapping[str, Json], raw: RawStream) -> InvocationError:
        error = envelope_error(
            envelope,
            status=raw.status,
            request_id=raw.request_id,
            redact=self.transport.redactor.text,
        )
        error.invocation_id = error.invocation_id or raw.headers.get(h.INVOCATION_ID)
        return error

    def _streaming(
        self,
        raw: RawStream,
        run: Run,
        line: Line,
        *,
        host: StreamHost | None = None,
        after: str | None = None,
        resumed: bool = False,
        ready: Sequence[SSEEvent] = (),
    ) -> StreamingResponse:
        full = run.invocation_id is not None
        reader = EventReader(
            full=full,
            max_event_bytes=self.max_event_bytes,
            last_event_id=after,
            invocation_id=run.invocation_id,
            resumed=resumed,
            redact=self.transport.redactor.text,
            watch=watch_events(self.transport, run),
        )
        reader.done = not is_event_stream(raw.headers)
        # Without a host it is collected, and silence is as good as waiting for one
        # whole answer.
        idle_timeout = None if host is None else self.idle_timeout
        way_back = WayBack(
            connect=lambda last: self._events(
                run, line, last, idle_timeout=idle_timeout, retry=NO_RETRY
            ),
            policy=self.transport.config.retry,
        )
        feed = EventFeed(
            raw,
            reader,
            call=line.handle,
            deadline=line.deadline,
            way_back=way_back if full else None,
        )
        return StreamingResponse(
            feed,
            run=run,
            host=host,
            cancel=lambda: self.cancel(str(run.invocation_id), Deadline.after(10.0)),
            ready=ready,
        )

    def _collect(
        self, stream: StreamingResponse, raw: RawStream, started: float
    ) -> InvocationResponse:
        chunks: list[Json] = []
        size = 0
        try:
            for event in stream.events():
                size += len(event.data)
                if size > self.max_response_bytes:
                    raise ResponseTooLargeError(
                        f"the agent's stream is larger than {self.max_response_bytes}"
                        " bytes; read it with invoke_stream, or raise"
                        " max_response_bytes",
                        request_id=raw.request_id,
                    )
                chunks.append(decode_chunk(event.data))
        except InvocationError as error:
            error.chunks = tuple(chunks)
            raise
        final = stream.final or {}
        duration = final.get("duration", time.monotonic() - started)
        value = {"result": join_chunks(chunks), "duration": duration}
        return make_response(value, stream.run, raw.headers, chunks=tuple(chunks))

    def _run_of(self, raw: RawStream, call: Call) -> Run:
        return Run(
            idempotency_key=call.idempotency_key,
            request_id=raw.request_id,
            invocation_id=raw.headers.get(h.INVOCATION_ID),
            session_id=raw.headers.get(h.SESSION_ID, self.session_id),
            sandbox_id=self.sandbox_id,
        )

    def _request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        **rest: Any,
    ) -> Request:
        return Request(
            method=method,
            url=f"{self.route.origin}{path}",
            headers={**(headers or {}), **self.route.headers},
            kind="agent",
            subject=self.sandbox_id,
            auth=self.auth,
            **rest,
        )


def _place(invocation_id: str, what: str) -> str:
    # Quoted, since the agent may have chosen it.
    return f"/invocations/{quote(invocation_id, safe=':')}/{what}"
