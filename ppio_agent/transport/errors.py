"""Which error an answer stands for: one table. Pure, given the time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from attrs import frozen

from ppio_agent._util.clock import utc_now
from ppio_agent._util.redact import Redactor, escaped
from ppio_agent.exceptions import (
    AgentUnreachableError,
    AuthenticationError,
    ConflictError,
    InternalServerError,
    InvocationError,
    NotFoundError,
    PermissionDeniedError,
    PPIOAgentError,
    ProtocolError,
    QuotaExceededError,
    RateLimitError,
    RequestTimeoutError,
    RequestTooLargeError,
    SandboxCreationError,
    ServiceUnavailableError,
    SessionNotFoundError,
    TemplateManifestError,
    TemplateNotFoundError,
    ValidationError,
    by_code,
)
from ppio_agent.wire.headers import RETRY_AFTER
from ppio_agent.wire.problem import Problem

from .messages import Request, Response
from .retry import parse_date, parse_retry_after

__all__ = ["FailedAnswer", "PastFailure", "answer_error"]

_BY_STATUS: Mapping[int, type[PPIOAgentError]] = {
    401: AuthenticationError,
    402: QuotaExceededError,
    403: PermissionDeniedError,
    404: NotFoundError,
    408: RequestTimeoutError,
    409: ConflictError,
    413: RequestTooLargeError,
    425: ServiceUnavailableError,
    429: RateLimitError,
    502: ServiceUnavailableError,
    503: ServiceUnavailableError,
    504: ServiceUnavailableError,
}
_NOT_FOUND: Mapping[str, type[NotFoundError]] = {
    "template": TemplateNotFoundError,
    "sandbox": SessionNotFoundError,
}
_MOST_TEXT = 200
_MOST_READ = 64 * 1024
_MOST_PROBLEMS = 100
# What signatures may be away from the peer's clock.
_MOST_SKEW = 300.0


class FailedAnswer(Exception):  # noqa: N818 - it is what came, not an error of ours
    """The answer behind an error, as its `__cause__`: status, type and first words."""


@frozen
class PastFailure:
    """An attempt that was followed by another; see `PPIOAgentError.history`.

    Attributes:
        error: Class of the error it would have been.
        status: HTTP status, if there was an answer.
        delay: Seconds that were waited after it.
    """

    error: type[PPIOAgentError]
    status: int | None
    delay: float


def answer_error(
    request: Request,
    response: Response,
    problem: Problem,
    redactor: Redactor,
    *,
    now: datetime | None = None,
) -> PPIOAgentError:
    """Return the error that a failure's answer stands for, its `__cause__` set.

    Args:
        request: What was asked.
        response: The answer.
        problem: What its body says.
        redactor: Applied to all that is quoted from the answer.
        now: When it came, by the clock of this machine; None: at this moment.
    """
    # Without a name it is not one template or sandbox that is not there.
    kind = request.kind if request.subject else "other"
    cls = _class(kind, response.status, problem)
    if request.kind == "template" and cls is ValidationError and _listed(problem):
        cls = TemplateManifestError
    said = problem.message
    if said and not problem.body:  # it is the body's start, which may end in a secret
        said = response.body[:_MOST_READ].decode("utf-8", "replace")
    quoted = redactor.start(said, _MOST_TEXT)
    own = _own_data(cls, response.status, problem)
    if cls is TemplateManifestError:
        own = {"problems": _problems(problem, redactor)}
    ended = own.get("exit_code") is not None
    now = now or utc_now()
    told = _ended(own) if ended else _message(request, response.status, cls, quoted)
    if response.status == 401:
        told += _skew(response, now)
    error = cls(
        told,
        # The word of the class is part of the API; that of a peer is only a hint.
        code=problem.code if problem.code and by_code(problem.code) else None,
        http_status=response.status,
        retryable=False if ended else problem.retryable,
        request_id=response.request_id,
        **own,
    )
    error.retry_after = parse_retry_after(
        response.headers.get(RETRY_AFTER), date=response.headers.get("Date"), now=now
    )
    media = escaped(response.headers.get("content-type") or "no content type")
    error.__cause__ = FailedAnswer(f"HTTP {response.status}, {media}: {quoted!r}")
    return error


def _class(kind: str, status: int, problem: Problem) -> type[PPIOAgentError]:
    if status == 502 and "sandboxId" in problem.body:
        # From the edge. With a port the sandbox lives and its agent does not answer.
        reached = "port" in problem.body
        return AgentUnreachableError if reached else SessionNotFoundError
    named = by_code(problem.code)
    found = _class_of_status(kind, status)
    # Of two that say the same, the one that says more.
    return found if named is None or issubclass(found, named) else named


def _class_of_status(kind: str, status: int) -> type[PPIOAgentError]:
    if status == 404 and kind in _NOT_FOUND:
        return _NOT_FOUND[kind]
    if status == 501 and kind == "template":
        return SandboxCreationError  # the platform cannot make what was asked for
    found = _BY_STATUS.get(status)
    if found is not None:
        return found
    if status >= 500:
        return InternalServerError
    return ValidationError if status >= 400 else ProtocolError


def _own_data(
    cls: type[PPIOAgentError], status: int, problem: Problem
) -> dict[str, Any]:
    body = problem.body
    if issubclass(cls, AgentUnreachableError):
        return {
            "sandbox_id": body.get("sandboxId"),
            "port": body.get("port"),
            "exit_code": _exit_code(body),
            "status": status,
        }
    if issubclass(cls, SandboxCreationError):
        return {"stage": "create"}
    if issubclass(cls, InvocationError):
        return {"agent_error": problem.error_type, "status": status}
    if issubclass(cls, RequestTooLargeError):
        return {"limit": body.get("limit")}
    if issubclass(cls, RequestTimeoutError):
        return {"phase": "response"}
    return {}


def _problems(problem: Problem, redactor: Redactor) -> tuple[tuple[str, int, str], ...]:
    """Return what is wrong with a template, each whole: one may quote an installer."""

    def lines(value: object) -> str:
        text = redactor.text(str(value)[:_MOST_READ])
        return "\n".join(map(escaped, text.splitlines()))

    return tuple(
        (
            lines(each.get("path", "")),
            line if isinstance(line := each.get("line"), int) else 0,
            lines(each.get("message", "")),
        )
        for each in _listed(problem)
    )


def _listed(problem: Problem) -> list[dict[str, Any]]:
    found = problem.body.get("problems")
    if not isinstance(found, list):
        return []
    return [each for each in found if isinstance(each, dict)][:_MOST_PROBLEMS]


def _exit_code(body: Mapping[str, Any]) -> int | None:
    """Return how the agent ended: its status, or minus the signal's number."""
    code, number = body.get("exitCode"), body.get("signal")
    if isinstance(code, int):
        return code
    return -number if isinstance(number, int) else None


def _ended(own: Mapping[str, Any]) -> str:
    code = own["exit_code"]
    how = f"with exit status {code}" if code >= 0 else f"by signal {-code}"
    return (
        f"the agent in sandbox {escaped(str(own['sandbox_id']))} has ended {how};"
        " create a new session"
    )


def _message(
    request: Request, status: int, cls: type[PPIOAgentError], quoted: str
) -> str:
    if issubclass(cls, NotFoundError) and request.kind != "agent":
        text = f"{_asked(request)} was not found"
        # A platform begins with the same words, without the quotes.
        quoted = quoted.removeprefix(text.replace("'", "")).removeprefix(": ")
    elif cls is ProtocolError:
        text = f"{_asked(request)} was answered {status}, which is not followed"
    else:
        text = f"{_call(request)} was answered {status}"
    return f"{text}: {quoted}" if quoted else text


def _skew(response: Response, now: datetime) -> str:
    """Return what a refusal has to say of the two clocks; nothing if they agree."""
    date = parse_date(response.headers.get("Date"))
    ahead = 0.0 if date is None else (now - date).total_seconds()
    if abs(ahead) <= _MOST_SKEW:
        return ""
    how = "ahead of" if ahead > 0 else "behind"
    return (
        f"; the clock of this machine is {abs(ahead):.0f} s {how} the peer's, which"
        " makes signatures invalid: set the clock that is wrong"
    )


def _asked(request: Request) -> str:
    return f"{request.kind} {request.subject!r}" if request.subject else "the request"


def _call(request: Request) -> str:
    """Return what was done, for a failure that is not the subject's own."""
    if request.subject and request.kind == "agent":
        return f"the call of the agent in sandbox {request.subject!r}"
    if request.subject and request.kind == "template" and request.method == "POST":
        return f"creating a sandbox from template {request.subject!r}"
    return f"the request for {_asked(request)}" if request.subject else _asked(request)
