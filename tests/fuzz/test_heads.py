"""The request parser against waitress's own, which has no cache, and against h11."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import h11
from hypothesis import given
from hypothesis import strategies as st
from waitress.adjustments import Adjustments
from waitress.parser import HTTPRequestParser, ParsingError

from ppio_agent.web import parser as cached
from ppio_agent.web.parser import Parser
from tests.fuzz.support import fuzz, spoiled
from tests.wire.support import cuts

ADJ = Adjustments(max_request_body_size=1000)
ADJ.ppio_max_request_size = 999  # as the server sets it
SEEN = (
    "chunked", "command", "connection_close", "content_length", "expect_continue",
    "first_line", "fragment", "headers", "path", "proxy_netloc", "proxy_scheme",
    "query", "request_uri", "url_scheme", "version",
)  # fmt: skip

STARTS = st.sampled_from([
    b"GET / HTTP/1.1", b"POST /invocations?x=1#f HTTP/1.1", b"GET /a%20b HTTP/1.1",
    b"GET //a//b HTTP/1.1", b"GET http://h/p HTTP/1.1", b"GET / HTTP/1.0", b"GET /",
    b"get / HTTP/1.1", b"GET  / HTTP/1.1", b"GET / HTTP/1.1 ", b"GET / HTTP/2.0",
    b"OPTIONS * HTTP/1.1", b"G\nT / HTTP/1.1", b"\xff", b"GET http://[ HTTP/1.1",
    b"GET /\xc3\xa9 HTTP/1.1", b"", b"GET /" + b"x" * 1100 + b" HTTP/1.1",
])  # fmt: skip
NAMES = st.sampled_from([
    b"Host", b"host", b"Content-Length", b"content-length", b"Transfer-Encoding",
    b"Expect", b"Connection", b"X-Request-Id", b"X_Under", b"Bad Name", b"",
    b" Folded", b"Authorization", b"Content-Length ", b"Content_Length",
])  # fmt: skip
VALUES = st.one_of(
    st.sampled_from([
        b"0", b"5", b"+5", b"5, 5", b"1e3", b"-1", b"chunked", b"identity", b"gzip",
        b"100-continue", b"close", b"Close", b"keep-alive, close", b"a", b"",
        b"  padded\t ", b"\xff\xfe", b"a\x00b", b"a\x0bb", b"a\nb", b"a\rb", b"\x85",
        b"v" * 1100, b"9" * 30, b"9" * 5000, b"\xb2", b"5\r\n ", b"007",
    ]),
    st.binary(max_size=8),
)  # fmt: skip
LINES = st.tuples(
    NAMES, st.sampled_from([b": ", b": ", b":", b" : ", b""]), VALUES
).map(b"".join)
CODINGS = st.sampled_from([
    b"chunked", b"chunked", b"Chunked", b"chunked, chunked", b"gzip, chunked", b"",
    b"\x0bchunked", b"xchunked", b"identity", b"chunked,", b"\r\n chunked",
])  # fmt: skip


@st.composite
def chunked(draw: Callable[[Any], Any]) -> bytes:
    """Give a body in chunks."""
    size = st.sampled_from([b"%x", b"%X", b"0%x", b"%x;ext=1", b"%x\n", b"+%x", b"%x "])
    pieces = draw(st.lists(st.binary(min_size=1, max_size=20), max_size=3))
    body = b"".join(
        draw(st.just(b"%x") | size) % len(piece) + b"\r\n" + piece + b"\r\n"
        for piece in pieces
    )
    end = draw(st.sampled_from([b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nA: b\r\n\r\n", b""]))
    return body + bytes(end)


@st.composite
def framed(draw: Callable[[Any], Any]) -> tuple[list[bytes], bytes]:
    """Give the header lines that frame a body, right or wrong, and the body."""
    kind = draw(
        st.sampled_from(["none", "sized", "sized", "chunked", "chunked", "both"])
    )
    if kind == "none":
        return [], b""
    lines = []
    body: bytes = draw(st.binary(max_size=30) if kind == "sized" else chunked())
    if kind != "chunked":
        length = len(body) + draw(st.sampled_from([0, 0, 0, 0, -1, 1, 2000]))
        lines += [b"Content-Length: %d" % length] * draw(st.sampled_from([1, 1, 1, 2]))
    if kind != "sized":
        lines.append(b"Transfer-Encoding: " + draw(CODINGS))
    return lines, body


@st.composite
def messages(draw: Callable[[Any], Any]) -> bytes:
    """Give one request, nearly well-formed."""
    framing, body = draw(framed())
    lines = [draw(STARTS), b"Host: h", *draw(st.lists(LINES, max_size=3)), *framing]
    end = draw(st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n"]))
    return bytes(end.join([*lines, b"", b""]) + body)


STREAMS = st.lists(messages(), min_size=1, max_size=4).map(b"".join)


class Plain(HTTPRequestParser):  # type: ignore[misc] # waitress has no type hints
    """Waitress's own parser, with what ours refuses on top."""

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError as error:  # it lets some pass, and the connection just ends
            raise ParsingError(str(error)) from error
        if "TRANSFER_ENCODING" in self.headers:
            raise ParsingError("not of this version")
        if self.chunked and "CONTENT_LENGTH" in self.headers:
            raise ParsingError("two lengths")


Said = list[dict[str, Any]]


def said(cls: type[Any], pieces: Iterable[bytes]) -> Said:
    """Return what a parser makes of a connection, as waitress's channel feeds it."""
    found: Said = []
    parser = None
    for piece in pieces:
        rest = piece
        while rest:
            parser = parser or cls(ADJ)
            used = parser.received(rest)
            assert used or parser.completed, "nothing was taken"
            rest = rest[used:]
            if not parser.completed:
                continue
            if parser.error is not None:  # the connection ends here
                return [*found, {"error": type(parser.error)}]
            if not parser.empty:
                found.append(_facts(parser))
            parser = None
    return found


def _facts(parser: Any) -> dict[str, Any]:
    facts = {name: getattr(parser, name, None) for name in SEEN}
    return {**facts, "body": parser.get_body_stream().read()}


@fuzz()
@given(cuts(spoiled(STREAMS)))
def test_requests_mean_what_waitress_means(pieces: list[bytes]) -> None:
    """However they are cut, odd or pipelined, and whatever was remembered before."""
    expected = said(Plain, pieces)
    assert said(Parser, pieces) == expected
    assert said(Parser, [b"".join(pieces)]) == expected


@fuzz(100)
@given(messages(), spoiled(messages()))
def test_no_request_changes_what_a_later_one_means(first: bytes, second: bytes) -> None:
    """What is remembered of a line is what the line means."""
    _forget()
    alone = said(Parser, [second])
    _forget()
    said(Parser, [first])
    said(Parser, [second, first])
    assert said(Parser, [second]) == alone


def _forget() -> None:
    cached._known_field.cache_clear()
    cached._known_start.cache_clear()


@fuzz()
@given(spoiled(STREAMS))
def test_nobody_in_front_sees_other_requests(data: bytes) -> None:
    """What both take, ends in the same place: nothing can be smuggled past h11."""
    for ours, theirs in zip(said(Parser, [data]), _h11_says(data), strict=False):
        if "error" in ours:
            break
        seen = (ours["command"], ours["request_uri"], ours["body"])
        assert seen == theirs


def _h11_says(data: bytes) -> list[tuple[str, str, bytes]]:
    """Return the requests that h11 finds, up to the first that it refuses."""
    found: list[tuple[str, str, bytes]] = []
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    method = target = ""
    body = b""
    while connection.their_state is not h11.MUST_CLOSE:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return found
        if isinstance(event, h11.Request):
            method, target = event.method.decode(), event.target.decode("latin-1")
            body = b""
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            found.append((method, target, body))
            connection.send(h11.Response(status_code=204, headers=[]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE:
                return found
            connection.start_next_cycle()
        else:
            return found
    return found


@fuzz(100)
@given(st.binary(max_size=200))
def test_noise_means_what_waitress_means(noise: bytes) -> None:
    """Also what is no request at all."""
    for data in (noise, noise + b"\r\n\r\n"):
        assert said(Parser, [data]) == said(Plain, [data])
