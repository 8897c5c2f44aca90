"""What every request needs, whatever application and server: ids, contexts, errors.

A plain WSGI wrapper: it works under waitress, gunicorn and in process alike, and
imports none of them.
"""

from __future__ import annotations

import contextvars
import functools
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

from attrs import frozen

from ppio_agent._util.ids import new_id
from ppio_agent.exceptions import (
    InternalServerError,
    PPIOAgentError,
    RequestTooLargeError,
    ValidationError,
)
from ppio_agent.wire.headers import REQUEST_ID, RETRY_AFTER, valid_id
from ppio_agent.wire.json import encode_json
from ppio_agent.wire.problem import PROBLEM_CONTENT_TYPE, problem_body

__all__ = [
    "JSON_TYPE",
    "Relayed",
    "Reply",
    "RequestKit",
    "current_request_id",
    "declared_length",
    "json_reply",
    "problem",
    "read_body",
    "request_id_of",
]

Headers = Sequence[tuple[str, str]]
Environ = dict[str, Any]

JSON_TYPE = ("Content-Type", "application/json")

_log = logging.getLogger(__name__)

current_request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "ppio_request_id", default=None
)

# They speak of one connection, which is the server's; "proxy-" by its prefix.
_HOP_BY_HOP = frozenset({
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
})  # fmt: skip
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# What would end a header line early, or has no Latin-1 form.
_UNFIT = re.compile(r"[\x00\r\n]|[^\x00-\xff]")
_READ_SIZE = 1 << 16


class Relayed(BaseException):
    """Ends the work of a thread on a request that another thread answers."""


@frozen
class Reply:
    """One answer, ready to be sent.

    Args:
        status: HTTP status code.
        headers: Pairs of name and value, without `Content-Length`.
        body: The whole body, or an iterator of its pieces.
    """

    status: int
    headers: Headers = ()
    body: bytes | Iterator[bytes] = b""

    def respond(self, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Begin the answer and return its body, as a WSGI application does."""
        if isinstance(self.body, bytes):
            length = ("Content-Length", str(len(self.body)))
            start_response(status_line(self.status), [*self.headers, length])
            return [self.body]
        start_response(status_line(self.status), list(self.headers))
        return self.body


@functools.lru_cache(maxsize=128)
def status_line(status: int) -> str:
    """Return the code with its phrase, as WSGI wants it."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} {'Client Closed Request' if status == 499 else 'Unknown'}"


def json_reply(status: int, value: object, headers: Headers = ()) -> Reply:
    """Return an answer with a JSON body."""
    return Reply(status, [JSON_TYPE, *headers], encode_json(value))


def problem(
    error: BaseException, request_id: str | None, *, headers: Headers = ()
) -> Reply:
    """Return the answer that an error is.

    Args:
        error: One of our tree says its own status, code and message; of any other
            nothing is told but that it was unexpected.
        request_id: The id that the body names.
        headers: Further headers.
    """
    if not isinstance(error, PPIOAgentError):
        error = InternalServerError("internal error")
    status = error.http_status
    own = [("Content-Type", PROBLEM_CONTENT_TYPE), *headers]
    if status in {429, 503} or error.retry_after is not None:
        seconds = max(1, math.ceil(error.retry_after or 1))
        own.append((RETRY_AFTER, str(seconds)))
    return Reply(status, own, problem_body(error, request_id=request_id))


def read_body(environ: Environ, limit: int | None) -> bytes:
    """Return the request's body, counted while it is read, chunked or not.

    Args:
        environ: The WSGI environ.
        limit: Most bytes; exactly as many pass. None means no limit.

    Raises:
        RequestTooLargeError: The body is larger; one that says so is left unread.
        ValidationError: The client left before all of the body came, or the host
            cannot read it.
    """
    declared = declared_length(environ, limit)
    if declared == 0 or (
        declared is None and not environ.get("wsgi.input_terminated", False)
    ):
        return b""
    most = declared if declared is not None else limit
    body = _read(environ["wsgi.input"], None if most is None else most + 1, declared)
    if limit is not None and len(body) > limit:
        raise _too_large(limit)
    if declared is not None and len(body) < declared:
        raise ValidationError("the request's body is shorter than its Content-Length")
    return body


def declared_length(environ: Environ, limit: int | None) -> int | None:
    """Return how long the body is said to be; None if that is not said.

    Raises:
        RequestTooLargeError: It is more than `limit`.
        ValidationError: It is no number.
    """
    text = environ.get("CONTENT_LENGTH") or ""
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ValidationError("the Content-Length is no number of bytes")
    length = int(text)
    if limit is not None and length > limit:
        raise _too_large(limit)
    return length


def _read(stream: Any, most: int | None, declared: int | None) -> bytes:
    # Never asks for more than was declared: a server without an end mark on its
    # input would wait for bytes that never come.
    wanted = declared if declared is not None else most
    pieces: list[bytes] = []
    while wanted is None or wanted > 0:
        try:
            piece = stream.read(_READ_SIZE if wanted is None else min(wanted, 1 << 20))
        except PPIOAgentError:
            raise
        except Exception as error:  # the host's own: of a chunk without a size, say
            raise ValidationError(
                f"the request's body cannot be read ({type(error).__name__})"
            ) from error
        if not piece:
            break
        pieces.append(piece)
        wanted = None if wanted is None else wanted - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large(limit: int) -> RequestTooLargeError:
    return RequestTooLargeError(
        f"the request's body is larger than {limit} bytes", limit=limit
    )


def request_id_of(text: str | None) -> str:
    """Return the id that a caller gave, if it is a valid one, else a new one."""
    return text if text and valid_id(text) else new_id()


class RequestKit:
    """Wraps a WSGI application and gives each of its requests what it needs.

    The request's id is in `environ["ppio.request_id"]`, in `current_request_id` and on
    every answer. The application, every step of its body and the body's `close` run in
    one `contextvars.Context` of that request. Headers that belong to a connection are
    dropped; those that would break the answer, and unexpected exceptions, are a 500.

    Args:
        app: The application.
        headers: Sent with every answer that does not set them itself.

    Thread safety: thread-safe if the application is.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]], *, headers: Headers = ()):
        self._app = app
        self._headers = tuple(headers)

    def __call__(
        self, environ: Environ, start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Serve one request."""
        context = contextvars.copy_context()
        return context.run(self._serve, context, environ, start_response)

    def _serve(
        self,
        context: contextvars.Context,
        environ: Environ,
        start_response: Callable[..., Any],
    ) -> Iterable[bytes]:
        # A kit further outside, or the thread that relayed the request, chose it.
        request_id = environ.get("ppio.request_id")
        if request_id is None:
            request_id = request_id_of(environ.get("HTTP_X_REQUEST_ID"))
        elif "ppio.resume" not in environ:
            # What is between the two kits must run once for a request.
            environ.pop("ppio.relay", None)
        environ["ppio.request_id"] = request_id
        current_request_id.set(request_id)
        answer = _Answer(start_response, environ, request_id, self._headers)
        try:
            body = self._app(environ, answer.start)
        except Relayed:
            raise
        except BaseException as error:  # noqa: BLE001 - outermost frame of a request
            return answer.fail(error)
        if isinstance(body, list | tuple):
            return body  # no code of the application runs in it
        return _Body(body, context, answer)


class _Answer:
    """The head of one answer: cleans it, and replaces it by a problem."""

    __slots__ = ("_environ", "_headers", "_request_id", "_start_response", "sent")

    def __init__(
        self,
        start_response: Callable[..., Any],
        environ: Environ,
        request_id: str,
        headers: Headers,
    ) -> None:
        self._start_response = start_response
        self._environ = environ
        self._request_id = request_id
        self._headers = headers
        self.sent = False

    def start(self, status: str, headers: Headers, exc_info: Any = None) -> Any:
        if _UNFIT.search(status):
            raise ValueError("the status line has a control character")
        clean = _clean(headers)
        names = {name.lower() for name, _ in clean} if self._headers else ()
        clean.extend(pair for pair in self._headers if pair[0].lower() not in names)
        clean.append((REQUEST_ID, self._request_id))
        if exc_info is not None:
            return self._start_response(status, clean, exc_info)
        return self._start_response(status, clean)

    def fail(self, error: BaseException) -> list[bytes]:
        """Answer with a problem; only before any of the body was sent."""
        if not isinstance(error, PPIOAgentError) or error.http_status == 500:
            self.log(error)
        exc_info = (type(error), error, error.__traceback__)
        start = functools.partial(self.start, exc_info=exc_info)
        return list(problem(error, self._request_id).respond(start))

    def cut(self, error: BaseException) -> None:
        """Note that a body failed after it had begun; the server cuts it off."""
        self.log(error)
        self._environ["ppio.failed"] = True

    def log(self, error: BaseException) -> None:
        _log.error(
            "request failed: %s %r",
            self._environ.get("REQUEST_METHOD"),
            self._environ.get("PATH_INFO"),
            exc_info=error,
            extra={"ppio_request_id": self._request_id},
        )


class _Body:
    """A body whose every step runs in the request's context."""

    __slots__ = ("_answer", "_body", "_context", "_pieces")

    def __init__(
        self, body: Iterable[bytes], context: contextvars.Context, answer: _Answer
    ) -> None:
        self._body = body
        self._context = context
        self._answer = answer
        self._pieces: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            piece: bytes = self._context.run(self._step)
        except StopIteration:
            raise
        except BaseException as error:
            if self._answer.sent:
                self._answer.cut(error)
                raise
            self._answer.sent = True
            self._finish()
            return self._answer.fail(error)[0]
        if piece:
            self._answer.sent = True
        return piece

    def _step(self) -> bytes:
        if self._pieces is None:
            self._pieces = iter(self._body)
        return next(self._pieces)

    def _finish(self) -> None:
        self.close()
        self._pieces = iter(())

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        self._body = ()
        if close is None:
            return
        try:
            self._context.run(close)
        except BaseException as error:  # noqa: BLE001 - the answer is out already
            self._answer.log(error)


def _clean(headers: Headers) -> list[tuple[str, str]]:
    clean = []
    for name, value in headers:
        if not _keeps(name):
            if name.lower() != "x-request-id":
                _log.warning("dropped the header %s: it is the server's to set", name)
        elif _UNFIT.search(value):
            raise ValueError(f"the value of header {name} has a control character")
        else:
            clean.append((name, value))
    return clean


@functools.lru_cache(maxsize=512)
def _keeps(name: str) -> bool:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is no header name")
    lower = name.lower()
    return not (
        lower in _HOP_BY_HOP or lower.startswith("proxy-") or lower == "x-request-id"
    )
