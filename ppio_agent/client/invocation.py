"""What an agent is sent, and what its answers mean. Pure.

Agents of the field answer in more shapes than ours: an envelope, bare JSON, text, an
event stream of the full or the bare dialect. All of them end here as one response or
one `InvocationError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ppio_agent._util.redact import escaped
from ppio_agent.exceptions import (
    InvocationError,
    SerializationError,
    ValidationError,
    by_code,
)
from ppio_agent.wire.json import Json, encode_json
from ppio_agent.wire.models import InvocationRequest
from ppio_agent.wire.problem import Problem

__all__ = [
    "AgentRequest",
    "encode_request",
    "envelope_error",
    "is_envelope",
    "record_error",
]

AgentRequest: TypeAlias = "str | Mapping[str, Json] | InvocationRequest"
"""What an agent may be asked: a prompt, an object, or the named members."""


def encode_request(request: AgentRequest) -> bytes:
    """Return the body that carries `request`.

    Raises:
        ValidationError: It is of another type, or holds what has no JSON form; the
            message says where.
    """
    body: object
    if isinstance(request, str):
        body = {"prompt": request}
    elif isinstance(request, InvocationRequest):
        body = request.to_dict()
    elif isinstance(request, Mapping):
        body = request
    else:
        raise ValidationError(
            f"a request has to be a str, a mapping or an InvocationRequest, not"
            f" {type(request).__name__}"
        )
    try:
        return encode_json(body)
    except SerializationError as error:
        raise ValidationError(f"the request has no JSON form: {error}") from error


def is_envelope(value: Json) -> bool:
    """Tell whether a JSON value is the envelope of a run, not its bare result.

    That of a failed run may leave out the result that it does not have.
    """
    if not isinstance(value, dict):
        return False
    failed = value.get("status") == "error"
    if "result" in value:
        return failed or value.get("status") == "success"
    return failed and isinstance(value.get("error"), str)


def envelope_error(
    envelope: Mapping[str, Json],
    *,
    status: int,
    request_id: str | None,
    redact: Callable[[str], str],
) -> InvocationError:
    """Return the error that an envelope of a failed run tells of.

    Args:
        envelope: As the agent sent it.
        status: Of the answer that it came in.
        request_id: Of that answer.
        redact: Takes secrets out: an agent may quote whatever it was sent.
    """
    problem = Problem.read(encode_json(envelope))
    metadata = envelope.get("metadata")
    notes = metadata if isinstance(metadata, Mapping) else {}
    duration = envelope.get("duration")
    return _error(
        problem,
        problem.message,
        redact,
        request_id=request_id,
        status=status,
        invocation_id=_text(notes.get("invocation_id")),
        duration=float(duration) if isinstance(duration, (int, float)) else None,
    )


def _error(
    problem: Problem, message: str, redact: Callable[[str], str], **about: Any
) -> InvocationError:
    return _error_class(problem.code)(
        escaped(redact(message), keep="\n\t") or "the agent failed without saying why",
        code=problem.code and escaped(redact(problem.code)),
        retryable=problem.retryable,
        agent_error=problem.error_type and escaped(redact(problem.error_type)),
        **about,
    )


def _error_class(code: str | None) -> type[InvocationError]:
    cls = by_code(code) if code else None
    if cls is not None and issubclass(cls, InvocationError):
        return cls
    return InvocationError


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def record_error(record: Json, redact: Callable[[str], str]) -> InvocationError:
    """Return the error that the record of a stream's failure tells of.

    Args:
        record: As the agent sent it.
        redact: Takes secrets out, as for `envelope_error`.
    """
    if not isinstance(record, dict):
        problem = Problem(message=str(record), body={})
        return _error(problem, problem.message, redact)
    problem = Problem.read(encode_json(record))
    return _error(
        problem,
        _text(record.get("error")) or problem.message,
        redact,
        request_id=problem.request_id and redact(problem.request_id),
        invocation_id=_text(record.get("invocation_id")),
    )
