"""Sandboxes in namespaces: what the backend promises; `test_security` has the attacks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from ppio_agent.exceptions import SandboxStartError
from ppio_agent.sandbox.backends.bubblewrap import BubblewrapBackend
from tests.sandbox.fort import Fort
from tests.sandbox.sandboxkit import SERVER
from tests.support import (
    SLOW,
    needs_program,
    new_threads,
    processes_marked,
    wait_until,
)


@pytest.fixture
def fort(tmp_path: Path) -> Iterator[Fort]:
    """A bubblewrap backend; its sandboxes end with the test, and none may be left."""
    fort = Fort(tmp_path)
    yield fort
    fort.close()


@pytest.fixture
def warm_fort(tmp_path: Path) -> Iterator[Fort]:
    """One that keeps a blank sandbox ready, and has made it."""
    fort = Fort(tmp_path, warm=1)
    fort.blanks.begin()
    wait_until(lambda: fort.blanks.ready == 1, timeout=20.0)
    yield fort
    fort.close()


def test_two_agents_bind_the_same_port(fort: Fort) -> None:
    """Each has a loopback of its own, on which every port is its own."""
    one, other = fort.serve("serve(8080)"), fort.serve("serve(8080)")

    assert [one.get()["count"], one.get()["count"], other.get()["count"]] == [1, 2, 1]
    assert one.get()["env"]["PORT"] == "8080"


def test_the_environment_of_an_agent_is_exact(fort: Fort) -> None:
    """Names inside are those of the cloud; nothing of the host's gets in."""
    sandbox = fort.serve(env={"MODEL": "m"})
    env = sandbox.get()["env"]

    assert env.pop("PATH").startswith("/opt/ppio/bin:/usr/local/sbin:")
    assert env == {
        "HOME": "/home/user",
        "USER": "user",
        "LOGNAME": "user",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
        "HOST": "127.0.0.1",
        "PORT": "8080",
        "PYTHONUNBUFFERED": "1",
        "PPIO_SANDBOX_ID": sandbox.spec.sandbox_id,
        "PPIO_TEMPLATE_ID": sandbox.spec.template_id,
        "PPIO_READY_FD": "3",
        "MODEL": "m",
    }


def test_programs_start_where_and_as_clients_expect(fort: Fort) -> None:
    """The usual command of clients runs; files are where they were put."""
    sandbox = fort.start()
    (sandbox.spec.root / "app" / "hi.py").write_text("import ppio_agent; print('hi')")

    said = sandbox.sh(
        "cd /app && sudo -E python hi.py; pwd; whoami; echo x > ~/n; cd; pwd"
    )
    assert said.output().split() == ["hi", "/app", "user", "/home/user"]
    assert (sandbox.spec.root / "home" / "n").read_text() == "x\n"


def test_an_agents_output_is_logged_where_the_platform_reads_it(fort: Fort) -> None:
    """The log file is outside like that of any sandbox."""
    sandbox = fort.start("print('hello')")
    sandbox.wait_phase("exited")

    log = sandbox.spec.root / "logs" / "agent.log"
    wait_until(log.exists)
    assert json.loads(log.read_text())["line"] == "hello"


def test_an_interpreter_of_its_own_is_the_agents(fort: Fort, tmp_path: Path) -> None:
    """As of a template whose requirements were installed, whose folder is hidden."""
    folder = tmp_path / "environments" / "e"
    venv.create(folder, symlinks=True)
    sandbox = fort.start(
        "import sys; print(sys.prefix)", python=str(folder / "bin" / "python")
    )

    assert sandbox.wait_phase("exited").log_tail.strip() == str(folder)
    inside = sandbox.sh("python -c 'import sys; print(sys.prefix)'").output()
    assert inside.strip() == str(folder)


def test_a_sandbox_is_taken_over_as_it_is(fort: Fort) -> None:
    """With its memory; the one who takes it over ends it."""
    sandbox = fort.serve()
    assert sandbox.get()["count"] == 1

    again = fort.adopt(sandbox.spec)
    assert again.get()["count"] == 2
    assert again.running.pid == sandbox.running.pid
    again.running.kill(1.0)
    wait_until(lambda: not Path(f"/proc/{sandbox.running.pid}").exists())


def test_a_bwrap_that_fails_is_said_with_what_it_says(fort: Fort) -> None:
    """And nothing is left."""
    script = fort.folder / "bwrap"
    script.write_text("#!/bin/sh\necho no namespaces for you >&2\nexit 1\n")
    script.chmod(0o755)
    backend = BubblewrapBackend(attrs.evolve(fort.bwrap, path=str(script)), fort.place)
    spec = fort.spec(allow_internet=False)

    with pytest.raises(SandboxStartError, match="no namespaces for you"):
        backend.start(spec, on_agent=lambda _: None, on_lost=lambda _: None)
    assert list(fort.sockets.iterdir()) == []


def test_nothing_is_left_of_a_blank_sandbox_that_cannot_be_made(fort: Fort) -> None:
    """It is tried again, and again, for as long as the platform runs."""
    begun = fort.folder / "begun"
    script = fort.folder / "bwrap"
    script.write_text(f"#!/bin/sh\ntouch {begun}\nexit 1\n")
    script.chmod(0o755)
    bwrap = attrs.evolve(fort.bwrap, path=str(script))
    backend = BubblewrapBackend(bwrap, fort.place, warm=1)
    try:
        backend.begin()
        wait_until(begun.exists)
        wait_until(lambda: not any(fort.place.blank.iterdir()))
        assert list(fort.sockets.iterdir()) == []
    finally:
        backend.close()


def test_blank_sandboxes_of_a_platform_that_was_killed_are_cleared(fort: Fort) -> None:
    """With the sockets at which they would have been reached, and no others."""
    (fort.place.blank / "spare").mkdir()
    for name in ("spare", "other"):
        (fort.place.sockets / name).touch()
    BubblewrapBackend(fort.bwrap, fort.place).close()
    assert [path.name for path in fort.place.sockets.iterdir()] == ["other"]
    (fort.place.sockets / "other").unlink()


def test_a_helper_that_fails_is_said_with_what_it_says(fort: Fort) -> None:
    """And what can be done instead; nothing is left."""
    script = fort.folder / "pasta"
    script.write_text("#!/bin/sh\necho no route to anywhere >&2\nexit 1\n")
    script.chmod(0o755)
    helper = attrs.evolve(fort.helper("pasta"), path=str(script))
    backend = BubblewrapBackend(attrs.evolve(fort.bwrap, helpers=[helper]), fort.place)
    spec = fort.spec(allow_internet=True)

    with pytest.raises(SandboxStartError, match="no route to anywhere") as caught:
        backend.start(spec, on_agent=lambda _: None, on_lost=lambda _: None)
    assert "allow_internet_access=false" in str(caught.value)
    assert list(processes_marked(spec.sandbox_id)) == []
    assert list(fort.sockets.iterdir()) == []


# What is given to bwrap before its arguments: it is to wait until somebody has said who
# its users are, which here comes late.
_HELD = """\
#!{python}
import json, os, sys, threading
info = int(sys.argv[sys.argv.index("--info-fd") + 1])
held, go_on = os.pipe()
os.set_inheritable(held, True)
if os.fork() == 0:
    os.close(held)
    text = b""
    while not text.endswith(b"}}\\n"):
        text = os.pread(info, 4096, 0)
    threading.Event().wait(0.3)
    for name, own in (("uid", os.getuid()), ("gid", os.getgid())):
        folder = "/proc/" + str(json.loads(text)["child-pid"])
        if name == "gid":
            open(folder + "/setgroups", "w").write("deny")
        open(folder + "/" + name + "_map", "w").write(f"1000 {{own}} 1")
    os.write(go_on, b".")
    os._exit(0)
os.close(go_on)
os.execv({bwrap!r}, [{bwrap!r}, "--userns-block-fd", str(held), *sys.argv[1:]])
"""


@pytest.mark.parametrize("helper", ["pasta", "slirp4netns"])
def test_a_helper_that_is_quicker_than_bwrap_waits_for_it(
    tmp_path: Path, helper: str
) -> None:
    """Both set the loopback up, and bwrap ends if it is not the first."""
    needs_program(helper)
    fort = Fort(tmp_path, helper=helper)
    late = tmp_path / "bwrap"
    late.write_text(_HELD.format(python=sys.executable, bwrap=fort.bwrap.path))
    late.chmod(0o755)
    bwrap = attrs.evolve(fort.bwrap, path=str(late), no_namespaces=False)
    fort.backend = BubblewrapBackend(bwrap, fort.place)
    try:
        assert fort.start(allow_internet=True).running.usage().processes == 0
    finally:
        fort.close()


# Blank sandboxes


def test_a_blank_sandbox_becomes_the_one_that_is_wanted(warm_fort: Fort) -> None:
    """Its folder, socket, mark and files are those of any other; a new one is made."""
    sandbox = warm_fort.serve(allow_internet=warm_fort.connected)
    spec = sandbox.spec

    assert sandbox.get()["env"]["PPIO_SANDBOX_ID"] == spec.sandbox_id
    assert len(sandbox.pids()) == 1
    assert sorted(path.name for path in (spec.root / "app").iterdir()) == ["app.py"]
    assert Path(spec.line.path).exists()
    assert (spec.root / "logs").is_dir()
    log = (spec.root / "supervisor.log").read_text()
    assert log == ""
    wait_until(lambda: warm_fort.blanks.ready == 1, timeout=20.0)
    again = warm_fort.adopt(spec)
    assert again.get()["count"] == 2


def test_an_agent_of_a_blank_sandbox_knows_no_secret_of_it(warm_fort: Fort) -> None:
    """It has the memory that its supervisor had when it was forked."""
    said = warm_fort.known_secrets(allow_internet=warm_fort.connected)

    assert "known: control\n" in said


def test_a_blank_sandbox_that_has_ended_is_not_used(warm_fort: Fort) -> None:
    """A new one is made instead."""
    (blank,) = warm_fort.place.blank.iterdir()
    supervisors: list[int] = []

    def found() -> bool:  # it carries its mark as soon as it is what it will be
        supervisors[:] = filter(_is_first, processes_marked(blank.name))
        return bool(supervisors)

    wait_until(found)
    os.kill(supervisors[0], signal.SIGKILL)
    wait_until(lambda: not list(processes_marked(blank.name)))

    assert warm_fort.serve(allow_internet=warm_fort.connected).get()["count"] == 1


def test_a_blank_sandbox_that_lost_the_network_is_not_used(warm_fort: Fort) -> None:
    """One that has it is made instead."""
    needs_program("pasta")
    (blank,) = warm_fort.place.blank.iterdir()
    (helper,) = {pid for pid in processes_marked(blank.name) if "pas" in _name(pid)}
    shell = os.getpgid(helper)
    os.killpg(shell, signal.SIGKILL)
    wait_until(lambda: "(zombie)" in Path(f"/proc/{shell}/status").read_text())

    sandbox = warm_fort.start(
        "print(open('/proc/net/route').read().count('\\n'))", allow_internet=True
    )
    assert int(sandbox.wait_phase("exited").log_tail) > 1


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text()


def test_a_sandbox_that_needs_something_else_is_not_a_blank_one(
    warm_fort: Fort,
) -> None:
    """One without internet is made for it."""
    sandbox = warm_fort.serve(allow_internet=not warm_fort.connected)

    assert sandbox.get()["count"] == 1
    assert warm_fort.blanks.ready == 1


def _is_first(pid: int) -> bool:
    """Whether a process is the first of a namespace within ours."""
    status = Path(f"/proc/{pid}/status").read_text()
    return any(
        line.split()[2:] == ["1"] for line in status.splitlines() if "NSpid" in line
    )


# The end of the platform

_PLATFORM = """
import sys, threading
from pathlib import Path
from tests.sandbox.fort import Fort
from tests.sandbox.sandboxkit import SERVER

fort = Fort(Path(sys.argv[1]), warm=1)
fort.blanks.begin()
sandbox = fort.serve(allow_internet=fort.connected, orphan_grace=float(sys.argv[2]))
while fort.blanks.ready == 0:
    threading.Event().wait(0.01)
(blank,) = fort.place.blank.iterdir()
print(sandbox.spec.sandbox_id, blank.name, fort.sockets, flush=True)
threading.Event().wait()
"""


def test_nothing_is_left_when_the_platform_is_killed(tmp_path: Path) -> None:
    """Neither a sandbox after its grace, nor a blank one, nor what connects them."""
    with subprocess.Popen(
        [sys.executable, "-c", _PLATFORM, str(tmp_path), "0.5"], stdout=subprocess.PIPE
    ) as platform:
        try:
            assert platform.stdout is not None
            words = platform.stdout.readline().decode().split()
            sandbox_id, blank_id, sockets = words
            assert list(processes_marked(sandbox_id))
        finally:
            platform.kill()

    for marker in (sandbox_id, blank_id):
        wait_until(lambda m=marker: not list(processes_marked(m)), timeout=10.0)  # type: ignore[misc] # of a default
    wait_until(lambda: not any(sandbox_id in line for line in _commands()))
    shutil.rmtree(sockets)


_KILLED = """
import sys
from pathlib import Path
import attrs
from ppio_agent.sandbox.backends.bubblewrap import BubblewrapBackend
from tests.sandbox.fort import Fort

fort = Fort(Path(sys.argv[1]))
print(fort.sockets, flush=True)
bwrap = attrs.evolve(fort.bwrap, path=sys.argv[2])
fort.backend = BubblewrapBackend(bwrap, fort.place)
fort.start()
"""


def test_nothing_is_left_when_the_platform_is_killed_as_it_starts_a_sandbox(
    tmp_path: Path,
) -> None:
    """Here just before bwrap begins, which then has nobody to tell anything."""
    killer = tmp_path / "bwrap"
    killer.write_text(f'#!/bin/sh\nkill -9 $PPID\nexec {needs_program("bwrap")} "$@"\n')
    killer.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path), str(killer)],
        stdout=subprocess.PIPE,
        check=False,
    )

    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: not any(str(tmp_path) in line for line in _commands()))
    shutil.rmtree(done.stdout.decode().strip())


def _commands() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                found.append((entry / "cmdline").read_text(errors="replace"))
            except OSError:
                continue
    return found


def test_close_ends_all_and_leaves_no_thread(tmp_path: Path) -> None:
    """Blank sandboxes, too."""
    before = set(threading.enumerate())
    fort = Fort(tmp_path, warm=1)
    fort.blanks.begin()
    sandbox = fort.start(SERVER + "\nserve()")
    wait_until(lambda: fort.blanks.ready == 1, timeout=20.0)
    fort.close()

    assert list(processes_marked(sandbox.spec.sandbox_id)) == []
    assert not (tmp_path / "blank").exists()
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_close_does_not_wait_for_a_blank_sandbox_that_is_being_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Here one that would never be ready; its maker ends, and complains of nothing."""
    fort = Fort(tmp_path)
    wrapped = tmp_path / "bwrap"
    wrapped.write_text(
        _NEVER_READY.format(python=sys.executable, bwrap=fort.bwrap.path)
    )
    wrapped.chmod(0o755)
    bwrap = attrs.evolve(fort.bwrap, path=str(wrapped), helpers=())
    fort.backend = backend = BubblewrapBackend(bwrap, fort.place, warm=1)
    threads = new_threads("ppio-sandbox-warm")
    backend.begin()
    wait_until(lambda: list(fort.place.blank.glob("*/app/begun")), timeout=20.0)
    begun = time.monotonic()
    fort.close()

    assert time.monotonic() - begun < 4.0 * SLOW
    assert threads() == []
    assert caplog.text == ""


# Everything as it is, but for the supervisor, the command behind `--`.
_NEVER_READY = """\
#!{python}
import os, sys
cut = sys.argv.index("--")
command = ["/bin/sh", "-c", "echo >/app/begun; exec sleep 100"]
os.execv({bwrap!r}, [{bwrap!r}, *sys.argv[1:cut + 1], *command])
"""
