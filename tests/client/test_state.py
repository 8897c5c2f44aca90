"""What each state of a session refuses, and how one follows another."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent._util.clock import Deadline
from ppio_agent.client.call import Line
from ppio_agent.client.pulse import SessionPulse
from ppio_agent.client.state import (
    Action,
    SessionState,
    refusal,
    seconds_left,
    state_of,
)
from ppio_agent.exceptions import (
    AgentUnreachableError,
    ConflictError,
    InvocationError,
    PPIOAgentError,
    RequestTimeoutError,
    SessionClosedError,
    SessionNotFoundError,
)
from ppio_agent.wire.models import SandboxDetail, SandboxState

NOON = datetime(2026, 1, 2, 12, tzinfo=timezone.utc)
OK = None

TABLE: dict[str, dict[str, type[PPIOAgentError] | None]] = {
    "invoke":  {"active": OK, "paused": InvocationError, "error": AgentUnreachableError},
    "ping":    {"active": OK, "paused": InvocationError, "error": OK},
    "pause":   {"active": OK, "paused": OK,              "error": ConflictError},
    "resume":  {"active": OK, "paused": OK,              "error": ConflictError},
    "refresh": {"active": OK, "paused": ConflictError,   "error": OK},
    "detach":  {"active": OK, "paused": OK,              "error": OK},
}  # fmt: skip

LINE = Line(invocation_id="inv_1", deadline=Deadline.after(None))


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("state", list(SessionState))
def test_table(action: Action, state: SessionState) -> None:
    """Each cell; what was given up is not found, what has ended is closed."""
    row = TABLE[action.value]
    inactive = OK if action is Action.DETACH else SessionNotFoundError
    expected = {**row, "inactive": inactive, "closed": SessionClosedError}[state.value]

    found = refusal(action, state, "sb1")

    assert type(found) is (expected or type(None))
    assert found is None or "sb1" in str(found)


def test_no_invocation_during_a_change() -> None:
    """It would reach a sandbox that is about to be frozen."""
    refused = refusal(Action.INVOKE, SessionState.ACTIVE, "sb1", changing=True)

    assert isinstance(refused, InvocationError)
    assert refused.code == "session_paused"
    assert refusal(Action.PING, SessionState.ACTIVE, "sb1", changing=True) is None


def test_one_that_ended_by_itself_may_be_replaced() -> None:
    """Its error has the code by which conversations begin anew."""
    by_itself = refusal(Action.INVOKE, SessionState.CLOSED, "sb1", gone=True)
    closed = refusal(Action.INVOKE, SessionState.CLOSED, "sb1")

    assert by_itself is not None
    assert closed is not None
    assert by_itself.code == SessionNotFoundError.code
    assert closed.code != SessionNotFoundError.code


def detail(word: str = "running", ends: datetime = NOON) -> SandboxDetail:
    return SandboxDetail(
        sandbox_id="sb1",
        template_id="tpl1",
        state=SandboxState(word),
        started_at=NOON,
        end_at=ends,
    )


@pytest.mark.parametrize(
    ("word", "state"),
    [("running", "active"), ("paused", "paused"), ("stopped", "inactive")],
)
def test_words_of_the_platform(word: str, state: str) -> None:
    """A word that is not known means that it does not run."""
    assert state_of(detail(word)).value == state


@given(st.integers(-(10**6), 10**6), st.floats(1, 10**5))
def test_time_left(seconds: int, at_most: float) -> None:
    """Never below 0, nor above what it was given, whatever the clocks say."""
    ends = NOON + timedelta(seconds=seconds)
    left = seconds_left(detail(ends=ends), NOON, at_most=at_most)

    assert left == min(max(0, seconds), at_most)


class TestPulse:
    def test_tells_changes_and_nothing_else(self) -> None:
        """Without a lock: whoever is told may ask the session anything."""
        seen: list[tuple[str, str]] = []

        def tell(before: SessionState, after: SessionState) -> None:
            seen.append((before.value, after.value))
            pulse.observe(SessionState.PAUSED, since=-1)

        pulse = SessionPulse("sb1", on_change=tell)
        pulse.become(SessionState.ACTIVE)
        pulse.become(SessionState.PAUSED)
        pulse.mark_gone()
        pulse.mark_gone()
        pulse.begin_close()
        pulse.become(SessionState.ACTIVE)

        assert seen == [("active", "paused"), ("paused", "closed")]
        assert pulse.state is SessionState.CLOSED

    def test_old_news_change_nothing(self) -> None:
        """What was asked before a pause does not undo it."""
        pulse = SessionPulse("sb1")
        since = pulse.version
        pulse.become(SessionState.PAUSED)
        pulse.observe(SessionState.ACTIVE, since=since)
        stale = pulse.state
        pulse.observe(SessionState.ACTIVE, since=pulse.version)

        assert stale is SessionState.PAUSED
        assert pulse.state is SessionState.ACTIVE

    def test_what_was_closed_stays_closed(self) -> None:
        """Also if its sandbox could not be killed, and is seen alive."""
        pulse = SessionPulse("sb1")
        pulse.begin_close()
        pulse.observe(SessionState.ACTIVE, since=pulse.version)

        assert pulse.state is SessionState.CLOSED
        assert pulse.begin_close() is True

    def test_nor_do_news_in_the_middle_of_a_change(self) -> None:
        """The transition knows better."""
        pulse = SessionPulse("sb1")
        limit = Deadline.after(1)
        with pulse.transition(Action.PAUSE, to=SessionState.PAUSED, deadline=limit):
            pulse.observe(SessionState.ERROR, since=pulse.version)
            during = pulse.state

        assert during is SessionState.ACTIVE

    def test_transitions_take_turns(self) -> None:
        """The second waits, at most until its deadline; without need nobody waits."""
        pulse = SessionPulse("sb1", SessionState.PAUSED)
        to = SessionState.ACTIVE
        limit = Deadline.after(5)
        with pulse.transition(Action.RESUME, to=to, deadline=limit) as needed:
            with (
                pytest.raises(RequestTimeoutError),
                pulse.transition(Action.RESUME, to=to, deadline=Deadline.after(0.01)),
            ):
                pass
            with pytest.raises(InvocationError):
                pulse.admit(LINE)
            pulse.become(to)
        with pulse.transition(Action.RESUME, to=to, deadline=limit) as again:
            pulse.admit(LINE)

        assert (needed, again) == (True, False)

    def test_given_up_by_force(self) -> None:
        """With calls only by force; asking never brings it back."""
        pulse = SessionPulse("sb1")
        pulse.admit(LINE)
        with pytest.raises(ConflictError, match="1 invocations"):
            pulse.give_up()
        pulse.give_up(force=True)
        pulse.observe(SessionState.ACTIVE, since=pulse.version)

        assert pulse.state is SessionState.INACTIVE
        assert pulse.begin_close() is False
        pulse.give_up(force=True)
        assert pulse.state is SessionState.CLOSED

    def test_many_closers_one_end(self) -> None:
        """However many threads end it, it is gone once."""
        pulse = SessionPulse("sb1")
        news: list[bool] = []
        barrier = threading.Barrier(8)

        def end() -> None:
            barrier.wait(5)
            pulse.begin_close()
            news.append(pulse.mark_gone())

        threads = [threading.Thread(target=end) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(news) == [False] * 7 + [True]
