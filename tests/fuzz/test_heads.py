"""The request parser against waitress's own, which has no cache, and against h11."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import h11
from hypothesis import given
from hypothesis import strategies as st
from waitress.adjustments import Adjustments
from waitress.parser import HTTPRequestParser, ParsingError

from ppio_agent.web import parser as cached
from ppio_agent.web.parser import Chunks, Parser
from tests.fuzz.messages import STREAMS, messages
from tests.fuzz.support import fuzz, spoiled
from tests.wire.support import cuts

ADJ = Adjustments(max_request_body_size=1000)
ADJ.ppio_max_request_size = 999  # as the server sets it
SEEN = (
    "chunked", "command", "connection_close", "content_length", "expect_continue",
    "first_line", "fragment", "headers", "path", "proxy_netloc", "proxy_scheme",
    "query", "request_uri", "url_scheme", "version",
)  # fmt: skip


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
        if self.chunked:
            self.body_rcv = Chunks(self.body_rcv.getbuf())
        elif not self.content_length:
            self.expect_continue = False


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


@fuzz(120)
@given(cuts(spoiled(STREAMS)))
def test_requests_mean_what_waitress_means(pieces: list[bytes]) -> None:
    """However they are cut, odd or pipelined, and whatever was remembered before."""
    expected = said(Plain, pieces)
    assert said(Parser, pieces) == expected
    assert said(Parser, [b"".join(pieces)]) == expected


@fuzz(60)
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


@fuzz(120)
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
