"""Requests as bytes: mostly well-formed, with everything that has ever confused a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

__all__ = ["STREAMS", "messages"]

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
"""Requests on one connection, one after the other."""
