"""What is sent and what comes back, as frozen values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

from attrs import field, frozen

from ppio_agent._util.clock import Deadline
from ppio_agent._util.redact import Redactor
from ppio_agent.exceptions import ProtocolError, WireError
from ppio_agent.wire.headers import REQUEST_ID
from ppio_agent.wire.json import Json, decode_json

from .http1 import Headers
from .retry import RetryPolicy
from .route import split_url

__all__ = ["Auth", "Kind", "Request", "Response", "TransportConfig"]

_MIB = 1024 * 1024
_MOST_READ = 64 * 1024
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_NO_LIMIT = Deadline(None)
_redactor = Redactor()

Kind: TypeAlias = Literal["template", "sandbox", "agent", "envd", "other"]
"""What a request is about; decides what "not found" means."""

Auth: TypeAlias = "Callable[[Request, bool], Mapping[str, str]]"
"""Gives the headers that prove who asks, afresh for each attempt. The flag says that
the last ones were answered 401: other headers are then tried once, equal ones not."""


def _shown_url(url: str | None) -> str:
    return repr(url and _redactor.url(url))


def _shown_headers(headers: Mapping[str, str]) -> str:
    return repr(_redactor.headers(headers))


def _shown_body(body: bytes | None) -> str:
    return "None" if body is None else f"<{len(body)} bytes>"


@frozen(kw_only=True)
class TransportConfig:
    """Settings of a `Transport`.

    Attributes:
        max_connections: Most connections at once, over all hosts.
        max_keepalive_connections: Most idle connections that are kept, over all hosts.
        connect_timeout: Limit of one attempt to connect, TLS included; None means the
            deadline of the call alone.
        max_response_bytes: Largest answer that `send` takes, after decompression.
        proxy: URL of an HTTP proxy for all requests. None means that of the
            environment (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`), which never counts
            for this machine itself.
        ca_bundle: File of trusted certificates. None means `SSL_CERT_FILE`, or else
            those of the system.
        headers: Headers of every request, unless the request has its own.
        retry: What requests without a policy of their own follow.

    Thread safety: immutable.
    """

    max_connections: int = 200
    max_keepalive_connections: int = 50
    connect_timeout: float | None = 10.0
    max_response_bytes: int = 64 * _MIB
    proxy: str | None = field(default=None, repr=_shown_url)
    ca_bundle: str | None = None
    headers: Mapping[str, str] = field(default=_NO_HEADERS, repr=_shown_headers)
    retry: RetryPolicy = field(factory=RetryPolicy)


@frozen(kw_only=True)
class Request:
    """One call.

    Attributes:
        method: HTTP method, upper case.
        url: Absolute http or https URL, percent-encoded.
        headers: Its own headers; those of the transport are added.
        body: Sent as it is, the same bytes in each attempt.
        deadline: Bounds everything: waiting for a connection, all attempts and the
            pauses between them, and the body of the answer.
        kind: What it is about.
        subject: Id that a not-found error names.
        run_once: Whether the peer is known to run an `Idempotency-Key` only once.
        retry: None follows the transport's policy.
        auth: None sends no authentication.
        idle_timeout: Longest silence of the peer, in seconds; None means no limit.
        ok_statuses: Statuses other than 2xx that are no failure.
        raise_for_status: False returns a failure's answer, after the attempts that the
            policy allows, instead of raising its error.

    Thread safety: immutable.
    """

    method: str
    url: str = field(repr=_shown_url)
    headers: Mapping[str, str] = field(default=_NO_HEADERS, repr=_shown_headers)
    body: bytes | None = field(default=None, repr=_shown_body)
    deadline: Deadline = _NO_LIMIT
    kind: Kind = "other"
    subject: str = ""
    run_once: bool = False
    retry: RetryPolicy | None = None
    auth: Auth | None = field(default=None, repr=False)
    idle_timeout: float | None = None
    ok_statuses: Collection[int] = ()
    raise_for_status: bool = True

    @property
    def target(self) -> str:
        """Path and query of the URL exactly as they are sent, which is what is signed.

        Raises:
            ValidationError: It is no absolute http or https URL.
        """
        return split_url(self.url)[1]

    def succeeds(self, status: int) -> bool:
        """Whether an answer of this status is no failure."""
        return 200 <= status < 300 or status in self.ok_statuses


@frozen(kw_only=True)
class Response:
    """A whole answer.

    Attributes:
        status: HTTP status.
        headers: Its headers; names in any case.
        body: After decompression.
        request_id: As the peer named it, else as it was sent.
        attempts: How many attempts it took; 0 if nothing was sent.
        url: What was asked.

    Thread safety: immutable.
    """

    status: int
    headers: Headers = field(repr=False)
    body: bytes = field(repr=_shown_body)
    request_id: str
    attempts: int = 1
    url: str = field(repr=_shown_url)
    _redactor: Redactor = field(default=_redactor, repr=False, eq=False)

    @classmethod
    def make(
        cls,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Response:
        """Return an answer for a middleware that gives one itself.

        Args:
            status: HTTP status; that of a failure becomes the error it stands for.
            headers: Such as the content type.
            body: Not compressed.
        """
        found = Headers((headers or {}).items())
        return cls(
            status=status,
            headers=found,
            body=body,
            request_id=found.get(REQUEST_ID) or "",
            attempts=0,
            url="",
        )

    def json(self) -> Json:
        """Return the body's JSON value.

        Raises:
            ProtocolError: It is not JSON; says status, content type and first bytes.
        """
        try:
            return decode_json(self.body)
        except WireError as error:
            kind = self.headers.get("content-type", "no content type")
            start = self.body[:_MOST_READ].decode("utf-8", "replace")
            raise ProtocolError(
                f"the answer is not JSON ({error}): status {self.status}, {kind},"
                f" it starts with {self._redactor.start(start, 200)!r}",
                request_id=self.request_id,
                attempts=self.attempts,
                url=self._redactor.url(self.url),
            ) from error
