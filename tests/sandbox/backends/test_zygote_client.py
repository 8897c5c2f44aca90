"""Supervisors that are forks of the zygote, and what becomes of them without it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ppio_agent._util.backoff import Backoff
from ppio_agent.sandbox.backends import startup, zygote_client
from ppio_agent.sandbox.backends.base import RunningSandbox
from ppio_agent.sandbox.backends.layout import Layout
from ppio_agent.sandbox.backends.zygote_client import ZygoteClient
from tests.sandbox.backends.test_process import FORKER, PLATFORM
from tests.sandbox.sandboxkit import SERVER, Lab
from tests.support import SLOW, new_threads, processes_marked, wait_until

SECRETS = ("PPIO_API_KEY", "AWS_SECRET_ACCESS_KEY")


@pytest.fixture
def own_zygote(monkeypatch: pytest.MonkeyPatch) -> Iterator[ZygoteClient]:
    """A zygote that a test may kill; it is started again at once."""
    monkeypatch.setattr(zygote_client, "_BACKOFF", Backoff(base=0.01, cap=0.01))
    for name in SECRETS:
        monkeypatch.setenv(name, "s3cret-of-the-host")
    threads = new_threads("ppio-zygote-")
    client = ZygoteClient()
    assert client.wait_ready(20 * SLOW)
    pid = zygote_of(client)
    yield client
    client.close()
    assert not psutil.pid_exists(pid)
    assert threads() == []


@pytest.fixture
def own_lab(tmp_path: Path, own_zygote: ZygoteClient) -> Iterator[Lab]:
    """A backend on a zygote that a test may kill."""
    lab = Lab(tmp_path, own_zygote)
    yield lab
    lab.close()


def zygote_of(client: ZygoteClient) -> int:
    """Return the zygote's pid."""
    assert client.pid is not None
    return client.pid


def is_fork(running: RunningSandbox, client: ZygoteClient) -> bool:
    """Return whether a supervisor was forked, rather than started by exec."""
    return psutil.Process(running.pid).ppid() == client.pid


def test_supervisors_and_agents_are_forks(warm_lab: Lab, zygote: ZygoteClient) -> None:
    """Each has the name of what it is, and the marker that a sweep looks for."""
    sandbox = warm_lab.serve()
    supervisor = psutil.Process(sandbox.running.pid)
    agent = psutil.Process(sandbox.get()["pid"])

    assert supervisor.ppid() == zygote.pid
    assert agent.ppid() == supervisor.pid
    assert supervisor.name() == "ppio-supervisor"
    assert agent.name() == "ppio-agent"
    for process in (supervisor, agent):
        assert process.environ()["PPIO_SANDBOX_ID"] == sandbox.spec.sandbox_id
    assert os.getsid(supervisor.pid) == supervisor.pid


def test_no_variable_of_the_host_is_in_any_process_or_log(
    own_lab: Lab, own_zygote: ZygoteClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The zygote, the supervisor, the agent and what that starts have none."""
    caplog.set_level(0)
    sandbox = own_lab.serve(
        "import subprocess\nsubprocess.Popen(['sleep', '60'])\nserve()"
    )
    pids = {zygote_of(own_zygote), sandbox.running.pid, *sandbox.pids()}
    assert len(pids) == 4
    seen = b"".join(
        Path(f"/proc/{pid}/{name}").read_bytes()
        for pid in pids
        for name in ("environ", "cmdline")
    )
    logs = [file.read_bytes() for file in (sandbox.spec.root / "logs").iterdir()]

    assert b"s3cret" not in b"".join([seen, *logs, caplog.text.encode()])
    assert not [name for name in SECRETS if name.encode() in seen]
    assert not [name for name in SECRETS if name in sandbox.get()["env"]]


def test_a_fork_knows_no_secret_of_its_supervisor(warm_lab: Lab) -> None:
    """It has the memory that its supervisor had when it was forked."""
    assert "known: control\n" in warm_lab.known_secrets()


def test_an_idle_supervisor_has_little_memory_of_its_own(warm_lab: Lab) -> None:
    """What was loaded before the fork is shared."""
    sandbox = warm_lab.serve()
    sandbox.get()

    assert psutil.Process(sandbox.running.pid).memory_full_info().uss < 10 * 2**20


def test_many_at_once_are_all_forks(warm_lab: Lab, zygote: ZygoteClient) -> None:
    """Twenty creates; the zygote has no more descriptors afterwards than before."""
    before = os.listdir(f"/proc/{zygote.pid}/fd")
    started = []
    threads = [
        threading.Thread(target=lambda: started.append(warm_lab.serve()))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(started) == 20
    assert all(is_fork(sandbox.running, zygote) for sandbox in started)
    wait_until(lambda: before == os.listdir(f"/proc/{zygote.pid}/fd"))


# Who is killed


def kill_zygote(client: ZygoteClient, _: RunningSandbox) -> None:
    """Kill the zygote."""
    os.kill(zygote_of(client), signal.SIGKILL)


def kill_supervisor(_: ZygoteClient, running: RunningSandbox) -> None:
    """Kill a supervisor."""
    os.kill(running.pid, signal.SIGKILL)


def kill_both(client: ZygoteClient, running: RunningSandbox) -> None:
    """Kill the zygote and, before it can do anything, a supervisor."""
    kill_zygote(client, running)
    kill_supervisor(client, running)


@pytest.mark.parametrize("kill", [kill_supervisor, kill_zygote, kill_both])
def test_nothing_is_left_of_who_was_killed_and_creates_go_on(
    own_lab: Lab,
    own_zygote: ZygoteClient,
    kill: Callable[[ZygoteClient, RunningSandbox], None],
) -> None:
    """A sandbox ends with its supervisor, and lives on without the zygote."""
    doomed = own_lab.serve(FORKER.format(before="") + "serve()")
    other = own_lab.serve()
    zygote = zygote_of(own_zygote)
    wait_until(lambda: len(doomed.pids()) == 3)

    kill(own_zygote, doomed.running)

    at_once = own_lab.serve()
    assert at_once.get()["count"] == 1
    assert other.get()["count"] == 1
    if kill is kill_zygote:
        assert doomed.get()["count"] == 1
    else:
        wait_until(lambda: doomed.lost == ["crashed"])
        assert list(processes_marked(doomed.spec.sandbox_id)) == []
    if kill is not kill_supervisor:
        assert own_zygote.wait_ready(20 * SLOW)
        assert own_zygote.pid != zygote
    assert is_fork(own_lab.serve().running, own_zygote)
    assert other.get()["count"] == 2
    assert other.lost == at_once.lost == []


def test_a_zygote_that_is_late_is_done_without_and_kept(
    own_lab: Lab, own_zygote: ZygoteClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it forks too late ends, and it is asked again once it has answered."""
    pid = zygote_of(own_zygote)
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(zygote_client, "_ANSWER_LIMIT", 0.1)
    late = own_lab.serve()
    monkeypatch.setattr(zygote_client, "_ANSWER_LIMIT", 0.0)
    skipped = own_lab.serve()
    assert not is_fork(late.running, own_zygote)
    assert not is_fork(skipped.running, own_zygote)

    os.kill(pid, signal.SIGCONT)
    monkeypatch.setattr(zygote_client, "_ANSWER_LIMIT", 20.0 * SLOW)
    wait_until(lambda: own_zygote._waits_since is None)
    assert is_fork(own_lab.serve().running, own_zygote)
    assert own_zygote.pid == pid
    assert late.get()["count"] == 1
    wait_until(lambda: len(psutil.Process(pid).children()) == 1)


def test_a_zygote_that_hangs_for_long_is_replaced(
    own_lab: Lab, own_zygote: ZygoteClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The creates until then are answered by exec."""
    pid = zygote_of(own_zygote)
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(zygote_client, "_ANSWER_LIMIT", 0.1)
    assert own_lab.serve().get()["count"] == 1
    assert own_zygote.pid == pid
    monkeypatch.setattr(zygote_client, "_HANG_LIMIT", 0.0)

    assert own_lab.serve().get()["count"] == 1
    wait_until(lambda: own_zygote.pid not in (pid, None), timeout=20)
    monkeypatch.setattr(zygote_client, "_ANSWER_LIMIT", 20.0 * SLOW)
    assert is_fork(own_lab.serve().running, own_zygote)


# Answers two requests when it has both: the later one first, and the other not well.
_TWO_AT_ONCE = """
import os, socket, sys
from ppio_agent.sandbox.supervisor.channel import encode_message, receive_one

line = socket.socket(fileno=int(sys.argv[1]))
line.sendall(encode_message({"ready": True}))
(first, _), (second, _) = receive_one(line), receive_one(line)
answer = {"reply": second["id"], "pid": os.getpid()}
socket.send_fds(line, [encode_message(answer)], [os.pidfd_open(os.getpid())])
line.sendall(encode_message({"reply": first["id"], "error": second["sandbox_id"]}))
line.recv(1)
"""


def test_creates_wait_for_the_zygote_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each gets its own answer, in whatever order they come."""
    monkeypatch.setattr(startup, "_WARM", _TWO_AT_ONCE)
    monkeypatch.setattr(zygote_client, "_ANSWER_LIMIT", 20.0 * SLOW)
    client = ZygoteClient()
    assert client.wait_ready(20 * SLOW)
    found = {}

    def fork(sandbox_id: str) -> None:
        with socket.socket() as listener:
            found[sandbox_id] = client.fork(listener, sandbox_id, Layout(root=tmp_path))

    threads = [threading.Thread(target=fork, args=(c * 20,)) for c in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    (second,) = (name for name, process in found.items() if process is not None)
    process = found[second]
    assert process is not None
    assert process.pid == client.pid
    process.close()
    assert f"did not fork: {second}" in caplog.text
    client.close()


def test_a_zygote_that_does_not_start_says_why_and_is_done_without(
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Sandboxes start by exec; it is tried again, later and later."""
    monkeypatch.setattr(startup, "_WARM", "raise SystemExit('no luck')")
    client = ZygoteClient()
    with caplog.at_level(logging.WARNING):
        assert not client.wait_ready(0.0)
        wait_until(lambda: "no luck" in caplog.text)
    assert client.pid is None
    lab.backend = type(lab.backend)(client)
    assert lab.serve().get()["count"] == 1
    began = time.monotonic()
    client.close()
    assert time.monotonic() - began < 1 * SLOW


def test_one_that_is_closed_while_it_starts_leaves_nothing() -> None:
    """Nor does it start again."""
    threads = new_threads("ppio-zygote-")
    client = ZygoteClient()
    client.begin()
    client.close()
    client.close()
    client.begin()

    assert threads() == []
    assert client.pid is None
    assert not client.wait_ready(0.0)


def test_a_killed_platform_leaves_a_reaper_until_its_last_sandbox_ends(
    lab: Lab,
) -> None:
    """Then a killed supervisor leaves nothing, though nobody else sees to that."""
    spec = lab.spec(SERVER + FORKER.format(before="") + "serve()")
    source = PLATFORM.replace(
        "backend = ProcessBackend()",
        "backend = ProcessBackend()\n"
        "assert backend.zygote.wait_ready(20)\n"
        "print(backend.zygote.pid, flush=True)",
    ).replace("GRACE", "60.0")
    argv = [sys.executable, "-c", source, str(lab.folder), str(lab.sockets)]
    with subprocess.Popen([*argv, spec.sandbox_id], stdout=subprocess.PIPE) as platform:
        try:
            assert platform.stdout is not None
            zygote = psutil.Process(int(platform.stdout.readline()))
            assert platform.stdout.readline() == b"up\n"
            (supervisor,) = zygote.children()
        finally:
            platform.kill()

    wait_until(lambda: len(list(processes_marked(spec.sandbox_id))) == 4)
    assert zygote.is_running()
    supervisor.kill()
    wait_until(lambda: not list(processes_marked(spec.sandbox_id)))
    wait_until(lambda: not zygote.is_running())
    Path(spec.line.path).unlink()


FORK = """
import os, sys
from ppio_agent.sandbox.backends.zygote_client import ZygoteClient

client = ZygoteClient()
assert client.wait_ready(20)
if os.fork() == 0:
    client.begin()
    client.close()
    os._exit(0)
os.wait()
print(client.pid is not None and os.path.exists(f"/proc/{client.pid}"))
client.close()
"""


def test_a_fork_of_the_platform_does_not_end_its_zygote() -> None:
    """Its close does nothing."""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (found.stdout, found.stderr) == ("True\n", "")


def test_a_package_that_agents_will_not_find_is_told_with_what_to_do() -> None:
    """As in a clone that is not installed: the platform has found it all the same."""
    done = subprocess.run(
        startup.supervisor_command("not_installed.main", warm=True),
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("No module named 'not_installed' for programs of ")
    assert "install it there" in done.stderr
    assert len(done.stderr.splitlines()) == 1
