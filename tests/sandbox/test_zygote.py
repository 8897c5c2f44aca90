"""The zygote by itself: what it answers, and when it ends."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterator

import pytest

from ppio_agent.sandbox.supervisor import tree
from ppio_agent.sandbox.supervisor.channel import encode_message, receive_one
from ppio_agent.sandbox.zygote import Request, Zygote

WANTED = {"sandbox_id": "a" * 20, "cwd": "/", "log": "/log"}
REQUEST = {"id": 7, **WANTED}


@pytest.fixture
def sigchld() -> Iterator[None]:
    """Signals as they were, after the test."""
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, handler)


def ask(line: socket.socket) -> int:
    """Ask for a supervisor with one end of a pipe as its listener; return the other."""
    reader, writer = os.pipe()
    socket.send_fds(line, [encode_message(REQUEST)], [writer])
    os.close(writer)
    return reader


@pytest.mark.usefixtures("sigchld")
def test_a_fork_that_fails_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason, and nothing of the request is kept; the line's end ends it."""
    ours, theirs = socket.socketpair()
    zygote = Zygote(theirs, os.pidfd_open(os.getpid()))
    reader = ask(ours)
    ours.shutdown(socket.SHUT_WR)

    def fork() -> int:
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(os, "fork", fork)
    assert zygote.serve() is None
    zygote._leave()

    assert receive_one(ours) == ({"ready": True}, None)
    answer, _ = receive_one(ours)
    assert answer["reply"] == 7
    assert "no more processes" in answer["error"]
    assert os.read(reader, 1) == b""
    os.close(reader)
    ours.close()


@pytest.mark.usefixtures("sigchld")
def test_a_fork_has_its_request_and_nothing_of_the_zygote(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its line, its handles and its signals are the zygote's alone."""
    ours, theirs = socket.socketpair()
    before = len(os.listdir("/proc/self/fd"))
    zygote = Zygote(theirs, os.pidfd_open(os.getpid()))
    reader = ask(ours)
    monkeypatch.setattr(os, "fork", lambda: 0)
    request = zygote.serve()

    assert isinstance(request, Request)
    assert request._replace(listener=-1) == Request(**WANTED, listener=-1)
    os.write(request.listener, b"x")
    assert os.read(reader, 1) == b"x"
    os.close(request.listener)
    os.close(reader)
    assert len(os.listdir("/proc/self/fd")) <= before - 1  # its end of the line
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    ours.close()


@pytest.mark.usefixtures("sigchld")
def test_a_platform_that_has_ended_asks_for_nothing_more() -> None:
    """Even if somebody holds its end of the line."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    zygote = Zygote(theirs, os.pidfd_open(pid))

    assert zygote.serve() is None
    zygote._leave()
    os.waitpid(pid, 0)
    ours.close()


@pytest.mark.usefixtures("sigchld")
def test_children_that_never_cease_to_end_do_not_keep_it_from_its_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As those of a program that forks on and on; the platform is heard all the same."""
    ours, theirs = socket.socketpair()
    zygote = Zygote(theirs, os.pidfd_open(os.getpid()))
    monkeypatch.setattr(os, "waitpid", lambda *_: (2**22 + 1, 0))
    monkeypatch.setattr(tree, "table", dict)
    reader = ask(ours)
    os.kill(os.getpid(), signal.SIGCHLD)
    monkeypatch.setattr(os, "fork", lambda: 0)
    request = zygote.serve()

    assert request is not None
    os.close(request.listener)
    os.close(reader)
    ours.close()


@pytest.mark.usefixtures("sigchld")
def test_thousands_of_ended_children_do_not_each_cost_a_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are reaped first, for as long as they are there the look takes longer."""
    ours, theirs = socket.socketpair()
    zygote = Zygote(theirs, os.pidfd_open(os.getpid()))
    ended = iter([(2**22 + 1, 0)] * 10_000)

    def wait(*_: int) -> tuple[int, int]:
        for each in ended:
            return each
        raise ChildProcessError

    looks: list[int] = []
    monkeypatch.setattr(os, "waitpid", wait)
    monkeypatch.setattr(tree, "table", lambda: looks.append(1) or {})
    os.kill(os.getpid(), signal.SIGCHLD)
    ours.shutdown(socket.SHUT_WR)
    assert zygote.serve() is None
    zygote._leave()

    assert list(ended) == []
    assert 1 <= len(looks) <= 5  # one now and then, and one at the end
    ours.close()
