"""Every error of the package, in one tree.

```
PPIOAgentError                          code, http_status, retryable, request_id
├─ PPIOAgentRuntimeError                base of the agent runtime, client and app
│  ├─ AuthenticationError               also AgentClientError, like all marked *
│  │  └─ PermissionDeniedError
│  ├─ ValidationError*  (ValueError)
│  │  └─ RequestTooLargeError
│  ├─ NotFoundError*  (LookupError)
│  │  ├─ TemplateNotFoundError
│  │  ├─ SessionNotFoundError
│  │  │  └─ SessionClosedError
│  │  ├─ InvocationNotFoundError
│  │  └─ ReplayGoneError
│  ├─ ConflictError*
│  │  └─ IdempotencyConflictError
│  ├─ RateLimitError*
│  │  └─ QuotaExceededError
│  ├─ SerializationError*  (TypeError)
│  ├─ NetworkError*  (ConnectionError)
│  │  └─ RequestTimeoutError  (TimeoutError)
│  │     └─ PoolTimeoutError
│  ├─ ProtocolError*
│  │  ├─ EventTooLargeError
│  │  └─ ResponseTooLargeError
│  ├─ InternalServerError*
│  ├─ ServiceUnavailableError*
│  │  ├─ ServerBusyError
│  │  └─ ServerDrainingError
│  ├─ InvocationError*
│  │  ├─ InvocationCancelledError
│  │  ├─ InvocationTimeoutError  (TimeoutError)
│  │  ├─ AgentUnreachableError
│  │  ├─ StreamInterruptedError
│  │  └─ StreamClosedError
│  ├─ SandboxCreationError
│  ├─ BatchError
│  │  └─ BatchJournalError
│  ├─ ConfigurationError*  (ValueError)
│  └─ ClientClosedError*  (RuntimeError)
├─ AgentClientError                     base of the orchestrator's client
├─ UnrecordedRequestError  (LookupError)  a replay's alone, see ppio_agent.testing
├─ ActorError                           the actor runtime's
│  ├─ UnknownActorTypeError  (ValueError)  also NotFoundError
│  ├─ InvalidActorIdError               also ValidationError
│  ├─ InvalidMessageError               also ValidationError
│  ├─ StateTooLargeError                also ValidationError
│  ├─ ActorBusyError                    also ConflictError
│  ├─ LeaseLostError                    also ConflictError
│  ├─ StateConflictError                also ConflictError
│  ├─ MailboxFullError                  also RateLimitError
│  ├─ RuntimeOverloadedError            also ServerBusyError
│  ├─ ActorStoppedError                 also ServiceUnavailableError
│  ├─ RuntimeNotRunningError            also ServiceUnavailableError
│  ├─ RuntimeStoppedError               also ServiceUnavailableError
│  ├─ ActorDeadlockError
│  ├─ CallChainTooDeepError
│  ├─ ActorFailedError                  also InvocationError
│  ├─ RequestRejectedError              also InvocationError
│  └─ ResponseTimeoutError  (TimeoutError)
└─ SandboxPlatformError                 the local platform's alone
   ├─ SandboxUnavailableError
   │  └─ BackendUnavailableError
   ├─ SandboxStartError
   ├─ SandboxStateError
   ├─ SandboxLimitError
   ├─ PlatformAlreadyRunningError
   ├─ TLSUnavailableError
   └─ TemplateManifestError  (ValueError)
WireError  (ValueError)                 malformed data; translated at every edge
```

Every class has `code`, `http_status` and `retryable`, which an instance may override;
every instance survives `pickle` and `copy.copy`. `str(error)` says what failed and ends
with the request id where there is one; `error.message` is the bare message.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

__all__ = [
    "ActorBusyError",
    "ActorDeadlockError",
    "ActorError",
    "ActorFailedError",
    "ActorStoppedError",
    "AgentClientError",
    "AgentUnreachableError",
    "AuthenticationError",
    "BackendUnavailableError",
    "BatchError",
    "BatchJournalError",
    "CallChainTooDeepError",
    "ClientClosedError",
    "ConfigurationError",
    "ConflictError",
    "EventTooLargeError",
    "IdempotencyConflictError",
    "InternalServerError",
    "InvalidActorIdError",
    "InvalidMessageError",
    "InvocationCancelledError",
    "InvocationError",
    "InvocationNotFoundError",
    "InvocationTimeoutError",
    "LeaseLostError",
    "MailboxFullError",
    "NetworkError",
    "NotFoundError",
    "PPIOAgentError",
    "PPIOAgentRuntimeError",
    "PermissionDeniedError",
    "PlatformAlreadyRunningError",
    "PoolTimeoutError",
    "ProtocolError",
    "QuotaExceededError",
    "RateLimitError",
    "ReplayGoneError",
    "RequestRejectedError",
    "RequestTimeoutError",
    "RequestTooLargeError",
    "ResponseTimeoutError",
    "ResponseTooLargeError",
    "RuntimeNotRunningError",
    "RuntimeOverloadedError",
    "RuntimeStoppedError",
    "SandboxCreationError",
    "SandboxLimitError",
    "SandboxPlatformError",
    "SandboxStartError",
    "SandboxStateError",
    "SandboxUnavailableError",
    "SerializationError",
    "ServerBusyError",
    "ServerDrainingError",
    "ServiceUnavailableError",
    "SessionClosedError",
    "SessionNotFoundError",
    "StateConflictError",
    "StateTooLargeError",
    "StreamClosedError",
    "StreamInterruptedError",
    "TLSUnavailableError",
    "TemplateManifestError",
    "TemplateNotFoundError",
    "UnknownActorTypeError",
    "UnrecordedRequestError",
    "ValidationError",
    "WireError",
    "by_code",
]


class PPIOAgentError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        message: What failed, with which id, and what to do.
        code: Machine-readable word; overrides the class's.
        http_status: Status under which it travels; overrides the class's.
        retryable: Whether the same call may succeed later; overrides the class's.
        request_id: Id of the request that failed, if there was one.
        data: Further attributes, of those that the class declares.

    The transport adds `method`, `url` (redacted), `attempts` (how many were made),
    `history` (earlier failures) and `retry_after` (seconds) where they apply.
    """

    code: str = "error"
    http_status: int = 500
    retryable: bool = False
    request_id: str | None = None
    method: str | None = None
    url: str | None = None
    attempts: int = 0
    history: tuple[Any, ...] = ()
    retry_after: float | None = None

    def __init__(
        self,
        message: str = "",
        *,
        code: str | None = None,
        http_status: int | None = None,
        retryable: bool | None = None,
        request_id: str | None = None,
        **data: Any,
    ) -> None:
        super().__init__(message)
        self.message = str(message)
        overrides = {
            "code": code,
            "http_status": http_status,
            "retryable": retryable,
            "request_id": request_id,
        }
        for name, value in overrides.items():
            if value is not None:
                setattr(self, name, value)
        for name, value in data.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no attribute {name!r}")
            setattr(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())

    def __str__(self) -> str:
        notes = []
        if self.request_id:
            notes.append(f"request_id={self.request_id}")
        if self.attempts > 1:
            notes.append(f"attempts={self.attempts}")
        return f"{self.message} ({', '.join(notes)})" if notes else self.message


def _rebuild(
    cls: type[PPIOAgentError], args: tuple[Any, ...], state: dict[str, Any]
) -> PPIOAgentError:
    # Not through the class's own __init__, so that no class needs to know of pickle.
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class AgentClientError(PPIOAgentError):
    """Base of the errors of the orchestrator's client, and of all shared ones."""

    code = "client_error"


class PPIOAgentRuntimeError(PPIOAgentError):
    """Base of the errors of the agent runtime: client, app and sessions."""

    code = "runtime_error"


class _SharedError(PPIOAgentRuntimeError, AgentClientError):
    """Marks what both families raise, so that either `except` catches it."""


class AuthenticationError(_SharedError):
    """The key is missing, malformed or not accepted."""

    code = "invalid_credentials"
    http_status = 401


class PermissionDeniedError(AuthenticationError):
    """The key is valid, but not for this."""

    code = "permission_denied"
    http_status = 403


class ValidationError(_SharedError, ValueError):
    """What the caller sent cannot be used; nothing was started."""

    code = "validation_error"
    http_status = 400


class RequestTooLargeError(ValidationError):
    """The body is larger than the server takes; `limit` is in bytes."""

    code = "request_too_large"
    http_status = 413
    limit: int | None = None


class NotFoundError(_SharedError, LookupError):
    """No such thing, or not for this caller."""

    code = "not_found"
    http_status = 404


class TemplateNotFoundError(NotFoundError):
    """No template has this id, alias or name."""

    code = "template_not_found"


class SessionNotFoundError(NotFoundError):
    """The sandbox behind a session does not exist, or no longer.

    Its code is ``session_lost`` if it ended during an invocation, after an attempt that
    may have reached the agent; else nothing was run.
    """

    code = "session_not_found"
    lost_code = "session_lost"


class SessionClosedError(SessionNotFoundError):
    """The session was closed here."""

    code = "session_closed"


class InvocationNotFoundError(NotFoundError):
    """No invocation has this id, it was forgotten, or it is another caller's."""

    code = "invocation_not_found"


class ReplayGoneError(NotFoundError):
    """The events asked for have left the replay buffer."""

    code = "replay_gone"
    http_status = 410


class ConflictError(_SharedError):
    """The thing is not in a state that allows this."""

    code = "conflict"
    http_status = 409


class IdempotencyConflictError(ConflictError):
    """The idempotency key was used before with another body."""

    code = "idempotency_conflict"


class RateLimitError(_SharedError):
    """Too much was asked in too short a time; see `retry_after`."""

    code = "rate_limited"
    http_status = 429
    retryable = True


class QuotaExceededError(RateLimitError):
    """The account's limit is reached; waiting alone does not help."""

    code = "quota_exceeded"
    http_status = 402
    retryable = False


class SerializationError(_SharedError, TypeError):
    """A value has no JSON form.

    Attributes:
        path: Where in the value, as in `$.items[3].when`.
        type_name: Name of the type that cannot be encoded.
    """

    code = "not_serializable"
    path: str = "$"
    type_name: str = ""


class NetworkError(_SharedError, ConnectionError):
    """The peer could not be reached, or the connection broke.

    Attributes:
        idempotency_key: Key of an invocation, under which it may be joined again.
    """

    code = "network_error"
    http_status = 503
    retryable = True
    idempotency_key: str | None = None


class RequestTimeoutError(NetworkError, TimeoutError):
    """A call did not end within its deadline.

    Attributes:
        phase: `connect`, `pool`, `response`, `body` or `idle`.
    """

    code = "request_timeout"
    http_status = 504
    phase: str | None = None


class PoolTimeoutError(RequestTimeoutError):
    """No connection of the pool became free within the deadline."""

    code = "pool_timeout"


class ProtocolError(_SharedError):
    """The peer answered something that is not the agreed wire."""

    code = "protocol_error"
    http_status = 502


class EventTooLargeError(ProtocolError):
    """One event of a stream is larger than the limit."""

    code = "event_too_large"


class ResponseTooLargeError(ProtocolError):
    """An answer is larger than the limit, after decompression."""

    code = "response_too_large"


class InternalServerError(_SharedError):
    """The server failed in a way it did not expect."""

    code = "internal_error"


class ServiceUnavailableError(_SharedError):
    """The service cannot answer now; see `retry_after`."""

    code = "service_unavailable"
    http_status = 503
    retryable = True


class ServerBusyError(ServiceUnavailableError):
    """Every slot is taken and the queue is full."""

    code = "server_busy"


class ServerDrainingError(ServiceUnavailableError):
    """The server is shutting down."""

    code = "server_draining"


class InvocationError(_SharedError):
    """The agent failed, or its run did not end in a result.

    Attributes:
        agent_error: Type name of the agent's own exception, if it said so.
        status: HTTP status of the answer, if there was one.
        invocation_id: Id of the run, if known.
        idempotency_key: Key under which the run may be joined again.
        duration: Seconds the run took, if known.
        chunks: What a stream had given before it failed.
    """

    code = "invocation_failed"
    agent_error: str | None = None
    status: int | None = None
    invocation_id: str | None = None
    idempotency_key: str | None = None
    duration: float | None = None
    chunks: tuple[Any, ...] = ()


class InvocationCancelledError(InvocationError):
    """The run was cancelled."""

    code = "cancelled"
    http_status = 499


class InvocationTimeoutError(InvocationError, TimeoutError):
    """The run passed its deadline."""

    code = "invocation_timeout"
    http_status = 504


class AgentUnreachableError(InvocationError):
    """The sandbox runs, but nothing in it answers on the agent's port.

    Attributes:
        sandbox_id: The sandbox.
        port: The port nobody listens on.
        exit_code: Exit status of the agent, if it has ended.
    """

    code = "agent_unreachable"
    http_status = 502
    sandbox_id: str | None = None
    port: int | None = None
    exit_code: int | None = None


class StreamInterruptedError(InvocationError):
    """A stream was cut before its end.

    Attributes:
        last_event_id: Id of the last event received, from which to resume.
        chunk_count: How many chunks had come.
    """

    code = "stream_interrupted"
    http_status = 502
    last_event_id: str | None = None
    chunk_count: int = 0


class StreamClosedError(InvocationError):
    """The stream was closed on this side while it was being read."""

    code = "stream_closed"
    http_status = 499


class UnrecordedRequestError(PPIOAgentError, LookupError):
    """A replayed client asked for what its recording does not hold."""

    code = "unrecorded_request"


class SandboxCreationError(PPIOAgentRuntimeError):
    """A sandbox could not be made ready; it was killed again.

    Attributes:
        sandbox_id: The sandbox, if one was created.
        stage: `create`, `start` or `ready`.
        exit_code: Exit status of the agent, if it ended.
        log_tail: Last output of the agent, at most 4 KiB.
    """

    code = "sandbox_creation_failed"
    sandbox_id: str | None = None
    stage: str | None = None
    exit_code: int | None = None
    log_tail: str = ""


class BatchError(PPIOAgentRuntimeError):
    """A batch as a whole could not go on."""

    code = "batch_failed"


class BatchJournalError(BatchError):
    """The journal of a batch is another's, in use, damaged, or cannot be written."""

    code = "batch_journal"


class ConfigurationError(_SharedError, ValueError):
    """A setting has a value that cannot be used."""

    code = "configuration_error"


class ClientClosedError(_SharedError, RuntimeError):
    """The client was closed; make a new one."""

    code = "client_closed"


class SandboxPlatformError(PPIOAgentError):
    """Base of what only the local platform raises."""

    code = "platform_error"


class SandboxUnavailableError(SandboxPlatformError):
    """This machine cannot run local sandboxes."""

    code = "sandbox_unavailable"
    http_status = 503


class BackendUnavailableError(SandboxUnavailableError):
    """The backend that was asked for does not work here; the message says why."""

    code = "backend_unavailable"


class SandboxStartError(SandboxPlatformError):
    """A sandbox's supervisor did not come up; the message ends with its output.

    Attributes:
        said: What it, or the helper that connects it, wrote; `""` if nothing is known.
    """

    code = "start_failed"
    said: str = ""


class SandboxStateError(SandboxPlatformError):
    """The sandbox is not in a state that allows this."""

    code = "sandbox_state"
    http_status = 409


class SandboxLimitError(SandboxPlatformError):
    """No more sandboxes may live at once; end one, or raise the limit."""

    code = "sandbox_limit"
    http_status = 429
    retryable = True


class PlatformAlreadyRunningError(SandboxPlatformError):
    """Another platform uses this data directory.

    Attributes:
        url: Where it listens; None while it starts.
        pid: Its process.
    """

    code = "platform_already_running"
    http_status = 409
    url: str | None = None  # the platform's, where other errors have the request's
    pid: int | None = None


class TLSUnavailableError(SandboxPlatformError):
    """The platform's TLS listener cannot be had: install `ppio-agent[tls]`."""

    code = "tls_unavailable"


class TemplateManifestError(SandboxPlatformError, ValueError):
    """A template's folder or manifest cannot be used.

    Attributes:
        problems: All of them, each `(path, line, message)`; line 0 is "nowhere".
    """

    code = "invalid_template"
    http_status = 400
    problems: Sequence[tuple[str, int, str]] = ()


class ActorError(PPIOAgentError):
    """Base of what the actor runtime raises.

    Attributes:
        actor_id: The actor, as text, if there is one.
        message_id: The request, if there is one.
    """

    code = "actor_error"
    actor_id: str | None = None
    message_id: str | None = None


class UnknownActorTypeError(ActorError, NotFoundError, ValueError):
    """No such type of actor was registered."""

    code = "agent_not_found"


class InvalidActorIdError(ActorError, ValidationError):
    """A type or an instance of an actor has no valid name."""

    code = "invalid_actor_id"
    http_status = 422


class InvalidMessageError(ActorError, ValidationError):
    """A message cannot be sent or answered so; nothing was stored.

    Attributes:
        errors: Of an HTTP body, what is wrong where: ``{"loc", "msg", "type"}``.
    """

    code = "invalid_request"
    http_status = 422
    errors: Sequence[Any] = ()


class StateTooLargeError(ActorError, ValidationError):
    """A value, or all of an actor's state, is larger than it may be."""

    code = "state_too_large"
    http_status = 413


class ActorBusyError(ActorError, ConflictError):
    """Another request of the actor, `message_id`, has not ended."""

    code = "actor_busy"
    retryable = True


class LeaseLostError(ActorError, ConflictError):
    """Another worker has taken the actor over; what this one did is not kept."""

    code = "lease_lost"


class StateConflictError(ActorError, ConflictError):
    """The state was changed by others while a turn used it."""

    code = "state_conflict"


class MailboxFullError(ActorError, RateLimitError):
    """As many requests wait for the actor as may."""

    code = "mailbox_full"


class RuntimeOverloadedError(ActorError, ServerBusyError):
    """As many requests wait, or as many threads are blocked, as may be."""

    code = "runtime_overloaded"


class ActorStoppedError(ActorError, ServiceUnavailableError):
    """The actor crashed too often; see `retry_after`."""

    code = "actor_stopped"


class RuntimeNotRunningError(ActorError, ServiceUnavailableError):
    """The runtime was not started, or was stopped."""

    code = "runtime_not_running"


class RuntimeStoppedError(ActorError, ServiceUnavailableError):
    """The runtime stopped before the request ended; it is kept, under `message_id`."""

    code = "runtime_stopped"


class ActorDeadlockError(ActorError):
    """Actors wait for each other; the message names them all."""

    code = "deadlock"


class CallChainTooDeepError(ActorError):
    """Too many actors wait for each other in a row."""

    code = "chain_too_deep"


class ActorFailedError(ActorError, InvocationError):
    """A request failed.

    Attributes:
        data: What is kept of it: ``{"error", "code", "retryable"}``.
    """

    code = "actor_failed"
    data: Any = None


class RequestRejectedError(ActorError, InvocationError):
    """A request was dropped from a full mailbox."""

    code = "dropped"
    http_status = 503
    retryable = True


class ResponseTimeoutError(ActorError, TimeoutError):
    """No response in time; the request goes on."""

    code = "response_timeout"
    http_status = 504
    retryable = True


class WireError(ValueError):
    """Data does not have the shape that the wire demands.

    Raised by the pure layer below; each edge turns it into `ValidationError` or
    `ProtocolError`. It never shows the value itself.

    Args:
        path: Where, as in `$.items[0].memoryMB`; `""` if it has no place.
        message: What was expected.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(path, message)
        self.path = path
        self.message = message

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


def _classes(root: type[PPIOAgentError]) -> Iterator[type[PPIOAgentError]]:
    yield root
    for child in root.__subclasses__():
        yield from _classes(child)


def by_code(code: object) -> type[PPIOAgentError] | None:
    """Return the class of this module whose `code` it is, or None.

    Example:
        >>> by_code("server_busy").__name__
        'ServerBusyError'
    """
    for cls in _classes(PPIOAgentError):
        own = cls.__dict__.get("code")
        if cls.__module__ == __name__ and own is not None and own == code:
            return cls
    return None
