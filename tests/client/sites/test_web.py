"""What a site reads from its visitors and tells them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent import exceptions as x
from ppio_agent.client.sites import web
from ppio_agent.wire.json import decode_json, encode_json
from ppio_agent.wire.sse import SSEEvent, SSEFramer

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3)
    ),
    max_leaves=10,
)


def _read(content_type: str, body: bytes = b"", form: Any = ({}, ())) -> Any:
    return web.read_request(content_type, body=lambda: body, form=lambda: form)


def test_json_and_forms_are_read() -> None:
    """A field that occurs once is a text; the token of the form itself is dropped."""
    assert _read("application/json; charset=utf-8", b'{"a": [1]}') == {"a": [1]}
    fields = {"prompt": ["hi"], "tag": ["a", "b"], "csrfmiddlewaretoken": ["t"]}
    for media in ("application/x-www-form-urlencoded", "Multipart/Form-Data; boundary"):
        assert _read(media, form=(fields, ())) == {"prompt": "hi", "tag": ["a", "b"]}


@pytest.mark.parametrize(
    ("content_type", "body", "form", "status"),
    [
        ("application/json", b"{", ({}, ()), 400),
        ("application/json", b"\xff", ({}, ()), 400),
        ("text/plain", b"hi", ({}, ()), 415),
        ("", b"", ({}, ()), 415),
        ("multipart/form-data", b"", ({"a": ["b"]}, ["photo"]), 400),
    ],
)
def test_other_requests_are_refused(
    content_type: str, body: bytes, form: Any, status: int
) -> None:
    """As what the visitor did wrong."""
    with pytest.raises(x.ValidationError) as caught:
        _read(content_type, body, form)
    assert caught.value.http_status == status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (x.ValidationError("the prompt is missing"), 400),
        (x.RequestTooLargeError("too large"), 413),
        (x.AuthenticationError("the key is wrong"), 502),
        (x.PermissionDeniedError("not this"), 502),
        (x.TemplateNotFoundError("no template"), 502),
        (x.InvocationError("the agent failed"), 502),
        (x.SandboxCreationError("it ended"), 502),
        (x.StreamInterruptedError("cut"), 502),
        (x.ProtocolError("not JSON"), 502),
        (x.RateLimitError("slower"), 503),
        (x.QuotaExceededError("paid out"), 503),
        (x.ServerBusyError("busy"), 503),
        (x.NetworkError("refused"), 503),
        (x.ClientClosedError("closed"), 503),
        (x.RequestTimeoutError("late"), 504),
        (x.InvocationTimeoutError("late"), 504),
        (x.ConflictError("paused"), 409),
        (x.ConfigurationError("wrong"), 500),
        (ZeroDivisionError("in the view"), 500),
    ],
)
def test_an_error_has_the_status_that_it_is_to_a_visitor(
    error: Exception, status: int
) -> None:
    """The site's key and quota are not the visitor's fault."""
    found, headers, body = web.problem(error)
    assert found == status == json.loads(body)["status"]
    assert headers["Content-Type"] == "application/problem+json"
    assert ("Retry-After" in headers) == (status == 503)


def test_an_error_tells_ids_and_nothing_of_the_inside() -> None:
    """But why a request cannot be used is told to who sent it."""
    error = x.InvocationError(
        "postgres://u:secret@db is down", request_id="r1", code="invocation_failed"
    )
    body = json.loads(web.problem(error)[2])
    assert body["detail"] == "the agent could not answer"
    assert (body["code"], body["request_id"]) == ("invocation_failed", "r1")
    assert b"secret" not in web.error_event(error)
    refused = json.loads(web.problem(x.ValidationError("the prompt is missing"))[2])
    assert refused["detail"] == "the prompt is missing"


def test_what_a_peer_refused_is_none_of_the_visitors() -> None:
    """Nor a word that it made up; the transport says what was sent."""
    error = x.RequestTooLargeError("more than bucket s3://internal takes")
    error.method, error.url = "POST", "https://10.0.0.7/sandboxes"
    assert web.problem(error)[0] == 502
    assert b"internal" not in web.problem(error)[2]
    made_up = x.InvocationError("no", code="the-password-is-sesame")
    body = json.loads(web.problem(made_up)[2])
    assert body["code"] == "invocation_failed"


def test_when_to_come_again_is_passed_on() -> None:
    """In whole seconds, rounded up."""
    error = x.RateLimitError("slower")
    error.retry_after = 2.2
    assert web.problem(error)[1]["Retry-After"] == "3"


def test_only_post_asks() -> None:
    """And the answer to others says so."""
    web.check_method("POST")
    with pytest.raises(x.ValidationError) as caught:
        web.check_method("GET")
    status, headers, _ = web.problem(caught.value)
    assert (status, headers["Allow"]) == (405, "POST")


@settings(max_examples=50)
@given(st.lists(JSON_VALUES, max_size=5))
def test_chunks_are_read_back_as_they_were(chunks: list[Any]) -> None:
    """From events, and from lines of which the empty ones are passed over."""
    sse, ndjson = web.stream_format("sse"), web.stream_format("ndjson")
    carried = [SSEEvent(encode_json(chunk).decode()) for chunk in chunks]
    body = sse.opening + b"".join(map(sse.chunk, carried))
    body += (sse.heartbeat or b"") + sse.end
    events = [e for e in SSEFramer().feed(body) if hasattr(e, "data")]
    assert [decode_json(e.data.encode()) for e in events[:-1]] == chunks
    assert events[-1].event == "end"
    said = (ndjson.heartbeat or b"").join(map(ndjson.chunk, carried))
    lines = (ndjson.opening + said).split(b"\n")
    assert [decode_json(line) for line in lines if line] == chunks


def test_text_is_what_the_chunks_say() -> None:
    """Texts as they are, with a lone surrogate replaced; all else as JSON."""
    write = web.stream_format("text").chunk
    chunks = ['"a\\n"', '{"chunk": "b"}', '{"n": 1}', "null", '"\\ud800"', "no JSON"]
    said = b"".join(write(SSEEvent(chunk)) for chunk in chunks)
    assert said == b'a\nb{"n":1}null?no JSON'


@pytest.mark.parametrize(
    ("format", "said"),
    [("sse", b'data: {"?":["?"]}\n\n'), ("ndjson", b'{"?":["?"]}\n')],
)
def test_a_lone_surrogate_is_replaced(format: Any, said: bytes) -> None:
    """JSON has an escape for it, and UTF-8 has not."""
    chunk = SSEEvent('{"\\ud800": ["\\udfff"]}')
    assert web.stream_format(format).chunk(chunk) == said


def test_an_event_keeps_its_name() -> None:
    """Unless it is one by which a stream ends."""
    write = web.stream_format("sse").chunk
    names = ["progress", "message", "error", "end"]
    events = SSEFramer().feed(b"".join(write(SSEEvent("1", name)) for name in names))
    found = [e.event for e in events if isinstance(e, SSEEvent)]
    assert found == ["progress", "message", "message", "message"]


def test_an_error_ends_each_format_as_it_can() -> None:
    """One event, one line; a text can only be cut off."""
    error = x.InvocationError("inside")
    events = SSEFramer().feed(web.error_event(error))
    assert [e.event for e in events] == ["error"]
    write = web.stream_format("ndjson").error
    assert write is not None
    assert json.loads(write(error))["error"]["code"] == "invocation_failed"
    assert web.stream_format("text").error is None


def test_another_format_is_an_error() -> None:
    """With the names of those there are."""
    with pytest.raises(x.ConfigurationError, match="'sse', 'ndjson' or 'text'"):
        web.stream_format("xml")  # type: ignore[arg-type]  # what is tested
