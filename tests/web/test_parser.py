"""The short cut of the request parser; its equality with the long way is fuzzed."""

from __future__ import annotations

from typing import Any

import pytest
from waitress.adjustments import Adjustments
from waitress.utilities import BadRequest, RequestEntityTooLarge

from ppio_agent.web.parser import Parser, _known_field

ADJ = Adjustments(max_request_body_size=1000)
ADJ.ppio_max_request_size = 1000  # as the server sets it


def parse(data: bytes) -> Any:
    parser = Parser(ADJ)
    parser.received(data)
    assert parser.completed
    return parser


def test_a_body_declared_too_large_is_left_unread() -> None:
    """The head is enough for a refusal, and nobody is asked to go on."""
    parser = parse(
        b"POST / HTTP/1.1\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n"
    )
    assert isinstance(parser.error, RequestEntityTooLarge)
    assert not parser.expect_continue


@pytest.mark.parametrize(
    ("head", "text"),
    [
        # Waitress's own parser fails with a ValueError, and closes without an answer.
        (b"GET http://[ HTTP/1.1\r\n", "Bad URI or Content-Length"),
        (
            b"GET / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n",
            "Bad URI or Content-Length",
        ),
        (
            b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "both Content-Length and Transfer-Encoding",
        ),
        (
            b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding needs HTTP/1.1",
        ),
    ],
)
def test_what_waitress_lets_pass_is_a_bad_request(head: bytes, text: str) -> None:
    """Above all what another server would find another end in."""
    error = parse(head + b"\r\n").error
    assert (type(error), error.body) == (BadRequest, text)


def test_a_repeated_line_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second request with the same lines does not reach the regular expression."""
    data = b"GET / HTTP/1.1\r\nHost: once\r\nX-Rare: 4711\r\n\r\n"
    assert parse(data).headers == {"HOST": "once", "X_RARE": "4711"}
    monkeypatch.setattr("ppio_agent.web.parser.HEADER_FIELD_RE", None)
    assert parse(data).headers == {"HOST": "once", "X_RARE": "4711"}


def test_a_line_of_its_own_is_not_remembered() -> None:
    """Long lines, which are rarely the same twice, do not fill the memory."""
    value = b"v" * 2000
    known = _known_field.cache_info().currsize
    data = b"GET / HTTP/1.1\r\nX-Long: " + value + b"\r\n\r\n"
    assert parse(data).headers == {"X_LONG": value.decode()}
    assert _known_field.cache_info().currsize == known
