"""The lines of a recording and how a request finds its own."""

from __future__ import annotations

import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent._util.ids import new_id
from ppio_agent._util.redact import Redactor
from ppio_agent.exceptions import NetworkError, RateLimitError, UnrecordedRequestError
from ppio_agent.testing.cassette import (
    Asked,
    Cassette,
    Exchange,
    hide_named,
    hide_pieces,
)

PIECES = st.lists(st.binary(min_size=1) | st.just(b"base64:x"), max_size=4)
SECRET = "sk-0123456789"


def _asked(path: str = "/a", body: object = None, method: str = "POST") -> Asked:
    data = b"" if body is None else json.dumps(body).encode()
    return Asked.of(method, f"http://h:1{path}", data, Redactor([SECRET]), named=True)


@given(pieces=PIECES, body=st.text(), left=st.booleans(), status=st.integers(100, 599))
def test_an_exchange_survives_its_line(
    pieces: list[bytes], body: str, left: bool, status: int
) -> None:
    """Every byte of every piece."""
    exchange = Exchange(
        asked=Asked("POST", "/a?b", body),
        status=status,
        headers={"A": "b"},
        pieces=tuple(pieces),
        left=left,
    )
    line = exchange.to_line()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert Exchange.from_line(line) == exchange


def test_an_error_survives_its_line() -> None:
    """Its class and what it says; not the errors that came before it."""
    error = RateLimitError("later", request_id="r-1", retry_after=9.5, http_status=428)
    error.history = (NetworkError("x"),)
    line = Exchange(asked=_asked(), error=error).to_line()
    found = Exchange.from_line(line).error
    assert type(found) is RateLimitError
    assert str(found) == str(error)
    assert (found.retry_after, found.http_status, found.history) == (9.5, 428, ())


@pytest.mark.parametrize("name", ["by_code", "Any", "missing", "WireError"])
def test_only_errors_of_calls_are_made(name: str) -> None:
    """A line cannot name what is no such class."""
    line = json.dumps({
        "request": {"method": "GET", "path": "/"},
        "error": {"class": name, "message": "m"},
    })  # fmt: skip
    with pytest.raises(ValueError, match=r"\w"):
        Exchange.from_line(line.encode())


@given(pieces=PIECES, at=st.integers(0, 12), filler=st.binary(max_size=5))
def test_no_cut_lets_a_secret_through(
    pieces: list[bytes], at: int, filler: bytes
) -> None:
    """What has none is kept as it is."""
    secret = SECRET.encode()
    redactor = Redactor([SECRET])
    parts = [*pieces, filler + secret[:at], secret[at:] + filler, *pieces]
    assert secret not in b"".join(hide_pieces(parts, redactor))
    assert hide_pieces(pieces, redactor) == tuple(pieces)


def test_named_secrets_are_hidden_and_known() -> None:
    """Texts alone: a number of tokens is none."""
    redactor = Redactor()
    body = b'{"a":[{"apiToken":"tok-123456"}],"total_tokens":7}'
    assert hide_named(body, redactor) == b'{"a":[{"apiToken":"***"}],"total_tokens":7}'
    assert redactor.text("a tok-123456") == "a ***"
    for same in (b'{"a": 1.0}', b"no json", b""):
        assert hide_named(same, redactor) == same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (_asked("/a", {"x": 1, "y": 2}), _asked("/a", {"y": 2, "x": 1}), True),
        (_asked(f"/a/{new_id()}"), _asked(f"/a/{new_id()}"), True),
        (_asked(f"/a?k=x%3D{new_id()}"), _asked(f"/a?k=x%3D{uuid.uuid4()}"), True),
        (_asked("/a", "ppio-agent/1.2.0"), _asked("/a", "ppio-agent/2.0.0rc1"), True),
        (_asked("/a", {"token": "t1"}), _asked("/a", {"token": "t2"}), True),
        (_asked("/a", SECRET), _asked("/a", "***"), True),
        (_asked("/a", "x"), _asked("/a", "y"), False),
        (_asked("/a", "x"), _asked("/b", "x"), False),
        (_asked("/a?b=1"), _asked("/a?b=2"), False),
        (_asked("/a", method="GET"), _asked("/a"), False),
        (_asked("/a", "f" * 64), _asked("/a", "e" * 64), False),
    ],
)
def test_what_is_compared(one: Asked, other: Asked, same: bool) -> None:
    """Method, path, query and body; no ids, versions and secrets."""
    assert (one.key() == other.key()) is same


class TestFinding:
    def test_in_their_order(self) -> None:
        """Each once, however others lie between them."""
        asked = [_asked("/a"), _asked("/b"), _asked("/a")]
        found = [Exchange(asked=a, status=200 + n) for n, a in enumerate(asked)]
        cassette = Cassette(found, name="it")
        assert [cassette.find(_asked(p)).status for p in ("/a", "/a", "/b")] == [
            200,
            202,
            201,
        ]
        with pytest.raises(UnrecordedRequestError, match="no further answer"):
            cassette.find(_asked("/b"))

    def test_the_last_answer_to_a_get_is_kept(self) -> None:
        """How often a program looks is a matter of time."""
        look = _asked("/a", method="GET")
        cassette = Cassette(
            [Exchange(asked=look, status=s) for s in (404, 200)], name="it"
        )
        assert [cassette.find(look).status for _ in range(4)] == [404, 200, 200, 200]

    @pytest.mark.parametrize(
        ("recorded", "given"), [([502, 502, 200, 503], [200, 200]), ([502], [502, 502])]
    )
    def test_pings_that_found_nobody(
        self, recorded: list[int], given: list[int]
    ) -> None:
        """Are passed over, if there is one that did."""
        ping = _asked("/ping", method="GET")
        cassette = Cassette(
            [Exchange(asked=ping, status=s) for s in recorded], name="it"
        )
        assert [cassette.find(ping).status for _ in given] == given

    def test_a_long_body_is_cut_in_the_message(self) -> None:
        """The nearest is told likewise."""
        cassette = Cassette([Exchange(asked=_asked("/a", "x" * 9999))], name="it")
        with pytest.raises(UnrecordedRequestError) as caught:
            cassette.find(_asked("/a", "y" * 9999))
        assert len(caught.value.message) < 1000
