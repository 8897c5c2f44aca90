"""Error bodies: ours is problem JSON; those of others are read for the same facts."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from attrs import frozen

from ppio_agent.exceptions import PPIOAgentError, WireError

from .json import Json, decode_json, encode_json, well_formed

__all__ = ["PROBLEM_CONTENT_TYPE", "Problem", "problem_body"]

PROBLEM_CONTENT_TYPE = "application/problem+json"

_MOST_TEXT = 500


@frozen(kw_only=True)
class Problem:
    """What an error answer says, whatever its shape.

    Attributes:
        message: The sentence in it.
        code: Its machine-readable word, or None.
        retryable: Whether it says that trying again may help; None if it does not say.
        request_id: The request's id, if the body names it.
        error_type: Type name of the agent's exception, if it is an envelope.
        envelope: Whether it is the envelope of a run that was started.
        body: The whole object; empty if it was none.
    """

    message: str
    code: str | None = None
    retryable: bool | None = None
    request_id: str | None = None
    error_type: str | None = None
    envelope: bool = False
    body: Mapping[str, Json]

    @classmethod
    def read(cls, body: bytes) -> Problem:
        """Return what an error body says; never raises.

        Problem JSON, ``{"code","message"}``, ``{"error": str | object}``, the error
        envelope and the platform's ``{"sandboxId", …}`` are known; of anything else
        the first 500 characters are the message.
        """
        try:
            data = decode_json(body)
        except WireError:
            data = None
        if not isinstance(data, dict):
            text = body[: 4 * _MOST_TEXT].decode("utf-8", "replace").strip()
            return cls(message=text[:_MOST_TEXT], body={})
        error = data.get("error")
        inner: Mapping[str, Any] = error if isinstance(error, dict) else {}
        metadata = data.get("metadata")
        notes: Mapping[str, Any] = metadata if isinstance(metadata, dict) else {}
        sources = (data, inner, notes)
        return cls(
            message=_first(str, sources, "detail", "message")
            or (error if isinstance(error, str) else "")
            or _first(str, sources, "title")
            or "",
            code=_first(str, sources, "code"),
            retryable=_first(bool, sources, "retryable"),
            request_id=_first(str, sources, "request_id"),
            error_type=_first(str, sources, "error_type"),
            envelope="status" in data and "result" in data,
            body=data,
        )


def _first(kind: type, sources: tuple[Mapping[str, Any], ...], *names: str) -> Any:
    for source in sources:
        for name in names:
            value = source.get(name)
            if isinstance(value, kind):
                return value
    return None


def problem_body(error: PPIOAgentError, *, request_id: str | None) -> bytes:
    """Return the problem JSON of an error (RFC 9457).

    `error` in it repeats `detail` for clients that know only that.
    """
    status = error.http_status
    detail = well_formed(error.message)
    body: dict[str, Json] = {
        "type": "about:blank",
        "title": _title(status),
        "status": status,
        "detail": detail,
        "code": well_formed(error.code),
        "retryable": error.retryable,
        "request_id": request_id,
        "error": detail,
    }
    limit = getattr(error, "limit", None)
    if limit is not None:
        body["limit"] = limit
    errors = getattr(error, "errors", None)
    if errors:
        body["errors"] = list(errors)
    return encode_json(body)


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Client Closed Request" if status == 499 else "Error"
