"""A client made before a fork, as pre-forking servers make it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

from tests.support_platform import KEY, FakePlatform

# A program that hangs says where, in each of its processes, before it is killed.
_TELLING = "import faulthandler, signal; faulthandler.register(signal.SIGUSR1)"


def run(script: str, platform: FakePlatform) -> tuple[int | None, str]:
    """Return the exit status of a program that forks, and what it wrote to stderr."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _TELLING + script, platform.url, KEY],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for seconds, end in ((60, signal.SIGUSR1), (2, signal.SIGKILL)):
        with contextlib.suppress(subprocess.TimeoutExpired):
            told = process.communicate(timeout=seconds)[1]
            return process.returncode, told
        os.killpg(process.pid, end)
    return None, process.communicate()[1]


SCRIPT = """
import os, sys
from ppio_agent.client import AgentRuntimeClient, ClientConfig

client = AgentRuntimeClient(sys.argv[2], config=ClientConfig(base_url=sys.argv[1]))
session = client.create_session("tpl1")
assert client.invoke_agent("tpl1", "Hi", session_id="s").status == "success"
child = os.fork()
if not child:
    assert client.list_sessions() == ()
    answers = [client.invoke_agent("tpl1", f"child {n}") for n in range(20)]
    assert [a.result["echo"]["prompt"] for a in answers] == [
        f"child {n}" for n in range(20)
    ]
    client.close()
    os._exit(0)
answers = [session.invoke(f"parent {n}") for n in range(20)]
assert [a.result["echo"]["prompt"] for a in answers] == [f"parent {n}" for n in range(20)]
_, status = os.waitpid(child, 0)
assert status == 0, status
assert len(client.list_sessions()) == 2
assert session.invoke("after").result["count"] == 21
client.close()
"""


def test_child_and_parent_keep_apart(platform: FakePlatform) -> None:
    """Each gets its own answers; the child's close ends no sandbox of its parent."""
    assert run(SCRIPT, platform) == (0, "")
    assert platform.alive == []
    assert len(platform.sandboxes) == 22


USED_BY_BOTH = """
import os, sys, threading
from ppio_agent.client import AgentRuntimeClient, ClientConfig, SessionState

client = AgentRuntimeClient(sys.argv[2], config=ClientConfig(base_url=sys.argv[1]))
session = client.create_session("tpl1")
stop = threading.Event()


def work():
    while not stop.is_set():
        with client.create_session("tpl1") as own:
            own.invoke("work")
            own.get_status()
        session.invoke("work")
        client.list_sessions()


workers = [threading.Thread(target=work, daemon=True) for _ in range(4)]
for worker in workers:
    worker.start()
for _ in range(10):
    child = os.fork()
    if not child:
        stop.set()
        assert session.invoke("child").result["echo"] == {"prompt": "child"}
        assert session.get_status().in_flight == 0
        assert client.invoke_agent("tpl1", "child", session_id=f"s{os.getpid()}")
        with session:
            pass
        assert session.state is SessionState.CLOSED
        client.close()
        os._exit(0)
    _, status = os.waitpid(child, 0)  # each in turn: it is the forks that are many
    assert status == 0, status
stop.set()
for worker in workers:
    worker.join()
assert session.state is SessionState.ACTIVE
assert session.invoke("parent").status == "success"
client.close()
"""


def test_a_session_of_the_parent_in_the_child(platform: FakePlatform) -> None:
    """Forks amid busy threads: the child may use it, and ends nothing."""
    assert run(USED_BY_BOTH, platform) == (0, "")
    assert platform.alive == []
    assert "sb1" in platform.killed
