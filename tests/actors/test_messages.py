"""Messages of a conversation, as they come in and as agents answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.actors.messages import (
    ROLES,
    answers_of,
    as_answer,
    brings_ids,
    copies_of,
    last_text,
    read_messages,
)
from ppio_agent.exceptions import ActorFailedError, WireError

USER = {"role": "user", "content": "hi"}
CALLS = [{"id": "c1", "type": "function", "function": {"name": "f"}}]


def _bare(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


def test_a_message_has_its_role_its_text_and_an_id() -> None:
    """The caller's id, or a new one; `text` is as good as `content`."""
    first, second = read_messages(
        [{"role": "system", "text": "be kind", "message_id": "m1"}, USER]
    )
    assert first == {"role": "system", "content": "be kind", "message_id": "m1"}
    assert second["content"] == "hi"
    assert len(second["message_id"]) == 32


def test_known_members_are_kept_and_others_are_not() -> None:
    """What a model's API needs of a call of a tool and of its result."""
    called = {"role": "assistant", "content": None, "tool_calls": CALLS, "color": 1}
    result = {**USER, "role": "tool", "tool_call_id": "c1", "name": "f"}
    first, second = read_messages([called, result])
    assert {k: v for k, v in first.items() if k != "message_id"} == {
        "role": "assistant",
        "content": "",
        "tool_calls": CALLS,
    }
    assert (second["tool_call_id"], second["name"]) == ("c1", "f")


def test_calls_of_tools_are_kept_without_a_text() -> None:
    """An assistant's message may consist of them alone."""
    calls = [{"id": "c1"}]
    (message,) = read_messages([{"role": "assistant", "tool_calls": calls}])
    assert (message["content"], message["tool_calls"]) == ("", calls)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (None, "$.messages"),
        ({}, "$.messages"),
        ([], "$.messages"),
        ([USER] * 1001, "$.messages"),
        (["hi"], "$.messages[0]"),
        ([USER, {"content": "hi"}], "$.messages[1].role"),
        ([{**USER, "role": "robot"}], "$.messages[0].role"),
        ([{**USER, "role": ["user"]}], "$.messages[0].role"),
        ([{"role": "user"}], "$.messages[0].content"),
        ([{**USER, "content": 1}], "$.messages[0].content"),
        ([{**USER, "message_id": ""}], "$.messages[0].message_id"),
        ([{**USER, "message_id": 7}], "$.messages[0].message_id"),
        ([{**USER, "message_id": "x" * 257}], "$.messages[0].message_id"),
        ([{**USER, "name": 1}], "$.messages[0].name"),
        ([{**USER, "tool_calls": {}, "name": []}], "$.messages[0].name"),
        ([{**USER, "tool_calls": ["f"]}], "$.messages[0].tool_calls"),
    ],
)
def test_a_mistake_is_told_with_its_place(value: Any, path: str) -> None:
    """Never with the text itself."""
    with pytest.raises(WireError) as caught:
        read_messages(value)
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ("yes", [("assistant", "yes")]),
        (None, []),
        ({"content": "yes"}, [("assistant", "yes")]),
        ({"role": "tool", "text": "7"}, [("tool", "7")]),
        (["a", {"content": "b"}], [("assistant", "a"), ("assistant", "b")]),
        ({"messages": ["a"], "usage": 3}, [("assistant", "a")]),
        ({"messages": []}, []),
        ("", [("assistant", "")]),
    ],
)
def test_an_agent_may_answer_in_several_shapes(
    result: Any, expected: list[tuple[str, str]]
) -> None:
    """Each becomes messages, and each of those has an id."""
    answers = answers_of(result)
    assert _bare(answers) == expected
    assert all(answer["message_id"] for answer in answers)


@pytest.mark.parametrize(
    "result", [42, True, {"answer": 1}, [1], {"messages": "a"}, {"messages": None}]
)
def test_what_is_no_answer_is_refused(result: Any) -> None:
    """By an error that names the shapes there are."""
    with pytest.raises(ActorFailedError, match="has to give a text") as caught:
        answers_of(result)
    assert caught.value.code == "invalid_result"


def test_the_prompt_is_what_the_user_said_last() -> None:
    """Whatever stands behind it."""
    messages = [USER, {"role": "user", "content": "ho"}, as_answer("yes")]
    assert last_text(messages) == "ho"
    assert last_text([as_answer("yes")]) == ""


def test_copies_share_nothing() -> None:
    """An agent may change what it gets."""
    messages = [dict(USER), {**USER, "tool_calls": [{"id": "c1"}]}]
    first, second = copies_of(messages)
    first["content"] = second["tool_calls"][0]["id"] = "changed"
    assert messages == [USER, {**USER, "tool_calls": [{"id": "c1"}]}]


_texts = st.text(max_size=8)
_messages = st.fixed_dictionaries(
    {"role": st.sampled_from(ROLES), "content": _texts},
    optional={
        "message_id": st.none() | st.text(min_size=1, max_size=8),
        "name": _texts,
        "tool_call_id": _texts,
        "tool_calls": st.just(CALLS),
    },
)


@settings(max_examples=100)
@given(st.lists(_messages, min_size=1, max_size=5))
def test_what_was_read_reads_the_same_again(sent: list[dict[str, Any]]) -> None:
    """So a client may send back what it got; it then brings ids."""
    read = read_messages(sent)
    assert read_messages(read) == read
    assert answers_of({"messages": read}) == read
    assert brings_ids(read)
    assert brings_ids(sent) == any(m.get("message_id") for m in sent)
