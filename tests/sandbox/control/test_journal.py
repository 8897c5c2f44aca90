"""Journals of sandboxes: bounded, shared by readers, and gone with their sandbox."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from ppio_agent._util.clock import utc_now
from ppio_agent.sandbox.backends.base import AgentStatus
from ppio_agent.sandbox.control.journal import Journal, Journals
from ppio_agent.sandbox.life.changes import Change
from ppio_agent.sandbox.life.live import LiveSandbox
from ppio_agent.sandbox.life.machine import EndReason, State
from ppio_agent.sandbox.life.options import CreateOptions
from tests.sandbox.rig import PlatformRig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[PlatformRig]:
    rig = PlatformRig(tmp_path)
    yield rig
    rig.close()


def _make(rig: PlatformRig) -> LiveSandbox:
    return rig.sandboxes.create(CreateOptions(template="echo"), tenant="red")


def _change(state: State, reason: EndReason | None = None) -> Change:
    return Change(
        kind="state", state=state, reason=reason, agent=AgentStatus(), at=utc_now()
    )


def test_all_readers_of_a_sandbox_have_one_journal(rig: PlatformRig) -> None:
    """So that the ids of one stream are good for the next."""
    journals, sandbox = Journals(), _make(rig)
    first = journals.of(sandbox)
    assert journals.of(sandbox) is first
    assert [note.event for note in first.read(0, 0.0)] == ["agent", "state"]


def test_a_journal_goes_with_its_sandbox(rig: PlatformRig) -> None:
    """However many there were; and one that is asked for too late is over at once."""
    journals = Journals()
    sandboxes = [_make(rig) for _ in range(5)]
    for sandbox in sandboxes:
        journals.of(sandbox)
        rig.sandboxes.kill(sandbox.id)
    assert journals._journals == {}

    late = journals.of(sandboxes[0])
    assert late.read(0, 0.0)[-1].kind == "end"
    assert journals._journals == {}


def test_an_agent_that_is_ended_with_its_sandbox_does_not_end_the_journal() -> None:
    """Its exit is told while the sandbox is being killed: why it was comes after it."""
    journal, killed = Journal("s"), _change(State.KILLED, EndReason.TIMEOUT)
    journal.add(attrs.evolve(killed, kind="agent"))
    assert not journal.over
    journal.add(killed)

    notes = journal.read(0, 0.0)
    assert [(note.event, note.kind) for note in notes] == [
        ("agent", "chunk"), ("state", "chunk"), (None, "end"),
    ]  # fmt: skip
    assert json.loads(notes[1].data)["state"] == "killed"
    assert json.loads(notes[1].data)["reason"] == "timeout"


def test_a_change_that_comes_as_one_begins_to_listen_is_told_last(
    rig: PlatformRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How it is now is never put after what became of it meanwhile."""
    sandbox, pausing = _make(rig), threading.Thread()
    agent_of = LiveSandbox.agent.fget
    assert agent_of is not None

    def agent(self: LiveSandbox) -> AgentStatus:
        nonlocal pausing
        if pausing.ident is None:
            pausing = threading.Thread(target=sandbox.pause)
            pausing.start()
            pausing.join(0.2)
        return agent_of(self)  # type: ignore[no-any-return]

    monkeypatch.setattr(LiveSandbox, "agent", property(agent))
    journal = Journals().of(sandbox)
    pausing.join()

    states = [json.loads(note.data).get("state") for note in journal.read(0, 0.0)]
    assert states[-1] == "paused"


def test_the_end_is_there_for_whoever_asks() -> None:
    """Also with a number that was never given."""
    journal = Journal("x", wall_clock=lambda: 1.0)
    journal.add(_change(State.KILLED, EndReason.REQUEST))

    assert journal.newest == 1002
    for after in (1002, 10**17):
        assert [note.kind for note in journal.read(after, None)] == ["end"]


def test_the_newest_hundred_events_are_kept() -> None:
    """Numbers go on; who was away for longer sees them jump."""
    journal = Journal("x", wall_clock=lambda: 1.0)
    for _ in range(250):
        journal.add(_change(State.RUNNING))
    notes = journal.read(0, 0.0)

    assert [note.seq for note in notes] == list(range(1151, 1251))
    assert journal.read(1249, 0.0) == notes[-1:]
    assert journal.read(1250, 0.0) == []


def test_nothing_follows_the_end() -> None:
    """Which says why the sandbox is gone."""
    journal = Journal("x")
    journal.add(_change(State.KILLED, EndReason.MEMORY))
    journal.add(_change(State.RUNNING))
    notes = journal.read(0, 0.0)

    assert [(n.event, n.kind) for n in notes] == [("state", "chunk"), (None, "end")]
    assert json.loads(notes[-1].data) == {"reason": "memory"}
