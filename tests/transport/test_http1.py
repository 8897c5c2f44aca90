"""HTTP/1.1 framing, with the standard library as the oracle."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.transport.http1 import (
    MAX_HEAD_BYTES,
    BodyReader,
    FramingError,
    Head,
    Headers,
    TruncatedError,
    body_reader,
    encode_head,
    find_head,
    parse_head,
)


class _Socket:
    """What `http.client.HTTPResponse` wants to read from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def _oracle(data: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
    response = http.client.HTTPResponse(_Socket(data), method="GET")  # type: ignore[arg-type]
    response.begin()
    return response.status, response.getheaders(), response.read()


def _read(
    data: bytes, cuts: list[int], method: str = "GET"
) -> tuple[Head, bytes, BodyReader]:
    """Feed `data` in pieces that end at `cuts`; return head, body and the reader."""
    seen = bytearray()
    end = -1
    body = b""
    reader = None
    edges = [0, *sorted({min(c, len(data)) for c in cuts}), len(data)]
    for start, stop in itertools.pairwise(edges):
        piece = data[start:stop]
        if reader is None:
            searched = len(seen)
            seen += piece
            end = find_head(seen, searched)
            if end < 0:
                continue
            head = parse_head(seen[:end])
            reader = body_reader(method, head)
            piece = bytes(seen[end:])
        body += reader.feed(piece)
    assert reader is not None
    if not reader.done:
        reader.end()
    return head, body, reader


_names = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,10}", fullmatch=True).filter(
    lambda n: n.lower() not in {"transfer-encoding", "content-length", "connection"}
)
_values = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=0, max_size=20
)
_cuts = st.lists(st.integers(0, 400), max_size=12)


@given(
    status=st.integers(200, 599).filter(lambda s: s not in {204, 304}),
    headers=st.lists(st.tuples(_names, _values), max_size=6),
    pieces=st.lists(st.binary(max_size=40), max_size=6),
    framing=st.sampled_from(["length", "chunked", "close"]),
    cuts=_cuts,
)
@settings(max_examples=100)
def test_every_answer_reads_as_the_standard_library_reads_it(
    status: int,
    headers: list[tuple[str, str]],
    pieces: list[bytes],
    framing: str,
    cuts: list[int],
) -> None:
    """Status, headers and body, wherever the bytes are cut."""
    payload = b"".join(pieces)
    lines = [f"{name}: {value}" for name, value in headers]
    body = payload
    if framing == "length":
        lines.append(f"Content-Length: {len(payload)}")
    elif framing == "chunked":
        lines.append("Transfer-Encoding: chunked")
        sized = [b"%X;x=y\r\n%b\r\n" % (len(p), p) for p in pieces if p]
        body = b"".join([*sized, b"0\r\nTrailer: x\r\n\r\n"])
    head = "\r\n".join([f"HTTP/1.1 {status} Some reason", *lines, "", ""]).encode()
    expected_status, expected_headers, expected_body = _oracle(head + body)

    found, got, reader = _read(head + body, cuts)

    assert (expected_status, expected_body) == (found.status, got)
    assert expected_body == payload
    assert reader.done
    assert not reader.excess
    assert Headers(expected_headers).items() == found.headers.items()


@given(pieces=st.lists(st.binary(min_size=1, max_size=30), min_size=1), cuts=_cuts)
@settings(max_examples=50)
def test_a_chunked_body_that_is_cut_is_never_complete(
    pieces: list[bytes], cuts: list[int]
) -> None:
    """What came before the cut is a prefix, and the end is an error."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces)
    reader = body_reader("GET", _head("Transfer-Encoding: chunked"))
    got = b"".join(reader.feed(body[i : i + 1]) for i in range(min(cuts or [9])))
    assert b"".join(pieces).startswith(got)
    assert not reader.done
    with pytest.raises(TruncatedError):
        reader.end()


def _head(*lines: str, status: int = 200, version: str = "1.1") -> Head:
    text = "\r\n".join([f"HTTP/{version} {status} OK", *lines, "", ""])
    return parse_head(text.encode("latin-1"))


def test_headers_are_found_in_any_case_and_joined() -> None:
    """Several of one name are one value."""
    headers = _head("X-One: a", "x-one:b", "Empty:").headers
    assert headers["X-ONE"] == "a, b"
    assert headers.get("empty") == ""
    assert headers.get("none") is None
    assert "X-one" in headers
    assert dict(headers) == {"x-one": "a, b", "Empty": ""}


def test_folded_headers_are_unfolded() -> None:
    """A line that starts with a space continues the one before."""
    assert _head("A: one", "  two", "B: x").headers["a"] == "one two"


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : space\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: nul\x00\r\n\r\n",
    ],
)
def test_what_is_no_head_is_refused(data: bytes) -> None:
    """Nothing is guessed."""
    with pytest.raises(FramingError):
        parse_head(data)


def test_a_head_without_end_is_bounded() -> None:
    """At 64 KiB it is too much."""
    seen = bytearray(b"HTTP/1.1 200 OK\r\nA: " + b"x" * MAX_HEAD_BYTES)
    with pytest.raises(FramingError, match="64 KiB"):
        find_head(seen)


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 3, 4",),
        ("Content-Length: 3", "Content-Length: 4"),
        ("Content-Length: -1",),
        ("Content-Length: 1_0",),
        ("Content-Length: ",),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: chunked", "Content-Length: 3"),
    ],
)
def test_a_body_whose_end_is_unclear_is_refused(lines: tuple[str, ...]) -> None:
    """A connection that is read beyond its answer would mix up two calls."""
    with pytest.raises(FramingError):
        body_reader("GET", _head(*lines))


def test_equal_lengths_are_one() -> None:
    """Some proxies repeat the header."""
    reader = body_reader("GET", _head("Content-Length: 3, 3"))
    assert reader.feed(b"abc") == b"abc"
    assert reader.done


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304), ("GET", 101)]
)
def test_answers_without_body_are_complete_at_once(method: str, status: int) -> None:
    """Whatever their headers say of a length."""
    assert body_reader(method, _head("Content-Length: 9", status=status)).done


@pytest.mark.parametrize("framing", ["Content-Length: 2", "Transfer-Encoding: chunked"])
def test_bytes_behind_the_body_are_noticed(framing: str) -> None:
    """Such a connection must not be used again."""
    reader = body_reader("GET", _head(framing))
    whole = b"ab" if "Length" in framing else b"2\r\nab\r\n0\r\n\r\n"
    assert reader.feed(whole + b"HTTP/1.1 200") == b"ab"
    assert (reader.done, reader.excess) == (True, True)


@pytest.mark.parametrize(
    "body",
    [b"xyz\r\n", b"-1\r\n", b"0x2\r\nab\r\n", b"2\r\nabc\r\n", b"1" * 5000, b"\r\n"],
)
def test_malformed_chunks_are_refused(body: bytes) -> None:
    """A size that is no number, a chunk longer than it says, an endless line."""
    reader = body_reader("GET", _head("Transfer-Encoding: chunked"))
    with pytest.raises(FramingError):
        reader.feed(body)


def test_endless_trailers_are_refused() -> None:
    """Each is short, but there is no end of them."""
    reader = body_reader("GET", _head("Transfer-Encoding: chunked"))
    line = b"A: " + b"x" * 1000 + b"\r\n"
    with pytest.raises(FramingError):
        reader.feed(b"0\r\n" + line * 100)


def test_the_end_of_the_connection_may_stand_for_the_last_blank_line() -> None:
    """All data has come by then."""
    reader = body_reader("GET", _head("Transfer-Encoding: chunked"))
    assert reader.feed(b"2\r\nab\r\n0\r\n") == b"ab"
    reader.end()
    assert reader.done


def test_a_body_of_known_length_must_be_whole() -> None:
    """The error says how much is missing."""
    reader = body_reader("GET", _head("Content-Length: 5"))
    reader.feed(b"abc")
    with pytest.raises(TruncatedError, match="2 bytes"):
        reader.end()


@pytest.mark.parametrize(
    ("lines", "version", "expected"),
    [
        ((), "1.1", True),
        (("Connection: close",), "1.1", False),
        (("Connection: Close, x",), "1.1", False),
        ((), "1.0", False),
        (("Connection: Keep-Alive",), "1.0", True),
    ],
)
def test_keep_alive(lines: tuple[str, ...], version: str, expected: bool) -> None:
    """By version and header."""
    assert _head(*lines, version=version).keeps_alive is expected


def test_a_head_is_sent_as_it_is_meant() -> None:
    """One line each, and a blank one."""
    head = encode_head("POST", "/a?b=c", [("Host", "h"), ("X-One", "\xe9")])
    assert head == b"POST /a?b=c HTTP/1.1\r\nHost: h\r\nX-One: \xe9\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "target", "name", "value"),
    [
        ("GET", "/a b", "A", "x"),
        ("GET", "/\xe9", "A", "x"),
        ("GET", "/\r\nX:y", "A", "x"),
        ("GE T", "/", "A", "x"),
        ("GET", "/", "A:", "x"),
        ("GET", "/", "", "x"),
        ("GET", "/", "A", "x\r\nB: y"),
        ("GET", "/", "A", "x\ny"),
        ("GET", "/", "A", "\0"),
        ("GET", "/", "A", "\u20ac"),
    ],
)
def test_nothing_can_be_smuggled_into_a_head(
    method: str, target: str, name: str, value: str
) -> None:
    """Line breaks and the like are refused; the value is not shown."""
    with pytest.raises(FramingError) as caught:
        encode_head(method, target, [(name, value)])
    assert "B: y" not in str(caught.value)


@given(st.binary(max_size=200))
@settings(max_examples=100)
def test_garbage_is_an_answer_or_refused(data: bytes) -> None:
    """No other exception than the one that is translated."""
    with contextlib.suppress(FramingError):
        _read(b"HTTP/1.1 200 OK\r\n" + data + b"\r\n\r\n" + data, [])


def test_many_chunks_of_one_read_are_one_piece() -> None:
    """Streams are read by what came, not by how it was wrapped."""
    payload = gzip.compress(b"x" * 1000)
    reader = body_reader("GET", _head("Transfer-Encoding: chunked"))
    data = b"".join(b"1\r\n%c\r\n" % byte for byte in payload)
    assert reader.feed(data) == payload
