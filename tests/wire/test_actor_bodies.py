"""The bodies of the HTTP API of actors."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.actors.messages import MAX_MESSAGES, ROLES, read_messages
from ppio_agent.exceptions import WireError
from ppio_agent.wire.actor_bodies import (
    ActorCall,
    OnBusy,
    RequestBody,
    Role,
    RunRequest,
    checked_run,
    valid_instance_id,
)
from ppio_agent.wire.actors import RequestStatus

HI = {"role": "user", "content": "hi"}


def test_a_run_is_read() -> None:
    """With what is not said left out, or null."""
    run = RunRequest.from_dict({"messages": [HI], "conversation_id": None})
    assert run.messages[0].content == "hi"
    assert (run.conversation_id, run.on_busy) == (None, OnBusy.ENQUEUE)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ([], "$"),
        ({}, "$.messages"),
        ({"messages": []}, "$.messages"),
        ({"messages": [HI] * (MAX_MESSAGES + 1)}, "$.messages"),
        ({"messages": [{"role": "user"}]}, "$.messages[0].content"),
        ({"messages": [HI, {**HI, "role": "x"}]}, "$.messages[1].role"),
        ({"messages": [{**HI, "message_id": ""}]}, "$.messages[0].message_id"),
        ({"messages": [HI], "conversation_id": "a b"}, "$.conversation_id"),
        ({"messages": [HI], "on_busy": "wait"}, "$.on_busy"),
    ],
)
def test_what_is_wrong_is_told_by_its_place(body: Any, path: str) -> None:
    """In the names of the wire."""
    for read in (RunRequest.from_dict, checked_run):
        with pytest.raises(WireError) as caught:
            read(body)
        assert caught.value.path == path


@pytest.mark.parametrize("method", ["", "a" * 201, "a\0b"])
def test_a_method_without_a_usable_name_is_told_by_its_place(method: str) -> None:
    """As everywhere where one is called."""
    with pytest.raises(WireError, match="1 to 200 characters") as caught:
        ActorCall.from_dict({"method": method})
    assert caught.value.path == "$.method"


def test_the_roles_are_those_of_threads() -> None:
    """One list would have to be kept in two layers otherwise."""
    assert tuple(role.value for role in Role) == ROLES


@pytest.mark.parametrize(
    ("text", "valid"), [("a", True), ("a~B-._9", True), ("", False), ("a/b", False),
                        ("x" * 200, True), ("x" * 201, False), ("ä", False)],
)  # fmt: skip
def test_a_key_fits_into_a_url(text: str, valid: bool) -> None:
    """Unescaped."""
    assert valid_instance_id(text) is valid


def test_a_status_has_all_its_members() -> None:
    """Null where there is nothing to say."""
    body = RequestBody(
        actor_id="a/b",
        message_id="m",
        status=RequestStatus.PENDING,
        created_at=datetime(2026, 1, 2, tzinfo=timezone.utc),
    )
    assert body.to_dict() == {
        "actor_id": "a/b", "message_id": "m", "status": "pending", "data": None,
        "error": None, "attempt": 0, "created_at": "2026-01-02T00:00:00.000Z",
        "started_at": None, "finished_at": None,
    }  # fmt: skip


_TEXTS = st.none() | st.text(max_size=3) | st.just("x" * 257) | st.integers()
_MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "tool", "robot", None])},
    optional={
        "content": _TEXTS,
        "text": _TEXTS,
        "message_id": _TEXTS,
        "name": _TEXTS,
        "tool_call_id": _TEXTS,
        "tool_calls": st.lists(st.just({"id": "1"}) | st.just("call"), max_size=1),
    },
)


@settings(max_examples=100)
@given(messages=st.lists(_MESSAGE, max_size=2))
def test_what_is_let_in_agents_can_take(messages: list[Any]) -> None:
    """No message is accepted that its turn would refuse."""

    def taken(read: Any, value: Any) -> bool:
        try:
            read(value)
        except WireError:
            return False
        return True

    let_in = taken(RunRequest.from_dict, {"messages": messages})
    assert taken(read_messages, messages) or not let_in


@settings(max_examples=100)
@given(
    body=st.fixed_dictionaries(
        {"messages": st.lists(_MESSAGE, max_size=2)},
        optional={
            "conversation_id": _TEXTS,
            "agent_name": _TEXTS,
            "on_busy": st.sampled_from(["enqueue", "wait", None]),
            "more": st.just(1),
        },
    )
)
def test_a_run_is_checked_as_it_is_read(body: Any) -> None:
    """Also where no model is made of it."""

    def refusal(read: Any) -> str | None:
        try:
            read(body)
        except WireError as error:
            return str(error)
        return None

    assert refusal(checked_run) == refusal(RunRequest.from_dict)
