"""The hold on one supervisor, where the supervisor or the system fails it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from ppio_agent._util.threads import NoThreadError
from ppio_agent.exceptions import SandboxStartError, SandboxStateError
from ppio_agent.sandbox.backends import supervised
from ppio_agent.sandbox.backends.handles import ChildProcess, ProcessHandle
from ppio_agent.sandbox.backends.supervised import SupervisedSandbox
from ppio_agent.sandbox.backends.uplink import Uplink
from ppio_agent.sandbox.supervisor.channel import MessageReader
from tests.sandbox.sandboxkit import Lab
from tests.support import processes_marked, wait_until


class Given:
    """A supervisor's process that has ended, and whose pid is another's by now."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._looks = 0

    def wait(self, timeout: float) -> bool:
        """Return whether it has ended: not at the first look."""
        self._looks += 1
        return self._looks > 1

    def kill(self) -> None:
        """Signal nobody."""

    def close(self) -> None:
        """Let go of nothing."""


class Lost(Uplink):
    """A way to the network that is lost from the beginning."""

    def __init__(self) -> None:
        self.asked = 0

    def lost_before(self, sock: socket.socket) -> bool:
        self.asked += 1
        return True


def _hold(
    lab: Lab, process: ProcessHandle | None = None, uplink: Uplink | None = None
) -> tuple[SupervisedSandbox, socket.socket]:
    ours, theirs = socket.socketpair()
    sandbox = SupervisedSandbox(
        lab.spec(),
        process,
        ours,
        on_agent=lambda _: None,
        on_lost=lambda _: None,
        on_gone=lambda _: None,
        uplink=uplink,
    )
    assert not sandbox.start(None, timeout=0.0, thread_name="ppio-sandbox-test")
    return sandbox, theirs


def test_nothing_is_left_where_the_system_has_no_thread(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a process nor a socket, nor a hold that would be waited for."""

    def refuse(*_: object) -> None:
        raise NoThreadError("can't start new thread")

    spec = lab.spec("serve()")
    with monkeypatch.context() as patch:
        patch.setattr(supervised, "start_thread", refuse)
        with pytest.raises(SandboxStartError, match="can't start new thread"):
            lab.begin(spec)

    assert list(processes_marked(spec.sandbox_id)) == []
    assert not Path(spec.line.path).exists()


def test_descendants_of_another_process_with_its_pid_are_spared(lab: Lab) -> None:
    """They are nobody's of this sandbox."""
    with subprocess.Popen(
        ["/bin/sh", "-c", "sleep 100 & echo; wait"], stdout=subprocess.PIPE
    ) as another:
        assert another.stdout is not None
        another.stdout.readline()
        sandbox, theirs = _hold(lab, Given(another.pid))
        theirs.close()
        sandbox.kill(0.0)

        (below,) = _children(another.pid)
        assert Path(f"/proc/{below}/stat").read_text().split()[2] != "Z"
        os.kill(below, 9)


def test_a_lost_way_to_the_network_is_logged_once(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """The sandbox goes on."""
    uplink = Lost()
    sandbox, theirs = _hold(lab, uplink=uplink)
    wait_until(lambda: "has no network any more" in caplog.text)
    theirs.sendall(b"{}")
    theirs.close()
    sandbox.kill(0.0)

    assert uplink.asked == 1


def test_a_resume_that_fails_does_not_come_about_later(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts as paused would run on."""
    monkeypatch.setattr(supervised, "_ANSWER_LIMIT", 0.05)
    sandbox, theirs = _hold(lab)
    with pytest.raises(SandboxStateError):
        sandbox.resume()
    reader = MessageReader()
    asked: list[object] = []
    while len(asked) < 2:
        asked += [message["op"] for message in reader.feed(theirs.recv(4096))]
    theirs.close()
    sandbox.kill(0.0)

    assert asked == ["resume", "pause"]


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return list(map(int, text.split()))


def test_a_supervisor_that_was_stopped_from_inside_goes_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as it does not answer; what hangs is not left to its time to live."""
    sandbox = lab.serve()
    os.kill(sandbox.running.pid, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(supervised, "_ANSWER_LIMIT", 0.05)
        with pytest.raises(SandboxStateError, match="does not answer"):
            sandbox.running.usage()

    assert sandbox.running.usage().processes == 1
    assert sandbox.get()["count"] == 1
    assert sandbox.lost == []


def test_a_supervisor_that_never_answers_counts_as_lost(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a second request: its end is the end of its sandbox."""
    monkeypatch.setattr(supervised, "_ANSWER_LIMIT", 0.05)
    monkeypatch.setattr(supervised, "_SILENCE_LIMIT", 0.0)
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        sandbox, theirs = _hold(lab, ChildProcess(process))
        for _ in range(2):
            assert process.poll() is None
            with pytest.raises(SandboxStateError, match="does not answer"):
                sandbox.usage()
        assert process.wait(10) == -signal.SIGKILL
    theirs.close()
    sandbox.kill(0.0)
