"""What the edge refuses in, and changes of, the heads that pass through it."""

from __future__ import annotations

import json

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.sandbox.edge.heads import (
    HEAD_LIMIT,
    check_request,
    forward_end,
    forward_request,
    forward_response,
    forward_switch,
    header_of,
    refusal_events,
    repeatable,
    request_length,
    response_length,
)
from ppio_agent.sandbox.edge.upstreams import EdgeRefusal

Fields = list[tuple[bytes, bytes]]


def request(*fields: tuple[str, str], method: str = "POST", target: str = "/x"):
    return h11.Request(
        method=method, target=target, headers=[("Host", "h.test"), *fields]
    )


def forwarded(*fields: tuple[str, str], strip=None) -> dict[bytes, bytes]:
    head = forward_request(request(*fields), client="10.0.0.9", strip=strip)
    return dict(head.headers)


def refused(head: h11.Request) -> int:
    with pytest.raises(EdgeRefusal) as caught:
        check_request(head)
    assert caught.value.body["code"] == caught.value.status
    return caught.value.status


def test_a_plain_request_passes() -> None:
    """With either way to give a length."""
    check_request(request(("Content-Length", "3")))
    check_request(request(("Transfer-Encoding", "chunked")))


def test_a_length_given_in_two_ways_is_refused() -> None:
    """The classic of request smuggling."""
    both = request(("Content-Length", "3"), ("Transfer-Encoding", "chunked"))
    assert refused(both) == 400


def test_chunks_of_an_old_client_are_refused() -> None:
    """HTTP/1.0 has none."""
    fields = [("Transfer-Encoding", "chunked")]
    head = h11.Request(method="POST", target="/", headers=fields, http_version="1.0")
    assert refused(head) == 400


def test_a_head_that_came_whole_is_measured_too() -> None:
    """The parser's own limit is for heads that come in parts."""
    check_request(request(("X-Pad", "x" * (HEAD_LIMIT - 100))))
    assert refused(request(("X-Pad", "x" * HEAD_LIMIT))) == 400


def test_an_offer_to_change_the_protocol_passes() -> None:
    """In the words that came; the other fields of Connection stay behind."""
    got = forwarded(
        ("Upgrade", "WebSocket,h2c"), ("upgrade", "x/1"), ("Connection", "x-a, Upgrade")
    )
    assert got[b"connection"] == b"Upgrade"
    assert got[b"upgrade"] == b"WebSocket, x/1"


def test_an_upgrade_that_connection_does_not_name_is_dropped() -> None:
    """It was for the hop before."""
    assert not forwarded(("Upgrade", "websocket")).keys() & {b"upgrade", b"connection"}


def test_an_answer_that_switches_says_to_what() -> None:
    """Its own fields pass, those of the hop but for these two do not."""
    fields = [
        ("connection", "upgrade, X-Hop"),
        ("upgrade", "websocket"),
        ("X-Hop", "1"),
        ("Sec-WebSocket-Accept", "k"),
    ]
    got = forward_switch(h11.InformationalResponse(status_code=101, headers=fields))
    assert list(got.headers) == [
        (b"sec-websocket-accept", b"k"),
        (b"connection", b"Upgrade"),
        (b"upgrade", b"websocket"),
    ]


def test_the_first_of_equal_headers_is_given() -> None:
    head = request(("X-A", "1"), ("x-a", "2"))
    assert header_of(head, "x-a") == "1"
    assert header_of(head, "x-b") is None


def test_an_offer_of_http2_is_ignored() -> None:
    """Clients in the field make it with every request, and go on without."""
    fields = [("Upgrade", "h2c"), ("Connection", "Upgrade, HTTP2-Settings")]
    check_request(request(*fields, ("HTTP2-Settings", "AAMA")))
    assert forwarded(*fields, ("HTTP2-Settings", "AAMA")).keys() == {
        b"host",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
    }


def test_an_agent_learns_how_its_caller_came() -> None:
    """For links that it makes, and for what it only tells over TLS."""
    head = forward_request(request(), client="c", strip=None, secure=True)
    assert dict(head.headers)[b"x-forwarded-proto"] == b"https"
    assert forwarded()[b"x-forwarded-proto"] == b"http"


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1))
def test_the_target_passes_byte_for_byte(target: str) -> None:
    """No decoding, no normalising: signatures are over these bytes."""
    head = forward_request(request(target=target), client="c", strip=None)
    assert head.target == target.encode()


def test_hop_by_hop_fields_stay_behind() -> None:
    """The standard ones and those that Connection names."""
    got = forwarded(
        ("Connection", "keep-alive, X-Private"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Authorization", "Basic eDp5"),
        ("TE", "trailers"),
        ("X-Private", "1"),
        ("X-Public", "2"),
    )
    assert got[b"x-public"] == b"2"
    assert not got.keys() & {
        b"connection",
        b"keep-alive",
        b"proxy-authorization",
        b"te",
        b"x-private",
    }


def test_connection_cannot_take_the_length_away() -> None:
    """Else the body would be read as the next request."""
    got = forwarded(("Connection", "content-length, host"), ("Content-Length", "3"))
    assert (got[b"content-length"], got[b"host"]) == (b"3", b"h.test")


def test_chunks_stay_chunks() -> None:
    """The field is one hop's, but this hop wants it as well."""
    assert forwarded(("Transfer-Encoding", "chunked"))[b"transfer-encoding"] == (
        b"chunked"
    )


def test_forwarding_fields_are_set_not_appended() -> None:
    """What a client claims about itself does not count."""
    head = forward_request(
        request(("X-Forwarded-For", "1.2.3.4"), ("X-Forwarded-Proto", "https")),
        client="10.0.0.9",
        strip=None,
    )
    values = [value for name, value in head.headers if name.startswith(b"x-forwarded")]
    assert sorted(values) == [b"10.0.0.9", b"h.test", b"http"]


def test_what_is_to_be_stripped_is_gone() -> None:
    """Each header is asked for by its name in lower case."""
    asked = []

    def strip(name: str, value: str) -> bool:
        asked.append(name)
        return value == "Bearer platform-key"

    got = forwarded(
        ("Authorization", "Bearer platform-key"), ("X-Own", "mine"), strip=strip
    )
    assert b"authorization" not in got
    assert got[b"x-own"] == b"mine"
    assert asked == ["host", "authorization", "x-own"]


def test_an_old_client_without_host_gets_one() -> None:
    """The upstream is spoken to in HTTP/1.1, which demands it."""
    head = h11.Request(method="GET", target="/", headers=[], http_version="1.0")
    got = dict(forward_request(head, client="c", strip=None).headers)
    assert got[b"host"] == b"localhost"
    assert b"x-forwarded-host" not in got


def test_an_answer_keeps_all_but_hop_by_hop() -> None:
    """Repeated fields, order and spelling too."""
    answer = h11.Response(
        status_code=207,
        reason="Multi",
        headers=[
            ("Set-Cookie", "a=1"),
            ("Connection", "close"),
            ("set-cookie", "b=2"),
            ("Transfer-Encoding", "chunked"),
            ("Content-Length", "9"),
        ],
    )
    got = forward_response(answer)
    assert (got.status_code, got.reason) == (207, b"Multi")
    assert got.headers.raw_items() == [(b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2")]


@pytest.mark.parametrize(
    ("method", "status", "fields", "length"),
    [
        ("GET", 200, [("Content-Length", "7")], 7),
        ("GET", 200, [], 0),
        ("HEAD", 200, [("Content-Length", "7")], 0),
        ("GET", 304, [("Content-Length", "7")], 0),
        ("GET", 200, [("Content-Length", "7"), ("Transfer-Encoding", "chunked")], 0),
    ],
)
def test_the_length_of_a_body_is_known_from_the_heads(
    method: str, status: int, fields: list[tuple[str, str]], length: int
) -> None:
    """Where there is a body and its head says how long it is."""
    answer = h11.Response(status_code=status, headers=fields)
    assert response_length(request(method=method), answer) == length


def test_the_length_of_a_request_is_known_from_its_head() -> None:
    """Where it is told and no chunks are."""
    assert request_length(request(("Content-Length", "7"))) == 7
    assert request_length(request(("Transfer-Encoding", "chunked"))) == 0
    assert request_length(request()) == 0


def test_an_answer_says_that_it_is_the_last() -> None:
    """Where the connection can serve no other request."""
    answer = forward_response(h11.Response(status_code=200, headers=[]), close=True)
    assert list(answer.headers) == [(b"connection", b"close")]


def test_trailers_pass_to_those_who_know_them() -> None:
    """But never those that frame, route or open something."""
    end = h11.EndOfMessage(
        headers=[("X-Sum", "1"), ("Content-Length", "9"), ("X-Key", "secret")]
    )
    got = forward_end(end, trailers=True, strip=lambda _, value: value == "secret")
    assert list(got.headers) == [(b"x-sum", b"1")]
    assert list(forward_end(end, trailers=False).headers) == []


def test_only_a_bodyless_safe_request_is_repeatable() -> None:
    """A POST is never sent twice."""
    end, data = h11.EndOfMessage(), h11.Data(data=b"x")
    assert repeatable(request(method="GET"), [end])
    assert not repeatable(request(method="GET"), [data, end])
    assert not repeatable(request(method="GET"), [])
    assert not repeatable(request(method="POST"), [end])


def test_a_refusal_is_json_with_the_callers_request_id() -> None:
    """And with the headers that belong to it."""
    refusal = EdgeRefusal.of(503, "too many", retry_after=2)
    asked = request(("X-Request-Id", "abc-1"))
    head, data, _ = refusal_events(refusal, asked, close=True)
    headers = dict(head.headers)
    assert json.loads(data.data) == {"code": 503, "message": "too many"}
    assert headers[b"content-length"] == str(len(data.data)).encode()
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"x-request-id"] == b"abc-1"
    assert headers[b"retry-after"] == b"2"
    assert headers[b"connection"] == b"close"


def test_an_unusable_request_id_is_replaced() -> None:
    """As one that is absent."""
    for asked in (request(("X-Request-Id", "no good")), None):
        head, *_ = refusal_events(EdgeRefusal.of(400, "x"), asked, close=False)
        assert len(dict(head.headers)[b"x-request-id"]) == 32


def test_a_refused_head_request_has_no_body() -> None:
    """Its length is told all the same."""
    events = refusal_events(
        EdgeRefusal.of(404, "x"), request(method="HEAD"), close=False
    )
    assert [type(event) for event in events] == [h11.Response, h11.EndOfMessage]
