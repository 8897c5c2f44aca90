"""A supervisor whose platform is killed while it starts: it never stays behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.sandbox.cloud import remove_sockets
from tests.support import SLOW, wait_until

PARENT = """
import os, signal, sys
from pathlib import Path
from ppio_agent.sandbox.backends import line, process
from ppio_agent.sandbox.backends.base import LineAddress, SandboxSpec
from ppio_agent.sandbox.backends.layout import Layout
from ppio_agent.sandbox.backends.startup import boot_message
from ppio_agent.sandbox.supervisor.channel import encode_message

root, entrypoint, told, held = Path(sys.argv[1]), *sys.argv[3:]
spec = SandboxSpec(
    sandbox_id="orphan",
    template_id="t",
    root=root,
    line=LineAddress(path=sys.argv[2], secret="s" * 32),
    entrypoint=entrypoint or None,
    orphan_grace=0.05,
)
layout = Layout(root=root)
layout.write(sys.executable)
listener = line.listen(spec.line)
sock = line.call(spec.line)
process._exec_supervisor(listener, "orphan", layout)
listener.close()
if told:
    folders = {name: str(root / name) for name in ("home", "app", "tmp")}
    env = layout.environment(spec, port=1)
    log = str(layout.agent_log)
    boot = boot_message(spec, env=env, log=log, port=1, confined=True, **folders)
    sock.sendall(encode_message({"boot": boot}))
if held and (fork := os.fork()) == 0:  # holds the line open
    signal.pause()
print(fork if held else 0, flush=True)
os._exit(0)
"""

# One platform for each folder, after each other, with what is imported once.
PLATFORMS = """
import os, sys, threading
from ppio_agent.sandbox import PlatformConfig, SandboxPlatform
from urllib.request import Request, urlopen

def create(url):
    headers = {"X-API-KEY": "k" * 20, "Content-Type": "application/json"}
    urlopen(Request(url + "/sandboxes", b'{"templateID": "base"}', headers)).read()

def run(folder):
    keys = {"k" * 20: "t"}
    config = PlatformConfig(data_dir=folder, keys=keys, orphan_grace=0.05)
    platform = SandboxPlatform(config)
    platform.start()
    for _ in range(8):
        threading.Thread(target=create, args=(platform.url,)).start()
    print(os.getpid(), flush=True)
    threading.Event().wait()

for folder in sys.argv[1:]:
    platform = os.fork()
    if platform == 0:
        run(folder)
    os.waitpid(platform, 0)
"""


def supervisors_below(folder: Path) -> list[int]:
    """Return the supervisors that work in a folder below `folder`."""
    found = []
    for candidate in psutil.process_iter():
        with suppress(psutil.Error):
            if candidate.status() == psutil.STATUS_ZOMBIE:
                continue
            ours = Path(candidate.cwd()).is_relative_to(folder)
            if ours and "sandbox.supervisor" in " ".join(candidate.cmdline()):
                found.append(candidate.pid)
    return found


@pytest.mark.parametrize("held", ["", "held"])
@pytest.mark.parametrize("told", ["", "told"])
@pytest.mark.parametrize("entrypoint", ["", "app.py"])
def test_a_supervisor_ends_when_its_platform_has_ended_before_it_is_up(
    tmp_path: Path, entrypoint: str, told: str, held: str
) -> None:
    """Told or not what it is to be, and even if a fork of the platform lives on."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "app.py").write_text("import signal\nsignal.pause()\n")
    sockets = tempfile.mkdtemp()
    arguments = [str(tmp_path), f"{sockets}/s", entrypoint, told, held]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        fork = int(parent.stdout.readline())
        try:
            assert parent.wait(10 * SLOW) == 0
            wait_until(lambda: not supervisors_below(tmp_path), what="it ends")
        finally:
            if fork:
                psutil.Process(fork).kill()
            shutil.rmtree(sockets)


def test_no_supervisor_stays_when_a_platform_is_killed_amid_creates(
    tmp_path: Path,
) -> None:
    """At whatever instant of their start the platform goes."""
    folders = [str(tmp_path / str(number)) for number in range(6)]
    arguments = [sys.executable, "-c", PLATFORMS, *folders]
    try:
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as platforms:
            assert platforms.stdout is not None
            for number, pid in enumerate(platforms.stdout):
                threading.Event().wait(0.02 + 0.02 * number)
                os.kill(int(pid), signal.SIGKILL)
        assert (number, platforms.returncode) == (5, 0)
        wait_until(lambda: not supervisors_below(tmp_path), timeout=8, what="all end")
    finally:
        for folder in folders:
            remove_sockets(Path(folder))
