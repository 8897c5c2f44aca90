"""The short cut of the request parser against waitress's own parser."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waitress.adjustments import Adjustments
from waitress.parser import HTTPRequestParser
from waitress.utilities import BadRequest, RequestEntityTooLarge

from ppio_agent.web.parser import Parser

ADJ = Adjustments(max_request_body_size=1000)
ADJ.ppio_max_request_size = 1000  # as the server sets it
SEEN = (
    "chunked", "command", "completed", "connection_close", "content_length", "empty",
    "expect_continue", "first_line", "fragment", "headers", "path", "proxy_netloc",
    "proxy_scheme", "query", "request_uri", "url_scheme", "version",
)  # fmt: skip


def _facts(cls: type[Any], data: bytes) -> dict[str, Any]:
    """Return all that a parser says of some bytes."""
    parser = cls(ADJ)
    used = 0
    while used < len(data) and not parser.completed:
        used += parser.received(data[used:])
    facts = {name: getattr(parser, name, None) for name in SEEN}
    error = parser.error
    if error is not None:
        # What it understood before the error is nobody's business.
        return {"error": type(error), "text": error.body, "used": used}
    body = parser.get_body_stream().read()
    return {**facts, "used": used, "body": body, "receiver": type(parser.body_rcv)}


NAMES = st.sampled_from([
    b"Host", b"host", b"Content-Length", b"content-length", b"Transfer-Encoding",
    b"Expect", b"Connection", b"X-Request-Id", b"X_Under", b"Bad Name", b"",
    b" Folded", b"Authorization", b"Content-Length ",
])  # fmt: skip
VALUES = st.one_of(
    st.sampled_from([
        b"0", b"5", b"+5", b"5, 5", b"1e3", b"-1", b"chunked", b"identity", b"gzip",
        b"100-continue", b"close", b"Close", b"keep-alive, close", b"a", b"",
        b"  padded\t ", b"\xff\xfe", b"a\x00b", b"a\x0bb", b"a\nb", b"a\rb", b"\x85",
    ]),
    st.binary(max_size=8),
)  # fmt: skip
LINES = st.tuples(NAMES, st.sampled_from([b": ", b":", b" : ", b""]), VALUES)
STARTS = st.sampled_from([
    b"GET / HTTP/1.1", b"POST /invocations?x=1#f HTTP/1.1", b"GET /a%20b HTTP/1.1",
    b"GET //a//b HTTP/1.1", b"GET http://h/p HTTP/1.1", b"GET / HTTP/1.0", b"GET /",
    b"get / HTTP/1.1", b"GET  / HTTP/1.1", b"GET / HTTP/1.1 ", b"GET / HTTP/2.0",
    b"OPTIONS * HTTP/1.1", b"G\nT / HTTP/1.1", b"\xff",
    b"GET /\xc3\xa9 HTTP/1.1", b"",
])  # fmt: skip
BODIES = st.sampled_from([b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"0\r\n\r\n"])


@settings(max_examples=300)
@given(STARTS, st.lists(LINES, max_size=4), st.sampled_from([b"\r\n", b"\n"]), BODIES)
def test_it_means_what_waitress_means(
    start: bytes, lines: list[tuple[bytes, bytes, bytes]], end: bytes, body: bytes
) -> None:
    """Every request, however odd, is understood or refused in the same way."""
    head = end.join([start, *map(b"".join, lines), b"", b""])
    expected = _facts(HTTPRequestParser, head + body)
    sized = any(name.lower() == b"content-length" for name, _, _ in lines)
    if sized and expected.get("chunked"):
        # Waitress lets the chunks win; two lengths are how requests are smuggled.
        assert _facts(Parser, head + body)["error"] is BadRequest
    else:
        assert _facts(Parser, head + body) == expected


def test_a_body_declared_too_large_is_left_unread() -> None:
    """The head is enough for a refusal, and nobody is asked to go on."""
    parser = Parser(ADJ)
    parser.received(
        b"POST / HTTP/1.1\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n"
    )
    assert parser.completed
    assert isinstance(parser.error, RequestEntityTooLarge)
    assert not parser.expect_continue


@settings(max_examples=100)
@given(st.binary(max_size=60), BODIES)
def test_it_means_the_same_of_noise(noise: bytes, body: bytes) -> None:
    """Also of bytes that are no request at all."""
    data = noise + b"\r\n\r\n" + body
    assert _facts(Parser, data) == _facts(HTTPRequestParser, data)


def test_a_broken_authority_is_a_bad_request() -> None:
    """Waitress's own parser fails with a ValueError, and closes without an answer."""
    facts = _facts(Parser, b"GET http://[ HTTP/1.1\r\n\r\n")
    assert (facts["error"], facts["text"]) == (BadRequest, "Bad URI")


def test_a_repeated_line_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second request with the same lines does not reach the regular expression."""
    data = b"GET / HTTP/1.1\r\nHost: once\r\nX-Rare: 4711\r\n\r\n"
    assert _facts(Parser, data)["headers"] == {"HOST": "once", "X_RARE": "4711"}
    monkeypatch.setattr("ppio_agent.web.parser.HEADER_FIELD_RE", None)
    assert _facts(Parser, data)["headers"] == {"HOST": "once", "X_RARE": "4711"}


def test_a_line_of_its_own_is_not_remembered() -> None:
    """Long lines, which are rarely the same twice, do not fill the memory."""
    value = b"v" * 2000
    data = b"GET / HTTP/1.1\r\nX-Long: " + value + b"\r\n\r\n"
    assert _facts(Parser, data)["headers"] == {"X_LONG": value.decode()}
