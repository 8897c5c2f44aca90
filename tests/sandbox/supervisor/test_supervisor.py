"""What goes on inside a sandbox neither stops nor ends its supervisor."""

from __future__ import annotations

import json
import os
import resource
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from ppio_agent.exceptions import SandboxStateError
from ppio_agent.sandbox.backends import supervised
from ppio_agent.sandbox.backends.base import AGENT_PORT, ENVD_PORT
from ppio_agent.sandbox.supervisor import main
from ppio_agent.sandbox.supervisor.main import Supervisor
from ppio_agent.wire.connect import STREAM_CONTENT_TYPE, encode_frame
from tests.sandbox.sandboxkit import Lab
from tests.support import wait_until


def test_without_a_descriptor_left_requests_fail_and_the_sandbox_lives(
    lab: Lab,
) -> None:
    """When there are some again all is as before."""
    sandbox = lab.serve()
    pid = sandbox.running.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    for port in (ENVD_PORT, AGENT_PORT):
        with pytest.raises(ConnectionRefusedError):
            sandbox.running.dial(port, 5.0)
    with pytest.raises(SandboxStateError, match="pause failed"):
        sandbox.running.pause()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    assert sandbox.get()["count"] == 1
    assert sandbox.running.usage().processes == 1
    assert sandbox.lost == []


def test_callers_do_not_get_the_last_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The supervisor needs some to look after the sandbox."""
    reader, writer = os.pipe()
    monkeypatch.setattr(main, "READY_FD", reader)
    Supervisor._refuse_crowd(_as_supervisor(_most_files=4096))
    with pytest.raises(OSError, match="Too many open files"):
        Supervisor._refuse_crowd(_as_supervisor(_most_files=reader))
    os.close(reader)
    os.close(writer)


def test_children_that_end_without_end_are_taken_note_of_by_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What else is due comes between."""
    now = 0.0

    def wait(*_: int) -> tuple[int, int]:
        nonlocal now
        now += 0.001
        return 1, 0

    monkeypatch.setattr(main.os, "waitpid", wait)
    later: list[Any] = []
    supervisor = _as_supervisor(
        _programs={},
        _orphans=1000,
        _loop=SimpleNamespace(
            now=lambda: now, call_later=lambda _, call: later.append(call)
        ),
        _on_signal=lambda signum: signum,
    )

    assert Supervisor._reap(supervisor)
    assert now < 1
    assert [call() for call in later] == [signal.SIGCHLD]


def test_thousands_of_ended_children_are_taken_note_of_in_one_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What comes between may be a look at all of them, again and again."""
    ended = iter([(1, 0)] * 10_000 + [(0, 0)])
    monkeypatch.setattr(main.os, "waitpid", lambda *_: next(ended))
    later: list[object] = []
    loop = SimpleNamespace(
        now=lambda: 0.0, call_later=lambda _, call: later.append(call)
    )
    supervisor = _as_supervisor(_programs={}, _orphans=0, _sample="counted", _loop=loop)

    assert Supervisor._reap(supervisor)
    assert list(ended) == []
    assert later == ["counted"]  # for what makes so many may go on and on


def test_what_forks_on_and_on_is_killed_before_it_is_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A look at all processes takes longer than it takes them to become more."""
    told: list[object] = []
    monkeypatch.setattr(main.tree, "kill_groups", told.append)
    supervisor = _as_supervisor(
        _pid=7,
        _kill_at=0.0,
        _finish_timer=None,
        _finish=None,
        _seems_empty=False,
        _loop=SimpleNamespace(now=lambda: 0.0, call_later=lambda *_: None),
        _members=lambda: told.append("looked") or {main.tree.Process(-1, 0.0)},
    )
    monkeypatch.setattr(main.tree, "send", lambda process, _: told.append(process.pid))
    Supervisor._finish(supervisor)

    assert told == [7, "looked", -1]


def test_what_the_end_of_one_program_leads_to_hides_no_other_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is one signal for all that have ended meanwhile."""
    told: list[int] = []

    def fail(_: int) -> None:
        raise ValueError("it fails")

    ended = iter([(1, 0), (2, 7), (0, 0)])
    monkeypatch.setattr(main.os, "waitpid", lambda *_: next(ended))
    programs = {1: SimpleNamespace(reaped=fail), 2: SimpleNamespace(reaped=told.append)}
    loop = SimpleNamespace(now=lambda: 0.0)

    assert Supervisor._reap(_as_supervisor(_programs=programs, _loop=loop))
    assert told == [7]
    assert "ValueError: it fails" in capsys.readouterr().err


def test_no_program_starts_in_a_paused_sandbox(lab: Lab) -> None:
    """Not even one that was asked for before it was paused."""
    sandbox = lab.serve()
    body = encode_frame(json.dumps({"process": {"cmd": "/bin/sleep"}}).encode())
    with sandbox.running.dial(ENVD_PORT, 5.0) as sock:
        sock.settimeout(10)
        sock.sendall(
            b"POST /process.Process/Start HTTP/1.1\r\nHost: x\r\nContent-Type:"
            b" %s\r\nContent-Length: %d\r\n\r\n"
            % (STREAM_CONTENT_TYPE.encode(), len(body))
            + body[:-1]
        )
        sandbox.running.pause()
        sock.sendall(body[-1:])
        answer = b""
        while b"the sandbox is paused" not in answer:
            more = sock.recv(65536)
            assert more, answer
            answer += more
    assert sandbox.running.usage().processes == 1
    sandbox.running.resume()
    assert sandbox.get()["count"] == 1


def test_a_pause_that_was_given_up_does_not_come_about(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sandbox counts as running, and so it runs."""
    sandbox = lab.serve()
    os.kill(sandbox.running.pid, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(supervised, "_ANSWER_LIMIT", 0.05)
        with pytest.raises(SandboxStateError, match="does not answer"):
            sandbox.running.pause()
    os.kill(sandbox.running.pid, signal.SIGCONT)

    assert sandbox.get()["count"] == 1
    assert not sandbox.running.paused


def test_what_a_supervisor_holds_counts_as_memory_of_the_sandbox(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Above a share of its own."""
    mib = 2**20
    told: list[str] = []
    supervisor = _as_supervisor(
        _ending=False,
        _sample_delay=0.5,
        _sample_in=lambda _: None,
        _sampled=None,
        _load=lambda: main.tree.Load(0.0, 60 * mib, 1),
        _call_idle=lambda _: None,
        _gauge=SimpleNamespace(own_bytes=150 * mib),
        _own_memory=100 * mib,
        _boot=SimpleNamespace(memory_bytes=100 * mib),
        _over=told.append,
    )
    Supervisor._sample(supervisor)

    assert told == [f"{110 * mib} bytes of memory, the limit is {100 * mib}"]


def test_an_idle_sandbox_is_not_asked_again_what_it_uses(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says by itself when that changes."""
    sandbox = lab.serve()

    def known() -> float | None:
        try:
            return sandbox.running.usage(fresh=False).cpu_seconds
        except SandboxStateError:
            return None

    idle: float | None = None

    def idles() -> bool:
        nonlocal idle
        idle = known()
        return idle is not None

    with monkeypatch.context() as patch:
        patch.setattr(supervised, "_ANSWER_LIMIT", 0.0)  # nobody answers so soon
        wait_until(idles, what="it says that it is idle")
        sandbox.sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done").output()
        wait_until(lambda: known() != idle, what="it says that it is not")
    assert idle is not None
    assert sandbox.running.usage(fresh=False).cpu_seconds > idle


def test_a_sandbox_that_is_reached_does_not_count_as_idle() -> None:
    """At once, not from the next look on: it may stop its supervisor before that."""
    told: list[object] = []
    supervisor = _as_supervisor(
        _call_idle=told.append, _sample_delay=2.0, _sample_in=told.append
    )
    Supervisor._sample_soon(supervisor)

    assert told == [None, 0.5]


def _as_supervisor(**attributes: object) -> Any:
    return SimpleNamespace(**attributes)
