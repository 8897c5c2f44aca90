"""What the edge refuses in, and changes of, the heads and trailers it passes on.

Pure. Everything is parsed and written by h11; here it is only decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias, TypeVar

import h11

from ppio_agent._util.ids import new_id
from ppio_agent.wire.headers import REQUEST_ID, valid_id
from ppio_agent.wire.json import encode_json

from .upstreams import EdgeRefusal

__all__ = [
    "HEAD_LIMIT",
    "check_request",
    "forward_end",
    "forward_request",
    "forward_response",
    "forward_switch",
    "header_of",
    "refusal_events",
    "repeatable",
    "request_length",
    "response_length",
]

HEAD_LIMIT = 64 * 1024
"""Most bytes of a head."""

Strip = Callable[[str, str], bool]
_Fields = list[tuple[bytes, bytes]]
_Answer = TypeVar("_Answer", h11.Response, h11.InformationalResponse)
_Message: TypeAlias = (
    h11.Request | h11.Response | h11.InformationalResponse | h11.EndOfMessage
)

_HOP_BY_HOP = frozenset({
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"transfer-encoding",
    b"upgrade",
})  # fmt: skip
# A Connection header may name fields to be dropped, but never those that say where
# a message goes or where it ends.
_KEPT = frozenset({b"host", b"content-length"})
_FORWARDED = frozenset({b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"})


def check_request(request: h11.Request) -> None:
    """Refuse what h11 lets pass and the edge does not.

    Whoever sent it may mean another end of the request than the one that h11 finds, so
    the connection ends with the answer: what follows must not be taken for a request.

    Raises:
        EdgeRefusal: 400 for a head above the limit and for contradicting lengths, 505
            for another version of HTTP.
    """
    if request.http_version[:2] != b"1.":
        raise EdgeRefusal.of(505, "HTTP/1.1 is spoken here", close=True)
    fields = request.headers
    size = len(request.method) + len(request.target)
    size += sum(len(name) + len(value) + 4 for name, value in fields)
    if size > HEAD_LIMIT:
        raise EdgeRefusal.of(400, "the request's head is too large", close=True)
    names = {name for name, _ in fields}
    # Either pair is how a request is smuggled past a proxy (RFC 9112, 6.1).
    if b"transfer-encoding" in names and (
        b"content-length" in names or request.http_version < b"1.1"
    ):
        message = "the request's length is given in two ways"
        raise EdgeRefusal.of(400, message, close=True)


def forward_request(
    request: h11.Request, *, client: str, strip: Strip | None, secure: bool = False
) -> h11.Request:
    """Return the request as the upstream gets it; its target byte for byte.

    Args:
        request: As the client sent it.
        client: The client's address.
        strip: Whether a header (name in lower case, value) must not be passed on;
            None passes all.
        secure: Whether it came over TLS.
    """
    fields = [
        (name, value)
        for name, value in _end_to_end(request)
        if name.lower() not in _FORWARDED
        and (strip is None or not _stripped(strip, name, value))
    ]
    host = next((v for n, v in request.headers if n == b"host"), None)
    if host is None:
        fields.append((b"Host", b"localhost"))
    else:
        fields.append((b"X-Forwarded-Host", host))
    fields.append((b"X-Forwarded-For", client.encode("latin-1")))
    fields.append((b"X-Forwarded-Proto", b"https" if secure else b"http"))
    if _tokens(request.headers, b"transfer-encoding"):
        fields.append((b"Transfer-Encoding", b"chunked"))
    wanted = _upgrade(request)
    if wanted:
        fields += [(b"Connection", b"Upgrade"), (b"Upgrade", wanted)]
    return h11.Request(method=request.method, target=request.target, headers=fields)


def forward_response(response: _Answer, *, close: bool = False) -> _Answer:
    """Return the response, or the interim one, as the client gets it.

    How its body is framed is left to h11, which knows the client's HTTP version.

    Args:
        response: As received.
        close: Whether the connection ends with it.
    """
    fields = _end_to_end(response)
    if _tokens(response.headers, b"transfer-encoding"):
        fields = [item for item in fields if item[0].lower() != b"content-length"]
    if close:
        fields.append((b"Connection", b"close"))
    return type(response)(
        status_code=response.status_code, headers=fields, reason=response.reason
    )


def forward_switch(
    response: h11.InformationalResponse,
) -> h11.InformationalResponse:
    """Return the answer 101, after which the connection is a tunnel, for the client."""
    chosen = b", ".join(_words(response.headers, b"upgrade"))
    fields = [*_end_to_end(response), (b"Connection", b"Upgrade"), (b"Upgrade", chosen)]
    return h11.InformationalResponse(
        status_code=response.status_code, headers=fields, reason=response.reason
    )


def header_of(request: h11.Request, name: str) -> str | None:
    """Return the first value of a header, by its name in lower case; None: absent."""
    wanted = name.encode("latin-1")
    for found, value in request.headers:
        if found == wanted:
            return value.decode("latin-1")
    return None


def request_length(request: h11.Request) -> int:
    """Return the length of a request's body; 0 if it has none, or does not say."""
    fields = dict(request.headers)
    return 0 if b"transfer-encoding" in fields else _content_length(fields)


def response_length(request: h11.Request, response: h11.Response) -> int:
    """Return the length of an answer's body; 0 if it has none, or does not say."""
    fields = dict(response.headers)
    if (
        request.method == b"HEAD"
        or response.status_code in {204, 304}
        or b"transfer-encoding" in fields
    ):
        return 0
    return _content_length(fields)


def forward_end(
    end: h11.EndOfMessage, *, trailers: bool, strip: Strip | None = None
) -> h11.EndOfMessage:
    """Return the end of a body with the trailers that may be passed on.

    Args:
        end: As received.
        trailers: Whether the receiver understands them; HTTP/1.0 does not.
        strip: As of `forward_request`.
    """
    if not end.headers or not trailers:
        return h11.EndOfMessage()
    fields = [
        (name, value)
        for name, value in _end_to_end(end)
        if name.lower() not in _KEPT | _FORWARDED
        and (strip is None or not _stripped(strip, name, value))
    ]
    return h11.EndOfMessage(headers=fields)


def repeatable(request: h11.Request, body: Iterable[h11.Event]) -> bool:
    """Whether a request that got no answer may be sent a second time."""
    return request.method in {b"GET", b"HEAD", b"OPTIONS"} and [
        type(event) for event in body
    ] == [h11.EndOfMessage]


def refusal_events(
    refusal: EdgeRefusal, request: h11.Request | None, *, close: bool
) -> list[h11.Response | h11.Data | h11.EndOfMessage]:
    """Return the edge's own answer.

    Args:
        refusal: What to say.
        request: The request, if it could be read.
        close: Whether the connection ends with it.
    """
    content = encode_json(refusal.body)
    given = (
        value.decode("latin-1")
        for name, value in (request.headers if request else ())
        if name == REQUEST_ID.lower().encode()
    )
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
        REQUEST_ID: next(filter(valid_id, given), None) or new_id(),
        **refusal.headers,
    }
    if close:
        headers["Connection"] = "close"
    head = h11.Response(
        status_code=refusal.status,
        headers=[(name.encode(), value.encode()) for name, value in headers.items()],
    )
    if request is not None and request.method == b"HEAD":
        return [head, h11.EndOfMessage()]
    return [head, h11.Data(data=content), h11.EndOfMessage()]


def _end_to_end(message: _Message) -> _Fields:
    headers = message.headers
    dropped = _HOP_BY_HOP | (_tokens(headers, b"connection") - _KEPT)
    return [item for item in headers.raw_items() if item[0].lower() not in dropped]


def _upgrade(request: h11.Request) -> bytes:
    """Return the protocols that a request asks to go on with; empty: none.

    A client may offer HTTP/2 and go on with HTTP/1.1, so that offer is just dropped.
    """
    modern = request.http_version >= b"1.1"
    if not (modern and b"upgrade" in _tokens(request.headers, b"connection")):
        return b""
    offers = _words(request.headers, b"upgrade")
    return b", ".join(offer for offer in offers if offer.lower() != b"h2c")


def _content_length(fields: dict[bytes, bytes]) -> int:
    return int(fields.get(b"content-length", 0))


def _tokens(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> set[bytes]:
    """Return the comma-separated words of a field, in lower case."""
    return {word.lower() for word in _words(headers, wanted)}


def _words(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    return [
        word
        for name, value in headers
        if name == wanted
        for part in value.split(b",")
        if (word := part.strip())
    ]


def _stripped(strip: Strip, name: bytes, value: bytes) -> bool:
    return strip(name.decode("latin-1").lower(), value.decode("latin-1"))
