"""Ending a call from elsewhere."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from functools import partial

import pytest

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import InvocationCancelledError, NetworkError
from ppio_agent.transport.calls import (
    CallHandle,
    CallScope,
    pause,
    shielded,
    waiting,
)
from tests.support import interrupt_everywhere


def test_the_first_abort_wins() -> None:
    """And is what every step of the call raises from then on."""
    call = CallHandle()
    call.check()
    assert call.abort(InvocationCancelledError("one"))
    assert not call.abort(InvocationCancelledError("two"))
    with pytest.raises(InvocationCancelledError, match="one"):
        call.check()
    with pytest.raises(InvocationCancelledError):
        call.wait(None)


def test_abort_wakes_whoever_reads_the_socket() -> None:
    """Also if it came first."""
    call = CallHandle()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        call.attach(ours)
        reader = threading.Thread(target=ours.recv, args=(1,))
        reader.start()
        call.abort(InvocationCancelledError("enough"))
        reader.join(5.0)
        assert not reader.is_alive()
        assert theirs.recv(1) == b""
        with pytest.raises(InvocationCancelledError):
            call.attach(ours)


def test_a_socket_that_was_detached_is_left_alone() -> None:
    """It may serve another call."""
    call = CallHandle()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        call.attach(ours)
        call.detach()
        call.abort(InvocationCancelledError("enough"))
        theirs.send(b"x")
        assert ours.recv(1) == b"x"


def test_a_closed_socket_is_no_failure() -> None:
    """The connection may have gone a moment before."""
    call = CallHandle()
    ours, theirs = socket.socketpair()
    call.attach(ours)
    ours.close()
    theirs.close()
    assert call.abort(InvocationCancelledError("enough"))


def test_a_forked_child_leaves_the_connection_alone() -> None:
    """It is shared with the parent, who goes on using it."""
    call = CallHandle()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        call.attach(ours)
        pid = os.fork()
        if pid == 0:
            call.abort(InvocationCancelledError("child"))
            os._exit(0)
        os.waitpid(pid, 0)
        theirs.send(b"x")
        assert ours.recv(1) == b"x"


def test_waiting_ends_when_woken() -> None:
    """Before or while it waits; each wake counts once."""
    call = CallHandle()
    call.wake()
    call.wait(5.0)
    waker = threading.Thread(target=call.wake)
    waker.start()
    call.wait(5.0)
    waker.join()
    call.wait(0.01)


def test_a_scope_ends_what_runs_in_it_and_what_begins_later() -> None:
    """Ending the task of a thread ends each of its calls, also the next one."""
    scope, error = CallScope(), NetworkError("not wanted")
    seen: list[Exception] = []
    begun = threading.Event()

    def task() -> None:
        with scope.running():
            for _ in range(2):
                try:
                    begun.set()
                    pause(Deadline.after(30.0))
                except NetworkError as found:
                    seen.append(found)

    thread = threading.Thread(target=task)
    thread.start()
    assert begun.wait(5.0)
    assert scope.abort(error)
    assert not scope.abort(NetworkError("too late"))
    thread.join(5.0)
    assert [str(found) for found in seen] == ["not wanted"] * 2
    assert len({id(found) for found in (*seen, error)}) == 3  # a copy each
    with pytest.raises(NetworkError, match="not wanted"), scope.running():
        pytest.fail("an aborted scope was entered")


def test_an_inner_scope_ends_with_the_outer_one_and_not_the_other_way() -> None:
    """A launch inside a task ends with it; the task goes on after the launch."""
    outer, inner = CallScope(), CallScope()
    with outer.running():
        with inner.running():
            inner.abort(NetworkError("the inner one"))
            with pytest.raises(NetworkError, match="inner"), waiting() as handle:
                handle.wait(0.0)
        outer.check()
        inner = CallScope()
        with inner.running():
            outer.abort(NetworkError("the outer one"))
            with pytest.raises(NetworkError, match="outer"):
                pause(Deadline.after(30.0))


def test_cleaning_up_is_shielded() -> None:
    """What has to be done after an abort is not ended by it."""
    scope = CallScope()
    with scope.running():
        scope.abort(NetworkError("not wanted"))
        with shielded():
            pause(Deadline.after(0.0))
        with pytest.raises(NetworkError):
            pause(Deadline.after(0.0))


def test_a_call_that_goes_on_stays_in_its_first_scope() -> None:
    """A stream that was cut ends with its task, also while it waits to go on."""
    scope, call = CallScope(), CallHandle()
    with scope.running():
        call.begin()
    call.end()
    ender = threading.Timer(0.05, scope.abort, [NetworkError("not wanted")])
    ender.start()
    with pytest.raises(NetworkError, match="not wanted"):
        call.pause(Deadline.after(30.0))
    ender.join()


def test_a_signal_handler_may_wake_and_abort_at_any_step() -> None:
    """Of the thread of the call, too, while that waits or is just being woken."""
    for act in (CallHandle.wake, _abort):

        def begin(
            act: Callable[[CallHandle], object] = act,
        ) -> tuple[Callable[[], object], Callable[[], object]]:
            call = CallHandle()
            return partial(_wait_and_wake, call), partial(act, call)

        interrupt_everywhere(begin)


def _abort(call: CallHandle) -> None:
    call.abort(NetworkError("not wanted"))


def _wait_and_wake(call: CallHandle) -> None:
    with contextlib.suppress(NetworkError):
        call.wait(0.0)
        call.wake()
        call.wait(None)
