"""Answers are valid JSON of one shape, whatever agents return, yield and raise."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import flask
import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug import exceptions as http

from ppio_agent import exceptions as ours
from ppio_agent.serving.testing import AgentTestClient
from ppio_agent.wire.sse import SSEEvent, SSEFramer
from tests.fuzz.support import fuzz
from tests.serving.support import make_app
from tests.wire.support import json_values

TEXTS = st.text(max_size=30) | st.text('\ud800\0\r\n"\\\u2028x', max_size=8)
ENVELOPE = ["result", "status", "duration", "metadata", "error"]


class Mute(Exception):
    """Does not want to say anything."""

    def __str__(self) -> str:
        raise RuntimeError("not even this")


class Odd(Exception):
    """Says what is no text."""

    def __str__(self) -> Any:
        return 5  # noqa: PLE0307 - on purpose


ERRORS: st.SearchStrategy[Callable[[str], BaseException]] = st.sampled_from([
    ValueError, KeyError, OSError, Mute, Odd, SystemExit, KeyboardInterrupt,
    StopIteration, GeneratorExit, BaseException, ours.ValidationError,
    ours.ServerBusyError, ours.InvocationCancelledError, ours.PermissionDeniedError,
    lambda text: ours.PPIOAgentRuntimeError(text, code=text),
    lambda text: ours.SerializationError(text, path=text, type_name=text),
    http.NotFound, http.BadRequest, http.BadRequestKeyError, http.HTTPException,
    lambda text: http.HTTPException(text, flask.Response("own", 418)),
    lambda text: ours.ValidationError(text, request_id=text),
    lambda text: ours.ValidationError(ValueError(text)),  # type: ignore[arg-type]
])  # fmt: skip


class Box:
    """What the agent does at its next call."""

    value: Any = None
    error: BaseException | None = None


BOX = Box()


def act() -> Any:
    if BOX.error is not None:
        raise BOX.error
    return BOX.value


def streams(request: Any) -> Iterator[Any]:
    yield "first"
    yield act()


@pytest.fixture(scope="module", params=[False, True], ids=["table", "flask"])
def client(request: pytest.FixtureRequest) -> Iterator[AgentTestClient]:
    app = make_app(through_flask=request.param, auth=admit, debug=True, retention=1.0)
    app.entrypoint(lambda request: act())
    app.entrypoint(name="stream")(streams)
    with app.test_client() as client:
        yield client


def admit(request: Any) -> Any:
    if "x-refuse" in request.headers and BOX.error is not None:
        raise BOX.error
    from ppio_agent.wire.models import Principal

    return Principal("anybody", "test")


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def members(body: bytes) -> dict[str, Any]:
    """Return the object that a body is, strictly read; no member stands twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    text = body.decode()
    found = json.loads(text, parse_constant=_refuse, object_pairs_hook=once)
    assert isinstance(found, dict)
    return found


@fuzz(100, share=0.5)
@given(value=json_values)
def test_any_json_value_is_in_an_envelope(client: Any, value: Any) -> None:
    """Five members, in order; its record says the same."""
    BOX.value, BOX.error = value, None
    answer = client.invoke({})
    assert (answer.status_code, answer.headers["content-type"]) == (
        200,
        "application/json",
    )
    envelope = members(answer.body)
    assert list(envelope) == ENVELOPE
    assert envelope["result"] == value
    assert (envelope["status"], envelope["error"]) == ("success", None)
    record = client.get(f"/invocations/{answer.headers['x-invocation-id']}")
    assert members(record.body)["result"] == value


@fuzz(100, share=0.5)
@given(make=ERRORS, text=TEXTS)
def test_any_exception_is_told_as_json(
    client: Any, make: Callable[[str], BaseException], text: str
) -> None:
    """As an envelope, an error event, a record; a refusal as a problem."""
    BOX.error = make(text)
    plain = client.invoke({})
    envelope = members(plain.body)
    assert list(envelope) == ENVELOPE
    assert 400 <= plain.status_code < 600
    assert (envelope["status"], envelope["result"]) == ("error", None)
    assert isinstance(envelope["error"], str)
    assert envelope["error"]
    assert isinstance(envelope["metadata"]["error_type"], str)
    record = client.get(f"/invocations/{plain.headers['x-invocation-id']}")
    assert members(record.body)["error"]["error"] == envelope["error"]


@fuzz(100, share=0.5)
@given(make=ERRORS, text=TEXTS)
def test_any_exception_of_a_stream_is_its_error_event(
    client: Any, make: Callable[[str], BaseException], text: str
) -> None:
    """After what came before it; `end` is last. Bare streams say it, too."""
    BOX.error = make(text)
    path, sse = "/invocations?entrypoint=stream", {"Accept": "text/event-stream"}
    full = SSEFramer().feed(client.post(path, json={}, headers=sse).body)
    events = [event for event in full if isinstance(event, SSEEvent)]
    assert [event.event for event in events] == ["message", "error", "end"]
    facts = members(events[1].data.encode())
    assert isinstance(facts["error"], str)
    assert facts["error"]
    end = members(events[2].data.encode())
    assert (end["status"], end["events"]) == ("failed", 1) or isinstance(
        BOX.error, ours.InvocationCancelledError | GeneratorExit
    )
    bare = client.post(path, json={}).body.split(b"\n\n")
    assert members(bare[2].removeprefix(b"data: "))["error"] == facts["error"]
    assert b": end" not in bare


@fuzz(100, share=0.5)
@given(make=ERRORS, text=TEXTS)
def test_any_refusal_is_a_problem(
    client: Any, make: Callable[[str], BaseException], text: str
) -> None:
    """Also what an authentication plug-in raises unexpectedly."""
    BOX.error = make(text)
    answer = client.invoke({}, headers={"X-Refuse": "1"})
    assert answer.headers["content-type"] == "application/problem+json"
    problem = members(answer.body)
    assert problem["status"] == answer.status_code >= 400
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["error"] == problem["detail"]
