"""What a request asks for besides its payload."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.agent.lifetime import Departure
from ppio_agent.exceptions import ValidationError
from ppio_agent.serving.call import Call, departure_rule, read_call
from ppio_agent.web.exchange import check_media


def read(payload: Any = None, home: str | None = None, **headers: str) -> Call:
    environ = {f"HTTP_{name}": value for name, value in headers.items()}
    return read_call(environ, {} if payload is None else payload, home=home)


def test_nothing_asked_for_is_nothing() -> None:
    """No id, no key, no limit."""
    assert read() == Call(
        invocation_id=None,
        key=None,
        timeout=None,
        session_id=None,
        sandbox_id=None,
        respond_async=False,
    )


def test_a_chosen_id_is_a_key_of_the_same_value() -> None:
    """Unless there is a key, too."""
    assert read(X_INVOCATION_ID="i1").key == "i1"
    assert read(X_INVOCATION_ID="i1", IDEMPOTENCY_KEY="k").key == "k"


def test_the_session_comes_from_the_first_that_names_it() -> None:
    """Ours, the one of the field, the body, the sandbox, this sandbox."""
    body = {"session_id": "body", "sandbox_id": "box"}
    other = "X_AMZN_BEDROCK_AGENTCORE_RUNTIME_SESSION_ID"
    assert read(body, **{other: "b", "X_PPIO_SESSION_ID": "a"}).session_id == "a"
    assert read(body, **{other: "b"}).session_id == "b"
    assert read(body).session_id == "body"
    assert read({"sandbox_id": "box"}).session_id == "box"
    assert read({"sandbox_id": 5}, home="home").sandbox_id == "home"
    assert read([1], home="home").session_id == "home"


def test_the_smallest_timeout_counts() -> None:
    """Of header and body."""
    assert read({"timeout": 3}, X_PPIO_TIMEOUT="2.5").timeout == 2.5
    assert read({"timeout": 3}).timeout == 3.0


@pytest.mark.parametrize(
    "prefer", ["respond-async", "Respond-Async; wait=10", "wait=1, respond-async"]
)
def test_an_early_answer_is_asked_for_by_prefer(prefer: str) -> None:
    """RFC 7240."""
    assert read(PREFER=prefer).respond_async
    for other in ("handling=lenient", 'note=", respond-async"'):
        assert not read(PREFER=other).respond_async


@pytest.mark.parametrize(
    ("payload", "headers"),
    [
        ({}, {"X_INVOCATION_ID": "a b"}),
        ({}, {"X_INVOCATION_ID": "x" * 129}),
        ({}, {"IDEMPOTENCY_KEY": ""}),
        ({}, {"IDEMPOTENCY_KEY": "ä"}),
        ({}, {"IDEMPOTENCY_KEY": "x" * 256}),
        ({}, {"X_PPIO_SESSION_ID": "a/b"}),
        ({"session_id": 5}, {}),
        ({}, {"X_PPIO_TIMEOUT": "soon"}),
        ({}, {"X_PPIO_TIMEOUT": "0"}),
        ({}, {"X_PPIO_TIMEOUT": "nan"}),
        ({}, {"X_PPIO_TIMEOUT": "1_0"}),
        ({}, {"X_PPIO_TIMEOUT": "1e1"}),
        ({}, {"X_PPIO_TIMEOUT": "\u0663"}),
        ({}, {"X_PPIO_TIMEOUT": "9" * 400}),
        ({"timeout": True}, {}),
        ({"timeout": "3"}, {}),
        ({"timeout": -1}, {}),
        ({"timeout": 10**400}, {}),
    ],
)
def test_what_is_not_of_its_form_is_refused(
    payload: Any, headers: dict[str, str]
) -> None:
    """400, before anything is started."""
    with pytest.raises(ValidationError):
        read(payload, **headers)


@pytest.mark.parametrize(
    ("media", "encoding"),
    [
        ("application/x-www-form-urlencoded", ""),
        ("multipart/form-data; boundary=x", ""),
        ("application/json", "gzip"),
    ],
)
def test_forms_and_compressed_bodies_are_415(media: str, encoding: str) -> None:
    """They are not JSON."""
    with pytest.raises(ValidationError) as caught:
        check_media(media, encoding)
    assert caught.value.http_status == 415


@pytest.mark.parametrize("media", ["", "text/plain", "application/json; charset=utf-8"])
def test_anything_else_is_read_as_json(media: str) -> None:
    """Clients in the field say what they like."""
    check_media(media, "identity")


SSE_ONLY = "text/event-stream"
BOTH = "application/json, text/event-stream;q=0.9"


@pytest.mark.parametrize(
    ("headers", "accept", "rule"),
    [
        ({}, None, "cancel"),
        ({}, SSE_ONLY, "cancel"),
        ({"IDEMPOTENCY_KEY": "k"}, None, "cancel"),
        ({"IDEMPOTENCY_KEY": "k"}, "*/*", "cancel"),
        ({"IDEMPOTENCY_KEY": "k"}, "text/event-stream;q=0", "cancel"),
        ({"IDEMPOTENCY_KEY": "k"}, SSE_ONLY, "detach"),
        ({"IDEMPOTENCY_KEY": "k"}, BOTH, "detach"),
        ({"X_INVOCATION_ID": "i"}, SSE_ONLY, "detach"),
    ],
)
def test_only_who_can_come_back_is_waited_for(
    headers: dict[str, str], accept: str | None, rule: Departure
) -> None:
    """With a key, and a stream that can be gone on with."""
    call = read(**headers)
    assert departure_rule(call, accept, fixed=None) == rule
    for fixed in ("cancel", "detach"):
        assert departure_rule(call, accept, fixed=fixed) == fixed


@given(
    key=st.booleans(),
    accept=st.sampled_from([None, SSE_ONLY, BOTH]),
    fixed=st.sampled_from([None, "cancel", "detach"]),
)
def test_an_asynchronous_one_is_never_bound(
    key: bool, accept: str | None, fixed: Departure | None
) -> None:
    """Whatever else is said."""
    headers = {"IDEMPOTENCY_KEY": "k"} if key else {}
    call = read(PREFER="respond-async", **headers)
    assert departure_rule(call, accept, fixed=fixed) == "async"
