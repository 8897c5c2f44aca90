"""Which error an answer stands for: one table. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from ppio_agent._util.redact import Redactor
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
    ServiceUnavailableError,
    SessionNotFoundError,
    TemplateNotFoundError,
    ValidationError,
    by_code,
)
from ppio_agent.wire.problem import Problem

from .messages import Request, Response

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
    request: Request, response: Response, problem: Problem, redactor: Redactor
) -> PPIOAgentError:
    """Return the error that a failure's answer stands for, its `__cause__` set.

    Args:
        request: What was asked.
        response: The answer.
        problem: What its body says.
        redactor: Applied to all that is quoted from the answer.
    """
    cls = _class(request.kind, response.status, problem)
    quoted = redactor.text(" ".join(problem.message.split())[:_MOST_TEXT])
    error = cls(
        _message(request, response.status, cls, quoted),
        # The word of the class is part of the API; that of a peer is only a hint.
        code=problem.code if problem.code and by_code(problem.code) else None,
        http_status=response.status,
        retryable=problem.retryable,
        request_id=response.request_id,
        **_own_data(cls, response.status, problem),
    )
    kind = response.headers.get("content-type", "no content type")
    error.__cause__ = FailedAnswer(f"HTTP {response.status}, {kind}: {quoted!r}")
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
            "exit_code": body.get("exitCode"),
            "status": status,
        }
    if issubclass(cls, InvocationError):
        return {"agent_error": problem.error_type, "status": status}
    if issubclass(cls, RequestTooLargeError):
        return {"limit": body.get("limit")}
    if issubclass(cls, RequestTimeoutError):
        return {"phase": "response"}
    return {}


def _message(
    request: Request, status: int, cls: type[PPIOAgentError], quoted: str
) -> str:
    what = f"{request.kind} {request.subject!r}" if request.subject else "the request"
    if issubclass(cls, NotFoundError):
        text = f"{what} was not found"
    elif cls is ProtocolError:
        text = f"{what} was answered {status}, which is not followed"
    else:
        text = f"{what} was answered {status}"
    return f"{text}: {quoted}" if quoted else text
