"""The loop of the supervisor: descriptors, timers, signals, in one thread."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ppio_agent.sandbox.supervisor.loop import READ, WRITE, Loop, show


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_timers_fire_in_the_order_they_are_due() -> None:
    """Order is by time, and by creation for the same time; cancelled ones are not."""
    loop, fired = Loop(), []
    loop.call_later(0.02, lambda: fired.append("last"))
    loop.call_later(0.02, loop.stop)
    loop.call_later(0.0, lambda: fired.append("first"))
    loop.call_later(0.0, lambda: fired.append("never")).cancel()
    loop.run()

    assert fired == ["first", "last"]


def test_a_stop_before_the_loop_runs_is_kept() -> None:
    """It ends the next run at once, and only that one."""
    loop, fired = Loop(), []
    loop.stop()
    loop.call_later(0.0, lambda: fired.append("later"))
    loop.run()
    assert fired == []

    loop.call_later(0.0, loop.stop)
    loop.run()
    assert fired == ["later"]


def test_a_ready_descriptor_is_told_until_it_is_unwatched(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Watching nothing is unwatching, and both may be done twice."""
    ours, theirs = pair
    loop, told = Loop(), []

    def on_ready(events: int) -> None:
        told.append(events)
        if len(told) == 1:
            loop.watch(ours.fileno(), READ | WRITE, on_ready)
        else:
            loop.watch(ours.fileno(), 0, on_ready)
            loop.unwatch(ours.fileno())
            loop.call_later(0, loop.stop)

    theirs.send(b"x")
    loop.watch(ours.fileno(), READ, on_ready)
    loop.run()

    assert told == [READ, READ | WRITE]


def test_a_callback_may_close_another_that_is_ready_too(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """What was unwatched in the same round is not told."""
    ours, theirs = pair
    loop, told = Loop(), []

    def once(name: str, other: socket.socket) -> None:
        told.append(name)
        loop.unwatch(other.fileno())
        loop.stop()

    loop.watch(ours.fileno(), WRITE, lambda _: once("ours", theirs))
    loop.watch(theirs.fileno(), WRITE, lambda _: once("theirs", ours))
    loop.run()

    assert len(told) == 1


def test_signals_are_told_from_the_loop() -> None:
    """A signal wakes the loop up."""
    loop, told = Loop(), []
    before = signal.getsignal(signal.SIGUSR1)

    def on_signal(signum: int) -> None:
        told.append(signum)
        loop.stop()

    try:
        loop.watch_signals([signal.SIGUSR1], on_signal)
        loop.call_later(0, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        loop.run()
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGUSR1, before)

    assert told == [signal.SIGUSR1]


def test_a_signal_is_told_behind_a_flood_of_another_and_its_failure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The pipe that wakes the loop up holds only so many."""
    loop, told = Loop(), []
    signums = [signal.SIGUSR1, signal.SIGUSR2]
    before = [signal.getsignal(signum) for signum in signums]

    def on_signal(signum: int) -> None:
        told.append(signum)
        raise ValueError("it fails")

    try:
        loop.watch_signals(signums, on_signal)
        pipe = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(pipe, warn_on_full_buffer=False)
        os.write(pipe, bytes([signal.SIGUSR1]) * 2**16)
        for signum in signums:
            os.kill(os.getpid(), signum)
        loop.call_later(0.01, loop.stop)
        loop.run()
    finally:
        signal.set_wakeup_fd(-1)
        for signum, handler in zip(signums, before, strict=True):
            signal.signal(signum, handler)

    assert sorted(told) == sorted(signums)
    assert capsys.readouterr().err.count("ValueError: it fails") == 2


def test_nobody_wakes_up_for_a_timer_that_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop waits for the next one that is to fire."""
    now, waits = [0.0], []

    def select(timeout: float) -> list[object]:
        waits.append(timeout)
        now[0] += timeout
        return []

    loop = Loop(lambda: now[0])
    monkeypatch.setattr(loop, "_selector", SimpleNamespace(select=select))
    for delay in (1.0, 2.0):
        loop.call_later(delay, loop.stop).cancel()
    loop.call_later(9.0, loop.stop)
    loop.run()

    assert waits == [9.0, 0.0]


def test_an_exception_of_a_callback_is_shown_and_all_else_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """However many fail at once."""
    loop = Loop()
    for _ in range(200):
        loop.call_later(0, lambda: 1 / 0)
    loop.call_later(0.01, loop.stop)
    loop.run()

    assert capsys.readouterr().err.count("ZeroDivisionError") == 200


def test_a_log_of_what_fails_is_bounded_and_ends_with_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox may live for weeks, and nobody looks after it."""
    log = tmp_path / "supervisor.log"
    longest = 0
    with open(log, "a") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        for number in range(20):
            show(RuntimeError(f"{number}: {'x' * 200_000}"))
            stream.flush()
            longest = max(longest, log.stat().st_size)
    assert longest < 1_500_000
    assert "RuntimeError: 19: x" in log.read_text()


def test_what_fails_without_end_ends_the_loop(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """A descriptor that nobody takes the event of would be told for ever."""
    ours, theirs = pair
    theirs.send(b"x")
    loop = Loop()
    loop.watch(ours.fileno(), READ, lambda _: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        loop.run()


STUCK = """
import os, sys, time
from ppio_agent.sandbox.supervisor.loop import Loop

loop = Loop()
loop.watch_itself(0.3)
if sys.argv[1] == "idle":
    loop.call_later(0.8, loop.stop)
else:
    loop.call_later(0, lambda: os.read(os.pipe()[0], 1))
loop.run()
os._exit(0)  # at once: the watch goes on, and Python gives up its handlers at its end
"""


@pytest.mark.parametrize(("what", "code"), [("idle", 0), ("stuck", 1)])
def test_a_loop_that_hangs_ends_its_process(what: str, code: int) -> None:
    """One that has nothing to do goes on."""
    done = subprocess.run([sys.executable, "-c", STUCK, what], timeout=30, check=False)

    assert done.returncode == code
