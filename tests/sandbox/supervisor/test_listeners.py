"""The kernel's answer about listening sockets, in both of its forms."""

from __future__ import annotations

import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.sandbox.supervisor import listeners as module
from ppio_agent.sandbox.supervisor.listeners import (
    Listener,
    listeners,
    parse_diag,
    parse_table,
)

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid ...
   0: 0100007F:1F90 00000000:0000 0A 0:0 00:0 0     0        0 101 1 0 100 0 0 10 0
   1: 0100007F:1F90 0100007F:A000 01 0:0 00:0 0     0        0 102 1 0 20 4 30 10 -1
   2: 0000000000000000FFFF00000100007F:0050 0:0000 0A 0:0 00:0 0 0 0 103 1 0
   3: 00000000000000000000000001000000:0051 0:0000 0A 0:0 00:0 0 0 0 104 1 0
short line
"""


def test_a_table_gives_listening_sockets_only() -> None:
    """Connections are left out; a mapped IPv4 address is an IPv4 address."""
    assert [
        Listener("127.0.0.1", 0x1F90, "101"),
        Listener("127.0.0.1", 0x50, "103"),
        Listener("::1", 0x51, "104"),
    ] == parse_table(TABLE)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"]
)
def test_both_forms_tell_of_a_socket_alike(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Netlink and the tables give the same address, port and inode."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        sock.listen()
        port = sock.getsockname()[1]
        by_netlink = listeners(port)

        def refuse(*_: object) -> list[Listener]:
            raise OSError(errno.ENOENT, "no such module")

        monkeypatch.setattr(module, "_ask", refuse)
        by_table = listeners(port)

    assert by_netlink == by_table
    assert [host.removeprefix("::ffff:")] == [found.address for found in by_netlink]


def test_a_socket_that_does_not_listen_is_not_told() -> None:
    """Bound is not listening."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]

        assert listeners(port) == []


def test_a_refusal_of_the_kernel_is_an_error() -> None:
    """With its number."""
    answer = struct.pack("=IHHIIi", 20, 2, 0, 0, 0, -errno.ENOENT)

    with pytest.raises(FileNotFoundError):
        parse_diag(answer)


def test_an_answer_may_come_in_parts() -> None:
    """Only the last one says that it is."""
    assert parse_diag(b"") == ([], True)
    assert parse_diag(struct.pack("=IHHIIi", 20, 3, 2, 0, 0, 0)) == ([], False)


@given(st.text(alphabet="0123456789ABCDEF: \n", max_size=200))
def test_a_table_of_nonsense_gives_nothing(text: str) -> None:
    """Lines that are too short are passed over."""
    lines = [line for line in text.splitlines() if len(line.split()) < 10]

    assert parse_table("\n".join(["head", *lines])) == []
