"""Real sandboxes: their agent, their ports, their limits, and their end."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from ppio_agent.exceptions import SandboxStartError, SandboxStateError
from ppio_agent.sandbox.backends import holds, process, startup, supervised
from ppio_agent.sandbox.backends.base import SandboxSpec
from ppio_agent.sandbox.supervisor.channel import encode_message
from tests.sandbox.sandboxkit import SERVER, Lab
from tests.support import SLOW, processes_marked, wait_until

FORKER = """
import os, signal, threading
{before}
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        threading.Event().wait()
    threading.Event().wait()
"""
"""Leaves a child and a grandchild in a session of their own."""


def ticks(pid: int) -> int:
    """Return the CPU ticks a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


# The agent


def test_an_agent_that_listens_too_late_becomes_ready_all_the_same(lab: Lab) -> None:
    """Nobody has to call it first."""
    late = "import threading\nthreading.Event().wait(0.5)\nserve()"
    sandbox = lab.serve(late, start_timeout=0.1)

    assert [status.phase for status in sandbox.statuses] == ["starting", "ready"]


def test_an_agent_becomes_ready_and_is_reached_at_its_logical_port(lab: Lab) -> None:
    """Its reports come in order, each with its time and pid."""
    sandbox = lab.serve()

    assert [status.phase for status in sandbox.statuses] == ["starting", "ready"]
    ready = sandbox.statuses[-1]
    assert ready == sandbox.running.agent
    assert ready.pid == sandbox.get()["pid"]
    assert ready.started_at is not None
    assert ready.ready_at is not None
    assert ready.started_at <= ready.ready_at
    assert sandbox.get()["count"] == 2


def test_an_agent_says_that_it_is_ready_through_its_descriptor(lab: Lab) -> None:
    """One byte is enough; no port is needed."""
    sandbox = lab.start(
        """
        import os, threading
        os.write(int(os.environ["PPIO_READY_FD"]), b"x")
        threading.Event().wait()
        """
    )

    assert sandbox.wait_phase("ready").ready_at is not None
    with pytest.raises(ConnectionRefusedError, match=sandbox.spec.sandbox_id):
        sandbox.running.dial(8080, 5.0)


def test_an_agent_that_binds_8080_itself_is_found(lab: Lab) -> None:
    """`PORT` is tried first, then 8080, if it is this sandbox that listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8080))
        except OSError:
            return  # another program of this machine has the port
    sandbox = lab.serve("serve(8080)")

    assert sandbox.get()["count"] == 1


def test_no_connection_takes_the_port_of_an_agent(lab: Lab) -> None:
    """Not while it starts, nor between its end and its next start."""
    ports = {int(lab.start().sh("echo $PORT").output()) for _ in range(2)}

    assert len(ports) == 2
    # Kernels give others, to listeners without a wish as to connections.
    assert ports <= set(process._agent_ports())


@pytest.mark.parametrize(
    ("given", "highest"),
    [
        ("32768\t60999\n", 32_767),
        ("40000\t60999\n", 32_767),
        ("25000\t65535\n", 24_999),
        ("1024\t65535\n", 32_767),
        ("", 32_767),
        (None, 32_767),
    ],
)
def test_ports_of_agents_are_below_those_that_the_kernel_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, highest: int
) -> None:
    """Also where it gives more than usual; where it gives nearly all there is no way."""
    setting = tmp_path / "ip_local_port_range"
    if given is not None:
        setting.write_text(given)
    monkeypatch.setattr(process, "_GIVEN_PORTS", setting)

    ports = process._agent_ports()
    assert (ports[0], ports[-1]) == (20_000, highest)


def test_an_agent_that_raises_at_import_is_reported_with_its_traceback(
    lab: Lab,
) -> None:
    """Phase, exit code and the end of its output arrive; the sandbox lives on."""
    sandbox = lab.start("import sys\nprint('before')\nraise LookupError('no model')\n")
    exited = sandbox.wait_phase("exited")

    assert exited.exit_code == 1
    assert exited.signal is None
    assert exited.pid is None
    assert exited.log_tail.startswith("before\n")
    assert "Traceback" in exited.log_tail
    assert exited.log_tail.endswith("LookupError: no model\n")
    assert sandbox.lost == []
    assert sandbox.sh("echo alive").output() == "alive\n"


def test_the_end_of_an_agent_is_reported_at_once_with_its_signal(lab: Lab) -> None:
    """Within 100 ms, with at most the last 4 KiB of its output."""
    sandbox = lab.serve("print('x' * 9000, flush=True)\nserve()")
    pid = sandbox.running.agent.pid
    assert pid is not None

    killed_at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    exited = sandbox.wait_phase("exited")

    assert sandbox.status_times[-1] - killed_at < 0.1 * SLOW
    assert (exited.exit_code, exited.signal) == (None, signal.SIGKILL)
    assert exited.log_tail == "x" * 4095 + "\n"
    assert sandbox.lost == []


def test_a_program_that_is_not_there_is_an_exit_of_the_agent(lab: Lab) -> None:
    """The interpreter says so itself."""
    sandbox = lab.start(entrypoint="missing.py")

    assert sandbox.wait_phase("exited").exit_code == 2
    assert "missing.py" in sandbox.statuses[-1].log_tail


def test_a_flood_of_output_neither_blocks_the_agent_nor_fills_the_disk(
    lab: Lab,
) -> None:
    """40 MB are written and drained; three files of 10 MiB at most are kept."""
    sandbox = lab.serve(
        """
        import sys
        line = "x" * 79 + "\\n"
        for _ in range(500):
            sys.stdout.write(line * 1000)
        sys.stdout.flush()
        serve()
        """
    )

    assert sandbox.get()["count"] == 1
    files = list((sandbox.spec.root / "logs").glob("agent.log*"))
    assert len(files) == 3
    assert all(file.stat().st_size <= 10 * 2**20 for file in files)


# The environment


def test_the_environment_of_an_agent_is_exact(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the host's gets in; what the caller sets wins, but for the marker."""
    for name in ("PPIO_API_KEY", "AWS_SECRET_ACCESS_KEY", "HTTP_PROXY", "PYTHONPATH"):
        monkeypatch.setenv(name, "host secret")
    sandbox = lab.serve(env={"MODEL": "m", "USER": "me", "PPIO_SANDBOX_ID": "another"})
    env = sandbox.get()["env"]
    root = sandbox.spec.root
    path = env.pop("PATH").split(":")

    assert path[0] == str(root / "bin")
    assert all(folder.startswith("/") for folder in path)
    assert 1024 <= int(env.pop("PORT")) < 65536
    assert {
        "HOME": str(root / "home"),
        "USER": "me",
        "LOGNAME": "user",
        "LANG": "C.UTF-8",
        "TMPDIR": str(root / "tmp"),
        "HOST": "127.0.0.1",
        "PYTHONUNBUFFERED": "1",
        "PPIO_SANDBOX_ID": sandbox.spec.sandbox_id,
        "PPIO_TEMPLATE_ID": sandbox.spec.template_id,
        "PPIO_READY_FD": "3",
        "MODEL": "m",
    } == env


def test_no_secret_is_in_what_others_can_see_of_a_supervisor(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in its arguments, its environment, a repr or a log."""
    caplog.set_level(0)
    sandbox = lab.start(env={"KEY": "s3cret-value"}, access_token="s3cret-token")
    folder = Path(f"/proc/{sandbox.running.pid}")
    seen = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
    seen += repr(sandbox.spec).encode() + caplog.text.encode()

    assert b"s3cret" not in seen


def test_an_agent_has_its_own_limits_descriptors_group_and_signals(lab: Lab) -> None:
    """Descriptors over 2 are closed but for the one it is told of."""
    sandbox = lab.start(
        """
        import json, os, resource, signal
        print(json.dumps({
            "fds": [fd for fd in range(64) if os.path.exists(f"/proc/self/fd/{fd}")],
            "files": resource.getrlimit(resource.RLIMIT_NOFILE),
            "core": resource.getrlimit(resource.RLIMIT_CORE),
            "size": resource.getrlimit(resource.RLIMIT_FSIZE),
            "leads": os.getpgid(0) == os.getpid(),
            "pipe": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
            "cwd": os.getcwd(),
            "cpus": len(os.sched_getaffinity(0)),
        }))
        """,
        cpus=0.5,
    )
    sandbox.wait_phase("exited")

    assert {
        "fds": [0, 1, 2, 3],
        "files": [4096, 4096],
        "core": [0, 0],
        "size": [2**30, 2**30],
        "leads": True,
        "pipe": True,
        "cwd": str(sandbox.spec.root / "app"),
        "cpus": 1,
    } == json.loads(sandbox.statuses[-1].log_tail)


# Ports


def test_a_port_of_a_program_outside_is_refused_and_sees_no_connection(
    lab: Lab,
) -> None:
    """The backend opens nothing but the sandbox's own ports."""
    sandbox = lab.start()
    with socket.socket() as outside:
        outside.bind(("127.0.0.1", 0))
        outside.listen()
        outside.settimeout(0.2)
        with pytest.raises(ConnectionRefusedError):
            sandbox.running.dial(outside.getsockname()[1], 5.0)
        with pytest.raises(TimeoutError):
            outside.accept()


def test_a_port_of_another_sandbox_is_refused(lab: Lab) -> None:
    """Sandboxes have the loopback in common, but not their ports."""
    one, other = lab.serve(), lab.serve()
    port = int(one.get()["env"]["PORT"])

    assert one.get(port)["count"] == 2
    with pytest.raises(ConnectionRefusedError):
        other.running.dial(port, 5.0)


def test_dialling_many_at_once_gives_each_its_own_socket(lab: Lab) -> None:
    """Replies find their callers, and no descriptor is left over."""
    sandbox = lab.serve()
    sandbox.get()
    before = len(os.listdir("/proc/self/fd"))
    counts: list[int] = []
    threads = [
        threading.Thread(target=lambda: counts.append(sandbox.get()["count"]))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert list(range(2, 18)) == sorted(counts)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_server_that_does_not_accept_times_out(lab: Lab) -> None:
    """A full queue of connections is a timeout, not a wait without end."""
    sandbox = lab.start(
        """
        import os, socket, threading
        sock = socket.socket()
        sock.bind(("127.0.0.1", int(os.environ["PORT"])))
        sock.listen(0)
        threading.Event().wait()
        """
    )
    sandbox.wait_phase("ready")
    with ExitStack() as held:
        # The kernel takes one more than the queue is long.
        held.enter_context(sandbox.running.dial(8080, 5.0))
        with pytest.raises(TimeoutError, match="8080"):
            sandbox.running.dial(8080, 0.3)


# Pause


def test_a_paused_sandbox_uses_no_cpu_and_keeps_its_memory(lab: Lab) -> None:
    """Every process stands still, a setsid child too; then all goes on."""
    sandbox = lab.serve(
        """
        import os, threading
        if os.fork() == 0:
            os.setsid()
            while True:
                pass
        threading.Thread(target=serve, daemon=True).start()
        while True:
            threading.Event().wait(0.01)
        """
    )
    sandbox.get()

    sandbox.running.pause()
    before = {pid: ticks(pid) for pid in sandbox.pids()}
    threading.Event().wait(1.0)
    assert before == {pid: ticks(pid) for pid in sandbox.pids()}
    assert len(before) == 2

    sandbox.running.resume()
    assert sandbox.get()["count"] == 2
    wait_until(lambda: sum(map(ticks, sandbox.pids())) > sum(before.values()))


def test_a_request_under_way_goes_on_after_a_pause(lab: Lab) -> None:
    """A paused sandbox still accepts; the answer comes when it is awake."""
    sandbox = lab.serve()
    sandbox.running.pause()
    counts: list[int] = []
    thread = threading.Thread(target=lambda: counts.append(sandbox.get()["count"]))
    thread.start()
    thread.join(0.2)
    assert counts == []

    sandbox.running.resume()
    thread.join(5 * SLOW)
    assert counts == [1]


def test_a_paused_sandbox_can_be_killed_with_grace(lab: Lab) -> None:
    """Its processes are woken up, so that they can obey."""
    sandbox = lab.serve()
    sandbox.running.pause()

    begun = time.monotonic()
    sandbox.running.kill(10.0)
    assert time.monotonic() - begun < 5 * SLOW


# The end


def test_a_kill_lets_an_agent_clean_up(lab: Lab) -> None:
    """SIGTERM comes first; an agent that obeys is gone long before the grace."""
    sandbox = lab.serve(
        """
        import pathlib, signal
        def stop(*args):
            pathlib.Path("cleaned").touch()
            raise SystemExit
        signal.signal(signal.SIGTERM, stop)
        serve()
        """
    )
    begun = time.monotonic()
    sandbox.running.kill(10.0)

    assert time.monotonic() - begun < 2 * SLOW
    assert (sandbox.spec.root / "app" / "cleaned").exists()
    assert list(processes_marked(sandbox.spec.sandbox_id)) == []
    assert sandbox.lost == []


def test_a_kill_ends_processes_that_fled_and_ignore_sigterm(lab: Lab) -> None:
    """Other sessions, orphans and the deaf: all are gone when it returns."""
    sandbox = lab.serve(
        FORKER.format(before="signal.signal(signal.SIGTERM, signal.SIG_IGN)")
        + "serve()"
    )
    wait_until(lambda: len(sandbox.pids()) == 3)

    begun = time.monotonic()
    sandbox.running.kill(0.3)
    assert 0.3 <= time.monotonic() - begun < 3 * SLOW
    assert list(processes_marked(sandbox.spec.sandbox_id)) == []


def test_a_kill_may_be_repeated_shortened_and_comes_back_to_all(lab: Lab) -> None:
    """Two callers at once, then a third: one end, and a shorter grace counts."""
    sandbox = lab.serve(
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nserve()"
    )
    begun = time.monotonic()
    patient = threading.Thread(target=sandbox.running.kill, args=(60.0,))
    patient.start()
    sandbox.running.kill(0.1)
    patient.join(5 * SLOW)
    sandbox.running.kill(0.0)

    assert not patient.is_alive()
    assert time.monotonic() - begun < 5 * SLOW
    assert sandbox.lost == []


def test_what_is_gone_says_so(lab: Lab) -> None:
    """Each call on a dead sandbox is a clear error."""
    sandbox = lab.start()
    sandbox.running.kill(0.0)

    with pytest.raises(ConnectionRefusedError):
        sandbox.running.dial(8080, 1.0)
    for call in (sandbox.running.pause, sandbox.running.resume, sandbox.running.usage):
        with pytest.raises(SandboxStateError, match=sandbox.spec.sandbox_id):
            call()


def test_a_killed_supervisor_leaves_nothing(lab: Lab) -> None:
    """The loss is told once, after the last process is gone."""
    sandbox = lab.serve(FORKER.format(before="") + "serve()")
    wait_until(lambda: len(sandbox.pids()) == 3)

    os.kill(sandbox.running.pid, signal.SIGKILL)
    wait_until(lambda: sandbox.lost)

    assert sandbox.lost == ["crashed"]
    assert list(processes_marked(sandbox.spec.sandbox_id)) == []
    sandbox.running.kill(5.0)
    assert sandbox.lost == ["crashed"]


CHAIN = """
import subprocess, sys
chain = "import os\\nwhile True:\\n    if os.fork(): os._exit(0)"
subprocess.Popen([sys.executable, "-S", "-c", chain])
"""
"""Leaves processes of which each makes the next one and ends."""


@pytest.mark.parametrize("who", ["sandbox", "supervisor"])
def test_a_chain_of_short_lives_ends_with_its_sandbox(lab: Lab, who: str) -> None:
    """It is hardly ever seen alive, but its group is there to be killed."""
    sandbox = lab.serve(CHAIN + "serve()")
    group = sandbox.statuses[-1].pid
    assert group is not None
    if who == "supervisor":
        os.kill(sandbox.running.pid, signal.SIGKILL)
    sandbox.running.kill(0.0)

    def gone() -> bool:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        return False

    try:
        wait_until(gone, what="nobody is in the group of the agent")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def test_a_stopped_supervisor_is_ended_all_the_same(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that hangs cannot keep a sandbox alive, nor its caller for long."""
    monkeypatch.setattr(supervised, "_KILL_LATE", 0.1)
    sandbox = lab.serve()
    os.kill(sandbox.running.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        sandbox.running.dial(8080, 0.1)

    sandbox.running.kill(0.0)
    assert list(processes_marked(sandbox.spec.sandbox_id)) == []


PLATFORM = """
import sys, threading
from pathlib import Path
from ppio_agent.sandbox.backends.base import LineAddress, SandboxSpec
from ppio_agent.sandbox.backends.process import ProcessBackend

backend = ProcessBackend()
for sandbox_id in sys.argv[3:]:
    root = Path(sys.argv[1], sandbox_id)
    ready = threading.Event()
    backend.start(
        SandboxSpec(
            sandbox_id=sandbox_id,
            template_id="t",
            root=root,
            line=LineAddress(path=f"{sys.argv[2]}/{sandbox_id}", secret="s" * 32),
            entrypoint="app.py",
            orphan_grace=GRACE,
        ),
        on_agent=lambda status: status.phase == "ready" and ready.set(),
        on_lost=print,
    )
    assert ready.wait(20)
print("up", flush=True)
threading.Event().wait()
"""


def start_and_kill_a_platform(lab: Lab, specs: list[SandboxSpec], grace: str) -> None:
    """Start sandboxes in another process, and kill that once they are ready."""
    ids = [spec.sandbox_id for spec in specs]
    code = PLATFORM.replace("GRACE", grace)
    arguments = [sys.executable, "-c", code, str(lab.folder), str(lab.sockets), *ids]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as platform:
        assert platform.stdout is not None
        assert platform.stdout.readline() == b"up\n"
        assert sum(len(list(processes_marked(id_))) for id_ in ids) == 4 * len(ids)
        platform.kill()


def test_a_killed_platform_leaves_nothing_after_the_grace(lab: Lab) -> None:
    """Supervisors notice, also with children that fled, and end with all they own."""
    source = FORKER.format(before="") + "serve()"
    specs = [lab.spec(SERVER + source) for _ in range(3)]
    start_and_kill_a_platform(lab, specs, grace="0.1")

    for spec in specs:
        pids = functools.partial(processes_marked, spec.sandbox_id)
        wait_until(lambda pids=pids: not list(pids()), timeout=5)
        Path(spec.line.path).unlink()


def test_what_a_killed_platform_left_is_taken_over(lab: Lab) -> None:
    """As it is: the same processes go on, the agent is known, and can be reached."""
    source = FORKER.format(before="") + "serve()"
    spec = lab.spec(SERVER + source)
    start_and_kill_a_platform(lab, [spec], grace="30")
    before = set(processes_marked(spec.sandbox_id))

    sandbox = lab.adopt(spec)

    assert sandbox.running.agent.phase == "ready"
    assert not sandbox.running.paused
    assert sandbox.running.pid in before
    assert sandbox.get()["count"] == 1
    sandbox.running.pause()
    assert set(processes_marked(spec.sandbox_id)) == before
    os.kill(sandbox.running.pid, signal.SIGKILL)
    wait_until(lambda: sandbox.lost, what="its end is noticed, though it is no child")
    assert list(processes_marked(spec.sandbox_id)) == []


def test_a_platform_that_lives_can_be_relieved(lab: Lab) -> None:
    """The newest line counts, and says how the sandbox is; the old one ends quietly."""
    sandbox = lab.serve()
    sandbox.running.pause()
    other = Lab(lab.folder)

    taken = other.adopt(sandbox.spec)

    assert taken.running.paused
    taken.running.resume()
    assert taken.get()["count"] == 1
    taken.running.kill(0.0)
    other.close()


@pytest.mark.parametrize(
    "greeting",
    [{"hello": "guess"}, {"hello": 1}, {"hello": "\ud800"}, {"op": "kill"}],
    ids=str,
)
def test_who_does_not_know_the_secret_takes_nothing_over(
    lab: Lab, greeting: dict[str, object]
) -> None:
    """Neither does one that says nothing keep another from it."""
    sandbox = lab.serve()
    with (
        socket.socket(socket.AF_UNIX) as silent,
        socket.socket(socket.AF_UNIX) as liar,
    ):
        silent.connect(sandbox.spec.line.path)
        liar.connect(sandbox.spec.line.path)
        liar.sendall(encode_message(greeting))
        liar.settimeout(10)
        assert liar.recv(1) == b""

        assert sandbox.get()["count"] == 1
        assert sandbox.lost == []


def test_nobody_is_there_to_be_taken_over(lab: Lab) -> None:
    """That is an error which says so; what is left is the caller's to find."""
    with pytest.raises(SandboxStartError, match="nobody answers"):
        lab.adopt(lab.spec())


# Limits


def test_a_sandbox_over_its_memory_is_killed(lab: Lab) -> None:
    """The reason is told, and the log says what was too much."""
    sandbox = lab.start(
        """
        import threading
        data = bytearray(200 * 2**20)
        for n in range(0, len(data), 4096):
            data[n] = 1
        threading.Event().wait()
        """,
        memory_mb=100,
    )
    wait_until(lambda: sandbox.lost, timeout=10)

    assert sandbox.lost == ["memory"]
    assert list(processes_marked(sandbox.spec.sandbox_id)) == []
    assert "bytes of memory" in (sandbox.spec.root / "logs/agent.log").read_text()


def test_a_sandbox_with_too_many_processes_is_killed(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """260 processes are four too many; the platform's log tells, too."""
    sandbox = lab.start(
        """
        import os, threading
        for _ in range(260):
            if os.fork() == 0:
                threading.Event().wait()
        threading.Event().wait()
        """,
        memory_mb=100_000,
    )
    wait_until(lambda: sandbox.lost, timeout=15)

    assert sandbox.lost == ["memory"]
    assert (
        "processes, the limit is 256"
        in (sandbox.spec.root / "logs/agent.log").read_text()
    )
    (line,) = (text for text in caplog.messages if "is killed" in text)
    assert re.search(r"it has at least \d+ processes, the limit is 256$", line)
    assert sandbox.spec.sandbox_id in line


def test_usage_counts_all_processes_and_those_that_ended(lab: Lab) -> None:
    """CPU time never falls when a process ends."""
    sandbox = lab.serve()
    first = sandbox.running.usage()
    sandbox.sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done").output()
    second = sandbox.running.usage()

    assert first.processes == second.processes == 1
    assert first.rss_bytes > 2**20
    assert first.cpu_seconds < second.cpu_seconds


# The backend


def test_many_sandboxes_start_at_once(lab: Lab) -> None:
    """Twenty, each with its own port, all answered, all ended together."""
    sandboxes = []
    lock = threading.Lock()

    def start() -> None:
        sandbox = lab.start(
            "import os, threading\n"
            "os.write(int(os.environ['PPIO_READY_FD']), b'x')\n"
            "print(os.environ['PORT'])\nthreading.Event().wait()\n"
        )
        with lock:
            sandboxes.append(sandbox)

    threads = [threading.Thread(target=start) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for sandbox in sandboxes:
        sandbox.wait_phase("ready", timeout=20)

    assert len(sandboxes) == 20
    assert len({sandbox.running.pid for sandbox in sandboxes}) == 20
    lab.backend.close()
    assert all(not sandbox.pids() for sandbox in sandboxes)
    assert all(sandbox.lost == [] for sandbox in sandboxes)


def test_a_supervisor_that_does_not_come_up_is_an_error_with_its_output(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message ends with what it wrote; nothing is left."""
    monkeypatch.setattr(startup, "_COLD", "raise SystemExit('no such luck')")
    spec = lab.spec()
    lost: list[str] = []

    with pytest.raises(SandboxStartError, match="no such luck"):
        lab.backend.start(spec, on_agent=print, on_lost=lost.append)
    assert list(processes_marked(spec.sandbox_id)) == []
    assert lost == []


def test_a_supervisor_that_hangs_at_its_start_is_given_up(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start is bounded in time."""
    monkeypatch.setattr(startup, "_COLD", "import threading as t; t.Event().wait()")
    monkeypatch.setattr(holds, "_START_LIMIT", 0.2)
    monkeypatch.setattr(supervised, "_KILL_LATE", 0.2)
    spec = lab.spec()

    with pytest.raises(SandboxStartError, match=spec.sandbox_id):
        lab.backend.start(spec, on_agent=print, on_lost=print)
    assert list(processes_marked(spec.sandbox_id)) == []


def test_a_folder_that_cannot_be_used_is_an_error_of_the_start(lab: Lab) -> None:
    """Foreign errors do not leave the backend."""
    spec = lab.spec()
    (spec.root / "bin").write_text("in the way")

    with pytest.raises(SandboxStartError, match=spec.sandbox_id):
        lab.backend.start(spec, on_agent=print, on_lost=print)


def test_a_closed_backend_starts_nothing(lab: Lab) -> None:
    """It says so, leaves nothing, and may be closed again."""
    spec = lab.spec()
    lab.backend.close()
    lab.backend.close()

    with pytest.raises(SandboxStartError, match="closed"):
        lab.backend.start(spec, on_agent=print, on_lost=print)
    assert list(processes_marked(spec.sandbox_id)) == []


FORK = """
import os, sys
from ppio_agent.exceptions import SandboxStateError
from tests.sandbox.sandboxkit import Lab
from pathlib import Path

lab = Lab(Path(sys.argv[1]))
sandbox = lab.start()
if os.fork() == 0:
    try:
        sandbox.running.usage()
    except SandboxStateError:
        print("refused", flush=True)
    lab.backend.close()
    os._exit(0)
os.wait()
print(sandbox.running.usage().processes, sandbox.lost, flush=True)
lab.close()
"""


def test_a_fork_of_the_platform_owns_no_sandbox(lab: Lab) -> None:
    """Its close kills nothing, and it cannot disturb the line of its parent."""
    root = Path(__file__).parents[3]
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, str(lab.folder)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (found.stdout, found.stderr) == ("refused\n0 []\n", "")
