"""The platform's end of the line to a supervisor; `supervisor.line` is the other."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress

from ppio_agent.sandbox.supervisor.channel import encode_message

from .base import LineAddress

__all__ = ["CALL_LIMIT", "call", "hang_up", "listen"]

CALL_LIMIT = 1.0
"""Seconds within which a supervisor that is there takes a call."""

_SEND_LIMIT = 5
_BACKLOG = 4


def listen(line: LineAddress) -> socket.socket:
    """Make the socket at which a supervisor is reached; it is for the supervisor.

    Raises:
        OSError: It cannot be made there.
    """
    with suppress(FileNotFoundError):
        os.unlink(line.path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(line.path)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def call(line: LineAddress, *, adopt: bool = False) -> socket.socket:
    """Connect to a supervisor, or to one that is yet to be started, and greet it.

    Args:
        line: Where it is.
        adopt: Whether to take over its sandbox, for which the secret is said; the
            first to call must not say it, for a fork of who hears it is the agent.

    Raises:
        OSError: Nobody listens there.

    Blocking: a second at most.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(CALL_LIMIT)
        sock.connect(line.path)
        greeting = {"hello": line.secret if adopt else ""}
        try:
            handle = os.pidfd_open(os.getpid())
        except (AttributeError, OSError):
            sock.sendall(encode_message(greeting))
        else:
            try:
                socket.send_fds(sock, [encode_message(greeting)], [handle])
            finally:
                os.close(handle)
        # A supervisor that does not read must not hold its callers for ever.
        sock.settimeout(None)
        limit = struct.pack("ll", _SEND_LIMIT, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    except BaseException:
        sock.close()
        raise
    return sock


def hang_up(sock: socket.socket) -> None:
    """Close a line, also where a fork of this process has it."""
    with suppress(OSError):  # the other end is gone
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
