"""Requests as bytes: mostly well-formed, with everything that has ever confused a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

__all__ = ["REFUSED", "STREAMS", "messages"]

CHUNKED = b"Transfer-Encoding: chunked"
LENGTH = b"Content-Length: 5"
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


REFUSED: dict[str, tuple[bytes, bytes]] = {
    name: (b"\r\n".join([*head, b""]), body)
    for name, head, body in [
        ("length and chunks", [b"Content-Length: 60", CHUNKED], b"0\r\n\r\n"),
        ("chunks and length", [CHUNKED, b"Content-Length: 5"], b"0\r\n\r\n"),
        ("two lengths", [b"Content-Length: 0", b"Content-Length: 5"], b"hello"),
        ("list of lengths", [b"Content-Length: 0, 5"], b"hello"),
        ("folded length", [b"Content-Length: 0", b" 5"], b"hello"),
        ("signed length", [b"Content-Length: +5"], b"hello"),
        ("length in words", [b"Content-Length: 0x5"], b"hello"),
        ("endless length", [b"Content-Length: " + b"9" * 5000], b"hello"),
        ("folded chunks", [b"Transfer-Encoding:", b" chunked", LENGTH], b"0\r\n\r\n"),
        ("space in a name", [b"Transfer-Encoding : chunked"], b"0\r\n\r\n"),
        ("chunks not last", [b"Transfer-Encoding: chunked, identity"], b"0\r\n\r\n"),
        ("not chunks alone", [b"Transfer-Encoding: gzip, chunked"], b"0\r\n\r\n"),
        ("nearly chunks", [b"Transfer-Encoding: \x0bchunked"], b"0\r\n\r\n"),
        ("chunks and NUL", [b"Transfer-Encoding: chunked\0"], b"0\r\n\r\n"),
        ("bare CR", [b"X: y\r" + CHUNKED], b"0\r\n\r\n"),
        ("bare LF", [b"X: y\nz", CHUNKED], b"0\r\n\r\n"),
        ("NUL", [b"X: y\0z", b"Content-Length: 0"], b""),
        ("no header", [b"nothing", b"Content-Length: 0"], b""),
        ("large head", [b"X: " + b"x" * (300 << 10)], b""),
        ("size in words", [CHUNKED], b"zero\r\n\r\n"),
        ("signed size", [CHUNKED], b"-0\r\n\r\n"),
        ("prefixed size", [CHUNKED], b"0x0\r\n\r\n"),
        ("two sizes", [CHUNKED], b"0 5\r\n\r\n"),
        ("size and bare LF", [CHUNKED], b"0\n\r\n\r\n"),
        ("extension with bare LF", [CHUNKED], b"0;a\nb\r\n\r\n"),
        ("chunk without its end", [CHUNKED], b"5\r\nhello0\r\n\r\n"),
        ("chunk that goes on", [CHUNKED], b"1\r\nhello\r\n0\r\n\r\n"),
    ]
}
"""Head lines and bodies of which nobody is sure where they end."""
