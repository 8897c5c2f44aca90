"""The state table: what is in it happens, nothing else does, whatever the order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.exceptions import SandboxStateError
from ppio_agent.sandbox.life.machine import (
    Effect,
    EndReason,
    Event,
    State,
    at_end,
    step,
)


@pytest.mark.parametrize(
    ("state", "event", "after", "effects"),
    [
        (State.STARTING, Event.READY, State.RUNNING, (Effect.ARM_TTL,)),
        (
            State.RUNNING,
            Event.PAUSE,
            State.PAUSED,
            (Effect.FREEZE, Effect.ARM_PAUSED_TTL),
        ),
        (State.PAUSED, Event.RESUME, State.RUNNING, (Effect.THAW, Effect.ARM_TTL)),
    ],
)
def test_a_live_sandbox_moves_as_the_table_says(
    state: State, event: Event, after: State, effects: tuple[Effect, ...]
) -> None:
    outcome = step(state, event)

    assert (after, effects, None) == (outcome.state, outcome.effects, outcome.reason)


@pytest.mark.parametrize(
    ("state", "event", "reason"),
    [
        (State.STARTING, Event.START_FAILED, EndReason.START_FAILED),
        (State.RUNNING, Event.TTL, EndReason.TIMEOUT),
        (State.RUNNING, Event.IDLE, EndReason.IDLE),
        (State.PAUSED, Event.TTL, EndReason.TIMEOUT),
        (State.STARTING, Event.KILL, EndReason.REQUEST),
        (State.PAUSED, Event.LOST, EndReason.CRASHED),
        (State.RUNNING, Event.MEMORY, EndReason.MEMORY),
        (State.RUNNING, Event.STOP, EndReason.SHUTDOWN),
    ],
)
def test_every_end_has_its_reason(
    state: State, event: Event, reason: EndReason
) -> None:
    outcome = step(state, event)

    assert (outcome.state, outcome.reason) == (State.KILLED, reason)
    assert outcome.effects == ()


def test_a_second_pause_is_refused_by_name() -> None:
    with pytest.raises(SandboxStateError, match="the sandbox is paused: cannot pause"):
        step(State.PAUSED, Event.PAUSE)


@given(events=st.lists(st.sampled_from(Event), max_size=30))
@settings(max_examples=100)
def test_any_order_of_events_keeps_to_the_states_and_ends_once(
    events: list[Event],
) -> None:
    """Killed is final, it has a reason, and processes are frozen only to be thawed."""
    state, frozen, ends = State.STARTING, False, 0
    for event in events:
        try:
            outcome = step(state, event)
        except SandboxStateError:
            continue
        assert state is not State.KILLED
        assert (outcome.reason is not None) == (outcome.state is State.KILLED)
        if Effect.FREEZE in outcome.effects:
            assert not frozen
            frozen = True
        if Effect.THAW in outcome.effects:
            assert frozen
            frozen = False
        ends += outcome.reason is not None
        state = outcome.state
    assert ends == (state is State.KILLED)


@given(state=st.sampled_from([State.STARTING, State.RUNNING, State.PAUSED]))
@settings(max_examples=20)
def test_a_kill_is_possible_in_every_live_state(state: State) -> None:
    for event in (Event.KILL, Event.LOST, Event.MEMORY, Event.STOP):
        assert step(state, event).state is State.KILLED


@pytest.mark.parametrize("event", [Event.TTL, Event.IDLE])
def test_the_end_pauses_only_a_running_sandbox_that_wants_it(event: Event) -> None:
    assert at_end(event, state=State.RUNNING, pauses=True) is Event.PAUSE
    assert at_end(event, state=State.RUNNING, pauses=False) is event
    assert at_end(event, state=State.PAUSED, pauses=True) is event


def test_one_that_starts_reads_running_on_the_wire() -> None:
    words = {State.STARTING.wire, State.RUNNING.wire, State.PAUSED.wire}

    assert words == {"running", "paused"}
