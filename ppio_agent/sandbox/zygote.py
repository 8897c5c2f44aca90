"""The zygote: one warm process whose forks are supervisors of sandboxes.

It is started by exec, never as a fork of a program with threads, has one thread, and
has imported what supervisors and agents import. The platform asks it over a line (see
`supervisor.channel`): ``{"id", "sandbox_id", "cwd", "log"}`` with the socket at which
the supervisor listens; it answers ``{"reply", "pid"}`` with a pidfd, or ``{"reply",
"error"}``, where the reply is the id.

It is a sub-reaper: what a killed supervisor leaves becomes its child, and is killed. When
its line ends, or the platform does, it forks no more, and stays until its last
supervisor has ended; it ends none of them, for another platform may take them over.

Linux only.
"""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import time
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from ppio_agent.sandbox.supervisor import tree
from ppio_agent.sandbox.supervisor.channel import (
    ChannelError,
    MessageReader,
    encode_message,
    receive,
)
from ppio_agent.sandbox.supervisor.forked import Warm, preload, run
from ppio_agent.sandbox.supervisor.main import main as supervise
from ppio_agent.sandbox.supervisor.marker import Marker
from ppio_agent.sandbox.supervisor.spawn import become_subreaper, name_process

__all__ = ["BLANK_ID", "Request", "Zygote", "main"]

BLANK_ID = "-" * 20
"""Value of the marker of the zygote itself: of the length that all ids have."""

# For how long ended children are reaped before it is looked what else there is to do:
# some that fork on and on end as fast as that.
_REAP_LIMIT = 0.05
# How often orphans are looked for while there are ended children without end: a look
# at a full table takes seconds.
_ORPHANS_EVERY = 1.0


class Request(NamedTuple):
    """A supervisor that is wanted.

    Attributes:
        sandbox_id: Value of its marker.
        cwd: Its folder.
        log: Where its errors go.
        listener: The socket at which it listens, a descriptor.
    """

    sandbox_id: str
    cwd: str
    log: str
    listener: int


class Zygote:
    """Forks, and reaps what it has forked.

    Args:
        line: To the platform; owned from now on.
        platform: A pidfd of the platform, for a fork of it may hold the line open;
            owned from now on.

    Thread safety: one thread at a time.
    """

    def __init__(self, line: socket.socket, platform: int) -> None:
        self._line = line
        self._platform = platform
        self._reader = MessageReader()
        self._fds: list[int] = []
        self._supervisors: set[int] = set()
        self._wake, self._waker = os.pipe()
        for fd in (self._wake, self._waker):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._asked = True
        self._childless = True
        self._orphans = False
        self._looked = -math.inf

    def serve(self) -> Request | None:
        """Fork as often as is asked for.

        Returns:
            In a fork what it is to be, with nothing left of this; None when nobody
            asks any more and the last supervisor, and what it left, has ended.

        Blocking: until then.
        """
        self._say({"ready": True})
        while self._asked or not self._childless:
            asking = [self._line.fileno(), self._platform] if self._asked else []
            ready, _, _ = select.select([self._wake, *asking], [], [])
            if self._wake in ready:
                self._reap()
            if self._platform in ready:
                self._asked = False
            elif self._line.fileno() in ready:
                request = self._read()
                if request is not None:
                    return request
        return None

    def _read(self) -> Request | None:
        try:
            data, fds = receive(self._line)
            self._fds += fds
            messages = self._reader.feed(data)
        except (OSError, ChannelError):
            data, messages = b"", []
        if not data:
            self._asked = False
        for message in messages:
            listener = self._fds.pop(0)
            request = Request(
                str(message["sandbox_id"]),
                str(message["cwd"]),
                str(message["log"]),
                listener,
            )
            if self._fork(message["id"]):
                return request
            os.close(listener)
        return None

    def _fork(self, number: object) -> bool:
        """Fork; return whether this is the child, in which nothing of this is left."""
        try:
            pid = os.fork()
        except OSError as exc:
            self._say({"reply": number, "error": str(exc)})
            return False
        if pid == 0:
            self._leave()
            return True
        self._supervisors.add(pid)
        self._childless = False
        handle = os.pidfd_open(pid)
        self._say({"reply": number, "pid": pid}, handle)
        os.close(handle)
        return False

    def _leave(self) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._line.close()
        for fd in (self._platform, self._wake, self._waker, *self._fds):
            os.close(fd)

    def _say(self, message: dict[str, object], *fds: int) -> None:
        try:
            socket.send_fds(self._line, [encode_message(message)], fds)
        except OSError:
            self._asked = False

    def _reap(self) -> None:
        """Take note of ended children, and kill those that are nobody's."""
        with suppress(BlockingIOError):
            os.read(self._wake, 4096)
        end = time.monotonic() + _REAP_LIMIT
        while time.monotonic() < end:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._childless = True
                break
            if pid == 0:
                break
            # One that ends as it should has seen that nothing is left of it.
            self._orphans |= status != 0 or pid not in self._supervisors
            self._supervisors.discard(pid)
        else:
            with suppress(BlockingIOError):  # full of what says the same
                os.write(self._waker, b".")
            if time.monotonic() - self._looked < _ORPHANS_EVERY:
                return
        if self._orphans:
            self._orphans = False
            self._kill_orphans()
            self._looked = time.monotonic()

    def _kill_orphans(self) -> None:
        me = os.getpid()
        for pid, entry in tree.table().items():
            if entry.parent == me and pid not in self._supervisors:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def main(line: int, platform_pid: int, fresh: Collection[str]) -> None:
    """Be the zygote of a platform; in a fork, a supervisor or an agent.

    Args:
        line: A socket to the platform.
        platform_pid: Its process, the parent.
        fresh: The modules that this interpreter had loaded when it had started.
    """
    # Whoever started the platform may have blocked some.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    marker = Marker(BLANK_ID)
    warm = preload(fresh)
    become_subreaper()
    name_process("ppio-zygote")
    platform = os.pidfd_open(platform_pid)
    if os.getppid() != platform_pid:  # it ended before it could be watched
        return
    request = Zygote(socket.socket(fileno=line), platform).serve()
    if request is None:
        os._exit(0)  # there is nothing to tidy up
    run(partial(_supervise, request, marker, warm))


def _supervise(request: Request, marker: Marker, warm: Warm) -> None:
    os.setsid()
    marker.write(request.sandbox_id)
    name_process("ppio-supervisor")
    os.chdir(request.cwd)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    log = os.open(request.log, flags, 0o666)
    os.dup2(log, 2)
    os.close(log)
    supervise(request.listener, warm)
