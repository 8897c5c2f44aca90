"""The states of a sandbox and what leads from one to another. Pure.

Source: spec/platform.md, section 5. A table, so that what is not in it cannot happen.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from attrs import frozen

from ppio_agent.exceptions import SandboxStateError

__all__ = ["Effect", "EndReason", "Event", "State", "Step", "at_end", "step"]


class State(enum.Enum):
    """Where a sandbox is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    KILLED = "killed"

    @property
    def wire(self) -> str:
        """The word the control plane uses: one that starts already counts as running."""
        return "running" if self is State.STARTING else self.value


class Event(enum.Enum):
    """What happens to a sandbox."""

    READY = "its supervisor is ready"
    START_FAILED = "its supervisor failed"
    PAUSE = "pause"
    RESUME = "resume"
    TTL = "its time is over"
    IDLE = "nobody uses it"
    KILL = "kill"
    LOST = "its supervisor is gone"
    MEMORY = "it passed the limit of its processes"
    STOP = "the platform stops"


class EndReason(enum.Enum):
    """Why a sandbox was killed."""

    START_FAILED = "start_failed"
    TIMEOUT = "timeout"
    IDLE = "idle"
    REQUEST = "request"
    CRASHED = "crashed"
    MEMORY = "memory"
    SHUTDOWN = "shutdown"


class Effect(enum.Enum):
    """What the shell has to do on the way to the new state, in the order given."""

    ARM_TTL = "start the clocks of the running sandbox: its time, its idleness"
    ARM_PAUSED_TTL = "start the clock of the paused sandbox"
    FREEZE = "stop its processes where they are"
    THAW = "let its processes go on"


@frozen
class Step:
    """The outcome of one event.

    Attributes:
        state: The state afterwards.
        effects: What has to be done for it; none for an end, at which everything is.
        reason: Why it was killed; None unless the state is KILLED.
    """

    state: State
    effects: tuple[Effect, ...]
    reason: EndReason | None = None


def _end(reason: EndReason) -> Step:
    return Step(State.KILLED, (), reason)


_LIVE: Final = (State.STARTING, State.RUNNING, State.PAUSED)

_STEPS: Final[Mapping[tuple[State, Event], Step]] = {
    (State.STARTING, Event.READY): Step(State.RUNNING, (Effect.ARM_TTL,)),
    (State.STARTING, Event.START_FAILED): _end(EndReason.START_FAILED),
    (State.RUNNING, Event.PAUSE): Step(
        State.PAUSED, (Effect.FREEZE, Effect.ARM_PAUSED_TTL)
    ),
    (State.PAUSED, Event.RESUME): Step(State.RUNNING, (Effect.THAW, Effect.ARM_TTL)),
    (State.RUNNING, Event.TTL): _end(EndReason.TIMEOUT),
    (State.RUNNING, Event.IDLE): _end(EndReason.IDLE),
    (State.PAUSED, Event.TTL): _end(EndReason.TIMEOUT),
    **{(state, Event.KILL): _end(EndReason.REQUEST) for state in _LIVE},
    **{(state, Event.LOST): _end(EndReason.CRASHED) for state in _LIVE},
    **{(state, Event.MEMORY): _end(EndReason.MEMORY) for state in _LIVE},
    **{(state, Event.STOP): _end(EndReason.SHUTDOWN) for state in _LIVE},
}


def step(state: State, event: Event) -> Step:
    """Return what `event` makes of a sandbox that is in `state`.

    Raises:
        SandboxStateError: The event cannot happen in this state.

    Example:
        >>> step(State.RUNNING, Event.PAUSE).state
        <State.PAUSED: 'paused'>
    """
    found = _STEPS.get((state, event))
    if found is None:
        raise SandboxStateError(f"the sandbox is {state.value}: cannot {event.value}")
    return found


def at_end(event: Event, *, state: State, pauses: bool) -> Event:
    """Return what the end of a sandbox's time, or of its use, is for it.

    Args:
        event: TTL or IDLE.
        state: Where it is now; the end of a paused sandbox always ends it.
        pauses: Whether it was created to pause at its end.
    """
    return Event.PAUSE if pauses and state is State.RUNNING else event
