"""Ports: a sandbox's own listeners, told from those of other programs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.sandbox.supervisor import ports
from ppio_agent.sandbox.supervisor.listeners import Listener
from ppio_agent.sandbox.supervisor.ports import Ports, routes


def listening(host: str = "127.0.0.1") -> socket.socket:
    """Return a listening socket on a free port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.bind((host, 0))
    sock.listen()
    return sock


def own_ports() -> Ports:
    """Ports of this very process."""
    return Ports(lambda: [os.getpid()])


@settings(max_examples=100)
@given(
    st.lists(
        st.builds(
            Listener,
            st.sampled_from(["127.0.0.1", "0.0.0.0", "::", "::1", "127.0.0.2"]),
            st.just(1),
            st.sampled_from("abcdef"),
        )
    )
)
def test_a_route_names_all_at_the_most_specific_place(found: list[Listener]) -> None:
    """127.0.0.1 is answered by its own listeners, else by those of any address."""
    by_address: dict[str, set[str]] = {}
    for listener in found:
        by_address.setdefault(listener.address, set()).add(listener.inode)
    expected = []
    for host, order in (
        ("127.0.0.1", ("127.0.0.1", "0.0.0.0", "::")),
        ("::1", ("::1", "::")),
    ):
        places = [by_address[address] for address in order if address in by_address]
        if places:
            expected.append((host, places[0]))

    assert expected == routes(found)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_an_own_listener_is_found(host: str) -> None:
    """On loopback and on all addresses, of both families."""
    with listening(host) as sock:
        port = sock.getsockname()[1]
        found = own_ports().hosts(port)

        assert found
        for name in found:
            socket.create_connection((name, port), timeout=5).close()


def test_no_listener_no_host() -> None:
    """A port that is bound but does not listen is not found."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert own_ports().hosts(sock.getsockname()[1]) == []


def test_the_listener_of_another_process_is_not_ours() -> None:
    """Its port has no host, though it listens."""
    with listening() as sock:
        child = subprocess.Popen(
            [sys.executable, "-I", "-c", "input()"], stdin=subprocess.PIPE
        )
        try:
            outsider = Ports(lambda: [child.pid])
            assert outsider.hosts(sock.getsockname()[1]) == []
        finally:
            child.communicate()


def test_a_foreign_listener_at_a_more_specific_place_wins() -> None:
    """Ours on all addresses does not open the other's on 127.0.0.1."""
    with socket.socket() as ours, socket.socket() as theirs:
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ours.bind(("0.0.0.0", 0))
        port = ours.getsockname()[1]
        theirs.bind(("127.0.0.1", port))
        ours.listen()
        theirs.listen()
        inode = os.readlink(f"/proc/self/fd/{theirs.fileno()}")
        real = ports._holders

        def without_theirs(pids: object, links: set[str]) -> object:
            found = real(pids, links)
            found.pop(inode, None)
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ports, "_holders", without_theirs)
            assert own_ports().hosts(port) == []
        assert own_ports().hosts(port) == ["127.0.0.1"]


def test_a_program_outside_that_joins_a_known_port_closes_it() -> None:
    """The kernel may give it any connection; none is made from then on."""
    with socket.socket() as ours, socket.socket() as theirs:
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ours.bind(("127.0.0.1", 0))
        theirs.bind(ours.getsockname())
        ours.listen()
        port, pids = ours.getsockname()[1], [os.getpid()]
        mine = Ports(lambda: pids)
        assert mine.hosts(port) == ["127.0.0.1"]
        theirs.listen()
        pids.clear()  # as if what joins were held by another process

        assert mine.hosts(port) == []


def test_a_known_port_is_asked_anew_when_its_socket_is_gone() -> None:
    """What is remembered is looked at again before it is believed."""
    mine = own_ports()
    sock = listening()
    port = sock.getsockname()[1]
    assert mine.hosts(port) == ["127.0.0.1"]
    assert mine.hosts(port) == ["127.0.0.1"]
    sock.close()

    assert mine.hosts(port) == []


def test_psutil_finds_the_same_where_the_kernel_does_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other systems' way knows own listeners, of both families."""
    monkeypatch.setattr(ports, "_HAS_PROC", False)
    with listening() as sock, listening("::1") as sock_6:
        port, port_6 = sock.getsockname()[1], sock_6.getsockname()[1]

        assert own_ports().hosts(port) == ["127.0.0.1"]
        assert own_ports().hosts(port_6) == ["::1"]
        assert Ports(lambda: [2**22 + 1]).hosts(port) == []
