"""Changes: told in their order, one at a time, and to all."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ppio_agent._util.clock import utc_now
from ppio_agent.sandbox.backends.base import AgentStatus
from ppio_agent.sandbox.life.changes import Change, Changes
from ppio_agent.sandbox.life.machine import State


def _change(state: State = State.RUNNING) -> Change:
    return Change(
        kind="state", state=state, reason=None, agent=AgentStatus(), at=utc_now()
    )


def test_who_listens_is_told_until_that_ends() -> None:
    changes = Changes()
    heard: list[Change] = []
    first, second, third = _change(), _change(), _change()
    changes.note(first)
    changes.tell()
    end = changes.subscribe(heard.append)
    changes.note(second)
    assert heard == []
    changes.tell()
    end()
    end()
    changes.note(third)
    changes.tell()

    assert heard == [second]


def test_a_listener_may_be_told_first_how_it_is() -> None:
    """It alone, and nothing that was noted before it listened."""
    changes = Changes()
    one: list[Change] = []
    other: list[Change] = []
    before, present, after = _change(), _change(), _change()
    changes.subscribe(one.append)
    changes.note(before)
    changes.subscribe(other.append, present=lambda: [present])
    changes.note(after)
    changes.tell()

    assert (one, other) == ([before, after], [present, after])


def test_a_listener_that_fails_is_logged_and_the_others_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    changes = Changes()
    heard: list[Change] = []

    def fail(_: Change) -> None:
        raise ValueError("broken")

    changes.subscribe(fail)
    changes.subscribe(heard.append)
    changes.note(_change())
    changes.tell()

    assert len(heard) == 1
    assert "a listener to a sandbox failed" in caplog.text


def test_a_listener_may_cause_a_change_which_is_told_after_its_own() -> None:
    changes = Changes()
    heard: list[State] = []

    def listen(change: Change) -> None:
        if change.state is State.RUNNING:
            changes.note(_change(State.PAUSED))
            changes.tell()
        heard.append(change.state)

    changes.subscribe(listen)
    changes.note(_change())
    changes.tell()

    assert heard == [State.RUNNING, State.PAUSED]


def test_from_many_threads_none_is_lost_and_all_hear_one_order() -> None:
    changes = Changes()
    one: list[Change] = []
    other: list[Change] = []
    changes.subscribe(one.append)
    changes.subscribe(other.append)
    start = threading.Barrier(8)

    def make(_: int) -> None:
        start.wait()
        for _ in range(200):
            changes.note(_change())
            changes.tell()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(8)))

    assert one == other
    assert len(one) == 1600
