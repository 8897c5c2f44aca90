"""Binding, running until a signal, and other servers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from ppio_agent._util.threads import start_thread
from ppio_agent.exceptions import ConfigurationError
from ppio_agent.serving import ApiKeyAuth, PPIOAgentRuntimeServer
from tests.serving.support import make_app
from tests.serving.support_process import listens
from tests.support import wait_until
from tests.support_net import free_port

AGENT = """
from ppio_agent import PPIOAgentRuntimeApp, RequestContext
app = PPIOAgentRuntimeApp(drain_timeout=10)

@app.entrypoint
def agent(request, context: RequestContext):
    return [request, context.request_id]

if __name__ == "__main__":
    app.run()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "agent_script.py"
    path.write_text(textwrap.dedent(AGENT))
    return path


def test_an_open_address_needs_authentication() -> None:
    """Or somebody who says that it does not."""
    with pytest.raises(ConfigurationError, match="allow_unauthenticated=True"):
        make_app().server(host="0.0.0.0", port=0)
    for app in (
        make_app(allow_unauthenticated=True),
        make_app(auth=ApiKeyAuth(["key"])),
    ):
        with app.server(host="0.0.0.0", port=0) as server:
            assert server.port > 0


def test_run_refuses_an_open_address_too() -> None:
    """Before it listens."""
    with pytest.raises(ConfigurationError, match=r"0\.0\.0\.0"):
        make_app().run(host="0.0.0.0", port=0)


def test_in_a_sandbox_the_environment_names_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It wins over arguments, and the edge authenticates."""
    port = free_port()
    monkeypatch.setenv("PPIO_SANDBOX_ID", "sb1")
    monkeypatch.setenv("HOST", "127.0.0.1")
    monkeypatch.setenv("PORT", str(port))
    with make_app().server(host="0.0.0.0", port=1) as server:
        assert server.port == port


def test_a_taken_port_is_an_os_error() -> None:
    """And says so."""
    with make_app().server(port=0) as server, pytest.raises(OSError, match="taken"):
        make_app().server(port=server.port).start()


def test_what_was_started_up_is_shut_down_if_it_cannot_listen() -> None:
    """The functions of both ends run in pairs."""
    app, ran = make_app(), []
    app.on_startup(lambda: ran.append("up"))
    app.on_shutdown(lambda: ran.append("down"))
    with make_app().server(port=0) as server, pytest.raises(OSError, match="taken"):
        app.server(port=server.port).start()
    assert ran == ["up", "down"]


def test_a_server_can_be_waited_for_and_closed_twice() -> None:
    """From another thread."""
    server = PPIOAgentRuntimeServer(make_app(), port=0).start()
    assert not server.wait(0.01)
    start_thread("closer", server.close)
    assert server.wait(10)
    assert server.close()
    assert server.url.startswith("http://127.0.0.1:")


def test_run_says_that_it_is_ready_and_ends_by_a_signal(script: Path) -> None:
    """One byte on the descriptor; exit status 0."""
    read, write = os.pipe()
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PPIO_AGENT_PORT": str(port), "PPIO_READY_FD": str(write)},
        pass_fds=[write],
    )
    os.close(write)
    try:
        assert os.read(read, 10) == b"1"
        assert os.read(read, 10) == b""
        assert listens(port)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    finally:
        os.close(read)
        process.kill()
        process.wait()


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    """The host owns them there."""
    from ppio_agent.web.run import run

    before = signal.getsignal(signal.SIGTERM)
    server = make_app().server(port=0)
    thread = threading.Thread(target=run, args=(server,), daemon=True)
    thread.start()
    wait_until(lambda: server.port != 0 and listens(server.port))
    assert signal.getsignal(signal.SIGTERM) is before
    server.close()
    thread.join(10)
    assert not thread.is_alive()


def test_a_signal_that_another_thread_gets_ends_it_at_once() -> None:
    """And what the host has for signals is there again afterwards."""
    from ppio_agent.web.run import run

    server = make_app().server(port=0)

    def end() -> None:
        wait_until(lambda: server.port != 0 and listens(server.port))
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    ours, theirs = socket.socketpair()
    theirs.settimeout(0)
    before = signal.set_wakeup_fd(theirs.fileno())
    try:
        start_thread("ender", end)
        assert run(server)
    finally:
        assert signal.set_wakeup_fd(before) == theirs.fileno()
    ours.close()
    theirs.close()


def test_an_idle_agent_does_not_wake_up(script: Path) -> None:
    """No thread of it, as long as nobody is connected."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PPIO_AGENT_PORT": str(port)},
    )

    def wakes() -> int:
        files = Path(f"/proc/{process.pid}/task").glob("*/status")
        lines = [line for file in files for line in file.read_text().splitlines()]
        return sum(int(x.split()[1]) for x in lines if x.startswith("voluntary_ctxt"))

    def sleeps() -> bool:
        before = wakes()
        threading.Event().wait(0.6)
        return wakes() == before

    with process:
        try:
            wait_until(lambda: listens(port), timeout=20)
            wait_until(sleeps)
        finally:
            process.terminate()
    assert process.returncode == 0


def test_run_ends_when_its_server_is_broken() -> None:
    """With status 1, so that whoever watches the process starts it again."""
    app = make_app(port=0)
    servers: list[PPIOAgentRuntimeServer] = []
    make = app.server

    def server(**options: Any) -> PPIOAgentRuntimeServer:
        servers.append(make(**options))
        return servers[0]

    app.server = server  # type: ignore[method-assign]
    statuses: list[Any] = []

    def run() -> None:
        try:
            app.run()
        except SystemExit as end:
            statuses.append(end.code)

    thread = start_thread("runner", run)
    wait_until(lambda: servers and servers[0].port)
    servers[0]._server._loop.call(lambda: 1 / 0)
    thread.join(10)
    assert statuses == [1]
