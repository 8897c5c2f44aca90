"""Helpers that connect a sandbox; `test_security` has what they must not connect it to."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppio_agent.exceptions import SandboxStartError
from ppio_agent.sandbox.backends import uplink
from ppio_agent.sandbox.backends.uplink import (
    Helper,
    Uplink,
    connect,
    find_helpers,
    resolver,
)
from tests.support import needs_program, wait_until


def _add(folder: Path, name: str) -> None:
    program = folder / name
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)


def test_pasta_is_the_better_helper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are looked for where administrators have programs, too."""
    path, admin = tmp_path / "bin", tmp_path / "sbin"
    path.mkdir()
    admin.mkdir()
    monkeypatch.setattr("ppio_agent.sandbox.backends.uplink._ADMIN_PATH", str(admin))
    assert find_helpers(str(path)) == ()

    _add(path, "slirp4netns")
    _add(admin, "pasta")
    assert [(h.name, Path(h.path).parent) for h in find_helpers(str(path))] == [
        ("pasta", admin),
        ("slirp4netns", path),
    ]


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("pasta", ["--no-map-gw", "-t", "-u", "-T", "-U"]),
        ("slirp4netns", ["--disable-host-loopback"]),
    ],
)
def test_no_helper_maps_the_loopback_of_the_host(name: str, needed: list[str]) -> None:
    """Neither to the gateway nor port by port."""
    command = Helper(name=name, path=f"/usr/bin/{name}").command(uid=1000)

    assert command[0] == f"/usr/bin/{name}"
    assert set(needed) <= set(command)
    for option in {"-t", "-u", "-T", "-U"} & set(command):
        assert command[command.index(option) + 1] == "none"


def test_pasta_stays_root_where_root_starts_it() -> None:
    """The user that it would become may not enter the namespace."""
    pasta = Helper(name="pasta", path="pasta")

    assert "--runas" in pasta.command(uid=0)
    assert "--runas" not in pasta.command(uid=1000)


def test_names_are_asked_of_the_helper_in_the_domains_of_the_host() -> None:
    """Its own name server may be one of its loopback."""
    text = resolver(
        "# made by a program\nnameserver 127.0.0.53\n\noptions edns0\nsearch a.test b\n"
    )

    assert text.splitlines() == [
        "nameserver 10.0.2.3",
        "options edns0",
        "search a.test b",
    ]
    assert resolver("") == "nameserver 10.0.2.3\n"


class Connected:
    """This process, connected by a helper that does nothing but be there.

    Attributes:
        alive: What ends when the sandbox does; this end is the sandbox's.
    """

    def __init__(self, folder: Path) -> None:
        self._pids = folder / "pids"
        program = folder / "helper"
        program.write_text(f"#!/bin/sh\necho $$ >>{self._pids}\nexec sleep 100\n")
        program.chmod(0o755)
        reader, self.alive = os.pipe()
        self.uplink: Uplink = connect(
            [Helper(name="pasta", path=str(program))],
            os.getpid(),
            sandbox_id="s",
            alive=reader,
            log=folder / "log",
        )
        os.close(reader)

    def wait_helper(self, number: int) -> int:
        """Return the helper that was started as the so-manieth."""
        wait_until(lambda: len(self._started()) == number)
        return self._started()[-1]

    def _started(self) -> list[int]:
        text = self._pids.read_text() if self._pids.exists() else ""
        return list(map(int, text.split()))

    def end(self) -> None:
        """Be the end of the sandbox. Idempotent."""
        alive, self.alive = self.alive, -1
        if alive >= 0:
            os.close(alive)


@pytest.fixture
def connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connected]:
    needs_program("bwrap")  # where that can be there is network for namespaces
    hurried = uplink._WATCHED.replace("0 1 2 4 0", "0 0 0")
    assert hurried != uplink._WATCHED
    monkeypatch.setattr(uplink, "_WATCHED", hurried)
    monkeypatch.setattr(uplink, "_END_TOGETHER", 0.1)
    monkeypatch.setattr(uplink, "_has_route", lambda _: (tmp_path / "pids").exists())
    made = Connected(tmp_path)
    yield made
    made.uplink.close()
    made.end()


def _is_gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


def test_a_helper_that_dies_is_started_again_but_not_for_ever(
    connected: Connected,
) -> None:
    """Whether it is lost is known to who asks, and to who waits for a message."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for number in (1, 2, 3):
            assert not connected.uplink.lost
            os.kill(connected.wait_helper(number), signal.SIGKILL)
        assert connected.uplink.lost_before(ours)
        assert connected.uplink.lost

        theirs.sendall(b"message")
        assert not connected.uplink.lost_before(ours)


def test_a_sandbox_that_never_falls_silent_has_lost_its_helper_all_the_same(
    connected: Connected,
) -> None:
    """Messages that come sooner than a helper's loss is told do not put it off."""
    for number in (1, 2, 3):
        os.kill(connected.wait_helper(number), signal.SIGKILL)
    wait_until(lambda: connected.uplink.lost)
    ours, theirs = socket.socketpair()
    told, over = False, threading.Event()

    def talk() -> None:
        for _ in range(60):
            theirs.sendall(b"x")
            if over.wait(0.05):
                return

    talker = threading.Thread(target=talk)
    with ours, theirs:
        talker.start()
        try:
            while talker.is_alive() and not told:
                told = connected.uplink.lost_before(ours)
                if not told:
                    ours.recv(1)
            # Else it is that of silence.
            assert talker.is_alive()
        finally:
            over.set()
            talker.join()
    assert told


def test_a_helper_ends_with_its_sandbox(connected: Connected) -> None:
    """Without anybody who sees to it, and it is not started again."""
    helper = connected.wait_helper(1)
    connected.end()

    wait_until(lambda: _is_gone(helper) and connected.uplink.lost)
    assert connected.wait_helper(1) == helper


def test_a_sandbox_that_has_ended_has_not_lost_its_helper(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both end then, and the helper may be the first."""
    monkeypatch.setattr(uplink, "_END_TOGETHER", 30.0)
    ours, theirs = socket.socketpair()
    with ours:
        connected.end()
        wait_until(lambda: connected.uplink.lost)
        threading.Timer(0.1, theirs.close).start()

        assert not connected.uplink.lost_before(ours)


def test_closing_ends_a_helper_whoever_holds_its_pipe(connected: Connected) -> None:
    """As a forked child of the platform may."""
    helper = os.pidfd_open(connected.wait_helper(1))
    connected.uplink.close()
    ended, _, _ = select.select([helper], [], [], 0)
    os.close(helper)

    assert ended
    connected.uplink.close()


def test_a_helper_that_cannot_connect_is_started_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says is said."""
    needs_program("bwrap")
    monkeypatch.setattr(uplink, "_has_route", lambda _: False)
    program = tmp_path / "helper"
    program.write_text("#!/bin/sh\necho refused >&2\nexit 1\n")
    program.chmod(0o755)
    reader, writer = os.pipe()
    try:
        with pytest.raises(SandboxStartError) as caught:
            connect(
                [Helper(name="pasta", path=str(program))],
                os.getpid(),
                sandbox_id="s",
                alive=reader,
                log=tmp_path / "log",
            )
    finally:
        os.close(reader)
        os.close(writer)
    assert str(caught.value).count("refused") == 1
