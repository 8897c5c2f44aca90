"""Which listening ports belong to a sandbox, and how they are reached.

In the process backend all sandboxes share the loopback of the machine. The edge may
open a port only if a process of the sandbox listens there; otherwise it would open any
local service. This is decided before a connection is made, so that a program outside
never sees one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from .listeners import Listener, listeners

__all__ = ["AGENT_PORT", "ENVD_PORT", "Ports", "open_hosts", "routes"]

AGENT_PORT = 8080
"""Logical port of the agent, whichever port it really listens on."""

ENVD_PORT = 49983
"""Logical port of the in-sandbox controller."""

_HAS_PROC = os.path.isdir("/proc/self/fd")


def routes(found: Iterable[Listener]) -> list[tuple[str, set[str]]]:
    """Return how the listeners of a loopback port are reached, best first. Pure.

    The kernel gives a connection to the most specific listener. Several may share that
    place (`SO_REUSEPORT`), and any of them may get the connection.

    Returns:
        Pairs of the host to connect to and the inodes of all who may answer there.
    """
    places: dict[str, set[str]] = {}
    for listener in found:
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
    return [host for host, _ in routes(listeners(port))]


def _holders(pids: Iterable[int], links: set[str]) -> dict[str, str]:
    """Return, for each link, where one of the processes has it as a descriptor."""
    found: dict[str, str] = {}
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
                found.setdefault(link, path)
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
        # Where the sandbox holds the listeners of a port: one look at a link tells
        # that it still does, instead of all descriptors of all its processes.
        self._known: dict[int, dict[str, str]] = {}

    def hosts(self, port: int) -> list[str]:
        """Return the hosts to try for `port`, best first; none if it is not ours."""
        if not _HAS_PROC:
            return _own_hosts(self._pids(), port)
        # Asked each time, for somebody outside may have joined the port since.
        ways = [
            (host, {f"socket:[{inode}]" for inode in inodes})
            for host, inodes in routes(listeners(port))
        ]
        links: set[str] = set().union(*(needed for _, needed in ways))
        owners = {
            link: path
            for link, path in self._known.pop(port, {}).items()
            if link in links and _readlink(path) == link
        }
        if links - owners.keys():
            owners |= _holders(self._pids(), links - owners.keys())
        if owners:
            self._known[port] = owners
        return [host for host, needed in ways if needed <= owners.keys()]
