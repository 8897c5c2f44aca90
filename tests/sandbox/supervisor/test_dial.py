"""Dials: what goes wrong in one is its answer, and nothing else."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from ppio_agent.sandbox.supervisor import dial
from ppio_agent.sandbox.supervisor.dial import Dial
from ppio_agent.sandbox.supervisor.loop import Loop


def test_a_dial_without_a_descriptor_left_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once, and at once."""

    def full(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(dial.socket, "socket", full)
    loop, told = Loop(), []
    ways = iter([("127.0.0.1", 1)])
    Dial(loop, ways, timeout=0.0, done=told.append).begin()
    loop.call_later(0.01, loop.stop)
    loop.run()

    assert told == ["refused"]
