"""Deadlines kept by one thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest

from ppio_agent._util.alarm import Alarms
from ppio_agent._util.threads import NoThreadError


class Owner:
    def __init__(self, act: Callable[[], None] = lambda: None) -> None:
        self.rung = threading.Event()
        self.at = 0.0
        self._act = act

    def on_alarm(self) -> None:
        self.at = time.monotonic()
        self.rung.set()
        self._act()


def test_an_alarm_comes_at_its_instant_not_before() -> None:
    """A sooner one set later comes first."""
    alarms, late, soon = Alarms(), Owner(), Owner()
    now = time.monotonic()
    alarms.set(late, now + 0.1)
    alarms.set(soon, now + 0.02)
    assert soon.rung.wait(5)
    assert not late.rung.is_set()
    assert late.rung.wait(5)
    assert soon.at >= now + 0.02
    assert late.at >= now + 0.1


def test_a_cleared_alarm_never_comes() -> None:
    """Nor does one that was moved come at its old instant."""
    alarms, cleared, moved, other = Alarms(), Owner(), Owner(), Owner()
    now = time.monotonic()
    alarms.set(cleared, now + 0.02)
    alarms.set(moved, now + 0.02)
    alarms.clear(cleared)
    alarms.set(moved, now + 60)
    alarms.set(other, now + 0.05)
    assert other.rung.wait(5)
    assert not cleared.rung.is_set()
    assert not moved.rung.is_set()


def test_an_alarm_that_fails_does_not_stop_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged."""

    def fail() -> None:
        raise LookupError("broken alarm")

    alarms, broken, other = Alarms(), Owner(fail), Owner()
    now = time.monotonic()
    with caplog.at_level(logging.ERROR, "ppio_agent"):
        alarms.set(broken, now)
        alarms.set(other, now + 0.02)
        assert other.rung.wait(5)
    assert "broken alarm" in caplog.text


def test_a_thread_that_could_not_be_started_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the next instant, a later one, too; the one that failed is not kept."""
    alarms, failed, later = Alarms(), Owner(), Owner()

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    now = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(NoThreadError, match="can't start new thread"):
            alarms.set(failed, now)
    alarms.set(later, now + 0.02)
    assert later.rung.wait(5)
    assert not failed.rung.is_set()
