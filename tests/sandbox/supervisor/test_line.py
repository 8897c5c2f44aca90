"""The supervisor's end of the line, where platforms call."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from ppio_agent.sandbox.supervisor.line import Line, PlatformLine
from ppio_agent.sandbox.supervisor.loop import Loop


class Full(socket.socket):
    """A listener of a process that has no descriptor left."""

    asked = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.asked += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_call_that_cannot_be_taken_now_is_taken_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And does not keep the loop busy meanwhile."""
    monkeypatch.setattr("ppio_agent.sandbox.supervisor.line._ACCEPT_AGAIN", 0.05)
    loop, (ours, theirs) = Loop(), socket.socketpair()
    with Full() as listener, socket.socket() as caller, ours:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        line = PlatformLine(
            loop,
            listener,
            Line(theirs, None),
            on_message=lambda _: None,
            on_lost=lambda: None,
            on_taken=lambda: None,
        )
        caller.connect(listener.getsockname())
        loop.call_later(0.12, loop.stop)
        loop.run()

        assert 1 < listener.asked < 5
        line._drop()
