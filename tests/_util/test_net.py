"""Addresses that lead to this machine, and those that cannot be listened on."""

from __future__ import annotations

import errno
import os

import pytest

from ppio_agent._util.net import authority_of, is_loopback, listening_error


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("agent.localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.1", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_only_this_machine_is_loopback(host: str, *, local: bool) -> None:
    """A name that merely looks local is not."""
    assert is_loopback(host) is local


def test_a_taken_port_is_named_with_what_to_do() -> None:
    """The address is in the error, and so is the way out."""
    taken = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    error = listening_error(taken, "127.0.0.1", 8080)
    assert error.errno == errno.EADDRINUSE
    assert str(error.strerror) == (
        "127.0.0.1:8080 is taken by another program; choose another port"
    )
    other = listening_error(OSError(errno.EACCES, "Permission denied"), "::", 80)
    assert other.strerror == "cannot listen on :::80: Permission denied"


@pytest.mark.parametrize(
    ("host", "authority"),
    [
        ("127.0.0.1", "127.0.0.1:80"),
        ("box.example", "box.example:80"),
        ("::1", "[::1]:80"),
        ("0.0.0.0", "127.0.0.1:80"),
        ("::", "[::1]:80"),
    ],
)
def test_a_listener_is_reached_where_it_listens(host: str, authority: str) -> None:
    """One at all addresses by that of this machine."""
    assert authority_of(host, 80) == authority
