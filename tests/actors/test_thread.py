"""A conversation as state: what a turn writes, and what is read of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.actors._thread import THREAD_STATE_KEY, AgentThread
from ppio_agent.actors.messages import Message
from ppio_agent.exceptions import ValidationError


def _messages(count: int) -> list[Message]:
    return [
        {"role": "user", "content": f"text {n}", "message_id": f"m{n}"}
        for n in range(count)
    ]


def _thread(count: int) -> AgentThread:
    thread = AgentThread(thread_id="t")
    thread.add(_messages(count), at="2026-01-02T03:04:05.678Z")
    return thread


def test_each_message_has_a_key_of_its_own() -> None:
    """And the head says how many there are."""
    state = _thread(2).to_state()
    assert list(state) == [
        "agent_thread/00000000",
        "agent_thread/00000001",
        "agent_thread",
    ]
    assert state["agent_thread/00000001"] == {
        "role": "user",
        "content": "text 1",
        "message_id": "m1",
        "timestamp": "2026-01-02T03:04:05.678Z",
    }
    assert state[THREAD_STATE_KEY] == {
        "version": 1,
        "thread_id": "t",
        "created_at": "2026-01-02T03:04:05.678Z",
        "last_updated": "2026-01-02T03:04:05.678Z",
        "count": 2,
    }


def test_a_turn_writes_what_is_new() -> None:
    """However long the conversation is."""
    thread = _thread(100)
    thread.add(_messages(2))
    assert sorted(thread.to_state(100)) == [
        "agent_thread",
        "agent_thread/00000100",
        "agent_thread/00000101",
    ]
    assert thread.last_updated > thread.created_at


def test_the_latest_messages_can_be_read_alone() -> None:
    """What is added to them still goes behind all others."""
    state = _thread(10).to_state()
    asked: list[list[str]] = []

    def values(keys: list[str]) -> dict[str, Any]:
        asked.append(keys)
        return {key: state[key] for key in keys}

    thread = AgentThread.read(state[THREAD_STATE_KEY], values, last=3)
    assert asked == [[f"agent_thread/{n:08}" for n in (7, 8, 9)]]
    thread.add(_messages(1))
    new = thread.to_state(3)
    assert list(new) == ["agent_thread/00000010", "agent_thread"]
    assert new[THREAD_STATE_KEY]["count"] == 11
    none = AgentThread.read(state[THREAD_STATE_KEY], values, last=0)
    assert (none.messages, none.before, len(asked)) == ([], 10, 1)


@settings(max_examples=50)
@given(st.integers(0, 12), st.none() | st.integers(0, 15))
def test_what_is_kept_is_read_again(count: int, last: int | None) -> None:
    """All of it, or the end of it."""
    thread = _thread(count)
    state = thread.to_state()
    assert AgentThread.from_state(state).to_dict() == thread.to_dict()
    read = AgentThread.read(state[THREAD_STATE_KEY], lambda _: state, last=last)
    assert read.messages == thread.messages[read.before :]
    assert len(read.messages) == min(count, count if last is None else last)


def test_without_state_there_is_a_new_thread() -> None:
    """Empty, with an id."""
    thread = AgentThread.from_state({"other": 1})
    assert (thread.messages, thread.created_at) == ([], "")
    assert thread.thread_id


def test_export_and_import_are_one_object() -> None:
    """What is interrupted stays so; other members are not kept."""
    thread = _thread(1)
    part = {"role": "assistant", "content": "Hel", "message_id": "a"}
    thread.add([{**part, "interrupted": True}])
    data = thread.to_dict()
    again = AgentThread.from_dict(data)
    assert again.to_dict() == data
    assert again.messages[1]["interrupted"] is True
    assert again.messages is not data["messages"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "later release"),
        ({"version": None}, "is no thread"),
        ({"thread_id": 1}, "thread_id"),
        ({"created_at": None}, "created_at"),
        ({"messages": {}}, "messages of a thread"),
        ({"messages": [{"role": "robot"}]}, r"messages\[0\]\.role"),
    ],
)
def test_what_is_no_thread_cannot_be_imported(
    change: dict[str, Any], said: str
) -> None:
    """A later version neither: half of it would be lost at the next turn."""
    with pytest.raises(ValidationError, match=said):
        AgentThread.from_dict({**_thread(1).to_dict(), **change})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("agent_thread/00000001", None, "lacks a message: agent_thread/00000001"),
        (THREAD_STATE_KEY, "text", "is no thread"),
        (THREAD_STATE_KEY, {**_thread(1).to_state()[THREAD_STATE_KEY], "count": -1}, "count"),
        (THREAD_STATE_KEY, {**_thread(1).to_state()[THREAD_STATE_KEY], "count": "2"}, "count"),
    ],
)  # fmt: skip
def test_a_damaged_thread_is_told(key: str, value: Any, said: str) -> None:
    """Rather than taken for a shorter one."""
    with pytest.raises(ValidationError, match=said):
        AgentThread.from_state({**_thread(2).to_state(), key: value})
