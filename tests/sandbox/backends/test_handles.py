"""Handles of processes: never mistaken for another's, also while they are let go of."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from ppio_agent.sandbox.backends.handles import ForeignProcess
from tests.support import needs_program


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    needs_program("bwrap")  # not everywhere are there such handles
    with subprocess.Popen(["sleep", "100"]) as process:
        yield process
        process.kill()


def test_a_handle_can_be_closed_by_one_while_another_signals(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor is not closed, and so not another's, before that is done."""
    process = ForeignProcess(os.pidfd_open(child.pid))
    send = signal.pidfd_send_signal

    def close_and_send(pidfd: int, signum: int) -> None:
        process.close()
        used.append(pidfd)
        send(pidfd, signum)

    used: list[int] = []
    monkeypatch.setattr(signal, "pidfd_send_signal", close_and_send)
    process.kill()

    assert child.wait(10) == -signal.SIGKILL
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(used[0])
    assert process.wait(0.0)
    process.kill()
    assert len(used) == 1


def test_a_signal_that_is_refused_is_no_error_of_a_kill(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever ends a sandbox goes on with the rest of it."""
    process = ForeignProcess(os.pidfd_open(child.pid))

    def refuse(*_: int) -> None:
        raise PermissionError("refused")

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    process.kill()
    assert not process.wait(0.0)
    process.close()
