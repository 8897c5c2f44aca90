"""Turns without progress for very long."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ppio_agent.actors import ActorId
from ppio_agent.actors._cells import Activation, Cell
from ppio_agent.actors._stuck import Stuck
from ppio_agent.actors._turn import Turn
from ppio_agent.storage.actors.records import RequestRecord

from .support import Gate, actor, running


def turn_of(key: str) -> Turn:
    cell = Cell(ActorId("t", key), cast("Any", None))
    activation = cast("Activation", None)
    return Turn(cell, activation, RequestRecord(cell.actor_id, f"m{key}"))


def test_a_stuck_turn_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """And counted as long as it runs; others are not."""
    stuck, slow, other = Stuck(), turn_of("1"), turn_of("2")
    stuck.look([slow], 0.0)
    stuck.look([slow, other], 599.0)
    assert (stuck.count, caplog.records) == (0, [])
    for now in (600.0, 1100.0):
        stuck.look([slow, other], now)
        assert stuck.count == 1
    (record,) = caplog.records
    assert "t/1" in record.getMessage()
    assert "request m1" in record.getMessage()
    stuck.look([], 1200.0)
    assert stuck.count == 0


def test_a_step_is_progress(caplog: pytest.LogCaptureFixture) -> None:
    """From which the time is counted anew, also of one that was told before."""
    stuck, turn = Stuck(), turn_of("1")
    for now, position, count in (
        (0.0, 0, 0),
        (599.0, 1, 0),
        (1100.0, 1, 0),
        (1199.0, 1, 1),
        (1200.0, 2, 0),
        (1800.0, 2, 1),
    ):
        turn.position = position
        stuck.look([turn], now)
        assert (now, stuck.count) == (now, count)
    assert len(caplog.records) == 2


def test_each_sweep_looks_at_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the runtime says how many are stuck."""
    gate = Gate()
    monkeypatch.setattr("ppio_agent.actors._stuck._LONG", 0.0)

    def receive(context: Any, message: Any) -> Any:
        gate()
        return {}

    with running(receive) as runtime:
        runtime.client().send_request(actor(), "go")
        gate.wait()
        runtime.sweep()
        assert runtime.stats()["stuck"] == 1
        gate.opened.set()
