"""Error bodies, ours and others'."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.exceptions import (
    InvocationCancelledError,
    PPIOAgentError,
    RequestTooLargeError,
    ServerBusyError,
)
from ppio_agent.wire.json import Json, encode_json
from ppio_agent.wire.problem import Problem, problem_body
from tests.wire.support import json_values

FACTS = ("message", "code", "retryable", "request_id", "error_type", "envelope")


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        ({"title": "T", "detail": "d", "code": "c", "retryable": True,
            "request_id": "r", "error": "e"}, ("d", "c", True, "r", None, False)),
        ({"code": "c", "message": "m"}, ("m", "c", None, None, None, False)),
        ({"code": 404, "message": "m"}, ("m", None, None, None, None, False)),
        ({"error": "e"}, ("e", None, None, None, None, False)),
        ({"error": {"message": "m", "code": "c", "retryable": False}},
            ("m", "c", False, None, None, False)),
        ({"result": None, "status": "error", "error": "boom",
            "metadata": {"request_id": "r", "error_type": "KeyError"}},
            ("boom", None, None, "r", "KeyError", True)),
        ({"sandboxId": "s", "message": "m", "port": 8080, "code": 502},
            ("m", None, None, None, None, False)),
        ({"title": "T", "message": None}, ("T", None, None, None, None, False)),
        ({}, ("", None, None, None, None, False)),
    ],
)  # fmt: skip
def test_the_known_shapes_are_read(body: Json, facts: tuple[object, ...]) -> None:
    """Whoever sent it, the same facts are found."""
    problem = Problem.read(encode_json(body))
    assert tuple(getattr(problem, name) for name in FACTS) == facts
    assert problem.body == body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", ""),
        (b"  plain text\n", "plain text"),
        (b"<html>" + b"x" * 1000, "<html>" + "x" * 494),
        ("é".encode() * 1000, "é" * 500),
        (b"\xff" * 3, "\ufffd" * 3),
        (b'["a list"]', '["a list"]'),
    ],
)
def test_anything_else_is_its_own_message(body: bytes, message: str) -> None:
    """At most 500 characters of it."""
    assert Problem.read(body) == Problem(message=message, body={})


@settings(deadline=None)
@given(
    body=st.binary()
    | json_values.map(encode_json)
    | st.dictionaries(
        st.sampled_from([
            "detail", "message", "error", "title", "code", "retryable", "metadata",
            "request_id", "error_type",
        ]),
        json_values,
    ).map(encode_json)
)  # fmt: skip
def test_no_body_raises(body: bytes) -> None:
    """An error that is badly told is still that error."""
    problem = Problem.read(body)
    assert isinstance(problem.message, str)
    assert problem.code is None or isinstance(problem.code, str)
    assert problem.retryable in {None, True, False}


def test_an_error_is_told_as_problem_json() -> None:
    """RFC 9457, with our own facts, and `error` for clients that know only that."""
    error = ServerBusyError("all 4 slots are taken", retry_after=1.0)
    assert json.loads(problem_body(error, request_id="r")) == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "all 4 slots are taken",
        "code": "server_busy",
        "retryable": True,
        "request_id": "r",
        "error": "all 4 slots are taken",
    }


@pytest.mark.parametrize(
    ("error", "title"),
    [
        (InvocationCancelledError("x"), "Client Closed Request"),
        (PPIOAgentError("x", http_status=599), "Error"),
        (PPIOAgentError("x", http_status=404), "Not Found"),
    ],
)
def test_every_status_has_a_title(error: PPIOAgentError, title: str) -> None:
    """Also one that the standard library does not know."""
    assert json.loads(problem_body(error, request_id=None))["title"] == title


def test_a_limit_is_told() -> None:
    """The client may then send less."""
    error = RequestTooLargeError("too large", limit=1024)
    assert json.loads(problem_body(error, request_id=None))["limit"] == 1024
    assert b'"limit"' not in problem_body(
        RequestTooLargeError("too large"), request_id=None
    )


@settings(deadline=None)
@given(message=st.text(), request_id=st.none() | st.just("r"))
def test_what_is_told_is_read(message: str, request_id: str | None) -> None:
    """Any message can be told, one that quotes a file's odd name, too."""
    error = PPIOAgentError(message, code="c", retryable=False, http_status=500)
    problem = Problem.read(problem_body(error, request_id=request_id))
    plain = message.encode("utf-8", "replace").decode()
    assert problem.message == (plain or "Internal Server Error")
    assert (problem.code, problem.retryable) == ("c", False)
    assert problem.request_id == request_id
