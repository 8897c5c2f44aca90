"""Which listening ports belong to a sandbox, and how they are reached.

In the process backend all sandboxes share the loopback of the machine. The edge may
open a port only if a process of the sandbox listens there; otherwise it would open any
local service. This is decided before a connection is made, so that a program outside
never sees one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from .listeners import Listener, listeners

__all__ = ["AGENT_PORT", "ENVD_PORT", "Ports", "open_hosts", "routes"]

AGENT_PORT = 8080
"""Logical port of the agent, whichever port it really listens on."""

ENVD_PORT = 49983
"""Logical port of the in-sandbox controller."""

_HAS_PROC = os.path.isdir("/proc/self/fd")


class _Owner(NamedTuple):
    """A descriptor through which the sandbox holds a listener."""

    path: str
    link: str


def routes(found: Iterable[Listener], port: int) -> list[tuple[str, set[str]]]:
    """Return how a loopback port can be reached, best first. Pure.

    The kernel gives a connection to the most specific listener. Several may share that
    place (`SO_REUSEPORT`), and any of them may get the connection.

    Returns:
        Pairs of the host to connect to and the inodes of all who may answer there.
    """
    places: dict[str, set[str]] = {}
    for listener in found:
        if listener.port == port:
            places.setdefault(listener.address, set()).add(listener.inode)
    ways = []
    for host, addresses in (
        ("127.0.0.1", ("127.0.0.1", "0.0.0.0", "::")),
        ("::1", ("::1", "::")),
    ):
        place = next((a for a in addresses if a in places), None)
        if place is not None:
            ways.append((host, places[place]))
    return ways


def open_hosts(port: int) -> list[str]:
    """Return the hosts to try for `port`, best first, where every port is our own.

    So it is in a network namespace of one sandbox.
    """
    return [host for host, _ in routes(listeners(), port)]


def _holders(pids: Iterable[int], links: set[str]) -> dict[str, _Owner]:
    """Return, for each link, a descriptor of one of the processes that is it."""
    found: dict[str, _Owner] = {}
    for pid in pids:
        folder = f"/proc/{pid}/fd"
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            path = f"{folder}/{name}"
            link = _readlink(path)
            if link in links:
                found.setdefault(link, _Owner(path, link))
        if len(found) == len(links):
            break
    return found


def _own_hosts(pids: Iterable[int], port: int) -> list[str]:
    """Return the hosts of the processes' own listeners, where the kernel does not tell.

    It cannot be seen there whether a program outside listens at the same port, too.
    """
    import psutil

    hosts: set[str] = set()
    for pid in pids:
        try:
            connections = psutil.Process(pid).net_connections("tcp")
        except psutil.Error:
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1] == port:
                hosts.add("::1" if connection.laddr[0] == "::1" else "127.0.0.1")
    return sorted(hosts)


def _readlink(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


class Ports:
    """Finds the hosts at which a sandbox's own ports are reached.

    Args:
        pids: Gives the processes of the sandbox.

    Thread safety: one thread at a time.
    """

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids
        self._known: dict[int, tuple[list[str], list[_Owner]]] = {}

    def hosts(self, port: int) -> list[str]:
        """Return the hosts to try for `port`, best first; none if it is not ours."""
        if not _HAS_PROC:
            return _own_hosts(self._pids(), port)
        known = self._known.get(port)
        if known is not None:
            # A socket that is still held still listens: one look at a link instead
            # of the sockets of the whole machine.
            if all(_readlink(owner.path) == owner.link for owner in known[1]):
                return known[0]
            del self._known[port]
        return self._find(port)

    def _find(self, port: int) -> list[str]:
        ways = routes(listeners(), port)
        if not ways:
            return []
        links = {f"socket:[{inode}]" for _, inodes in ways for inode in inodes}
        owners = _holders(self._pids(), links)
        hosts: list[str] = []
        held: set[str] = set()
        for host, inodes in ways:
            needed = {f"socket:[{inode}]" for inode in inodes}
            if needed <= owners.keys():
                hosts.append(host)
                held |= needed
        if hosts:
            self._known[port] = (hosts, [owners[link] for link in held])
        return hosts
