"""What becomes of actors that crash."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.actors import _supervision
from ppio_agent.actors._supervision import Reaction, Supervisor, judge
from ppio_agent.actors.options import Supervision
from ppio_agent.wire.actors import ActorId

A, B = ActorId("a", "1"), ActorId("b", "1")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def supervisor() -> tuple[Supervisor, Clock]:
    clock = Clock()
    return Supervisor(clock, lambda: 0.5), clock


def test_waits_double_until_one_crash_is_too_many() -> None:
    """0.2, 0.4, 0.8, 1.6 and 3.2 s, and the sixth crash in the window stops it."""
    judged, clock = supervisor()
    waits = []
    for _ in range(5):
        verdict = judged.crashed(A, Supervision())
        assert verdict.reaction is Reaction.RESTART
        waits.append(round(verdict.wait, 6))
        clock.now += 1.0
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2]
    assert judged.stopped_for(A) == 0.0
    assert judged.crashed(A, Supervision()).reaction is Reaction.STOP
    assert judged.stopped_for(A) == 60.0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0.0, 1000.0), max_size=20),
    st.integers(0, 6),
    st.floats(1.0, 100.0),
    st.floats(0.0, 1.0, exclude_max=True),
)
def test_no_more_crashes_within_a_window_than_it_says(
    gaps: list[float], most: int, window: float, chance: float
) -> None:
    """Whatever their distances; waits stay within 20 % of what they grow to."""
    policy = Supervision(max_restarts=most, window=window, backoff_max=5.0)
    crashes: tuple[float, ...] = ()
    now = 0.0
    for gap in gaps:
        now += gap
        recent = sum(now - at < window for at in crashes) + 1
        verdict = judge(crashes, policy, now, chance)
        crashes = verdict.crashes
        assert (verdict.reaction is Reaction.STOP) == (recent > most)
        assert len(crashes) <= most
        if verdict.reaction is Reaction.RESTART:
            grown = min(5.0, 0.2 * 2.0 ** (recent - 1))
            assert 0.8 * grown <= verdict.wait <= 1.2 * grown


def test_waits_that_grow_beyond_all_numbers_are_bounded() -> None:
    """A factor may be anything."""
    policy = Supervision(backoff_factor=1e300, max_restarts=10)
    verdict = judge((1.0, 2.0, 3.0), policy, 4.0, 0.5)
    assert verdict.wait == 30.0


def test_strategies() -> None:
    """`resume` waits for nothing, though not for ever; `stop` stops at the first."""
    resumed = judge((), Supervision(strategy="resume"), 1.0, 0.0)
    assert (resumed.reaction, resumed.wait) == (Reaction.RESUME, 0.0)
    endless = Supervision(strategy="resume", max_restarts=1)
    assert judge((0.5,), endless, 1.0, 0.0).reaction is Reaction.STOP
    stopped = judge((), Supervision(strategy="stop", quarantine=7.0), 1.0, 0.0)
    assert (stopped.reaction, stopped.wait) == (Reaction.STOP, 7.0)


def test_after_its_quarantine_an_actor_begins_afresh() -> None:
    """With no crash to its name; others were never concerned."""
    judged, clock = supervisor()
    policy = Supervision(max_restarts=0, quarantine=10.0)
    judged.crashed(A, policy)
    assert (judged.stopped_for(A), judged.stopped_for(B)) == (10.0, 0.0)
    clock.now += 10.0
    assert judged.stopped_for(A) == 0.0
    assert judged.crashed(A, Supervision(max_restarts=1)).reaction is Reaction.RESTART


def test_a_type_is_degraded_while_its_actors_are_stopped_again_and_again() -> None:
    """It is told once; a window without a stop clears it."""
    judged, clock = supervisor()
    policy = Supervision(escalate_after=3, window=10.0)
    told = []
    for _ in range(5):
        told.append(judged.escalates("a", policy))
        clock.now += 1.0
    judged.escalates("b", policy)
    assert told == [0, 0, 3, 0, 0]
    assert judged.degraded() == ["a"]
    clock.now += 10.0
    assert judged.degraded() == []
    assert judged.escalates("a", policy) == 0


def test_stops_far_apart_degrade_nothing() -> None:
    """Only those within one window count."""
    judged, clock = supervisor()
    policy = Supervision(escalate_after=3, window=10.0)
    for _ in range(20):
        assert judged.escalates("a", policy) == 0
        clock.now += 6.0


def test_what_plays_no_part_any_more_is_forgotten() -> None:
    """Nothing is left of an actor that crashed once."""
    judged, clock = supervisor()
    judged.crashed(A, Supervision())
    judged.crashed(B, Supervision(strategy="stop"))
    judged.escalates("b", Supervision())
    judged.forget()
    assert judged._crashes
    assert judged.stopped
    assert judged._types
    clock.now += 60.0
    judged.forget()
    assert [judged._crashes, judged.stopped, judged._types] == [{}, {}, {}]


def test_so_many_actors_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The oldest is forgotten when one more crashes."""
    monkeypatch.setattr(_supervision, "_MOST", 2)
    judged, _ = supervisor()
    for number in range(3):
        judged.crashed(ActorId("a", str(number)), Supervision(strategy="stop"))
    stopped = [judged.stopped_for(ActorId("a", str(number))) for number in range(3)]
    assert stopped == [0.0, 60.0, 60.0]


def test_a_forked_child_has_no_crashed_actors() -> None:
    """They were its parent's."""
    judged, _ = supervisor()
    judged.crashed(A, Supervision(strategy="stop"))
    with judged._lock:
        child = os.fork()
        if child == 0:
            fresh = judged.stopped_for(A) == 0.0 and judged.degraded() == []
            os._exit(0 if fresh else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
