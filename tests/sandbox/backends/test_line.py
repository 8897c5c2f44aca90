"""The platform's end of a line."""

from __future__ import annotations

import socket

from ppio_agent.sandbox.backends.line import hang_up


def test_hanging_up_is_noticed_though_another_process_has_the_line() -> None:
    """As a forked child of the platform, which is no reason to wait for it."""
    ours, theirs = socket.socketpair()
    with theirs, ours.dup():
        theirs.settimeout(5)
        hang_up(ours)
        assert theirs.recv(1) == b""


def test_hanging_up_is_possible_when_the_other_end_is_gone() -> None:
    """Twice, too."""
    ours, theirs = socket.socketpair()
    theirs.close()
    hang_up(ours)
    hang_up(ours)
