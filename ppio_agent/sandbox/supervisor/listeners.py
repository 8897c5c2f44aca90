"""The listening TCP sockets of this machine, from the kernel.

Asked over netlink, which visits listening sockets alone: a read of `/proc/net/tcp`
goes through the hash table of all connections, some milliseconds each time. Where
netlink does not know TCP sockets the tables are read.

Source: sock_diag(7), proc(5).
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import NamedTuple

__all__ = ["Listener", "listeners", "parse_diag", "parse_table"]

_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_MSG_ERROR = 2
_MSG_DONE = 3
_STATE_LISTEN = 10
_HEAD = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI2s46x")
_ANSWER = struct.Struct("=B3x2s2x16s28x16xI")
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_MAPPED = "::ffff:"


class Listener(NamedTuple):
    """One listening socket.

    Attributes:
        address: As text; a mapped IPv4 address as the IPv4 address.
        port: Its port.
        inode: What a link in `/proc/<pid>/fd` names.
    """

    address: str
    port: int
    inode: str


def listeners(port: int) -> list[Listener]:
    """Return the TCP sockets of both families that listen on a port."""
    try:
        return [
            listener
            for family in (socket.AF_INET, socket.AF_INET6)
            for listener in _ask(family, port)
        ]
    except OSError:
        return [found for found in _read_tables() if found.port == port]


def _ask(family: socket.AddressFamily, port: int) -> list[Listener]:
    states = 1 << _STATE_LISTEN
    wanted = port.to_bytes(2, "big")
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, states, wanted)
    head = _HEAD.pack(_HEAD.size + len(body), _SOCK_DIAG_BY_FAMILY, _DUMP, 0, 0)
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, _SOCK_DIAG) as sock:
        sock.send(head + body)
        found: list[Listener] = []
        more = True
        while more:
            part, more = parse_diag(sock.recv(65536))
            found += part
    return found


def parse_diag(data: bytes) -> tuple[list[Listener], bool]:
    """Return what one answer of the kernel names, and whether another follows. Pure.

    Raises:
        OSError: The kernel refuses.
    """
    found: list[Listener] = []
    while len(data) >= _HEAD.size:
        length, kind, *_ = _HEAD.unpack_from(data)
        body = data[_HEAD.size : length]
        if kind == _MSG_ERROR:
            raise OSError(-struct.unpack_from("=i", body)[0], "netlink refuses")
        if kind == _MSG_DONE:
            return found, False
        family, port, address, inode = _ANSWER.unpack_from(body)
        size = 4 if family == socket.AF_INET else 16
        number = int.from_bytes(port, "big")
        found.append(Listener(_text(address[:size]), number, str(inode)))
        data = data[(length + 3) & ~3 :]
    return found, True


def _read_tables() -> list[Listener]:
    found: list[Listener] = []
    for path in _TABLES:
        try:
            with open(path, encoding="ascii") as file:
                found += parse_table(file.read())
        except FileNotFoundError:  # no IPv6
            continue
    return found


def parse_table(text: str) -> list[Listener]:
    """Return the listening sockets of a `/proc/net/tcp` or `tcp6` table. Pure."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or int(fields[3], 16) != _STATE_LISTEN:
            continue
        words, _, port = fields[1].partition(":")
        # Words of 32 bits, each in the order of the machine.
        step = -1 if sys.byteorder == "little" else 1
        raw = bytes.fromhex(words)
        address = b"".join(raw[n : n + 4][::step] for n in range(0, len(raw), 4))
        found.append(Listener(_text(address), int(port, 16), fields[9]))
    return found


def _text(address: bytes) -> str:
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    text = socket.inet_ntop(family, address)
    # A socket of the one family that serves the other.
    if text.startswith(_MAPPED) and "." in text:
        return text.removeprefix(_MAPPED)
    return text
