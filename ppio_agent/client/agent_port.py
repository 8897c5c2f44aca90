"""The HTTP of an agent inside its sandbox: ping, invocations, cancel."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen

from ppio_agent._util.clock import Deadline
from ppio_agent._util.ids import new_id
from ppio_agent.exceptions import (
    InvocationError,
    RequestTimeoutError,
    ResponseTooLargeError,
    ServiceUnavailableError,
    ValidationError,
    WireError,
)
from ppio_agent.transport import (
    NO_RETRY,
    Auth,
    CallHandle,
    Headers,
    RawStream,
    Request,
    Response,
    Transport,
)
from ppio_agent.wire import headers as h
from ppio_agent.wire.json import Json, decode_json, encode_json
from ppio_agent.wire.model import structure
from ppio_agent.wire.models import InvocationResponse, PingResponse, PingStatus
from ppio_agent.wire.sse import SSEEvent

from .endpoint import Route
from .invocation import (
    EventReader,
    decode_chunk,
    envelope_error,
    is_envelope,
    join_chunks,
)
from .stream import CancelResult, Run, StreamingResponse

__all__ = ["AgentPort", "Call"]

_EVENT_STREAM = "text/event-stream"
_ANY_ANSWER = f"application/json, {_EVENT_STREAM};q=0.9"
_PING_LIMIT = 2.0


@frozen(kw_only=True)
class Call:
    """One invocation on its way.

    Attributes:
        body: What the agent is sent.
        deadline: Bounds all of it.
        idempotency_key: Under which it runs once, however often it is sent.
        headers: Of the caller's own.
        handle: By which other threads end it.
    """

    body: bytes
    deadline: Deadline
    idempotency_key: str
    headers: Mapping[str, str] = field(repr=False)
    handle: CallHandle = field(factory=CallHandle, repr=False)

    @classmethod
    def make(
        cls,
        body: bytes,
        *,
        deadline: Deadline,
        idempotency_key: str | None,
        headers: Mapping[str, str] | None,
    ) -> Call:
        """Return the call; a key is made up if there is none.

        Raises:
            ValidationError: The key cannot stand in a header.
        """
        if idempotency_key is None:
            idempotency_key = new_id()
        elif not h.valid_idempotency_key(idempotency_key):
            raise ValidationError(
                "an idempotency key has to be 1 to 255 visible ASCII characters"
            )
        return cls(
            body=body,
            deadline=deadline,
            idempotency_key=idempotency_key,
            headers=dict(headers or {}),
        )


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
        answer = _read_ping(response)
        well = response.status == 200 and answer.status != PingStatus.UNHEALTHY
        return answer, well

    def invoke(self, call: Call) -> InvocationResponse:
        """Run the agent and return its whole answer, also if it streams."""
        started = time.monotonic()
        raw = self._open(call, accept=_ANY_ANSWER)
        run = self._run_of(raw)
        if _is_stream(raw):
            with self._streaming(raw, run) as stream:
                return self._collect(stream, raw, started)
        value = self._whole(raw, call)
        if not is_envelope(value):
            value = {"result": value, "duration": time.monotonic() - started}
        return _response(value, run, raw.headers)

    def open_stream(
        self,
        call: Call,
        *,
        on_end: Callable[[], None],
        on_abandon: Callable[[], None] | None,
    ) -> StreamingResponse:
        """Run the agent and return its answer as a stream, once its head is here."""
        raw = self._open(call, accept=_EVENT_STREAM)
        run = self._run_of(raw)
        if _is_stream(raw):
            return self._streaming(raw, run, on_end=on_end, on_abandon=on_abandon)
        value = self._whole(raw, call)
        if is_envelope(value):
            value = value["result"]
        ready = [] if value is None else [SSEEvent(encode_json(value).decode())]
        return self._streaming(
            raw, run, on_end=on_end, on_abandon=on_abandon, ready=ready
        )

    def cancel(self, invocation_id: str, deadline: Deadline) -> CancelResult:
        """Ask the agent to stop a run."""
        path = f"/invocations/{invocation_id}/cancel"
        response = self.transport.send(self._request("POST", path, deadline=deadline))
        answer = response.json()
        facts = answer if isinstance(answer, dict) else {}
        return CancelResult(
            confirmed=facts.get("confirmed") is True,
            state=str(facts.get("state", "unknown")),
        )

    def _open(self, call: Call, *, accept: str) -> RawStream:
        left = call.deadline.left()
        headers = {
            **call.headers,
            "Accept": accept,
            "Content-Type": "application/json",
            h.IDEMPOTENCY_KEY: call.idempotency_key,
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
            idle_timeout=self.idle_timeout if accept == _EVENT_STREAM else None,
            raise_for_status=False,
        )
        try:
            raw = self.transport.stream(request, call=call.handle)
        except RequestTimeoutError as error:
            error.idempotency_key = call.idempotency_key
            raise
        if 200 <= raw.status < 300:
            return raw
        raise self._failure(raw, request)

    def _failure(self, raw: RawStream, request: Request) -> Exception:
        response = raw.response(self.max_response_bytes)
        try:
            body = decode_json(response.body)
        except WireError:
            body = None
        if is_envelope(body) and raw.status >= 499:
            return self._located(
                envelope_error(body, status=raw.status, request_id=raw.request_id), raw
            )
        return self.transport.error_for(request, response)

    def _whole(self, raw: RawStream, call: Call) -> Json:
        """Return the value of an answer that is no stream; raise a failed run's error."""
        try:
            response = raw.response(self.max_response_bytes)
        except RequestTimeoutError as error:
            error.idempotency_key = call.idempotency_key
            raise
        value = _value(response)
        if is_envelope(value) and value["status"] == "error":
            failed = envelope_error(value, status=raw.status, request_id=raw.request_id)
            raise self._located(failed, raw)
        return value

    def _located(self, error: InvocationError, raw: RawStream) -> InvocationError:
        error.invocation_id = error.invocation_id or raw.headers.get(h.INVOCATION_ID)
        return error

    def _streaming(
        self, raw: RawStream, run: Run, **callbacks: Any
    ) -> StreamingResponse:
        full = run.invocation_id is not None
        reader = EventReader(full=full, max_event_bytes=self.max_event_bytes)
        reader.done = not _is_stream(raw)
        return StreamingResponse(
            raw,
            reader,
            run=run,
            cancel=lambda: self.cancel(str(run.invocation_id), Deadline.after(10.0)),
            **callbacks,
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
        return _response(value, stream.run, raw.headers, chunks=tuple(chunks))

    def _run_of(self, raw: RawStream) -> Run:
        return Run(
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


def _is_stream(raw: RawStream) -> bool:
    return _media_type(raw.headers) == _EVENT_STREAM


def _media_type(headers: Headers) -> str:
    return (headers.get("content-type") or "").partition(";")[0].strip().lower()


def _value(response: Response) -> Json:
    if not response.body:
        return None
    kind = _media_type(response.headers)
    if kind == "application/json" or kind.endswith("+json"):
        return response.json()
    return response.body.decode("utf-8", "replace")


def _response(
    value: Mapping[str, Json],
    run: Run,
    headers: Headers,
    chunks: tuple[Json, ...] | None = None,
) -> InvocationResponse:
    members = dict(value)
    metadata = members.pop("metadata", None)
    notes: Mapping[str, Json] = metadata if isinstance(metadata, dict) else {}
    duration = members.pop("duration", None)
    error = members.pop("error", None)
    return InvocationResponse(
        result=members.pop("result", None),
        status=members.pop("status", "success"),
        duration=duration if isinstance(duration, (int, float)) else None,
        metadata=notes,
        error=error if isinstance(error, str) else None,
        request_id=run.request_id,
        invocation_id=run.invocation_id or notes.get("invocation_id"),
        session_id=run.session_id,
        sandbox_id=run.sandbox_id,
        replayed=headers.get(h.IDEMPOTENCY_REPLAYED) == "true",
        chunks=chunks,
        extra=members,
    )


def _read_ping(response: Response) -> PingResponse:
    try:
        return structure(PingResponse, decode_json(response.body))
    except WireError:
        if response.status == 503:
            raise ServiceUnavailableError(
                "the agent cannot be reached at the moment",
                request_id=response.request_id,
            ) from None
        # An agent of the field may say it in words of its own; that it answers is
        # what counts.
        return PingResponse(status=PingStatus.HEALTHY)
