"""How a client ends that its program does not end, or ends in the midst of a call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ppio_agent.client import AgentRuntimeClient
from ppio_agent.exceptions import ClientClosedError, SessionClosedError
from tests.support import SLOW, wait_until
from tests.support_platform import KEY, Exchange, FakePlatform

_PROGRAM = """
import sys, threading
from ppio_agent.client import AgentRuntimeClient

client = AgentRuntimeClient(sys.argv[1], base_url=sys.argv[2])
{what}
print("on", flush=True)
threading.Event().wait(30.0)
"""
_WHAT = {
    "a session": 'session = client.create_session("tpl1")',
    "a future": 'client.submit("tpl1", "slow")',
}


@pytest.mark.parametrize("what", _WHAT)
def test_a_program_that_is_interrupted_leaves_no_sandbox(
    platform: FakePlatform, what: str
) -> None:
    """Also if it never closed its client; what runs is aborted."""
    assert _left_by(_WHAT[what], platform) == []


def test_a_conversation_outlives_the_program_that_began_it(
    platform: FakePlatform,
) -> None:
    """A worker that its server replaces must not end those of its visitors."""
    left = _left_by('client.invoke_agent("tpl1", "Hi", session_id="s")', platform)
    assert left == ["sb1"]


def _left_by(what: str, platform: FakePlatform) -> list[str]:
    """Interrupt a program that does this; return the sandboxes that it leaves."""
    late, running = threading.Event(), threading.Event()

    def answer(exchange: Exchange) -> None:
        running.set()
        if exchange.request.json() == {"prompt": "slow"}:
            late.wait(30.0)
            exchange.cut()
        else:
            exchange.reply(200, {"result": "x", "status": "success"})

    platform.on("POST", "/invocations", answer)
    source = _PROGRAM.format(what=what)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PPIO_")}
    with subprocess.Popen(
        [sys.executable, "-c", source, KEY, platform.url],
        env={**kept, "PPIO_PLUGINS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"on\n"
        wait_until(lambda: platform.alive and ("slow" not in what or running.is_set()))
        program.send_signal(signal.SIGINT)
        program.wait(20 * SLOW)
    late.set()
    return list(platform.alive)


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Say what SIGUSR1 does during the test."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda act: signal.signal(signal.SIGUSR1, lambda *_: act()) and None
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("path", ["/sandboxes$", "/ping", "/invocations"])
def test_a_signal_handler_may_close_the_client_of_the_call_it_interrupts(
    client: AgentRuntimeClient, platform: FakePlatform, on_signal: Any, path: str
) -> None:
    """It waits for nothing that cannot go on, and the sandbox is ended."""
    told: list[float] = []

    def interrupt(exchange: Exchange) -> None:
        if path == "/sandboxes$":
            platform.create_unanswered(exchange)
        if not told:
            told.append(time.monotonic())
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        wait_until(lambda: len(told) > 1)
        exchange.cut()

    def close() -> None:
        client.close()
        told.append(time.monotonic())

    on_signal(close)
    platform.on("GET" if path == "/ping" else "POST", path, interrupt)
    with pytest.raises((ClientClosedError, SessionClosedError)):
        client.invoke_agent("tpl1", "Hi")

    assert told[1] - told[0] < 3.0 * SLOW
    assert platform.alive == []
