"""What all routes of the control plane share: their platform, bodies, answers, errors."""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from attrs import field, frozen
from flask import Response, g, request
from werkzeug.exceptions import HTTPException

from ppio_agent._util.clock import utc_now
from ppio_agent.exceptions import (
    InternalServerError,
    PPIOAgentError,
    TemplateManifestError,
    ValidationError,
)
from ppio_agent.sandbox.config import PlatformConfig
from ppio_agent.sandbox.keys import KeyRing
from ppio_agent.sandbox.life.options import parse_body
from ppio_agent.sandbox.life.sandboxes import Sandboxes
from ppio_agent.sandbox.life.values import Identity
from ppio_agent.sandbox.metrics import Metrics
from ppio_agent.sandbox.seats import Seats
from ppio_agent.sandbox.templates.store import Templates
from ppio_agent.web import Reply, read_body
from ppio_agent.wire.headers import RETRY_AFTER
from ppio_agent.wire.json import Json, decode_body, encode_json
from ppio_agent.wire.model import CamelModel

from .once import Once
from .streams import Streams
from .views import Viewer

__all__ = [
    "Control",
    "answer",
    "asked_host",
    "body_as",
    "decoded",
    "error_answer",
    "files_answer",
    "positive",
    "raw_body",
    "refusal_of",
    "tenant",
    "unexpected_answer",
]

_log = logging.getLogger(__name__)
_T = TypeVar("_T", bound=CamelModel)
_MAX_BODY: Final = 1024 * 1024
_MAX_MESSAGE: Final = 200


@frozen(kw_only=True)
class Control:
    """What the control plane works on.

    Attributes:
        config: Limits and time-outs.
        keys: Who may ask.
        templates: The templates.
        sandboxes: The live sandboxes.
        viewer: Makes answers of them.
        metrics: What sandboxes use.
        status: Gives what `GET /platform/v1/status` answers to a tenant.
        uploads: Folder for archives while they are read.
        streams: Those that are open.
        log_reads: Who reads a page of a log: they share the processor with all others.
        creates: Remembers what was made by creates with an idempotency key.
    """

    config: PlatformConfig
    keys: KeyRing
    templates: Templates
    sandboxes: Sandboxes
    metrics: Metrics
    viewer: Viewer
    status: Callable[[str], Mapping[str, Json]]
    uploads: Path
    streams: Streams = field(factory=Streams)
    log_reads: Seats = field(
        factory=lambda: Seats("reads of logs", most=8, most_of_one=4)
    )
    creates: Once[Identity] = field(factory=Once)

    def remember_creates(self) -> None:
        """Remember by which keys those were made that an earlier platform has left."""
        found = sorted(
            self.sandboxes.list_sandboxes(), key=lambda one: one.life.started_at
        )
        for sandbox in found:
            identity, age = sandbox.identity, utc_now() - sandbox.life.started_at
            if identity.asked is not None:
                self.creates.seed(
                    (identity.tenant, identity.asked.key),
                    identity.asked.digest,
                    identity,
                    age=age.total_seconds(),
                )


def asked_host() -> str:
    """Return the host that the request names, as it names it; empty without one."""
    return request.headers.get("Host", "")


def tenant() -> str:
    """Return whose request this is."""
    found: str = g.tenant
    return found


def raw_body() -> bytes:
    """Return the request's body.

    Raises:
        RequestTooLargeError: It is larger than 1 MiB.
    """
    return read_body(request.environ, _MAX_BODY)


def decoded(body: bytes) -> Json:
    """Return the JSON of a body; an empty one is `{}`."""
    return decode_body(body) if body.strip() else {}


def body_as(cls: type[_T]) -> _T:
    """Return the request's body as an instance of `cls`.

    Raises:
        ValidationError: A member has the wrong type; the message names its path.
    """
    return parse_body(cls, decoded(raw_body()))


def answer(
    value: Json = None, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an answer with a JSON body; status 204 has none."""
    body = b"" if status == 204 else encode_json(value)
    response = Response(body, status, headers, mimetype="application/json")
    if not body:
        del response.headers["Content-Type"]
    return response


def error_answer(error: Exception) -> Response:
    """Return the answer that an expected error is."""
    if isinstance(error, HTTPException):
        status = error.code or 500
        message = error.description or error.name
        if status == 404:
            message = f"there is nothing at {request.path}"[:_MAX_MESSAGE]
        elif status == 405:
            message = f"{request.path} takes no {request.method}"[:_MAX_MESSAGE]
        response = _refusal(status, message)
        for name, value in error.get_headers():
            if name.lower() == "allow":
                response.headers[name] = value
        return response
    if not isinstance(error, PPIOAgentError):  # a WireError: the body is not JSON
        return _refusal(400, str(error))
    facts: dict[str, Json] = {}
    if isinstance(error, TemplateManifestError):
        facts["problems"] = [
            {"path": path, "line": line, "message": message}
            for path, line, message in error.problems
        ]
    response = _refusal(error.http_status, error.message, **facts)
    response.headers.extend(_hint(error))
    if error.http_status >= 500 and error.http_status not in (501, 503):
        _log.warning("%s %s failed: %s", request.method, request.path, error.message)
    return response


def unexpected_answer(error: Exception) -> Response:
    """Log an error that nobody foresaw; its answer tells nothing of it."""
    _log.error("%s %s failed", request.method, request.path, exc_info=error)
    return _refusal(500, "internal error")


def files_answer(error: OSError, *, folder: Path) -> Response:
    """Log that a file of the platform could not be used, such as one taken away.

    Args:
        error: What the system says.
        folder: Where they are; named where that is full.
    """
    _log.error("%s %s failed: %s", request.method, request.path, error)
    reason = f"the platform cannot use its files: {error.strerror or 'they fail'}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _refusal(507, f"{reason.lower()}: make room in {folder}")
    return _refusal(500, reason.lower())


def refusal_of(
    error: BaseException,
    request_id: str | None,
    *,
    headers: Sequence[tuple[str, str]] = (),
) -> Reply:
    """Return the answer that the server itself gives, too busy or unable to read.

    In the form of all the others; see `ppio_agent.web.problem`.
    """
    del request_id
    if not isinstance(error, PPIOAgentError):
        error = InternalServerError("internal error")
    own = [("Content-Type", "application/json"), *headers, *_hint(error)]
    body = {"code": error.http_status, "message": error.message}
    return Reply(error.http_status, own, encode_json(body))


def _hint(error: PPIOAgentError) -> list[tuple[str, str]]:
    if error.http_status not in (429, 503):
        return []
    return [(RETRY_AFTER, str(max(1, math.ceil(error.retry_after or 1))))]


def _refusal(status: int, message: str, **facts: Json) -> Response:
    return answer({"code": status, "message": message, **facts}, status)


def positive(value: int | None, *, default: int, most: int, path: str) -> int:
    """Return whole seconds from 1 to `most`; None is the default.

    Raises:
        ValidationError: It is out of range.
    """
    found = default if value is None else value
    if not 1 <= found <= most:
        raise ValidationError(f"{path}: expected from 1 to {most} seconds")
    return found
