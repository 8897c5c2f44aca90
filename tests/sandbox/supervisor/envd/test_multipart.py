"""Bodies of `multipart/form-data`, however they are cut on their way."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.sandbox.supervisor.envd.multipart import (
    MultipartError,
    MultipartReader,
    Part,
    PartEnd,
    boundary_of,
)

HEAD = 'Content-Disposition: form-data; name="{}"; filename="{}"'


def body_of(*parts: tuple[str, bytes]) -> bytes:
    """Return a body with these files."""
    whole = b""
    for name, data in parts:
        head = HEAD.format("file", name).encode()
        whole += b"--sep\r\n" + head + b"\r\nContent-Type: x\r\n\r\n" + data + b"\r\n"
    return whole + b"--sep--\r\n"


def read(pieces: list[bytes], boundary: bytes = b"sep") -> list[tuple[Part, bytes]]:
    """Read a body that comes in pieces."""
    reader = MultipartReader(boundary)
    found: list[tuple[Part, bytes]] = []
    open_part = False
    for piece in pieces:
        for each in reader.feed(piece):
            if isinstance(each, Part):
                found.append((each, b""))
                open_part = True
            elif isinstance(each, PartEnd):
                open_part = False
            else:
                found[-1] = (found[-1][0], found[-1][1] + each)
    assert reader.over is (not open_part and b"--sep--" in b"".join(pieces))
    return found


def holds_boundary(content: bytes) -> bool:
    """Whether a writer would have had to choose another boundary."""
    return re.search(rb"\r\n--sep(--|[ \t]*\r\n)", content + b"\r\n") is not None


LOOKALIKES = [b"", b"\r\n", b"\r\n--se", b"--sep", b"\r\n--sepx", b"\r\n--sep x", b"\r"]
content = st.lists(st.sampled_from(LOOKALIKES) | st.binary(max_size=30), max_size=4)
contents = content.map(b"".join).filter(lambda each: not holds_boundary(each))


@settings(max_examples=100)
@given(st.lists(contents, min_size=1, max_size=4), st.data())
def test_parts_come_out_as_they_went_in(
    files: list[bytes], data: st.DataObject
) -> None:
    """Wherever the body is cut, and whatever looks like its boundary."""
    parts = [(f"f{number}", each) for number, each in enumerate(files)]
    body = b"preamble\r\n" * data.draw(st.integers(0, 1)) + body_of(*parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]

    assert read(pieces) == [(Part("file", name), each) for name, each in parts]


def test_byte_by_byte_is_the_same() -> None:
    """The slowest client."""
    body = body_of(("a", b"one\r\n--se"), ("b", b""))

    assert read([bytes([byte]) for byte in body]) == read([body])


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (HEAD.format("file", "a/b c.txt"), Part("file", "a/b c.txt")),
        (HEAD.format("file", r"a\"b\\c"), Part("file", r'a"b\c')),
        ("content-disposition:form-data;name=file;filename=x", Part("file", "x")),
        (HEAD.format("file", "ü"), Part("file", "ü")),
        ('Content-Disposition: form-data; name="text"', Part("text", None)),
        ("X-Other: y", Part("", None)),
        ("", Part("", None)),
    ],
)
def test_the_head_of_a_part_names_it(head: str, expected: Part) -> None:
    """Quoted or not; a part without a name is one, too."""
    line = f"{head}\r\n" if head else ""
    body = f"--sep\r\n{line}\r\nx\r\n--sep--".encode()

    assert read([body]) == [(expected, b"x")]


def test_a_part_is_handed_on_before_it_is_whole() -> None:
    """All but what may be the beginning of a boundary."""
    reader = MultipartReader(b"sep")
    begin = body_of(("a", b"x" * 5000))[:-12]
    found = [each for each in reader.feed(begin) if isinstance(each, bytes)]

    assert 4800 < sum(map(len, found)) < 5000


@pytest.mark.parametrize(
    "body",
    [b"--sep\r\n" + b"X: " + b"y" * 20_000, b"--sep\r\nX: \xff\r\n\r\n"],
    ids=["long head", "no text"],
)
def test_a_bad_head_is_refused(body: bytes) -> None:
    """It is not kept in memory."""
    with pytest.raises(MultipartError):
        list(MultipartReader(b"sep").feed(body))


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", "x; boundary=", "a;boundary=ü"]
)
def test_a_type_without_a_boundary_is_refused(content_type: str) -> None:
    """There is nothing to cut it by."""
    with pytest.raises(MultipartError):
        boundary_of(content_type)


def test_a_boundary_may_be_quoted() -> None:
    """As in mail."""
    assert boundary_of('multipart/form-data; charset=x; boundary="a b"') == b"a b"
