"""What the client tells its plug-ins: frozen records that hold no secret.

URLs, ids and names are redacted; of bodies and events there is the size alone.
"""

from __future__ import annotations

from attrs import frozen

__all__ = [
    "CallEvent",
    "RequestEvent",
    "ResponseEvent",
    "RetryEvent",
    "SessionEvent",
    "StreamEvent",
]


@frozen(kw_only=True)
class CallEvent:
    """What the records of one attempt have in common.

    Attributes:
        method: HTTP method.
        url: What is asked.
        kind: What it is about: ``template``, ``sandbox``, ``agent``, ``envd`` or
            ``other``.
        request_id: The same for all attempts of a call.
        attempt: Number of the attempt, from 1 on. One that does not count, such as
            the second on a kept connection that the peer had closed, repeats it.
        sandbox_id: The sandbox it is about, if any.
        session_id: The conversation it belongs to, if any.

    Thread safety: immutable.
    """

    method: str
    url: str
    kind: str
    request_id: str
    attempt: int
    sandbox_id: str | None = None
    session_id: str | None = None


@frozen(kw_only=True)
class RequestEvent(CallEvent):
    """An attempt begins.

    Attributes:
        size: Bytes of the body that is sent.
    """

    size: int


@frozen(kw_only=True)
class ResponseEvent(CallEvent):
    """An attempt has ended, or the stream that it asked for has begun.

    Attributes:
        status: HTTP status; None if there was no whole answer.
        seconds: Since the attempt began, the wait for a connection included.
        size: Bytes of the answer's body; None of a stream and without an answer.
        error: Class of the error that ended the attempt without an answer.
    """

    status: int | None
    seconds: float
    size: int | None
    error: str | None = None


@frozen(kw_only=True)
class RetryEvent(CallEvent):
    """An attempt has failed and another one will follow.

    Attributes:
        status: HTTP status of the failure's answer, if there was one.
        error: Class of the error that the call would have ended with.
        delay: Seconds until the next attempt.
    """

    status: int | None
    error: str
    delay: float


@frozen(kw_only=True)
class StreamEvent:
    """An agent's stream has given an event.

    Attributes:
        event_id: Its id, if it has one.
        name: ``message``, or what the agent named it, such as ``end`` and ``error``.
        size: Length of its data in characters.
        seconds: Since the head of the answer was there.
        request_id: Of the request that the stream answers.
        invocation_id: Of the run, if the agent gave it one.
        sandbox_id: The sandbox.
        session_id: The conversation.

    Thread safety: immutable.
    """

    event_id: str | None
    name: str
    size: int
    seconds: float
    request_id: str | None = None
    invocation_id: str | None = None
    sandbox_id: str | None = None
    session_id: str | None = None


@frozen(kw_only=True)
class SessionEvent:
    """A session of the client has another state.

    Attributes:
        sandbox_id: Its sandbox.
        session_id: The conversation.
        template_id: What the sandbox was made from.
        before: The state it had; None of a session that is new here.
        after: The state it has: ``active``, ``paused``, ``inactive``, ``closed`` or
            ``error``.

    Thread safety: immutable.
    """

    sandbox_id: str
    session_id: str
    template_id: str
    before: str | None
    after: str
