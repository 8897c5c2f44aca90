"""Turns: one at a time, until the end of what they are about."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ppio_agent.exceptions import NotFoundError, SandboxStateError
from ppio_agent.sandbox.life import turns as turns_module
from ppio_agent.sandbox.life.turns import Turns
from tests.support import SLOW, wait_until


def test_one_at_a_time_has_the_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "TURN_TIMEOUT", 0.05)
    turns = Turns("s")
    assert not turns.changing
    with turns.taken(), ThreadPoolExecutor(1) as pool:
        assert turns.changing
        other = pool.submit(turns.taken().__enter__)
        with pytest.raises(SandboxStateError, match="s is changing state"):
            other.result(5)
    assert not turns.changing


def test_the_doomed_is_changed_only_by_who_waits_however_long() -> None:
    turns = Turns("s")
    assert (turns.doom(), turns.doom(), turns.doomed) == (True, False, True)
    with pytest.raises(NotFoundError, match="s was not found"), turns.taken():
        pass
    with turns.awaited():
        assert turns.changing


def test_who_waits_looks_again_when_told_or_when_it_is_doomed() -> None:
    turns, seen = Turns("s"), threading.Event()
    assert not turns.wait_for(seen.is_set, 0.01)
    with ThreadPoolExecutor(2) as pool:
        told = pool.submit(turns.wait_for, seen.is_set, 5.0 * SLOW)
        doomed = pool.submit(turns.wait_for, lambda: turns.doomed, 5.0 * SLOW)
        seen.set()
        turns.notify()
        assert told.result(5 * SLOW)
        turns.doom()
        assert doomed.result(5 * SLOW)
    wait_until(lambda: not turns.changing)
