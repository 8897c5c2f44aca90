"""Requests and answers as values."""

from __future__ import annotations

import pytest

from ppio_agent._util.redact import Redactor
from ppio_agent.exceptions import ProtocolError
from ppio_agent.transport import Headers, Request, Response, TransportConfig


def test_requests_do_not_show_their_secrets() -> None:
    """Neither headers nor the query nor the body."""
    request = Request(
        method="POST",
        url="https://h/?access_token=abcdef",
        headers={"Authorization": "Bearer abcdef", "X-Team": "red"},
        body=b"abcdef",
    )
    assert "abcdef" not in repr(request)
    assert "'X-Team': 'red'" in repr(request)
    assert "<6 bytes>" in repr(request)


def test_a_configuration_does_not_show_its_secrets() -> None:
    """The proxy's password and secret headers."""
    config = TransportConfig(
        proxy="http://user:abcdef@h:1", headers={"X-Api-Key": "abcdef"}
    )
    assert "abcdef" not in repr(config)
    assert "h:1" in repr(config)


def _response(body: bytes) -> Response:
    return Response(
        status=200,
        headers=Headers([("Set-Cookie", "abcdef")]),
        body=body,
        request_id="r-1",
        url="https://h/?token=abcdef",
        redactor=Redactor(["sk-SECRET123"]),
    )


def test_an_answer_is_read_as_json() -> None:
    """And shows neither headers nor body."""
    assert _response(b'{"a": [1]}').json() == {"a": [1]}
    assert "abcdef" not in repr(_response(b"abcdef"))


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"a": NaN}', b"\xff sk-SECRET123"])
def test_what_is_not_json_is_a_protocol_error(body: bytes) -> None:
    """That says what came, without secrets."""
    with pytest.raises(ProtocolError, match="status 200, no content type") as caught:
        _response(body).json()
    assert caught.value.request_id == "r-1"
    assert caught.value.url == "https://h/?token=***"
    assert "SECRET" not in str(caught.value)


def test_what_is_quoted_of_an_answer_ends_in_no_secret() -> None:
    """Half of it would be half of the secret."""
    response = Response(
        status=200,
        headers=Headers(),
        body=b"x" * 195 + b"sk-SECRET123",
        request_id="r-1",
        url="http://h/",
        redactor=Redactor(["sk-SECRET123"]),
    )
    with pytest.raises(ProtocolError) as caught:
        response.json()
    assert "sk-" not in str(caught.value)
