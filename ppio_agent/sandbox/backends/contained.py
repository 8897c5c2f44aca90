"""One blank sandbox in namespaces of its own: started, held on to, and ended.

Blank means that its supervisor waits to be told what it is to be.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from io import FileIO
from json import loads
from pathlib import Path
from typing import IO

from attrs import evolve, frozen

from ppio_agent._util.clock import Deadline
from ppio_agent._util.fork import no_fork
from ppio_agent.exceptions import SandboxStartError
from ppio_agent.sandbox.supervisor.forked import BASE_ENVIRONMENT
from ppio_agent.sandbox.supervisor.tree import MARKER

from .base import LineAddress
from .bwrap_args import (
    ETC,
    OWN,
    Plan,
    arguments,
    interpreter_parts,
    package_part,
)
from .handles import ForeignProcess
from .layout import write_base
from .line import call, listen
from .seccomp import program
from .startup import package_origins, read_tail, supervisor_command
from .uplink import Helper, Uplink, connect, resolver

__all__ = ["Bwrap", "ContainedProcess", "supervisor_log"]

_log = logging.getLogger(__name__)

_INFO_LIMIT = 5.0
_MAX_INFO = 4096
_LOOK_EVERY = 0.001
_LOAD_LIMIT = 20.0
_END_LIMIT = 2.0


def supervisor_log(root: Path) -> Path:
    """Return where bwrap and the supervisor complain, which nobody inside can see."""
    return root / "supervisor.log"


class ContainedProcess:
    """A supervisor in its namespaces, and what waits outside for its end.

    Args:
        pid: The supervisor, as this process sees it.
        monitor: The `bwrap` that waits for it.

    Attributes:
        uplink: Its way to the network, if it has one; ended with it.

    Raises:
        OSError: It has ended.
    """

    def __init__(self, pid: int, monitor: subprocess.Popen[bytes]) -> None:
        self._process = ForeignProcess(os.pidfd_open(pid))
        self._monitor = monitor
        self.uplink: Uplink | None = None

    @property
    def pid(self) -> int:
        """See `ProcessHandle.pid`."""
        return self._process.pid

    def wait(self, timeout: float) -> bool:
        """See `ProcessHandle.wait`."""
        return self._process.wait(timeout)

    def kill(self) -> None:
        """See `ProcessHandle.kill`; the end of the first process is that of all."""
        self._process.kill()

    def close(self) -> None:
        """See `ProcessHandle.close`; what was beside it outside is reaped."""
        self._process.close()
        if self.uplink is not None:
            self.uplink.close()
        _reap(self._monitor)


def _reap(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_END_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@frozen(kw_only=True)
class Bwrap:
    """How sandboxes are made on this machine.

    Attributes:
        path: The program `bwrap`.
        helpers: What connects them to the network.
        offline: Why there is none that can, and what to do.
        no_namespaces: Whether `bwrap` can keep those inside from making namespaces.
        hidden: Folders that no sandbox may see.
    """

    path: str
    helpers: Sequence[Helper] = ()
    offline: str = ""
    no_namespaces: bool = True
    hidden: Sequence[str] = ()

    def make(
        self,
        sandbox_id: str,
        root: Path,
        line: LineAddress,
        *,
        internet: bool,
        warm: bool = False,
        python: str | None = None,
        on_begun: Callable[[ContainedProcess], object] = lambda _: None,
    ) -> tuple[socket.socket, ContainedProcess]:
        """Make a blank sandbox.

        Args:
            sandbox_id: Its marker.
            root: Its folder; what is missing in it is made.
            line: Where its supervisor is reached.
            internet: Whether it is connected to the network.
            warm: Whether its supervisor loads what agents load, which is waited for.
            python: The interpreter inside, in an environment of its own; None for this
                one.
            on_begun: Told its process as soon as there is one; killing that ends the
                making.

        Returns:
            The line to the supervisor, and its process.

        Raises:
            SandboxStartError: It cannot be made; nothing of it is left.
            OSError: The same, for its files.
        """
        _write_files(root, python)
        shown = () if python is None else (str(Path(python).parents[1]),)
        start = partial(self._exec, sandbox_id, root, warm=warm, shown=shown)
        try:
            return self._make(
                sandbox_id, root, line, start, internet=internet, on_begun=on_begun
            )
        except OSError as exc:
            said = read_tail(supervisor_log(root)).strip()
            raise SandboxStartError(
                f"sandbox {sandbox_id} could not be started: {said or exc}", said=said
            ) from exc

    def _make(
        self,
        sandbox_id: str,
        root: Path,
        line: LineAddress,
        start: Callable[[tuple[int, int, int]], subprocess.Popen[bytes]],
        *,
        internet: bool,
        on_begun: Callable[[ContainedProcess], object],
    ) -> tuple[socket.socket, ContainedProcess]:
        with ExitStack() as always, ExitStack() as on_error:
            listener = always.enter_context(listen(line))
            on_error.callback(Path(line.path).unlink, missing_ok=True)
            # Called before there is anybody, who so finds the platform or its end.
            sock = call(line)
            on_error.callback(sock.close)
            # A file, for bwrap would die of a pipe that a platform which was killed no
            # longer reads, and leave a child that waits for it for ever.
            info = always.enter_context(FileIO(root / "bwrap.json", "w+"))
            with no_fork():
                alive, alive_end = map(always.enter_context, _pipe())
                monitor = start((listener.fileno(), info.fileno(), alive_end.fileno()))
                on_error.callback(_reap, monitor)
                alive_end.close()
            if monitor.stdout is not None:
                always.enter_context(monitor.stdout)
            process = ContainedProcess(_read_pid(info, monitor), monitor)
            on_error.callback(process.close)
            on_error.callback(process.kill)
            on_begun(process)
            if internet:
                process.uplink = connect(
                    self.helpers,
                    process.pid,
                    sandbox_id=sandbox_id,
                    alive=alive.fileno(),
                    log=root / "uplink.log",
                )
            if monitor.stdout is not None:
                _wait_until_loaded(monitor.stdout)
            on_error.pop_all()
        return sock, process

    def _exec(
        self,
        sandbox_id: str,
        root: Path,
        ends: tuple[int, ...],
        *,
        warm: bool,
        shown: Sequence[str],
    ) -> subprocess.Popen[bytes]:
        listener, info, alive = ends
        plan = Plan(
            root=root,
            visible=_visible(),
            hidden=self.hidden,
            shown=shown,
            environment={MARKER: sandbox_id, **BASE_ENVIRONMENT},
            command=supervisor_command(
                "ppio_agent.sandbox.supervisor.contained", listener, alive, warm=warm
            ),
            info_fd=info,
            no_namespaces=self.no_namespaces,
        )
        rules, told = _pipe()
        with rules, open(supervisor_log(root), "ab") as stderr:
            with told:  # which is less than a pipe holds
                known = told.write(_rules())
            if known:
                plan = evolve(plan, rules_fd=rules.fileno())
                ends = (*ends, rules.fileno())
            return subprocess.Popen(
                [self.path, *arguments(plan)],
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if warm else subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=ends,
                start_new_session=True,
            )


def _pipe() -> tuple[FileIO, FileIO]:
    reader, writer = os.pipe()
    return FileIO(reader, "rb"), FileIO(writer, "wb")


def _read_pid(info: FileIO, monitor: subprocess.Popen[bytes]) -> int:
    """Return the pid of the first process, which bwrap tells when it has made it.

    Raises:
        OSError: It has made none.
    """
    deadline, never = Deadline.after(_INFO_LIMIT), threading.Event()
    while not deadline.expired:
        ended = monitor.poll() is not None
        try:
            return int(loads(os.pread(info.fileno(), _MAX_INFO, 0))["child-pid"])
        except ValueError:  # not written yet, or not all of it
            if ended:
                break
        never.wait(_LOOK_EVERY)
    raise OSError("bwrap has made no process")


def _wait_until_loaded(said: IO[bytes]) -> None:
    """Wait until a warm supervisor says that it has loaded what agents load.

    Raises:
        OSError: It has not.
    """
    # `select` refuses descriptors from 1024 on, which a busy platform has.
    ready = select.poll()
    ready.register(said, select.POLLIN)
    if not ready.poll(_LOAD_LIMIT * 1000) or not os.read(said.fileno(), 1):
        raise OSError("the supervisor has not loaded what agents load")


@cache
def _rules() -> bytes:
    """Return the program that refuses calls of the kernel inside, if there is one."""
    machine, bits = os.uname().machine, struct.calcsize("P") * 8
    rules = program(machine, bits)
    if not rules:
        _log.warning(
            "no families of sockets are refused in sandboxes: for %d-bit programs on"
            " %s there is no filter",
            bits,
            machine,
        )
    return rules


@cache
def _visible() -> tuple[str, ...]:
    """Return what of the host, besides the system, is needed to run a supervisor."""
    found = [package_part(origin) for origin in package_origins()]
    for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix}:
        # By both names, where one leads to the other by a link.
        found += interpreter_parts(prefix)
        found += interpreter_parts(os.path.realpath(prefix))
    # A chain of links may lead anywhere.
    found.append(os.path.realpath(sys.executable))
    return tuple(dict.fromkeys(path for path in found if os.path.exists(path)))


def _write_files(root: Path, python: str | None) -> None:
    """Make the folders and files of a sandbox that are not there yet."""
    write_base(root, (*OWN, "etc"), python or sys.executable)
    try:
        host = Path("/etc/resolv.conf").read_text(encoding="utf-8", errors="replace")
    except OSError:
        host = ""
    for name, text in {**ETC, "resolv.conf": resolver(host)}.items():
        (root / "etc" / name).write_text(text, encoding="utf-8")
